"""A node whose clock differs writes the history that it would write with the right one."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from analysis.schema import AttemptRow, EventRow
from cluster.host_clock import host_time, in_host_clock
from cluster.policy import Policy
from cluster.simulation.cluster import RowList, SimulatedCluster
from tests.cluster import QUICK
from workloads.load import OpenLoop
from workloads.schedule import ScheduledRequest
from workloads.watch import LoadWatch


def test_all_times_of_a_row_are_moved_and_nothing_else() -> None:
    row = AttemptRow("worker", "r", 1, 1, "w", 7, 105.0, None, 106.0, 107.0, 108.0, 0, 3, "completed", "")
    moved = in_host_clock(row, 100.0)
    assert isinstance(moved, AttemptRow)
    assert (moved.begun_s, moved.started_s, moved.first_token_s, moved.ended_s, moved.deadline_s) == (5, None, 6, 7, 8)
    assert (moved.worker_incarnation, moved.tokens) == (7, 3)
    assert in_host_clock(row, 0.0) is row
    assert in_host_clock(EventRow(3.0, "note"), -1.0).time_s == 4.0  # type: ignore[union-attr]


@QUICK
@given(time_s=st.floats(-1e6, 1e6), ahead_s=st.floats(-1e5, 1e5))
def test_at_the_hosts_time_the_nodes_clock_shows_what_was_asked_for(time_s: float, ahead_s: float) -> None:
    host_s = host_time(time_s, ahead_s)
    assert host_s + ahead_s >= time_s
    assert math.isclose(host_s + ahead_s, time_s, abs_tol=1e-9, rel_tol=1e-12)


def outcomes(ahead_s: dict[str, float]) -> list[tuple[str, str, float]]:
    """Request, outcome and end of a small load on a cluster in which some nodes are restarted with these clocks."""
    rows = RowList()
    cluster = SimulatedCluster(Policy(), 2, 1, 1, lambda node, incarnation: rows)
    cluster.clock_ahead_s = ahead_s
    cluster.start()
    for node in ("controller", "worker-0", "worker-1"):
        cluster.restart(node)
    cluster.kernel.run_until(3.0)
    plan = [
        ScheduledRequest(
            request_id=f"r{number}",
            intended_s=0.02 * number,
            session_id=f"s{number % 5}",
            turn=0,
            prompt=(1, 2, 3, number % 100),
            max_tokens=20,
            prompt_id=f"p{number}",
        )
        for number in range(300)
    ]
    cluster.nodes["client-0"].drive(OpenLoop(plan, 3.0, cluster.model, 10.0), LoadWatch())
    cluster.kernel.run_until(25.0)
    written = [row for _, row in rows.rows]
    times = [row.time_s for row in written if isinstance(row, EventRow)]
    assert all(0.0 <= time_s <= 25.0 for time_s in times), "all rows are in the host's clock"
    ends = [row for row in written if type(row).__name__ == "RequestRow"]
    return [(row.request_id, row.outcome, row.ended_s) for row in ends]  # type: ignore[union-attr]


@pytest.mark.simulated
@pytest.mark.parametrize("seconds", [3_600.0, -3_600.0, 0.1])
@pytest.mark.parametrize("nodes", [("worker-0",), ("controller",), ("controller", "worker-1")])
def test_a_skewed_clock_changes_nothing(seconds: float, nodes: tuple[str, ...]) -> None:
    usual, skewed = outcomes({}), outcomes(dict.fromkeys(nodes, seconds))
    assert len(usual) == 300
    assert {outcome for _, outcome, _ in usual} == {"completed"}
    assert [end[:2] for end in skewed] == [end[:2] for end in usual]
    assert all(abs(one[2] - other[2]) < 1e-3 for one, other in zip(usual, skewed, strict=True))
