"""After ten thousand requests every map, list and subscription of every node is as long as it was before them."""

from collections import deque
from collections.abc import Iterator
from typing import Any

import pytest

from analysis.schema import RequestRow, Row
from cluster.engine.timed import StepCosts
from cluster.node import Ask, Deliver
from cluster.policy import ClientPolicy, MemoryPolicy, Policy, RoutingPolicy
from cluster.simulation.cluster import SimulatedCluster
from cluster.simulation.network import Condition
from tests.cluster.simulation.stage import CUTS
from workloads.load import OpenLoop
from workloads.schedule import ScheduledRequest

WORKERS, CLIENTS, REQUESTS = 3, 4, 10_000
EVERY_S = 0.016
SESSIONS_MAX = 50
DEADLINE_S = 8.0
CACHE_BYTES_MAX = 2**20
# One token each.
CACHED_MAX = CACHE_BYTES_MAX // StepCosts().kv_bytes_per_token
POLICY = Policy(
    client=ClientPolicy(deadline_s=DEADLINE_S),
    routing=RoutingPolicy(sessions_max=SESSIONS_MAX),
    memory=MemoryPolicy(cache_bytes_max=CACHE_BYTES_MAX),
)
BOUNDED = {
    # Caches that are kept for the next turn, in the worker's books and in the engine.
    "_cache": CACHED_MAX,
    "_kept": CACHED_MAX,
    # Which worker holds the cache of a session.
    "_sessions": SESSIONS_MAX,
    # What was replaced or cleared stays in a heap of timers until it surfaces or outnumbers the live ones.
    "_heap": 64,
}
"""Attributes that remember on purpose: the most that they may hold in all. Everything else is back at its base."""


class Counting:
    """A sink and an observer that remember numbers only."""

    def __init__(self) -> None:
        self.asks = 0
        self.outcomes: dict[str, int] = {}

    def append(self, row: Row, now: float) -> None:
        """See Sink."""
        if isinstance(row, RequestRow):
            self.outcomes[row.outcome] = self.outcomes.get(row.outcome, 0) + 1

    def asked(self, ask: Ask) -> None:
        """See Observer."""
        self.asks += 1

    def ended(self, ask: Ask, end: Deliver, now: float) -> None:
        """See Observer."""


def attributes(thing: object) -> Iterator[tuple[str, object]]:
    """The attributes of an object, with and without a dict."""
    yield from getattr(thing, "__dict__", {}).items()
    for kind in type(thing).__mro__:
        slots = getattr(kind, "__slots__", ())
        for name in (slots,) if isinstance(slots, str) else slots:
            if hasattr(thing, name):
                yield name, getattr(thing, name)


def lengths(thing: object) -> dict[str, int]:
    """How many elements all containers below an object hold, by the path of attributes that leads to them."""
    found: dict[str, int] = {}
    # Whatever is met is kept here too, or another object could take its id.
    seen: dict[int, object] = {}

    def walk(thing: Any, path: str) -> None:
        if id(thing) in seen or isinstance(thing, (str, bytes, int, float, type(None))):
            return
        seen[id(thing)] = thing
        if isinstance(thing, (dict, list, set, frozenset, deque, tuple)):
            if not isinstance(thing, tuple):
                found[path] = found.get(path, 0) + len(thing)
            for value in thing.values() if isinstance(thing, dict) else thing:
                walk(value, path)
        elif type(thing).__module__.startswith("cluster."):
            for name, value in attributes(thing):
                walk(value, f"{path}.{name}")

    walk(thing, "")
    return found


def everything(cluster: SimulatedCluster) -> dict[str, int]:
    """The lengths of all nodes, engines and links, and of the broker's books. The rows and the load are the test's."""
    found: dict[str, int] = {}
    for name, shell in cluster.nodes.items():
        parts: dict[str, object] = {
            "node": shell.node,
            "engine": shell.engine,
            "asks": shell._asks,
            "late": shell._late_asks,
        }
        others = ("_network", "_kernel", "_deliver")
        parts |= {f"link{key}": value for key, value in attributes(shell.link) if key not in others}
        for part, thing in parts.items():
            found |= {f"{name}.{part}{path}": length for path, length in lengths(thing).items()}
    for name in ("links", "listed", "_subscribed"):
        found[f"network.{name}"] = len(getattr(cluster.network, name))
    return found


def allowed(path: str, bounded: dict[str, int]) -> int:
    """How many elements a path may hold whatever it held before, 0 where it must be back at its base."""
    return max((most for name, most in bounded.items() if name in path.split(".")), default=0)


class Soak:
    """Two controllers, three workers and four clients whose chats come and go."""

    def __init__(self) -> None:
        self.counting = Counting()
        self.cluster = SimulatedCluster(POLICY, WORKERS, CLIENTS, 1, lambda *_: self.counting, controllers=2)
        self.cluster.start()
        self.wait(2.0)

    def wait(self, seconds: float) -> None:
        """Let the cluster go on."""
        self.cluster.kernel.run_until(self.cluster.kernel.now + seconds)

    def offer(self, requests: int, name: str) -> float:
        """Let the clients ask for so many completions together; for how long they do, in seconds."""
        each = requests // CLIENTS
        for number in range(CLIENTS):
            plan = [
                ScheduledRequest(
                    request_id=f"{name}-{number}-{turn}",
                    intended_s=turn * EVERY_S,
                    session_id=f"{name}-{number}-{turn // 100}-{turn % 10}",
                    turn=turn,
                    prompt=tuple((number + turn * step) % 200 for step in range(1 + turn % 40)),
                    max_tokens=1 + turn % 9,
                    prompt_id="",
                )
                for turn in range(each)
            ]
            loop = OpenLoop(plan, self.cluster.kernel.now, "timed", DEADLINE_S)
            self.cluster.nodes[f"client-{number}"].drive(loop, self.counting)
        return each * EVERY_S

    def settle(self) -> dict[str, int]:
        """Wait until every deadline has passed, and have one more request per client clear what waits for the next."""
        self.wait(DEADLINE_S + 1.0)
        self.wait(self.offer(CLIENTS, f"last-{self.cluster.kernel.now}") + 1.0)
        return everything(self.cluster)

    def assert_at_base(self, base: dict[str, int], bounded: dict[str, int]) -> None:
        """Nothing has grown but what remembers on purpose, and that within its bound."""
        now = self.settle()
        grown = {path: (base.get(path, 0), length) for path, length in now.items() if length > base.get(path, 0)}
        assert {path: lengths for path, lengths in grown.items() if lengths[1] > allowed(path, bounded)} == {}


@pytest.mark.simulated
def test_after_ten_thousand_requests_nothing_has_grown() -> None:
    soak = Soak()
    soak.wait(soak.offer(100, "first"))
    base = soak.settle()
    assert len(base) > 100, "the walk sees the containers"
    during: dict[str, int] = {}
    end_s = soak.cluster.kernel.now + soak.offer(REQUESTS, "soak")
    while soak.cluster.kernel.now < end_s:
        soak.wait(2.0)
        during = {path: max(length, during.get(path, 0)) for path, length in everything(soak.cluster).items()}
    assert sum(during[path] > base.get(path, 0) for path in during) > 30, "the walk sees what grows"
    soak.assert_at_base(base, BOUNDED)
    assert soak.counting.outcomes == {"completed": soak.counting.asks}
    assert soak.counting.asks > REQUESTS


@pytest.mark.simulated
def test_what_is_cut_killed_and_frozen_under_way_leaves_nothing_either() -> None:
    soak = Soak()
    soak.wait(soak.offer(100, "first"))
    base = soak.settle()
    cluster = soak.cluster
    end_s = cluster.kernel.now + soak.offer(REQUESTS // 5, "soak")
    for node, cut in zip(["worker-0", "controller-0", "client-1"], CUTS.values(), strict=False):
        cluster.nodes[node].link.set_condition(cut)
        soak.wait(1.5)
        cluster.nodes[node].link.set_condition(Condition())
    for node in ("worker-1", "controller-1"):
        cluster.freeze(node)
        soak.wait(4.0)
        cluster.thaw(node)
    cluster.restart("worker-2")
    cluster.restart("controller-0")
    soak.wait(max(0.0, end_s - cluster.kernel.now))
    # A node that nobody asks any more forgets the last deadline's requests only when the next one comes. A controller
    # that had served nobody before has learnt how long the one model takes, and has ranked its workers.
    learnt = {"_guard": int(CLIENTS * DEADLINE_S / EVERY_S), "_service": 1, "_groups": 1}
    ranked = dict.fromkeys(("_present", "able", "trusted", "_member_of", "_distrusted"), WORKERS)
    soak.assert_at_base(base, BOUNDED | learnt | ranked)
    assert sum(soak.counting.outcomes.values()) == soak.counting.asks
