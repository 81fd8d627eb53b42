"""The guard: how many may be hurt at once, who must be left, and what ends a run."""

from pathlib import Path

import pytest

from chaos.experiment import GuardSpec
from chaos.faults.partition import Partition
from chaos.guard import Guard, Stopped
from chaos.progress import Snapshot
from chaos.worlds.world import World, snapshot
from cluster.node import Ask
from tests.chaos.simulated_runs import Run, conduct
from workloads.lately import LoadWindow
from workloads.watch import Standing

WORKERS = ["worker-0", "worker-1", "worker-2"]


def guard(**fields: object) -> Guard:
    return Guard(GuardSpec(**fields), WORKERS)  # type: ignore[arg-type]


def seen(window: LoadWindow, now: float) -> Snapshot:
    return snapshot(now, Standing(lately=window.seen(now)), {})


def ask(number: int, intended_s: float, timeout_s: float = 10.0) -> Ask:
    return Ask(str(number), "m", (1,), 1, intended_s, timeout_s)


def test_the_blast_radius_counts_what_is_hurt_already_and_nobody_twice() -> None:
    limited = guard(targets_max=2)
    assert limited.forbids(["worker-0"], ["controller"], None) is None
    assert limited.forbids(["worker-0"], ["worker-0", "controller"], None) is None
    assert "targets_max is 2" in (limited.forbids(["worker-0"], ["worker-1", "controller"], None) or "")


def test_a_healthy_worker_must_be_left_unless_it_need_not() -> None:
    assert guard().forbids(WORKERS[:2], [], None) is None
    assert "no healthy worker" in (guard().forbids(WORKERS, [], None) or "")
    assert "no healthy worker" in (guard().forbids(["worker-0"], ["worker-1", "worker-2"], None) or "")
    told = guard()
    told.heard({"worker-0": "ready", "worker-1": "ready", "worker-2": "dead"}, 5.0)
    assert "no healthy worker" in (told.forbids(["worker-0", "worker-1"], [], 5.0) or "")
    assert told.forbids(["worker-0"], [], 5.0) is None
    assert guard(last_worker=True).forbids(WORKERS, [], None) is None


UNKNOWN = "no controller says which workers are healthy"


def test_who_is_healthy_is_not_made_up_where_no_controller_says_it() -> None:
    assert UNKNOWN in (guard().forbids(["worker-0"], [], 5.0) or "")
    told = guard(liveness_age_s_max=20)
    told.heard(dict.fromkeys(WORKERS, "ready"), 5.0)
    told.heard({}, 24.0)
    assert told.forbids(["worker-0"], [], 25.0) is None, "a controller that is away for a moment"
    assert UNKNOWN in (told.forbids(["worker-0"], [], 25.1) or "")
    assert guard(last_worker=True).forbids(["worker-0"], [], 5.0) is None


def test_what_was_said_of_a_worker_before_a_fault_struck_it_holds_no_longer() -> None:
    told = guard()
    told.heard(dict.fromkeys(WORKERS, "ready"), 5.0)
    told.struck(["worker-1", "worker-2"])
    assert UNKNOWN in (told.forbids(["worker-0"], [], 6.0) or "")
    told.heard({"worker-2": "ready"}, 7.0)
    assert told.forbids(["worker-0"], [], 7.0) is None


def test_a_fault_of_something_else_is_no_matter_of_the_last_worker() -> None:
    told = guard()
    told.heard(dict.fromkeys(WORKERS, "dead"), 1.0)
    assert told.forbids(["controller"], WORKERS, 1.0) is None


def test_too_many_errors_in_the_window_stop_the_run_and_those_of_before_do_not() -> None:
    strict, window = guard(error_share_max=0.5, window_s=5, requests_min=10), LoadWindow(5.0)
    outcomes = ["completed", *["failed"] * 5, *["refused"] * 3, "cancelled", "failed"]
    for number, outcome in enumerate(outcomes):
        window.asked(ask(number, 0.0))
        strict.check(seen(window, 1.0))
        window.ended(str(number), outcome, 1.0)
    with pytest.raises(Stopped, match=r"90% of 10 requests failed in 5 s, guard\.error_share_max is 50%") as stopped:
        strict.check(seen(window, 2.0))
    assert stopped.value.by == "stop_condition"
    for number in range(100, 110):
        window.asked(ask(number, 6.5))
        window.ended(str(number), "completed", 6.6)
    strict.check(seen(window, 6.6))


def test_a_request_beyond_its_deadline_has_failed_though_nobody_says_so() -> None:
    strict, window = guard(error_share_max=0.5, requests_min=10), LoadWindow(5.0)
    for number in range(12):
        window.asked(ask(number, 0.0, timeout_s=3.0))
    strict.check(seen(window, 2.9))
    with pytest.raises(Stopped, match="100% of 12 requests failed"):
        strict.check(seen(window, 3.1))


def test_a_cluster_that_hangs_has_a_high_p99_before_any_request_has_ended() -> None:
    strict, window = guard(latency_p99_s_max=2, requests_min=10), LoadWindow(5.0)
    for number in range(9):
        window.asked(ask(number, 0.0))
    strict.check(seen(window, 9.0))
    window.asked(ask(9, 8.9))
    told = (
        r"p99 latency is 9\.00 s over 10 requests that ended in 5 s or are in flight, guard\.latency_p99_s_max is 2 s"
    )
    with pytest.raises(Stopped, match=told):
        strict.check(seen(window, 9.0))


def test_the_p99_is_that_of_the_window_and_neither_of_the_run_nor_of_refusals() -> None:
    strict, window = guard(latency_p99_s_max=2, requests_min=10), LoadWindow(5.0)
    for number in range(50):
        window.asked(ask(number, 0.0))
        window.ended(str(number), "completed", 3.0)
    with pytest.raises(Stopped, match=r"p99 latency is 3\.00 s over 50"):
        strict.check(seen(window, 3.0))
    for number in range(100, 200):
        window.asked(ask(number, 8.5))
        window.ended(str(number), "completed" if number % 2 else "refused", 9.0)
    late = seen(window, 9.0)
    assert (late.waited, late.waited_p99_s, late.ended_lately, late.bad_lately) == (50, 0.5, 100, 50)
    strict.check(late)


def test_the_last_of_a_load_that_drains_are_not_held_against_it_alone() -> None:
    """One in a hundred took long, which the limit allows; they are the last, and must not become all there is."""
    strict, window = guard(latency_p99_s_max=2, error_share_max=0.5, requests_min=1), LoadWindow(5.0)
    for number in range(1_000):
        window.asked(ask(number, 0.0))
    for number in range(1_000):
        window.ended(str(number), "completed" if number < 992 else "failed", 1.0 if number < 992 else 9.9)
        if number >= 990:
            strict.check(seen(window, 9.9))
    strict.check(seen(window, 60.0))


def test_a_stop_file_stops_the_run_and_is_no_verdict_on_the_cluster(tmp_path: Path) -> None:
    file = tmp_path / "stop"
    watchful = guard(stop_file=str(file))
    watchful.heed()
    file.touch()
    with pytest.raises(Stopped) as stopped:
        watchful.heed()
    assert stopped.value.by == "stop_file"


def test_a_stop_file_that_cannot_be_looked_at_is_taken_for_one(tmp_path: Path) -> None:
    with pytest.raises(Stopped, match="cannot be looked at: File name too long"):
        guard(stop_file=str(tmp_path / ("x" * 300))).heed()


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
def test_a_cluster_that_hangs_is_noticed_by_its_p99_before_its_deadlines(tmp_path: Path) -> None:
    hang = ("faults.cut.targets=[controller]", "faults.cut.mode=black_hole", "policy.client.deadline_s=30")
    done = conduct(tmp_path, "guard.latency_p99_s_max=4", *hang)
    assert "or are in flight" in (stopped_by(done) or "")
    assert done.verdict.verdict == "fail"
    (asked_s,) = done.history.events.loc[done.history.events["kind"] == "guard", "time_s"]
    assert asked_s < 7.0 + 4.0 + 1.0


@pytest.mark.simulated
@pytest.mark.parametrize("second", [0.0, 0.6, 5.0])
def test_a_stop_file_before_the_load_leaves_readable_results_that_say_nothing_of_the_cluster(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, second: float
) -> None:
    file = tmp_path / "stop"
    before = Guard.heed
    count = [0]

    def heed(guard: Guard) -> None:
        count[0] += 1
        if count[0] > second * 4:
            file.touch()
        before(guard)

    monkeypatch.setattr(Guard, "heed", heed)
    done = conduct(tmp_path / "out", f"guard.stop_file={file}")
    assert done.watcher.phases[-1] == "stop"
    assert "baseline" not in done.watcher.phases
    assert done.verdict.verdict == "inconclusive"
    assert f"the run did not finish: the guard: {file} exists" in done.verdict.reasons


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
