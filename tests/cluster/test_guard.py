"""The guard: an attempt is admitted once, never after a newer one of its request, and forgotten after the deadline."""

from hypothesis import given
from hypothesis import strategies as st

from cluster.guard import DuplicateGuard
from cluster.protocol import AttemptId
from tests.cluster import QUICK

ATTEMPTS = st.builds(AttemptId, st.sampled_from("ab"), st.integers(1, 2), st.integers(1, 3))
ARRIVALS = st.lists(st.tuples(ATTEMPTS, st.integers(0, 2)), max_size=30)
DEADLINES = st.dictionaries(ATTEMPTS, st.integers(1, 12))


@QUICK
@given(ARRIVALS, DEADLINES)
def test_no_attempt_is_admitted_twice_and_no_older_one_while_the_deadline_of_a_newer_runs(
    arrivals: list[tuple[AttemptId, int]], deadlines: dict[AttemptId, int]
) -> None:
    """Each arrival comes some time after the one before, and as a worker does only if its deadline has not passed."""
    guard, now = DuplicateGuard(), 0.0
    admitted: dict[str, list[AttemptId]] = {}
    latest_s: dict[str, float] = {}
    for attempt, later in arrivals:
        now += later
        deadline_s = deadlines.get(attempt, 6)
        if now >= deadline_s:
            continue
        before = admitted.setdefault(attempt.request_id, [])
        if guard.admit(attempt, deadline_s, now):
            assert attempt not in before
            assert not before or attempt > before[-1] or now >= latest_s[attempt.request_id]
            before.append(attempt)
            latest_s[attempt.request_id] = max(deadline_s, latest_s.get(attempt.request_id, deadline_s))
        else:
            assert attempt <= before[-1]


def test_it_holds_no_more_than_what_arrived_within_one_deadline() -> None:
    guard = DuplicateGuard()
    for number in range(10_000):
        now = number * 0.01
        assert guard.admit(AttemptId(f"r{number}", 1, 1), now + 1.0, now)
        assert len(guard) <= 101
