"""SessionCache against a naive model that compares every token and keeps plain lists."""

import pytest
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from cluster.policy import MemoryPolicy
from cluster.worker.prefix_tree import _Node
from cluster.worker.session_cache import ENTRIES_MAX, SessionCache
from tests.cluster import WALK
from tests.cluster.worker.test_prefix_tree import shared

POLICY = MemoryPolicy(cache_bytes_max=100, session_share_max=0.4, sessions_told_max=4)
TOKENS = st.lists(st.integers(0, 2), min_size=1, max_size=9).map(tuple)
SESSIONS = st.sampled_from(["", "s", "t", "u"])
MODELS = st.sampled_from(["m", "m", "n"])

Entry = tuple[int, str, str, tuple[int, ...], int]
"""Number, model, session, tokens, bytes."""


class CacheWalk(RuleBasedStateMachine):
    def __init__(self) -> None:
        super().__init__()
        self.cache = SessionCache(POLICY)
        self.kept: list[Entry] = []  # the least recently used first
        self.number = 0

    @rule(model=MODELS, session=SESSIONS, tokens=TOKENS)
    def find(self, model: str, session: str, tokens: tuple[int, ...]) -> None:
        best = max((shared(tokens[:-1], entry[3]) for entry in self.kept if entry[1] == model), default=0)
        found = self.cache.find(model, session, tokens)
        if not best:
            assert found is None
            return
        equal = [entry for entry in self.kept if entry[1] == model and shared(tokens[:-1], entry[3]) == best]
        own = [entry for entry in equal if entry[2] == session]
        wanted = (own or equal)[-1]
        assert found == (wanted[0], best)
        assert best < len(tokens), "something is left to compute"
        self.kept.remove(wanted)
        self.kept.append(wanted)

    @rule(model=MODELS, session=SESSIONS, tokens=TOKENS, size=st.sampled_from([1, 5, 12, 30, 40, 41]))
    def keep(self, model: str, session: str, tokens: tuple[int, ...], size: int) -> None:
        self.number += 1
        dropped = self.cache.keep(self.number, model, session, tokens, size)
        if size > 40:
            assert dropped == [self.number]
            return
        gone = [
            entry[0] for entry in self.kept if entry[1:3] == (model, session) and tokens[: len(entry[3])] == entry[3]
        ]
        self.kept = [entry for entry in self.kept if entry[0] not in gone]
        self.kept.append((self.number, model, session, tokens, size))
        while sum(entry[4] for entry in self.kept if entry[2] == session) > 40:
            gone.append(next(entry[0] for entry in self.kept if entry[2] == session))
            self.kept = [entry for entry in self.kept if entry[0] != gone[-1]]
        while sum(entry[4] for entry in self.kept) > 100:
            gone.append(self.kept.pop(0)[0])
        assert sorted(dropped) == sorted(gone)
        assert self.kept[-1][0] == self.number, "the new one stays"

    @rule()
    def evict(self) -> None:
        assert self.cache.evict() == (self.kept.pop(0)[0] if self.kept else None)

    @precondition(lambda self: len(self.kept) > 2)
    @rule(model=MODELS)
    def forget_model(self, model: str) -> None:
        self.cache.forget_model(model)
        self.kept = [entry for entry in self.kept if entry[1] != model]

    @invariant()
    def it_is_within_its_limits(self) -> None:
        assert len(self.cache) == len(self.kept)
        assert self.cache.size_bytes == sum(entry[4] for entry in self.kept) <= 100
        for session in ("", "s", "t", "u"):
            assert sum(entry[4] for entry in self.kept if entry[2] == session) <= 40

    @invariant()
    def it_tells_who_has_a_cache_here(self) -> None:
        assert sorted(self.cache.tell()) == sorted({entry[2] for entry in self.kept} - {""})

    def teardown(self) -> None:
        while self.cache.evict() is not None:
            pass
        assert self.cache.size_bytes == len(self.cache) == 0
        assert not self.cache._sessions
        assert not self.cache._session_bytes
        assert not self.cache._told
        assert not any(tree._root.children for tree in self.cache._trees.values())


TestCacheWalk = CacheWalk.TestCase
TestCacheWalk.settings = WALK


def test_a_shared_system_prompt_serves_a_session_that_was_never_here() -> None:
    cache = SessionCache(POLICY)
    cache.keep(1, "m", "alice", (*range(50), 1, 2), 30)
    assert cache.find("m", "bob", (*range(50), 8, 9)) == (1, 50)
    assert cache.find("n", "bob", (*range(50), 8, 9)) is None, "another model's cache means nothing"


def test_one_token_is_always_left_to_compute() -> None:
    cache = SessionCache(POLICY)
    cache.keep(1, "m", "s", (1, 2, 3), 30)
    assert cache.find("m", "s", (1, 2, 3)) == (1, 2)
    assert cache.find("m", "s", (1,)) is None


def test_the_next_turn_replaces_the_last_one() -> None:
    cache = SessionCache(POLICY)
    assert cache.keep(1, "m", "s", (1, 2), 10) == []
    assert cache.keep(2, "m", "s", (1, 2, 3, 4), 20) == [1]
    assert cache.keep(3, "m", "t", (1, 2, 3, 4, 5), 20) == [], "another session's stays"


def test_one_long_conversation_does_not_evict_the_others() -> None:
    cache = SessionCache(POLICY)
    cache.keep(1, "m", "small", (9, 9), 10)
    for number in range(2, 40):
        cache.keep(number, "m", "greedy", (number, 1), 15)
    assert cache.find("m", "small", (9, 9, 9)) == (1, 2)


def test_without_room_for_caches_none_is_kept() -> None:
    cache = SessionCache(MemoryPolicy(cache_bytes_max=0))
    assert not cache.enabled
    assert cache.keep(1, "m", "s", (1, 2), 0) == [1]


def test_the_number_of_caches_is_bounded_even_if_they_cost_nothing() -> None:
    cache = SessionCache(POLICY)
    for number in range(ENTRIES_MAX + 10):
        cache.keep(number, "m", f"s{number}", (number,), 0)
    assert len(cache) == ENTRIES_MAX


@pytest.mark.parametrize("sessions", [5, 9, 40])
def test_every_session_is_told_in_its_turn_and_the_last_ones_always(sessions: int) -> None:
    cache = SessionCache(POLICY)
    for number in range(sessions):
        cache.keep(number, "m", f"s{number}", (number,), 1)
    told: dict[str, int] = {}
    rounds = sessions // 2
    for _ in range(rounds):
        names = cache.tell()
        assert names[:2] == (f"s{sessions - 1}", f"s{sessions - 2}")
        assert len(names) == len(set(names)) == 4
        for name in names:
            told[name] = told.get(name, 0) + 1
    assert len(told) == sessions, "nobody is left out"
    cache.find("m", "s0", (0, 1))
    assert cache.tell()[0] == "s0", "who has just been here comes first"
    while cache.evict() is not None:
        pass
    assert not cache._told, "nothing is remembered of who has gone"


def test_a_search_among_hundreds_of_long_caches_compares_only_what_agrees(monkeypatch: pytest.MonkeyPatch) -> None:
    """Counted, not timed: a beginning that 300 caches share is compared once."""
    cache = SessionCache(MemoryPolicy(cache_bytes_max=10**9, session_share_max=1.0))
    common = tuple(range(2_000))
    for number in range(300):
        cache.keep(number, "m", f"s{number}", (*common, number, *range(500)), 1_000)
    compared: list[int] = []
    plain = _Node.shared

    def counted(node: _Node, tokens: tuple[int, ...], at: int) -> int:
        compared.append(len(node.label))
        return plain(node, tokens, at)

    monkeypatch.setattr(_Node, "shared", counted)
    assert cache.find("m", "new", (*common, 123, *range(500), 7)) == (123, 2_501)
    assert sum(compared) == 2_501
