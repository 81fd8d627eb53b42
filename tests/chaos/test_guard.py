"""The guard: how many may be hurt at once, who must be left, and what ends a run."""

from pathlib import Path

import pytest

from chaos.experiment import GuardSpec
from chaos.faults.partition import Partition
from chaos.guard import Guard, Stopped
from chaos.progress import Snapshot
from chaos.worlds.world import World
from tests.chaos.simulated_runs import Run, conduct

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


CUT = "kind: partition, mode: black_hole, phase: fault, ttl_s: 60"
LIMITS: dict[str, tuple[str, str, tuple[str, ...]]] = {
    # What would trigger, what would not, and what else the run needs.
    "latency_p99_s_max": ("0.9", "30", ()),
    "error_share_max": ("0.5", "1", ("faults.cut.targets=[controller]", "policy.client.deadline_s=2")),
}


def stopped_by(done: Run) -> str | None:
    told = done.history.events[done.history.events["kind"] == "guard"]
    return None if told.empty else str(told["detail"].item())


@pytest.mark.simulated
@pytest.mark.parametrize("condition", LIMITS)
def test_a_run_beyond_a_limit_is_stopped_healed_and_failed_and_one_within_it_is_not(
    tmp_path: Path, condition: str
) -> None:
    beyond, within, settings = LIMITS[condition]
    done = conduct(tmp_path / "beyond", f"guard.{condition}={beyond}", *settings)
    assert f"guard.{condition} is" in (stopped_by(done) or "")
    assert done.verdict.verdict == "fail"
    assert not done.verdict.complete
    (fault,) = done.history.faults.to_dict("records")
    assert fault["heal_verified"]
    (asked_s,) = done.history.events.loc[done.history.events["kind"] == "guard", "time_s"]
    assert 0 <= fault["healed_s"] - asked_s < 1.0
    assert any("stopping: everything injected is healed" in note for note in done.watcher.notes)
    done = conduct(tmp_path / "within", f"guard.{condition}={within}", *settings)
    assert stopped_by(done) is None
    assert done.verdict.complete
    assert not any("stopping" in note for note in done.watcher.notes)


@pytest.mark.simulated
@pytest.mark.parametrize("asked", [True, False])
def test_an_unproven_heal_ends_a_simulated_run_only_where_it_shall(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, asked: bool
) -> None:
    async def nothing(fault: Partition, world: World) -> None:
        """In place of the heal."""

    monkeypatch.setattr(Partition, "heal", nothing)
    short = ("faults.cut.duration_s=4", "phases.fault.duration_s=12", "recovery_limit_s=2")
    done = conduct(tmp_path, f"guard.stop_when_unrecovered={str(asked).lower()}", *short)
    assert (stopped_by(done) is not None) == asked
    assert done.verdict.complete != asked
    assert done.verdict.verdict == "fail"
    if asked:
        assert "the heal of partition black_hole worker-0 is not proven" in (stopped_by(done) or "")
        assert any("stopping: NOT EVERY heal is proved" in note for note in done.watcher.notes)


@pytest.mark.simulated
@pytest.mark.parametrize("there", [True, False])
def test_a_stop_file_in_mid_fault_heals_all_faults_at_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, there: bool
) -> None:
    file = tmp_path / "stop"
    before = Guard.check

    def check(guard: Guard, snapshot: Snapshot) -> None:
        if there and snapshot.elapsed_s > 9.0:
            file.touch()
        before(guard, snapshot)

    monkeypatch.setattr(Guard, "check", check)
    second = f"faults.other={{{CUT}, targets: [worker-1], start_s: 1, duration_s: 12}}"
    done = conduct(tmp_path / "out", f"guard.stop_file={file}", second)
    assert (stopped_by(done) == f"{file} exists") == there
    if not there:
        return
    assert done.verdict.verdict == "inconclusive"
    assert done.history.faults["heal_verified"].tolist() == [True, True]
    (asked_s,) = done.history.events.loc[done.history.events["kind"] == "guard", "time_s"]
    assert ((done.history.faults["healed_s"] - asked_s).between(0, 0.1)).all(), "none waits for another's proof"


@pytest.mark.simulated
def test_an_interrupt_in_mid_fault_heals_and_leaves_what_there_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = Guard.check

    def check(guard: Guard, snapshot: Snapshot) -> None:
        if snapshot.elapsed_s > 9.0:
            raise KeyboardInterrupt
        before(guard, snapshot)

    monkeypatch.setattr(Guard, "check", check)
    done = conduct(tmp_path)
    assert done.verdict.reasons[0] == "the run did not finish: interrupted"
    assert done.verdict.verdict == "inconclusive"
    (fault,) = done.history.faults.to_dict("records")
    assert fault["heal_verified"]
    assert fault["healed_s"] < 10.0
    assert any("stopping: everything injected is healed" in note for note in done.watcher.notes)
