"""Single messages on a simulated link, in the hands of somebody who holds, doubles, drops or damages them."""

from collections import deque
from collections.abc import Sequence
from random import Random

import pytest
from msgspec.structs import replace

from cluster.node import Event, NoResponders, Received
from cluster.policy import LinkPolicy
from cluster.protocol import Drain, Ping
from cluster.simulation.kernel import Kernel
from cluster.simulation.meddling import Parcel
from cluster.simulation.network import Link, Network, NetworkCosts


class Hold:
    """Holds everything for a second."""

    def __init__(self) -> None:
        self.held: deque[tuple[float, Parcel]] = deque()

    def feed(self, parcel: Parcel, now_s: float) -> Sequence[Parcel]:
        self.held.append((now_s + 1.0, parcel))
        return []

    def due_s(self) -> float | None:
        return self.held[0][0] if self.held else None

    def release(self, now_s: float) -> Sequence[Parcel]:
        due = []
        while self.held and self.held[0][0] <= now_s:
            due.append(self.held.popleft()[1])
        return due

    def flush(self) -> Sequence[Parcel]:
        parcels = [parcel for _, parcel in self.held]
        self.held.clear()
        return parcels


class AtOnce(Hold):
    """Lets `copies` of everything go at once; 0 drops. garble: as bytes that nobody understands."""

    def __init__(self, copies: int, *, garble: bool = False) -> None:
        super().__init__()
        self.copies = copies
        self.garble = garble

    def feed(self, parcel: Parcel, now_s: float) -> Sequence[Parcel]:
        return [replace(parcel, message=None) if self.garble else parcel] * self.copies


class Pair:
    """Two nodes, and what `b` hears."""

    def __init__(self) -> None:
        self.kernel = Kernel()
        self.network = Network(self.kernel, LinkPolicy(), NetworkCosts(), Random(1))
        self.heard: list[tuple[float, Event]] = []
        self.told: list[Event] = []
        self.a: Link = self.network.link("a", self.told.append)
        self.b: Link = self.network.link("b", lambda event: self.heard.append((self.kernel.now, event)))
        self.a.open()
        self.b.open()
        self.kernel.run_until(1.0)
        self.heard.clear()

    def say(self, *names: str) -> None:
        for name in names:
            self.a.send("b", Ping(name), False)

    def until(self, time_s: float) -> list[str]:
        self.kernel.run_until(time_s)
        return [event.message.client for _, event in self.heard if isinstance(event, Received)]  # type: ignore[union-attr]


@pytest.mark.parametrize("way", ["up", "down"])
def test_what_is_held_comes_later_and_in_order(way: str) -> None:
    pair = Pair()
    (pair.a.up if way == "up" else pair.b.down).add(Hold())
    pair.say("1", "2")
    assert pair.until(1.9) == []
    assert pair.until(2.1) == ["1", "2"]


def test_whoever_is_taken_away_gives_back_what_it_holds_through_those_behind_it() -> None:
    pair = Pair()
    hold, twice = Hold(), AtOnce(2)
    pair.a.up.add(hold)
    pair.a.up.add(twice)
    pair.say("1")
    pair.kernel.run_until(1.5)
    pair.a.up.remove(hold)
    pair.a.up.remove(hold)
    pair.say("2")
    assert pair.until(1.6) == ["1", "1", "2", "2"]


def test_each_end_counts_what_passes_it() -> None:
    pair = Pair()
    before = pair.a.counters()
    pair.a.up.add(AtOnce(0))
    pair.say("1", "2", "3")
    pair.until(1.1)
    after = pair.a.counters()
    assert before.broker_in is not None
    assert (after.node_out - before.node_out, after.broker_in) == (3, before.broker_in)


@pytest.mark.parametrize("way", ["up", "down"])
def test_what_nobody_understands_is_counted_where_it_arrives_and_goes_no_further(way: str) -> None:
    pair = Pair()
    before = pair.b.counters()
    (pair.a.up if way == "up" else pair.b.down).add(AtOnce(1, garble=True))
    pair.say("1", "2")
    assert pair.until(1.1) == []
    after = pair.b.counters()
    assert (after.undecoded - before.undecoded, after.node_in - before.node_in) == (2, 2)
    assert pair.heard == []


def test_the_sender_of_what_was_damaged_learns_all_the_same_that_nobody_listens() -> None:
    pair = Pair()
    pair.a.up.add(AtOnce(1, garble=True))
    pair.a.send("nobody", Drain(), True)
    pair.until(1.1)
    assert NoResponders("nobody", Drain()) in pair.told


def test_a_new_process_of_the_node_is_behind_the_same_hands() -> None:
    pair = Pair()
    pair.a.up.add(AtOnce(0))
    pair.a.close()
    pair.a = pair.network.link("a", pair.told.append)
    pair.a.open()
    pair.until(2.0)
    pair.say("1")
    assert pair.until(2.1) == []
