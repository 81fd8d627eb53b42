"""The registry remembers the last server of each session, learns from heartbeats, and forgets the longest unused."""

import time

from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from cluster.controller.sessions import SessionRegistry
from tests.cluster import WALK

SESSIONS = ["a", "b", "c", "d", "e", "f"]
SESSION = st.sampled_from(SESSIONS)
WORKER = st.sampled_from(["w0", "w1", "w2"])


def test_a_session_is_forgotten_when_unused_for_its_time_to_live_and_each_use_starts_it_anew() -> None:
    registry = SessionRegistry(10, 30.0)
    registry.served("a", "w0", 0.0)
    registry.served("a", "w0", 29.0)
    assert registry.preferred("a", 58.9) == "w0"
    assert registry.preferred("a", 58.9) == "w0", "asking is no use"
    assert registry.preferred("a", 59.0) is None
    assert len(registry) == 0


def test_hits_misses_and_moves_are_told_apart() -> None:
    registry = SessionRegistry(10, 30.0)
    for now, worker in enumerate(["w0", "w0", "w1", "w1", "w1"]):
        registry.served("a", worker, float(now))
    assert (registry.hits, registry.misses, registry.moves) == (3, 1, 1)
    registry.served("a", "w1", 100.0)
    assert registry.misses == 2, "an expired session is unknown"


def test_what_was_dispatched_here_is_fresher_than_what_a_heartbeat_says() -> None:
    registry = SessionRegistry(10, 30.0)
    registry.served("a", "w0", 0.0)
    registry.told("w1", ["a", "b"], 20.0)
    assert registry.preferred("a", 20.0) == "w0"
    assert registry.preferred("b", 20.0) == "w1"
    assert registry.preferred("a", 30.0) is None, "being told of did not prolong it"
    registry.told("w1", ["a"], 31.0)
    assert registry.preferred("a", 31.0) == "w1"
    assert (registry.hits, registry.misses, registry.moves) == (0, 1, 0)
    registry.served("a", "w1", 32.0)
    assert registry.hits == 1, "the cache is where the heartbeat said"


def test_what_heartbeats_say_never_displaces_anything() -> None:
    registry = SessionRegistry(2, 30.0)
    registry.served("a", "w0", 0.0)
    registry.told("w1", ["b", "c", "d"], 1.0)
    assert [registry.preferred(name, 1.0) for name in "abcd"] == ["w0", "w1", None, None]
    registry.served("c", "w0", 2.0)
    assert [registry.preferred(name, 2.0) for name in "abc"] == [None, "w1", "w0"]


def test_a_worker_that_restarted_holds_none_of_its_sessions() -> None:
    registry = SessionRegistry(10, 30.0)
    for name, worker in zip("abcd", ["w0", "w1", "w0", "w1"], strict=True):
        registry.served(name, worker, 0.0)
    registry.forget_worker("w0")
    assert [registry.preferred(name, 0.0) for name in "abcd"] == [None, "w1", None, "w1"]
    registry.served("a", "w1", 0.0)
    assert registry.misses == 5
    assert registry.moves == 0


def test_ten_thousand_sessions_cost_little() -> None:
    registry = SessionRegistry(10_000, 30.0)
    begun_s = time.process_time()
    for number in range(30_000):
        registry.served(f"s{number}", f"w{number % 10}", number / 1_000)
        registry.preferred(f"s{number // 2}", number / 1_000)
    for beat in range(100):
        registry.told("w3", [f"t{number}" for number in range(64)], 30.0 + beat / 100)
    registry.forget_worker("w3")
    assert registry.preferred("s29999", 1_000.0) is None
    assert len(registry) == 0
    # About 0.05 s; a registry that looked through all of its sessions each time would need minutes.
    assert time.process_time() - begun_s < 5.0


class RegistryWalk(RuleBasedStateMachine):
    """Against a plain list of (session, worker, last use), the longest unused first."""

    @initialize(most=st.integers(1, 4))
    def start(self, most: int) -> None:
        self.registry = SessionRegistry(most, 10.0)
        self.most = most
        self.now = 0.0
        self.known: list[tuple[str, str, float]] = []
        self.counts = [0, 0, 0]

    def holder(self, session: str) -> str | None:
        return next((worker for name, worker, _ in self.known if name == session), None)

    @rule(seconds=st.sampled_from([0.5, 3.0, 10.0]))
    def wait(self, seconds: float) -> None:
        self.now += seconds
        self.known = [one for one in self.known if self.now - one[2] < 10.0]

    @rule(session=SESSION, worker=WORKER)
    def serve(self, session: str, worker: str) -> None:
        before = self.holder(session)
        self.counts[1 if before is None else 0 if before == worker else 2] += 1
        others = [one for one in self.known if one[0] != session]
        self.known = [*others, (session, worker, self.now)][-self.most :]
        self.registry.served(session, worker, self.now)

    @rule(worker=WORKER, sessions=st.lists(SESSION, max_size=5))
    def tell(self, worker: str, sessions: list[str]) -> None:
        for session in sessions:
            if self.holder(session) is None and len(self.known) < self.most:
                self.known.append((session, worker, self.now))
        self.registry.told(worker, sessions, self.now)

    @rule(worker=WORKER)
    def restart(self, worker: str) -> None:
        self.known = [one for one in self.known if one[1] != worker]
        self.registry.forget_worker(worker)

    @invariant()
    def it_knows_what_the_list_knows(self) -> None:
        assert {name: self.registry.preferred(name, self.now) for name in SESSIONS} == {
            name: self.holder(name) for name in SESSIONS
        }
        assert len(self.registry) == len(self.known) <= self.most
        assert [self.registry.hits, self.registry.misses, self.registry.moves] == self.counts


TestRegistryWalk = RegistryWalk.TestCase
TestRegistryWalk.settings = WALK
