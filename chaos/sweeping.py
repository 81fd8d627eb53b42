"""The runs of a sweep: each in a process and a folder of its own, and not again where it has its verdict."""

import sys
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import msgspec

from analysis.facts import CannotJudge
from analysis.history import History, UnreadableError, read_experiment
from analysis.judge import read_verdict
from analysis.point import loaded_phases, measure_point
from analysis.reader import load_history
from analysis.sweep_table import SweepRow
from analysis.verdict import EXIT_CODES, Verdict
from analysis.whole_file import write_whole
from chaos.children import INTERRUPTED, Children
from chaos.grid import Trial, resolved

POINTS = "points"
_ROWS = "rows.json"
_EXPERIMENT = "experiment.yaml"
_WHY_MAX = 300


FORM = 2
"""Of what is measured: with another one a run is measured anew."""


class Measuring(msgspec.Struct, frozen=True):
    """What is measured of a run. phases: none for those that the experiment gives a load to be measured under."""

    phases: tuple[str, ...]
    settle_s: float
    form: int = 1


class Kept(msgspec.Struct, frozen=True):
    """`rows.json` of a run: its rows, and what was measured to make them. run: below the sweep's folder."""

    measuring: Measuring
    run: str
    took_s: float
    rows: list[SweepRow]


class NoVerdict(Exception):
    """A run did not come to one. The message is one line."""


def kept(trial: Trial, measuring: Measuring, out: Path) -> list[SweepRow] | None:
    """The rows of a run that has its verdict; None when there is none, or it was of something else.

    What was measured differently is measured anew from the run's history, which costs no run; so is a run that came to
    its end when nobody was there any more to measure it.
    """
    try:
        found = msgspec.json.decode((out / POINTS / trial.key / _ROWS).read_bytes(), type=Kept)
    except (OSError, msgspec.DecodeError):
        return _adopted(trial, measuring, out)
    if found.measuring == measuring:
        # Another grid may call the same run by other settings.
        named = {"point": trial.point.name, "values": trial.point.values, "repeat": trial.repeat}
        return [msgspec.structs.replace(row, **named) for row in found.rows]
    try:
        return _keep(trial, measuring, out, out / found.run, found.took_s)
    except NoVerdict:
        return None


def play(trial: Trial, measuring: Measuring, out: Path, children: Children, address: str | None) -> list[SweepRow]:
    """Run it and keep its rows. Raises NoVerdict. address: of the Ray cluster for a live run."""
    folder = out / POINTS / trial.key
    folder.mkdir(parents=True, exist_ok=True)
    write_whole(folder / _EXPERIMENT, resolved(trial.point.experiment))
    command = [sys.executable, "-m", "chaos.run", str(folder / _EXPERIMENT), "--world", trial.world]
    command += ["--seed", str(trial.seed), "--out", str(folder / "run")]
    if address is not None:
        command += ["--address", address]
    began_s = time.monotonic()
    code = children.run(command, folder / "run.log")
    took_s = time.monotonic() - began_s
    if code not in EXIT_CODES.values():
        raise NoVerdict("interrupted" if code == INTERRUPTED else f"exit code {code}: {_last_words(folder)}")
    return _keep(trial, measuring, out, (folder / "run" / "latest").resolve(), took_s)


def check_phases(trials: Sequence[Trial], measuring: Measuring) -> str:
    """What is wrong with the phases that are to be measured, one line; empty when nothing is."""
    for trial in trials:
        phases = trial.point.experiment.phases
        names = measuring.phases or loaded_phases(msgspec.to_builtins(trial.point.experiment))
        for name in names:
            if name not in phases:
                return f"--phase {name}: point {trial.point.name} has no such phase; there is {', '.join(phases)}"
            if phases[name].duration_s <= measuring.settle_s:
                lasts = f"{name} lasts {phases[name].duration_s:g} s at point {trial.point.name}"
                return f"--settle {measuring.settle_s:g}: nothing would be left to measure, {lasts}"
    return ""


class Clock:
    """How long what is left will take, by what was done. Threads may tell it."""

    def __init__(self, left: int, parallel: int, known_s: Sequence[float] = ()) -> None:
        self._lock = threading.Lock()
        self._left = left
        self._parallel = parallel
        self._took_s = list(known_s)

    def done(self, took_s: float) -> None:
        """A run has ended."""
        with self._lock:
            self._left -= 1
            self._took_s.append(took_s)

    def left_s(self) -> float | None:
        """Seconds; None before anything has ended."""
        with self._lock:
            if not self._took_s:
                return None
            rounds = -(-self._left // self._parallel)
            return rounds * sum(self._took_s) / len(self._took_s)


def _adopted(trial: Trial, measuring: Measuring, out: Path) -> list[SweepRow] | None:
    """The rows of a run whose verdict is there, while its rows are not: the sweep was ended before it heard of it."""
    folder = out / POINTS / trial.key
    try:
        run = (folder / "run" / "latest").resolve(strict=True)
        if not read_verdict(run).complete:
            return None
        # As `play` would have: from when it was about to be started.
        took_s = (run / "verdict.json").stat().st_mtime - (folder / _EXPERIMENT).stat().st_mtime
        return _keep(trial, measuring, out, run, max(0.0, took_s))
    except (OSError, UnreadableError, NoVerdict):
        return None


def _keep(trial: Trial, measuring: Measuring, out: Path, run: Path, took_s: float) -> list[SweepRow]:
    try:
        verdict = read_verdict(run)
        history = load_history(run)
        phases = measuring.phases or tuple(loaded_phases(read_experiment(run)))
        rows = [_row(trial, history, verdict, run, out, took_s, phase, measuring) for phase in phases]
    except (UnreadableError, OSError, ValueError, CannotJudge) as error:
        raise NoVerdict(" ".join(str(error).split())[:_WHY_MAX]) from error
    if not verdict.complete:
        raise NoVerdict(f"the run is incomplete: {history.info.ended_by}")
    where = str(run.relative_to(out.resolve()))
    write_whole(out / POINTS / trial.key / _ROWS, msgspec.json.encode(Kept(measuring, where, took_s, rows)))
    return rows


def _row(
    trial: Trial,
    history: History,
    verdict: Verdict,
    run: Path,
    out: Path,
    took_s: float,
    phase: str,
    measuring: Measuring,
) -> SweepRow:
    environment: dict[str, Any] = msgspec.json.decode((run / "environment.json").read_bytes())
    faults = history.faults
    struck = faults[(faults["phase"] == phase) & faults["injected_s"].notna()] if "phase" in faults else faults[:0]
    return SweepRow(
        point=trial.point.name,
        key=trial.key,
        repeat=trial.repeat,
        seed=trial.seed,
        values=trial.point.values,
        world=history.info.world,
        engine=history.info.engine,
        verdict=verdict.verdict.value,
        reason=verdict.reasons[0] if verdict.reasons else "",
        run=str(run.resolve().relative_to(out.resolve())),
        took_s=took_s,
        workers=trial.point.experiment.cluster.workers,
        hosts=_hosts(environment.get("hosts")),
        cores=int(environment.get("cores") or 1),
        machine=str(environment.get("platform") or ""),
        faults=sorted(set(struck["kind"])),
        figures=measure_point(history, phase, measuring.settle_s),
    )


def _hosts(told: object) -> int:
    """Of machines, not of Ray nodes: several of these may be on one."""
    if isinstance(told, int):
        return max(1, told)
    return max(1, len(told)) if isinstance(told, list | dict) else 1


def _last_words(folder: Path) -> str:
    """What a run complains of is its last line."""
    try:
        lines = (folder / "run.log").read_text(errors="replace").strip().splitlines()
    except OSError:
        lines = []
    return " ".join(lines[-1].split())[:_WHY_MAX] if lines else f"see {folder / 'run.log'}"
