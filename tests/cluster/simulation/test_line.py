"""One direction of a connection: what a bad line does to what is sent over it, and what it leaves alone."""

from collections.abc import Callable
from random import Random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cluster.live.broker import BrokerSettings
from cluster.node import LinkDown, LinkUp, Received
from cluster.policy import LinkPolicy
from cluster.protocol import Ping
from cluster.simulation import connection
from cluster.simulation.connection import Connection, Patience, handshake_s, wire_bytes
from cluster.simulation.kernel import Kernel
from cluster.simulation.line import Line, Shaping
from tests.cluster import QUICK
from tests.cluster.simulation.test_network import CLEAR, REFUSE, STALL, TRAVEL_S, Bus

SHAPINGS = st.builds(
    Shaping,
    latency_s=st.floats(0.05, 0.5),
    jitter_s=st.floats(0, 0.05),
    bytes_per_s=st.none() | st.floats(1_000, 1e6),
    slice_bytes=st.none() | st.integers(1, 1_000),
    slice_delay_s=st.floats(0, 0.01),
)


class Stage:
    def __init__(self, shaping: Shaping | None = None, seed: int = 0) -> None:
        self.kernel = Kernel()
        self.random = Random(seed)
        self.line = Line(self.kernel, self.random, lambda: 0.001)
        self.line.shape(shaping)
        self.came: list[tuple[str, float]] = []

    def send(self, name: str, size_bytes: int = 100) -> None:
        self.line.carry(lambda: self.came.append((name, self.kernel.now)), lambda: size_bytes)

    def times(self) -> list[float]:
        return [round(time_s, 6) for _, time_s in self.came]


def test_a_good_line_asks_for_no_size_and_draws_no_luck() -> None:
    stage = Stage()
    before = stage.random.getstate()

    def size() -> int:
        raise AssertionError("a good line does not count bytes")

    stage.line.carry(lambda: stage.came.append(("a", stage.kernel.now)), size)
    stage.kernel.run_until(1.0)
    assert stage.times() == [0.001]
    assert stage.random.getstate() == before


def test_luck_is_drawn_only_for_a_jitter() -> None:
    stage = Stage(Shaping(latency_s=0.1, bytes_per_s=1_000.0))
    before = stage.random.getstate()
    stage.send("a")
    assert stage.random.getstate() == before
    stage.line.shape(Shaping(latency_s=0.1, jitter_s=0.01))
    stage.send("b")
    assert stage.random.getstate() != before


@pytest.mark.parametrize(
    ("shaping", "times"),
    [
        # A latency delays each by itself.
        (Shaping(latency_s=0.2), [0.201, 0.201]),
        # What is second waits until the first is through: 100 bytes at 1000 bytes/s.
        (Shaping(bytes_per_s=1_000.0), [0.101, 0.201]),
        # Four pieces of 30 bytes with a pause after each.
        (Shaping(slice_bytes=30, slice_delay_s=0.01), [0.041, 0.081]),
        (Shaping(latency_s=0.2, bytes_per_s=1_000.0), [0.301, 0.401]),
    ],
    ids=repr,
)
def test_what_each_shape_costs_two_messages_of_a_hundred_bytes(shaping: Shaping, times: list[float]) -> None:
    stage = Stage(shaping)
    stage.send("a")
    stage.send("b")
    stage.kernel.run_until(5.0)
    assert stage.times() == times


@QUICK
@given(SHAPINGS, st.integers(0, 99), st.lists(st.tuples(st.floats(0, 0.2), st.integers(1, 5_000)), max_size=20))
def test_everything_arrives_in_order_whatever_the_shapes_and_their_changes(
    shaping: Shaping, seed: int, sent: list[tuple[float, int]]
) -> None:
    stage = Stage(shaping, seed)
    for number, (gap_s, size_bytes) in enumerate(sent):
        stage.send(str(number), size_bytes)
        stage.kernel.run_until(stage.kernel.now + gap_s)
        if number % 3 == 2:
            stage.line.shape(None if number % 2 else shaping)
    stage.line.shape(None)
    stage.kernel.run_until(stage.kernel.now + 0.01)
    assert [name for name, _ in stage.came] == [str(number) for number in range(len(sent))]
    assert stage.times() == sorted(stage.times())


def test_jitter_stays_within_its_bounds_both_ways() -> None:
    stage = Stage(Shaping(latency_s=0.1, jitter_s=0.04))
    lateness: list[float] = []
    for _ in range(200):
        began_s = stage.kernel.now

        def came(began_s: float = began_s) -> None:
            lateness.append(stage.kernel.now - began_s)

        stage.line.carry(came, lambda: 0)
        stage.kernel.run_until(began_s + 1.0)
    assert 0.061 <= min(lateness) < 0.07
    assert 0.13 < max(lateness) <= 0.141


def _shaped(bus: Bus, node: str, up: Shaping | None, down: Shaping | None) -> None:
    bus.links[node].shape(up, down)


def _echo(bus: Bus, node: str, payload_bytes: int = 0) -> list[float]:
    back: list[float] = []
    bus.links[node].round_trip(payload_bytes, lambda: back.append(bus.kernel.now))
    return back


def test_an_echo_goes_there_and_back_over_both_lines_and_the_node_hears_nothing_of_it() -> None:
    bus = Bus()
    _shaped(bus, "b", Shaping(latency_s=0.2), Shaping(latency_s=0.3))
    began_s, heard = bus.kernel.now, len(bus.told["b"])
    back = _echo(bus, "b")
    bus.wait(1.0)
    assert back == [pytest.approx(began_s + 0.5, abs=TRAVEL_S)]
    assert len(bus.told["b"]) == heard


def test_an_echo_over_a_cut_or_closed_link_never_comes_back() -> None:
    bus = Bus()
    bus.links["b"].set_condition(STALL)
    back = _echo(bus, "b")
    bus.wait(10.0)
    assert back == []
    bus.links["a"].close()
    assert _echo(bus, "a") == []


def test_a_latency_below_the_pings_patience_costs_no_connection() -> None:
    bus = Bus()
    _shaped(bus, "b", Shaping(latency_s=0.9), Shaping(latency_s=0.9))
    bus.wait(30.0)
    assert bus.times("b", LinkDown) == []


def test_a_line_full_for_longer_than_the_pings_patience_costs_the_connection() -> None:
    bus = Bus()
    _shaped(bus, "b", None, Shaping(bytes_per_s=1_000.0))
    for _ in range(100):
        bus.send("a", "x" * 1_000, needs_responder=False)
    bus.wait(8.0)
    policy = LinkPolicy()
    (lost_s, *_) = bus.times("b", LinkDown)
    assert lost_s - 1.0 <= policy.ping_s * (policy.pings_outstanding_max + 1) + 0.01


def test_a_new_connection_over_a_bad_line_is_announced_when_it_works_and_not_before() -> None:
    bus = Bus()
    _shaped(bus, "b", Shaping(latency_s=0.3), Shaping(latency_s=0.3))
    bus.links["b"].set_condition(REFUSE)
    bus.links["b"].set_condition(CLEAR)
    lost_s = bus.kernel.now
    bus.wait(5.0)
    up_s = bus.times("b", LinkUp)[-1]
    # The wait, the greeting and the answer, and a message to itself.
    assert up_s - lost_s == pytest.approx(LinkPolicy().reconnect_s + 4 * 0.3, abs=3 * TRAVEL_S)
    bus.send("a", "hello")
    bus.wait(1.0)
    assert bus.heard("b") == ["hello"]


def test_over_a_line_too_slow_for_a_greeting_there_is_no_new_connection_until_it_is_better() -> None:
    assert handshake_s(None, Shaping(latency_s=1.1), 1.0) is None
    assert handshake_s(Shaping(latency_s=0.6), Shaping(latency_s=0.6), 1.0) is None
    assert handshake_s(None, Shaping(bytes_per_s=100.0), 1.0) is None
    assert handshake_s(Shaping(latency_s=0.4), Shaping(latency_s=0.5), 1.0) == pytest.approx(0.9)


def test_a_reader_that_is_too_slow_is_dropped_with_a_reason_and_what_waits_is_counted() -> None:
    bus = Bus()
    cid = bus.links["b"].counters().cid
    _shaped(bus, "b", None, Shaping(bytes_per_s=1_000.0))
    for _ in range(5):
        _echo(bus, "b", 900_000)
    bus.wait(0.5)
    assert 1_000_000 < bus.links["b"].counters(cid).pending_bytes < 5 * 900_000
    bus.wait(2.0)
    after = bus.links["b"].counters(cid)
    assert after.broker_in is None
    assert after.reason == "Slow Consumer (Write Deadline)"
    assert len(bus.times("b", LinkDown)) == 1


def test_more_than_may_wait_is_dropped_at_once() -> None:
    bus = Bus()
    cid = bus.links["b"].counters().cid
    _shaped(bus, "b", None, Shaping(bytes_per_s=1_000.0))
    for _ in range(14):
        _echo(bus, "b", 900_000)
    bus.wait(0.5)
    assert bus.links["b"].counters(cid).reason == "Slow Consumer (Pending Bytes)"


def test_the_broker_here_is_as_patient_as_the_real_one() -> None:
    settings = BrokerSettings()
    assert settings.write_deadline_s == connection.WRITE_DEADLINE_S
    assert settings.max_pending_bytes == connection.PENDING_BYTES_MAX


def test_a_shape_stays_with_the_proxy_when_the_node_gets_a_new_process() -> None:
    bus = Bus()
    _shaped(bus, "b", Shaping(latency_s=0.2), Shaping(latency_s=0.2))
    bus.links["b"].close()
    bus.links["b"] = bus.network.link("b", lambda event: bus.told["b"].append((bus.kernel.now, event)))
    bus.links["b"].open()
    bus.wait(2.0)
    began_s, back = bus.kernel.now, _echo(bus, "b")
    bus.wait(1.0)
    assert back == [pytest.approx(began_s + 0.4, abs=TRAVEL_S)]


def test_sizes_on_the_wire_grow_with_what_is_sent() -> None:
    small, large = Received(Ping("a")), Received(Ping("a" * 1_000))
    assert wire_bytes(large) - wire_bytes(small) >= 999


def test_nothing_is_pinged_once_the_line_is_good_again() -> None:
    kernel = Kernel()
    wire = Connection(1, "a", kernel, Random(0), lambda: 0.001)
    given_up: list[str] = []
    give_up: Callable[[str], None] = given_up.append
    patience = Patience(
        kernel,
        LinkPolicy(),
        wire,
        suspended=lambda: False,
        node_gives_up=lambda: given_up.append("node"),
        broker_gives_up=give_up,
    )
    patience.shape(Shaping(latency_s=60.0), None)
    kernel.run_until(1.5)
    patience.shape(None, None)
    kernel.run_until(30.0)
    assert given_up == []
    kernel.run_until(100.0)
    assert not kernel._heap
