"""Faults of processes and of the broker in the simulated world: proved, healed, and invalid when nothing was done."""

from pathlib import Path
from typing import Any

import pytest

from analysis.judge import judge
from analysis.reader import load_history
from analysis.verdict import Outcome
from chaos import run
from chaos.experiment import find
from chaos.resolve import load
from chaos.results import ResultsDirectory
from chaos.worlds.simulated import SimulatedProcess
from chaos.worlds.simulated_broker import SimulatedBroker
from tests.chaos.simulated_runs import Quiet, Run, conduct

pytestmark = pytest.mark.simulated

EXPERIMENTS = (
    *("worker_failure", "frozen_worker", "controller_restart"),
    *("rolling_restart", "all_workers_offline", "broker_restart"),
)
FAULTS: dict[str, tuple[str, str, str]] = {
    "kill_worker": ("kill", "[worker-0]", "{}"),
    "kill_controller": ("kill", "[controller]", "{}"),
    "kill_and_restart_early": ("kill", "[worker-1]", "{restart_after_s: 3}"),
    "freeze_worker": ("freeze", "[worker-0]", "{}"),
    "freeze_controller": ("freeze", "[controller]", "{}"),
    "stop_worker": ("stop", "[worker-0, worker-1]", "{drain_limit_s: 3}"),
    "stop_controller": ("stop", "[controller]", "{}"),
    "restart_workers": ("restart", "[worker-0, worker-1]", "{between_s: 0.5}"),
    "restart_worker_at_once": ("restart", "[worker-2]", "{drain_limit_s: 0}"),
    "restart_controller": ("restart", "[controller]", "{}"),
    "broker_kill": ("broker_kill", "[broker]", "{}"),
    "broker_restart": ("broker_restart", "[broker]", "{}"),
    "broker_freeze": ("broker_freeze", "[broker]", "{}"),
    "lame_duck": ("lame_duck", "[broker]", "{}"),
}


def hurt(out: Path, fault: str, duration_s: float = 11.0, ttl_s: float = 60.0) -> Run:
    kind, targets, options = FAULTS[fault]
    fields = f"kind: {kind}, targets: {targets}, options: {options}, duration_s: {duration_s}, ttl_s: {ttl_s}"
    brief = ("phases.baseline.duration_s=4", "phases.fault.duration_s=13", "phases.recovery.duration_s=14")
    return conduct(out, "workload.rate=20/s", *brief, f"faults.cut={{{fields}, phase: fault, start_s: 1}}")


@pytest.mark.parametrize("fault", FAULTS)
def test_each_fault_is_proved_and_healed_and_breaks_no_invariant(tmp_path: Path, fault: str) -> None:
    done = hurt(tmp_path, fault)
    told = done.history.faults.iloc[0]
    assert bool(told["verified"]), told["evidence"]
    assert bool(told["heal_verified"]), told["evidence"]
    assert [each for each in done.verdict.invariants if each.verdict is Outcome.FAIL] == []
    assert done.verdict.counts.in_flight == 0
    return_s = next(each for each in done.verdict.criteria if each.name == "return_to_steady")
    assert return_s.verdict is Outcome.PASS, return_s


@pytest.mark.parametrize("fault", FAULTS)
def test_a_sabotaged_injection_is_invalid(tmp_path: Path, fault: str, monkeypatch: pytest.MonkeyPatch) -> None:
    async def nothing(handle: object, *arguments: Any) -> bool:
        """In place of whatever a handle does; a drain that does nothing says that all is well."""
        return True

    for name in ("kill", "freeze", "thaw", "drain", "stop", "restart"):
        monkeypatch.setattr(SimulatedProcess, name, nothing)
    for name in ("kill", "restart", "freeze", "thaw", "lame_duck"):
        monkeypatch.setattr(SimulatedBroker, name, nothing)
    done = hurt(tmp_path, fault)
    assert done.verdict.verdict is Outcome.INVALID
    assert [each.verified for each in done.verdict.faults] == [False]
    assert any("NOT PROVED" in note for note in done.watcher.notes)


@pytest.mark.parametrize("fault", ["freeze_worker", "broker_freeze"])
def test_what_thaws_by_itself_before_its_end_is_invalid(
    tmp_path: Path, fault: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for handle in (SimulatedProcess, SimulatedBroker):
        freeze = handle.freeze

        async def briefly(handle: Any, ttl_s: float, freeze: Any = freeze) -> None:
            await freeze(handle, 4.0)

        monkeypatch.setattr(handle, "freeze", briefly)
    done = hurt(tmp_path, fault)
    assert done.verdict.verdict is Outcome.INVALID
    assert any("NOT IN FORCE" in note for note in done.watcher.notes)
    assert bool(done.history.faults.iloc[0]["heal_verified"])


def test_a_process_that_does_not_come_back_is_not_healed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async def nothing(handle: object) -> None:
        """In place of SimulatedProcess.restart."""

    monkeypatch.setattr(SimulatedProcess, "restart", nothing)
    done = hurt(tmp_path, "kill_worker")
    assert done.verdict.verdict is Outcome.FAIL
    assert not bool(done.history.faults.iloc[0]["heal_verified"])


def test_a_roll_whose_time_is_too_short_is_invalid_and_leaves_everybody_running(tmp_path: Path) -> None:
    done = hurt(tmp_path, "restart_workers", duration_s=2.5)
    assert done.verdict.verdict is Outcome.INVALID
    assert "its turn has not come" in done.history.faults.iloc[0]["evidence"]
    assert done.watcher.snapshots[-1].workers == dict.fromkeys(("worker-0", "worker-1", "worker-2"), "ready")


@pytest.mark.parametrize("name", EXPERIMENTS)
def test_the_experiment_passes(tmp_path: Path, name: str) -> None:
    whole = load(find(name))
    results, watcher = ResultsDirectory(tmp_path, whole, "simulated", 1), Quiet()
    run._execute(whole, "simulated", 1, results, watcher, None)  # type: ignore[arg-type]
    verdict = judge(load_history(results.path))
    assert verdict.verdict is Outcome.PASS, verdict.reasons
