"""Who gets the next attempt: the warmest, least pressed for memory, least loaded, or the session's worker."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cluster.controller.membership import Warmth
from cluster.controller.routing import HARD, Candidate, choose
from cluster.policy import RoutingPolicy
from tests.cluster import QUICK

POLICY = RoutingPolicy(affinity_slack=4)
WORKERS = ["w0", "w1", "w2", "w3"]
CANDIDATES = st.lists(
    st.builds(
        Candidate, st.sampled_from(WORKERS), st.integers(0, 9), st.sampled_from(list(Warmth)), st.integers(0, HARD)
    ),
    unique_by=lambda candidate: candidate.worker,
)
PREFERRED = st.none() | st.sampled_from([*WORKERS, "gone"])
PRIORITY = st.sampled_from([-1, 0, 1])


def warm(worker: str, load: int = 0, pressure: int = 0) -> Candidate:
    return Candidate(worker, load, Warmth.WARM, pressure)


@QUICK
@given(CANDIDATES, PREFERRED, PRIORITY, st.booleans(), st.integers(1, 4))
def test_the_choice_is_allowed_and_nobody_who_is_better_in_every_way_is_passed_over(
    candidates: list[Candidate], preferred: str | None, priority: int, affinity: bool, slack: int
) -> None:
    policy = RoutingPolicy(affinity=affinity, affinity_slack=slack)
    allowed = [one for one in candidates if priority >= 0 or one.pressure == 0]
    name = choose(policy, candidates, preferred, priority)
    assert name == choose(policy, iter(candidates), preferred, priority), "the same again"
    if not allowed:
        assert name is None
        return
    chosen = next(one for one in allowed if one.worker == name)
    if chosen.pressure == HARD:
        assert all(one.pressure == HARD for one in allowed), "hard pressure is the last resort"
        return
    able = [one for one in allowed if one.pressure < HARD]
    assert chosen.warmth == max(one.warmth for one in able), "warm before loading before cold"
    able = [one for one in able if one.warmth == chosen.warmth]
    relaxed = [one for one in able if one.pressure == min(one.pressure for one in able)]
    least = min(one.load for one in relaxed)
    first = next(one for one in relaxed if one.load == least)
    if affinity and preferred in [one.worker for one in able if one.load <= least + slack]:
        assert name == preferred
    else:
        assert chosen is first, "the least loaded of those under the least pressure; ties go to the first"


@QUICK
@given(CANDIDATES, PRIORITY)
def test_without_a_session_those_who_were_not_chosen_do_not_matter(candidates: list[Candidate], priority: int) -> None:
    name = choose(POLICY, candidates, None, priority)
    for other in candidates:
        if other.worker != name:
            assert choose(POLICY, [one for one in candidates if one is not other], None, priority) == name


def test_nobody_is_chosen_among_none() -> None:
    assert choose(POLICY, []) is None


def test_a_warm_worker_is_chosen_before_one_that_loads_and_that_before_a_cold_one() -> None:
    cold, loading = Candidate("cold", 0, Warmth.COLD), Candidate("loading", 3, Warmth.LOADING)
    assert choose(POLICY, [cold, loading, warm("warm", 9)]) == "warm"
    assert choose(POLICY, [cold, loading]) == "loading"
    assert choose(POLICY, [cold]) == "cold"


def test_a_worker_under_soft_pressure_is_avoided_and_gets_no_low_priority() -> None:
    tight = warm("tight", 0, 1)
    assert choose(POLICY, [tight, warm("relaxed", 9)]) == "relaxed"
    assert choose(POLICY, [tight, Candidate("cold", 0, Warmth.COLD)]) == "tight", "a load takes longer"
    assert choose(POLICY, [tight]) == "tight"
    assert choose(POLICY, [tight], priority=-1) is None
    assert choose(POLICY, [tight, warm("relaxed", 9)], "tight", -1) == "relaxed"


def test_a_worker_under_hard_pressure_is_the_last_resort() -> None:
    full = warm("full", 0, HARD)
    assert choose(POLICY, [full, Candidate("cold", 9, Warmth.COLD, 1)]) == "cold"
    assert choose(POLICY, [full]) == "full", "its refusal says more than we could"


def test_a_hot_session_leaves_its_overloaded_worker() -> None:
    others = [warm("w0"), warm("w1")]
    assert choose(POLICY, [*others, warm("w2", 4)], "w2") == "w2"
    assert choose(POLICY, [*others, warm("w2", 5)], "w2") == "w0"


@pytest.mark.parametrize(
    ("holder", "kept"),
    [
        (warm("w2", 1), True),
        (warm("w2", 1, 1), True),
        (warm("w2", 1, HARD), False),
        (Candidate("w2", 1, Warmth.LOADING), False),
        (Candidate("w2", 1, Warmth.COLD), False),
    ],
)
def test_a_session_keeps_its_worker_if_that_is_warm_and_not_out_of_memory(holder: Candidate, kept: bool) -> None:
    assert choose(POLICY, [warm("w0"), holder], "w2") == ("w2" if kept else "w0")
    assert choose(RoutingPolicy(affinity=False), [warm("w0"), holder], "w2") == "w0"


def test_a_session_whose_model_is_warm_nowhere_keeps_its_worker_among_equals() -> None:
    others = [Candidate("w0", 0, Warmth.COLD), Candidate("w1", 0, Warmth.COLD)]
    assert choose(POLICY, others, "w1") == "w1"
