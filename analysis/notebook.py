"""Results as pandas frames for notebooks and scripts; call it as `analysis.load`."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pandas as pd

from analysis.history import History, Phase, RunInfo, UnreadableError
from analysis.reader import load_history
from analysis.salvage import salvage
from analysis.verdict import Verdict

RUNS_MAX = 1_000
TABLES = ("requests", "attempts", "events", "nodes", "faults", "schedule")


class Results(msgspec.Struct, frozen=True):
    """What one run or several recorded. All times are seconds since the run began, all durations seconds.

    requests: one row per request that ended or was due, in order of `intended_s`, with the columns of
    analysis.schema.RequestRow (of one that never ended: outcome `in_flight`, and no times), and
      phase         the phase in which it was to be sent, "" outside of all
      arm           the arm of the comparison, "" without one
      latency_s     from the intended time to the end, whatever the outcome
      ttft_s        from the intended time to the first token
      inter_token_s from one token to the next, the mean of the request; NaN for less than two tokens
      lag_s         from the intended time to the time it was really sent
      token_count   tokens that its caller got
    attempts: analysis.schema.AttemptRow, one row per attempt and `side`, and `phase` (in which it began), `arm`,
      queue_wait_s, prefill_s, decode_s  of the worker's rows: parts of the attempt's life
    events, nodes, faults: EventRow, NodeRow, FaultRow of analysis.schema; schedule: what was to be sent.
    With several runs every frame begins with the column `run`, the run's id; info, experiment and verdict are those of
    the first, and `runs` holds the results of each.
    verdict: None where none was written, or it cannot be read.
    """

    requests: pd.DataFrame
    attempts: pd.DataFrame
    events: pd.DataFrame
    nodes: pd.DataFrame
    faults: pd.DataFrame
    schedule: pd.DataFrame
    info: RunInfo
    experiment: dict[str, object]
    phases: list[Phase]
    verdict: Verdict | None
    runs: "tuple[Results, ...]" = ()

    def __repr__(self) -> str:
        sizes = ", ".join(f"{len(getattr(self, name)):,} {name}" for name in TABLES)
        several = f" and {len(self.runs) - 1} more" if len(self.runs) > 1 else ""
        verdict = self.verdict.verdict.value if self.verdict is not None else "none"
        return f"<Results of {self.info.run_id}{several}: {sizes}; verdict {verdict}>"


def read(directory: str | Path | Sequence[str | Path]) -> Results:
    """See `analysis.load`. Raises UnreadableError, also for none or more than RUNS_MAX directories."""
    if isinstance(directory, str | Path):
        return _one(Path(directory))
    paths = [Path(path) for path in directory]
    if not 0 < len(paths) <= RUNS_MAX:
        raise UnreadableError(f"expected 1 to {RUNS_MAX} results directories, got {len(paths)}")
    runs = tuple(_one(path) for path in paths)
    frames: dict[str, Any] = {}
    for name in TABLES:
        parts = [getattr(run, name) for run in runs]
        named = [part.assign(run=run.info.run_id) for part, run in zip(parts, runs, strict=True)]
        # A frame without rows has nothing to add, and pandas would ask what its types are worth.
        filled = [part for part in named if len(part)] or named[:1]
        whole = pd.concat(filled, ignore_index=True)
        frames[name] = whole[["run", *(column for column in whole.columns if column != "run")]]
    return msgspec.structs.replace(runs[0], **frames, runs=runs)


def _one(directory: Path) -> Results:
    salvage(directory)
    history = load_history(directory)
    phases = history.phases()
    return Results(
        requests=_requests(history, phases),
        attempts=_attempts(history, phases),
        events=history.events,
        nodes=history.nodes,
        faults=history.faults,
        schedule=history.schedule,
        info=history.info,
        experiment=history.experiment,
        phases=phases,
        verdict=_verdict(directory),
    )


def _requests(history: History, phases: list[Phase]) -> pd.DataFrame:
    # Here, so that reading bare tables does not need what judges need.
    from analysis.facts import offered

    lines = offered(history).drop(columns=["scheduled_s"], errors="ignore")
    tokens = [len(made) if isinstance(made, list | np.ndarray) else 0 for made in lines["tokens"]]
    counts = pd.Series(tokens, index=lines.index, dtype="int64")
    gaps = (counts - 1).where(counts >= 2)
    return lines.assign(
        phase=_phase_of(lines["intended_s"], phases),
        arm=_arm_of(lines["request_id"], history),
        latency_s=lines["ended_s"] - lines["intended_s"],
        ttft_s=lines["first_token_s"] - lines["intended_s"],
        inter_token_s=(lines["ended_s"] - lines["first_token_s"]) / gaps,
        lag_s=lines["sent_s"] - lines["intended_s"],
        token_count=counts,
    )


def _attempts(history: History, phases: list[Phase]) -> pd.DataFrame:
    rows = history.attempts
    return rows.assign(
        phase=_phase_of(rows["begun_s"], phases),
        arm=_arm_of(rows["request_id"], history),
        queue_wait_s=rows["started_s"] - rows["begun_s"],
        prefill_s=rows["first_token_s"] - rows["started_s"],
        decode_s=(rows["ended_s"] - rows["first_token_s"]).where(rows["side"] == "worker"),
    )


def _phase_of(times_s: "pd.Series[float]", phases: list[Phase]) -> "pd.Series[str]":
    found = pd.Series("", index=times_s.index, dtype="str")
    for phase in phases:
        found = found.mask((times_s >= phase.start_s) & (times_s < phase.end_s), phase.name)
    return found


def _arm_of(request_ids: "pd.Series[str]", history: History) -> "pd.Series[str]":
    planned = history.schedule.drop_duplicates("request_id").set_index("request_id")["arm"]
    return request_ids.map(planned).fillna("").astype("str")


def _verdict(directory: Path) -> Verdict | None:
    try:
        return msgspec.json.decode((directory / "verdict.json").read_bytes(), type=Verdict)
    except (OSError, msgspec.DecodeError, UnicodeDecodeError):
        return None
