"""The guard: how many may be hurt at once, who must be left, and what ends a run."""

from pathlib import Path

import pytest

from chaos.experiment import GuardSpec
from chaos.guard import Guard, Stopped
from chaos.progress import Snapshot
from tests.chaos.simulated_runs import conduct

WORKERS = ["worker-0", "worker-1", "worker-2"]


def guard(**fields: object) -> Guard:
    return Guard(GuardSpec(**fields), WORKERS)  # type: ignore[arg-type]


def seen(elapsed_s: float, completed: int, failed: int = 0, refused: int = 0, p99_s: float | None = None) -> Snapshot:
    return Snapshot(
        elapsed_s=elapsed_s, phase="", completed=completed, failed=failed, refused=refused, latency_p99_s=p99_s
    )


def test_the_blast_radius_counts_what_is_hurt_already_and_nobody_twice() -> None:
    limited = guard(targets_max=2)
    assert limited.forbids(["worker-0"], ["controller"], {}) is None
    assert limited.forbids(["worker-0"], ["worker-0", "controller"], {}) is None
    assert "targets_max is 2" in (limited.forbids(["worker-0"], ["worker-1", "controller"], {}) or "")


def test_a_healthy_worker_must_be_left_unless_it_need_not() -> None:
    assert guard().forbids(WORKERS[:2], [], {}) is None
    assert "no healthy worker" in (guard().forbids(WORKERS, [], {}) or "")
    assert "no healthy worker" in (guard().forbids(["worker-0"], ["worker-1", "worker-2"], {}) or "")
    assert "no healthy worker" in (guard().forbids(["worker-0", "worker-1"], [], {"worker-2": "dead"}) or "")
    assert guard().forbids(["worker-0"], [], {"worker-2": "dead", "worker-1": "ready"}) is None
    assert guard(last_worker=True).forbids(WORKERS, [], {}) is None


def test_a_fault_of_something_else_is_no_matter_of_the_last_worker() -> None:
    assert guard().forbids(["controller"], WORKERS, dict.fromkeys(WORKERS, "dead")) is None


def test_too_many_errors_in_the_window_stop_the_run_and_those_of_before_do_not() -> None:
    strict = guard(error_share_max=0.5, window_s=5, requests_min=10)
    strict.check(seen(0.0, 0))
    strict.check(seen(1.0, 1, failed=8))
    with pytest.raises(Stopped, match=r"90% of 10 requests failed in 5 s, guard\.error_share_max is 50%") as stopped:
        strict.check(seen(2.0, 1, failed=5, refused=4))
    assert stopped.value.by == "stop_condition"
    strict = guard(error_share_max=0.5, window_s=5, requests_min=10)
    strict.check(seen(0.0, 0, failed=1_000))
    strict.check(seen(4.0, 20, failed=1_000))
    strict.check(seen(8.0, 40, failed=1_015))


def test_a_high_p99_stops_the_run() -> None:
    guard().check(seen(1.0, 1, p99_s=99.0))
    guard(latency_p99_s_max=2).check(seen(1.0, 1))
    with pytest.raises(Stopped, match=r"p99 latency is 2\.10 s"):
        guard(latency_p99_s_max=2).check(seen(1.0, 1, p99_s=2.1))


def test_a_stop_file_stops_the_run_and_is_no_verdict_on_the_cluster(tmp_path: Path) -> None:
    file = tmp_path / "stop"
    watchful = guard(stop_file=str(file))
    watchful.check(seen(1.0, 1))
    file.touch()
    with pytest.raises(Stopped) as stopped:
        watchful.check(seen(1.5, 1))
    assert stopped.value.by == "stop_file"


def test_an_unproven_heal_stops_the_run_if_it_shall() -> None:
    guard().unrecovered("kill worker-0")
    with pytest.raises(Stopped, match="the heal of kill worker-0 is not proven"):
        guard(stop_when_unrecovered=True).unrecovered("kill worker-0")


@pytest.mark.simulated
def test_two_faults_that_wait_for_the_same_moment_do_not_both_take_the_last_place(tmp_path: Path) -> None:
    when = "when: {state: stream_token, at_least: 1, within_s: 5, node: worker-0}"
    kill = f"kind: kill, phase: fault, start_s: 1, duration_s: 4, ttl_s: 30, {when}"
    done = conduct(
        tmp_path,
        f"faults.cut={{targets: [worker-0], {kill}}}",
        f"faults.other={{targets: [worker-1], {kill}}}",
        "guard={targets_max: 1}",
    )
    assert done.verdict.verdict == "invalid"
    struck = done.history.faults["injected_s"].notna()
    assert struck.tolist().count(True) == 1
    assert "targets_max" in done.history.faults.loc[~struck, "evidence"].item()
