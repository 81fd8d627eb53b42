"""The simulated bus against the measured table of reference/nats.md: what each way of cutting a link looks like."""

from random import Random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cluster.node import Event, LinkDown, LinkUp, NoResponders, Received, SendFailed
from cluster.policy import LinkPolicy
from cluster.protocol import Ping
from cluster.simulation.kernel import Kernel
from cluster.simulation.network import Condition, Flow, Link, Network, NetworkCosts
from tests.cluster import QUICK

REFUSE = Condition(refused=True)
HANDSHAKE = Condition(Flow.DROP, Flow.DROP)
BLACK_HOLE = Condition(Flow.DROP, Flow.DROP, close_passes=False)
STALL = Condition(Flow.HOLD, Flow.HOLD, close_passes=False)
UPSTREAM = Condition(upstream=Flow.DROP)
DOWNSTREAM = Condition(downstream=Flow.DROP)
CLEAR = Condition()
TRAVEL_S = 0.0011
"""Node to broker to node, at most."""


class Bus:
    """Two nodes, and what each was told and when."""

    def __init__(self, policy: LinkPolicy | None = None, seed: int = 0) -> None:
        self.kernel = Kernel()
        self.network = Network(self.kernel, policy or LinkPolicy(), NetworkCosts(), Random(seed))
        self.told: dict[str, list[tuple[float, Event]]] = {"a": [], "b": []}
        self.links: dict[str, Link] = {}
        for name in self.told:
            self.links[name] = self.network.link(name, lambda event, name=name: self._hear(name, event))  # type: ignore[misc]
            self.links[name].open()
        self.kernel.run_until(1.0)

    def _hear(self, name: str, event: Event) -> None:
        self.told[name].append((self.kernel.now, event))

    def send(self, sender: str, text: str, *, needs_responder: bool = True) -> None:
        self.links[sender].send("b" if sender == "a" else "a", Ping(text), needs_responder)

    def heard(self, name: str) -> list[str]:
        events = [event for _, event in self.told[name] if isinstance(event, Received)]
        return [event.message.client for event in events if isinstance(event.message, Ping)]

    def bounced(self, name: str) -> list[str]:
        events = [event for _, event in self.told[name] if isinstance(event, NoResponders | SendFailed)]
        return [event.message.client for event in events if isinstance(event.message, Ping)]

    def times(self, name: str, kind: type[Event]) -> list[float]:
        return [time_s for time_s, event in self.told[name] if isinstance(event, kind)]

    def wait(self, seconds: float) -> None:
        self.kernel.run_until(self.kernel.now + seconds)


@QUICK
@given(st.integers(0, 1_000), st.lists(st.floats(0, 0.0005), max_size=40))
def test_a_clear_link_delivers_everything_once_in_order_and_after_its_travel_time(seed: int, gaps: list[float]) -> None:
    bus = Bus(seed=seed)
    for number, gap_s in enumerate(gaps):
        bus.send("a", str(number))
        bus.wait(gap_s)
    bus.wait(0.01)
    assert bus.heard("b") == [str(number) for number in range(len(gaps))]
    assert bus.bounced("a") == []


def test_a_node_is_told_of_its_link_before_anything_arrives_over_it() -> None:
    bus = Bus()
    assert [type(event) for _, event in bus.told["b"]] == [LinkUp]


def test_refuse_is_noticed_by_both_ends_at_once_and_requests_to_it_have_no_responders() -> None:
    bus = Bus()
    bus.links["b"].set_condition(REFUSE)
    assert bus.times("b", LinkDown) == [1.0]
    bus.send("a", "x")
    bus.send("b", "y")
    bus.wait(TRAVEL_S)
    assert bus.bounced("a") == ["x"]
    assert bus.bounced("b") == ["y"]
    bus.wait(5.0)
    bus.links["b"].set_condition(CLEAR)
    healed_s = bus.kernel.now
    bus.wait(1.0)
    assert 0 <= bus.times("b", LinkUp)[-1] - healed_s <= LinkPolicy().reconnect_s + TRAVEL_S


@pytest.mark.parametrize("condition", [HANDSHAKE, UPSTREAM, DOWNSTREAM, BLACK_HOLE, STALL])
def test_a_silent_link_is_noticed_by_the_nodes_own_pings(condition: Condition) -> None:
    bus = Bus()
    bus.links["b"].set_condition(condition)
    bus.wait(6.0)
    (down_s,) = bus.times("b", LinkDown)
    assert 2.0 <= down_s - 1.0 <= 3.0 + TRAVEL_S
    assert bus.times("a", LinkDown) == []


@pytest.mark.parametrize(("condition", "by_pings"), [(HANDSHAKE, False), (BLACK_HOLE, True), (STALL, True)])
def test_the_broker_learns_of_it_from_the_nodes_close_or_only_from_its_own_pings(
    condition: Condition, by_pings: bool
) -> None:
    bus = Bus()
    bus.links["b"].set_condition(condition)
    bus.wait(3.5)
    bus.send("a", "x")
    bus.wait(TRAVEL_S)
    assert bus.bounced("a") == ([] if by_pings else ["x"])
    bus.wait(4.0)
    bus.send("a", "y")
    bus.wait(TRAVEL_S)
    assert bus.bounced("a")[-1:] == ["y"]
    assert bus.heard("b") == []


def test_a_short_stall_loses_nothing_and_delivers_all_of_it_late() -> None:
    bus = Bus()
    bus.links["b"].set_condition(STALL)
    for number in range(10):
        bus.send("a", f"to b {number}")
        bus.send("b", f"to a {number}")
        bus.wait(0.1)
    assert bus.heard("b") == bus.heard("a") == []
    bus.links["b"].set_condition(CLEAR)
    bus.wait(0.01)
    assert bus.heard("b") == [f"to b {number}" for number in range(10)]
    assert bus.heard("a") == [f"to a {number}" for number in range(10)]
    assert bus.times("b", LinkDown) == []


def test_what_a_long_stall_held_reaches_the_broker_only_while_it_keeps_the_connection() -> None:
    """The node gave up after three seconds, the broker does after six; in between the held bytes still count."""
    for outage_s, arrives in ((4.0, True), (7.0, False)):
        bus = Bus()
        bus.links["b"].set_condition(STALL)
        bus.send("b", "held")
        bus.wait(outage_s)
        bus.links["b"].set_condition(CLEAR)
        bus.wait(1.5)
        assert bus.heard("a") == (["held"] if arrives else [])
        assert len(bus.times("b", LinkUp)) == 2


def test_a_black_hole_swallows_and_the_node_is_back_soon_after_the_heal() -> None:
    bus = Bus()
    bus.links["b"].set_condition(BLACK_HOLE)
    bus.send("a", "x")
    bus.send("b", "y")
    bus.wait(8.0)
    bus.links["b"].set_condition(CLEAR)
    healed_s = bus.kernel.now
    bus.wait(2.0)
    assert bus.heard("a") == bus.heard("b") == []
    assert bus.times("b", LinkUp)[-1] - healed_s <= 1.3
    bus.send("a", "again")
    bus.wait(TRAVEL_S)
    assert bus.heard("b") == ["again"]


@pytest.mark.parametrize(("condition", "reaches_b", "reaches_a"), [(UPSTREAM, True, False), (DOWNSTREAM, False, True)])
def test_one_way_cuts_pass_the_other_way(condition: Condition, reaches_b: bool, reaches_a: bool) -> None:
    bus = Bus()
    bus.links["b"].set_condition(condition)
    bus.send("a", "x")
    bus.send("b", "y")
    bus.wait(0.1)
    assert bus.heard("b") == (["x"] if reaches_b else [])
    assert bus.heard("a") == (["y"] if reaches_a else [])


def test_a_cut_that_ends_before_the_pings_run_out_does_no_lasting_harm() -> None:
    bus = Bus()
    for _ in range(5):
        bus.links["b"].set_condition(BLACK_HOLE)
        bus.wait(1.5)
        bus.links["b"].set_condition(CLEAR)
        bus.wait(0.5)
    assert bus.times("b", LinkDown) == []


def test_a_link_is_whole_again_after_the_heal_also_when_the_broker_gave_up_first() -> None:
    bus = Bus(LinkPolicy(ping_s=5.0, broker_ping_s=0.2))
    bus.links["b"].set_condition(BLACK_HOLE)
    bus.wait(2.0)
    assert bus.times("b", LinkDown) == []
    bus.links["b"].set_condition(CLEAR)
    bus.wait(1.0)
    bus.send("a", "x")
    bus.send("b", "y")
    bus.wait(TRAVEL_S)
    assert (bus.heard("b"), bus.heard("a")) == (["x"], ["y"])


def test_the_counters_show_both_ends_of_the_same_connection() -> None:
    bus = Bus()
    link = bus.links["b"]
    before = link.counters()
    bus.send("a", "x")
    bus.send("b", "y")
    bus.wait(0.01)
    after = link.counters()
    assert (after.node_in - before.node_in, after.node_out - before.node_out) == (1, 1)
    assert (after.broker_in, after.broker_out) == ((before.broker_in or 0) + 1, (before.broker_out or 0) + 1)
    link.set_condition(UPSTREAM)
    bus.send("b", "z")
    bus.wait(0.01)
    cut = link.counters()
    assert (cut.node_out, cut.broker_in) == (after.node_out + 1, after.broker_in)
    assert not link.echo()
    bus.wait(5.0)
    assert link.counters().connected is False
    assert link.counters(before.cid).broker_in is None
    link.set_condition(CLEAR)
    bus.wait(2.0)
    assert link.counters().cid not in (0, before.cid)
    assert link.echo()


def test_a_closed_link_is_silent_for_ever() -> None:
    bus = Bus()
    bus.links["b"].close()
    bus.send("a", "x")
    bus.wait(10.0)
    assert bus.bounced("a") == ["x"]
    assert [type(event) for _, event in bus.told["b"]] == [LinkUp]
