"""What each worker did over the run, as rows of a table."""

import msgspec
import numpy as np
import pandas as pd

from analysis import canvas
from analysis.facts import run_end_s
from analysis.history import History

WORKERS_MAX = 24


class WorkerRow(msgspec.Struct, frozen=True):
    """One worker. Seconds are means of its attempts, None where none told; memory_bytes, queue_max: the largest sample.

    batch: sequences in a decode step as a token met them. cpu: mean share of a core. attempts: that it took to its
    engine or refused; completed: of those.
    """

    name: str
    attempts: int
    completed: int
    tokens: int
    tokens_per_s: float
    batch: float | None
    queue_s: float | None
    prefill_s: float | None
    decode_s: float | None
    queue_max: int | None
    cpu: float | None
    memory_bytes: int | None


def worker_rows(history: History) -> list[WorkerRow]:
    """The workers that left a row of work or a sample, by name, WORKERS_MAX of them at most."""
    told = history.attempts[history.attempts["side"] == "worker"]
    # Before time zero the capacity was probed.
    samples = history.nodes[(history.nodes["role"] == "worker") & (history.nodes["time_s"] >= 0)]
    names = sorted({*map(str, told["worker"]), *map(str, samples["node"])}, key=canvas.natural)
    length_s = max(run_end_s(history), 1e-9)
    return [
        _row(name, told[told["worker"] == name], samples[samples["node"] == name], length_s)
        for name in names[:WORKERS_MAX]
    ]


def _row(name: str, told: pd.DataFrame, samples: pd.DataFrame, length_s: float) -> WorkerRow:
    made = told[(told["tokens"] > 0) & (told["batch_mean"] > 0)]
    held = samples["resident_bytes"] if samples["resident_bytes"].notna().any() else samples["memory_bytes"]
    tokens = int(told["tokens"].sum())
    return WorkerRow(
        name=name,
        attempts=len(told),
        completed=int((told["outcome"] == "completed").sum()),
        tokens=tokens,
        tokens_per_s=tokens / length_s,
        batch=float(np.average(made["batch_mean"], weights=made["tokens"])) if len(made) else None,
        queue_s=_mean(told["started_s"] - told["begun_s"]),
        prefill_s=_mean(told["first_token_s"] - told["started_s"]),
        decode_s=_mean(told["ended_s"] - told["first_token_s"]),
        queue_max=int(samples["queue_depth"].max()) if len(samples) else None,
        cpu=_mean(samples["cpu_share"]),
        memory_bytes=int(held.max()) if held.notna().any() else None,
    )


def _mean(values: "pd.Series[float]") -> float | None:
    mean = float(values.astype(float).mean())
    return None if np.isnan(mean) else mean
