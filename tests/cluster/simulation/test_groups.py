"""The simulated broker's addresses of controllers, and what a process that stands still looks like from outside."""

from collections.abc import Callable
from random import Random

from cluster.node import Event, LinkDown, LinkUp, NoResponders, Received, SendFailed
from cluster.policy import LinkPolicy
from cluster.protocol import CONTROLLERS, EVERY_CONTROLLER, Ping
from cluster.simulation.kernel import Kernel
from cluster.simulation.network import Condition, Flow, Link, Network, NetworkCosts

POLICY = LinkPolicy()
BROKER_LIMIT_S = POLICY.broker_ping_s * (POLICY.broker_pings_outstanding_max + 1)


class Bus:
    """One client and some controllers, and what each was told."""

    def __init__(self, controllers: int, seed: int = 0) -> None:
        self.kernel = Kernel()
        self.network = Network(self.kernel, POLICY, NetworkCosts(), Random(seed))
        self.told: dict[str, list[Event]] = {}
        self.links: dict[str, Link] = {}
        self.controllers = [f"c{number}" for number in range(controllers)]
        for name in ["client", *self.controllers]:
            self.told[name] = []
            self.links[name] = self.network.link(name, self._listener(name), controller=name in self.controllers)
            self.links[name].open()
        self.wait(1.0)

    def _listener(self, name: str) -> Callable[[Event], None]:
        return self.told[name].append

    def wait(self, seconds: float) -> None:
        """Let the bus go on."""
        self.kernel.run_until(self.kernel.now + seconds)

    def send(self, to: str, *texts: str) -> None:
        """The client publishes to an address."""
        for text in texts:
            self.links["client"].send(to, Ping(text), True)
        self.wait(0.01)

    def heard(self, name: str) -> list[str]:
        """The texts that reached a node."""
        messages = [event.message for event in self.told[name] if isinstance(event, Received)]
        return [message.client for message in messages if isinstance(message, Ping)]

    def links_of(self, name: str) -> list[type[Event]]:
        """What a node was told of its link."""
        return [type(event) for event in self.told[name] if isinstance(event, LinkUp | LinkDown)]


def test_what_is_for_every_controller_reaches_each_of_them_once_and_nobody_else() -> None:
    bus = Bus(3)
    bus.send(EVERY_CONTROLLER, "a", "b")
    assert [bus.heard(name) for name in bus.controllers] == [["a", "b"]] * 3
    assert bus.heard("client") == []


def test_what_is_for_any_controller_reaches_one_and_all_get_their_share_by_the_seed() -> None:
    texts = [str(number) for number in range(300)]

    def shares(seed: int) -> list[list[str]]:
        bus = Bus(3, seed)
        bus.send(CONTROLLERS, *texts)
        return [bus.heard(name) for name in bus.controllers]

    assert sorted(text for share in shares(1) for text in share) == sorted(texts)
    assert all(60 < len(share) < 140 for share in shares(1))
    assert shares(1) == shares(1) != shares(2)


def test_nobody_responds_for_the_controllers_when_none_is_subscribed() -> None:
    bus = Bus(2)
    bus.links["c0"].close()
    bus.send(CONTROLLERS, "one is left")
    assert bus.heard("c1") == ["one is left"]
    bus.links["c1"].set_condition(Condition(refused=True))
    for address in (CONTROLLERS, EVERY_CONTROLLER):
        bus.send(address, address)
    refused = [event.to for event in bus.told["client"] if isinstance(event, NoResponders)]
    assert refused == [CONTROLLERS, EVERY_CONTROLLER]


def test_a_frozen_process_hears_everything_late_and_in_order_when_it_thaws_in_time() -> None:
    bus = Bus(1)
    bus.links["c0"].freeze()
    bus.send("c0", "a", "b")
    bus.wait(BROKER_LIMIT_S - POLICY.broker_ping_s - 0.5)
    assert bus.heard("c0") == []
    bus.links["c0"].thaw()
    assert bus.heard("c0") == ["a", "b"]
    bus.wait(2 * BROKER_LIMIT_S)
    assert bus.links_of("c0") == [LinkUp]


def test_the_broker_drops_a_process_that_stands_still_for_too_long_which_learns_of_it_at_the_thaw() -> None:
    bus = Bus(1)
    bus.links["c0"].freeze()
    bus.send("c0", "waits at its socket")
    bus.wait(BROKER_LIMIT_S)
    bus.send("c0", "finds nobody")
    assert [event.message for event in bus.told["client"] if isinstance(event, NoResponders)] == [Ping("finds nobody")]
    assert bus.links_of("c0") == [LinkUp]
    bus.links["c0"].thaw()
    assert bus.heard("c0") == ["waits at its socket"]
    bus.wait(1.0)
    assert bus.links_of("c0") == [LinkUp, LinkDown, LinkUp]


def test_a_new_process_stands_behind_the_same_proxy_and_gets_nothing_that_was_for_the_former() -> None:
    bus = Bus(1)
    bus.links["c0"].set_condition(Condition(Flow.HOLD, Flow.HOLD, close_passes=False))
    bus.send("c0", "for the former")
    bus.links["c0"].close()
    told: list[Event] = []
    again = bus.network.link("c0", told.append, controller=True)
    again.open()
    bus.wait(2.0)
    assert told == []
    again.set_condition(Condition())
    bus.wait(3.0)
    assert [type(event) for event in told] == [LinkUp]
    bus.send(CONTROLLERS, "for the new one")
    assert [event.message for event in told if isinstance(event, Received)] == [Ping("for the new one")]
    assert not [event for event in bus.told["client"] if isinstance(event, SendFailed)]
