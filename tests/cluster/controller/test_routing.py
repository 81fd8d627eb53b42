"""Who gets the next attempt: somebody eligible, the least loaded unless affinity is affordable."""

from hypothesis import given
from hypothesis import strategies as st

from cluster.controller.routing import choose
from cluster.policy import RoutingPolicy
from tests.cluster import QUICK

WORKERS = ["w0", "w1", "w2", "w3"]
ELIGIBLE = st.lists(st.sampled_from(WORKERS), unique=True)
LOADS = st.dictionaries(st.sampled_from(WORKERS), st.integers(0, 9))
EXCLUDED = st.lists(st.sampled_from(WORKERS), unique=True).map(tuple)
PREFERRED = st.none() | st.sampled_from([*WORKERS, "gone"])


@QUICK
@given(ELIGIBLE, LOADS, EXCLUDED, PREFERRED, st.booleans(), st.integers(1, 4))
def test_the_choice_is_eligible_not_excluded_and_least_loaded_or_the_affordable_holder_of_the_cache(
    eligible: list[str],
    loads: dict[str, int],
    excluded: tuple[str, ...],
    preferred: str | None,
    affinity: bool,
    slack: int,
) -> None:
    policy = RoutingPolicy(affinity=affinity, affinity_slack=slack)
    chosen = choose(policy, eligible, loads, excluded, preferred)
    candidates = [worker for worker in eligible if worker not in excluded]
    if not candidates:
        assert chosen is None
        return
    assert chosen in candidates
    least = min(loads.get(worker, 0) for worker in candidates)
    affordable = affinity and preferred in candidates and loads.get(preferred, 0) <= least + slack
    if affordable:
        assert chosen == preferred
    else:
        assert loads.get(chosen, 0) == least
        assert chosen == next(worker for worker in candidates if loads.get(worker, 0) == least), "ties go to the first"


def test_a_hot_session_leaves_its_overloaded_worker() -> None:
    policy = RoutingPolicy(affinity_slack=4)
    assert choose(policy, WORKERS, {"w2": 4}, (), "w2") == "w2"
    assert choose(policy, WORKERS, {"w2": 5}, (), "w2") == "w0"
