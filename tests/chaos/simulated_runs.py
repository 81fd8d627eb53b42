"""Whole runs of `network_partition` in the simulated world, shortened so that many of them fit into a test."""

from pathlib import Path

import msgspec

from analysis.history import History
from analysis.judge import judge
from analysis.reader import load_history
from analysis.verdict import Verdict
from chaos import run
from chaos.experiment import Experiment, find
from chaos.progress import Snapshot
from chaos.resolve import load
from chaos.results import ResultsDirectory

SHORT = (
    "workload.rate=40/s",
    "phases.warm_up.duration_s=1",
    "phases.baseline.duration_s=5",
    "phases.fault.duration_s=15",
    "phases.recovery.duration_s=9",
    "faults.cut.duration_s=13",
)


class Quiet:
    """A watcher that keeps what it is told."""

    def __init__(self) -> None:
        self.phases: list[str] = []
        self.notes: list[str] = []
        self.snapshots: list[Snapshot] = []

    def phase(self, name: str, duration_s: float | None = None) -> None:
        self.phases.append(name)

    def update(self, snapshot: Snapshot) -> None:
        self.snapshots.append(snapshot)

    def note(self, text: str) -> None:
        self.notes.append(text)


class Run(msgspec.Struct):
    """What a run has left."""

    path: Path
    history: History
    verdict: Verdict
    watcher: Quiet

    def failed_rows(self) -> list[str]:
        """Why it is not a pass, for the message of an assertion."""
        return self.verdict.reasons


def experiment(*settings: str) -> Experiment:
    return load(find("network_partition"), [*SHORT, *settings])


def conduct(out: Path, *settings: str, seed: int = 1) -> Run:
    """Through the real director, recorder, merge, checkers and judge; only the pages for people are left out."""
    whole = experiment(*settings)
    results, watcher = ResultsDirectory(out, whole, "simulated", seed), Quiet()
    run._execute(whole, "simulated", seed, results, watcher, None, None)  # type: ignore[arg-type]
    history = load_history(results.path)
    return Run(results.path, history, judge(history), watcher)
