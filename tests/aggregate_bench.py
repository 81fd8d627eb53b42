"""Ten million request rows summarised: in one process, as Ray tasks, and by pandas, each with its memory at the peak.

`python -m tests.aggregate_bench [ROWS]` prints it alone. Every way runs in a process of its own, whose memory and that
of all its children is added up twenty times a second; what two of them share counts twice.
"""

import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import psutil
import pyarrow as pa
import pyarrow.parquet as pq

from analysis.tables import SCHEDULE_SCHEMA, SCHEMAS
from tests.processes import ROOT

Row = tuple[str, str, str, str]
ROWS = 10_000_000
LIMIT_BYTES = 2_000_000_000
PER_S = 2_000
_BATCH = 100_000
_TOKENS = 16
_ARMS = ("sticky", "moved")
_SAMPLE_S = 0.05
_TIME_MAX_S = 900

_OURS = """
import sys, json
from pathlib import Path
from analysis.aggregate import as_tasks, in_process
from analysis.partitions import find
found = find([Path(sys.argv[1])])
summary = {call}
whole = summary.select()
print(json.dumps([whole.rows, whole.sketches["latency_s"].quantile(0.99)]))
"""
_PANDAS = """
import sys, json
import pandas as pd
columns = ["request_id", "intended_s", "sent_s", "first_token_s", "ended_s", "outcome", "code", "prompt_tokens",
           "cached_tokens", "submissions", "token_count"]
rows = pd.read_parquet(sys.argv[1] + "/requests.parquet", columns=columns)
schedule = pd.read_parquet(sys.argv[1] + "/schedule.parquet", columns=["request_id", "arm"])
rows = rows.merge(schedule, on="request_id")
rows["phase"] = pd.cut(rows["intended_s"], [0, rows["intended_s"].max() / 2, float("inf")], right=False)
groups = rows.groupby(["phase", "arm"], observed=True)
ends = groups[["outcome", "code"]].value_counts()
sums = groups[["prompt_tokens", "cached_tokens", "submissions", "token_count"]].sum()
done = rows[rows["outcome"] == "completed"]
values = pd.DataFrame({
    "latency": done["ended_s"] - done["intended_s"], "ttft": done["first_token_s"] - done["intended_s"],
    "inter_token": (done["ended_s"] - done["first_token_s"]) / (done["token_count"] - 1),
    "lag": done["sent_s"] - done["intended_s"], "phase": done["phase"], "arm": done["arm"],
    "second": done["ended_s"].astype(int),
})
shares = [0.5, 0.9, 0.95, 0.99]
quantiles = values.groupby(["phase", "arm"], observed=True)[["latency", "ttft", "inter_token", "lag"]].quantile(shares)
seconds = values.groupby("second")["latency"].quantile(shares)
per_s = rows.groupby(rows["ended_s"].astype(int))["outcome"].value_counts()
print(json.dumps([len(rows), values["latency"].quantile(0.99)]))
"""


def aggregate_rows(rows: int = ROWS) -> list[Row]:
    """The three ways over the same file, and the ratio to pandas."""
    with tempfile.TemporaryDirectory() as folder:
        began_s = time.perf_counter()
        directory = _made(Path(folder), rows)
        size = (directory / "requests.parquet").stat().st_size
        made = f"{size / 1e6:.0f} MB of requests.parquet, made in {time.perf_counter() - began_s:.0f} s"
        pandas = _measured(_PANDAS, directory)
        found: list[Row] = [(f"{rows:,} request rows with two arms", made, "", "")]
        for name, call in (
            ("  in one process", "in_process(found)"),
            ("  as Ray tasks, two at once", "as_tasks(found, workers=2)"),
        ):
            took_s, peak_bytes, answer = _measured(_OURS.replace("{call}", call), directory)
            close = abs(answer[1] / pandas[2][1] - 1)
            found.append(
                (
                    f"{name}; p99 within {close:.2%} of the exact one",
                    f"{rows / took_s:,.0f} rows/s",
                    f"pandas {rows / pandas[0]:,.0f} rows/s",
                    f"{pandas[0] / took_s:.2f}",
                )
            )
            told = "under" if peak_bytes < LIMIT_BYTES else "OVER"
            found.append(
                (
                    f"    memory of all processes at the peak, {told} {LIMIT_BYTES / 1e9:g} GB",
                    f"{peak_bytes / 1e6:,.0f} MB",
                    f"pandas {pandas[1] / 1e6:,.0f} MB",
                    f"{peak_bytes / pandas[1]:.2f}",
                )
            )
            assert answer[0] == pandas[2][0] == rows
    return found


def _measured(code: str, directory: Path) -> tuple[float, int, list[float]]:
    """Seconds of the whole process, its start included; resident bytes at the peak, of it and its children; answer."""
    began_s = time.perf_counter()
    with subprocess.Popen([sys.executable, "-c", code, str(directory)], cwd=ROOT, stdout=subprocess.PIPE) as process:
        root, peak_bytes = psutil.Process(process.pid), 0
        while process.poll() is None:
            peak_bytes = max(peak_bytes, _resident_bytes(root))
            if time.perf_counter() - began_s > _TIME_MAX_S:
                process.kill()
            time.sleep(_SAMPLE_S)
        took_s = time.perf_counter() - began_s
        assert process.stdout is not None
        told = process.stdout.read().decode().strip()
    if process.returncode:
        raise RuntimeError(f"ended with {process.returncode} after {took_s:.0f} s and {peak_bytes / 1e6:.0f} MB")
    return took_s, peak_bytes, json.loads(told.splitlines()[-1])


def _resident_bytes(root: psutil.Process) -> int:
    total = 0
    try:
        for process in (root, *root.children(recursive=True)):
            try:
                total += process.memory_info().rss
            except psutil.NoSuchProcess:
                continue
    except psutil.NoSuchProcess:
        return total
    return total


def _made(folder: Path, rows: int) -> Path:
    """A results directory with so many requests, two phases and two arms, written in batches."""
    rng = np.random.default_rng(1)
    end_s = rows / PER_S
    schema = SCHEMAS["requests"].append(pa.field("token_count", pa.int64()))
    with (
        pq.ParquetWriter(folder / "requests.parquet", schema, compression="zstd") as requests,
        pq.ParquetWriter(folder / "schedule.parquet", SCHEDULE_SCHEMA, compression="zstd") as schedule,
    ):
        for first in range(0, rows, _BATCH * 10):
            last = min(rows, first + _BATCH * 10)
            parts = [_batch(rng, start, min(last, start + _BATCH)) for start in range(first, last, _BATCH)]
            requests.write_table(pa.concat_tables([part.select(schema.names) for part in parts]))
            schedule.write_table(pa.concat_tables([_fitting(part, SCHEDULE_SCHEMA) for part in parts]))
    pq.write_table(SCHEMAS["attempts"].empty_table(), folder / "attempts.parquet")
    events = [("phase_started", "first", 0.0), ("phase_ended", "first", end_s / 2)]
    events += [("phase_started", "second", end_s / 2), ("phase_ended", "second", end_s), ("run_ended", "", end_s + 60)]
    told = [{"node": "director", "kind": kind, "subject": name, "time_s": at} for kind, name, at in events]
    pq.write_table(pa.Table.from_pylist(told, schema=SCHEMAS["events"]), folder / "events.parquet")
    info = {"run_id": "made-up", "experiment": "aggregate_bench", "world": "simulated", "seed": 1}
    info |= {"complete": True, "ended_by": "the last phase", "invariants": []}
    (folder / "run.json").write_text(json.dumps(info))
    return folder


def _batch(rng: np.random.Generator, first: int, last: int) -> pa.Table:
    size = last - first
    numbers = np.arange(first, last)
    intended = numbers / PER_S
    latency = rng.lognormal(-1.0, 0.6, size)
    failed = rng.random(size) < 0.01
    columns: dict[str, object] = {
        "request_id": np.char.add("r-", numbers.astype(str)),
        "model": np.full(size, "tiny"), "session_id": np.char.add("s-", (numbers % 24).astype(str)),
        "intended_s": intended, "sent_s": intended + 0.001, "first_token_s": intended + latency * 0.3,
        "ended_s": intended + latency, "deadline_s": intended + 10.0,
        "outcome": np.where(failed, "failed", "completed"), "code": np.where(failed, "WORKER_LOST", ""),
        "prompt_tokens": rng.integers(20, 400, size), "max_tokens": np.full(size, _TOKENS),
        "submissions": np.ones(size, dtype=int), "cached_tokens": rng.integers(0, 20, size),
        "tokens": pa.ListArray.from_arrays(
            pa.array(np.arange(size + 1) * _TOKENS, pa.int32()), pa.array(rng.integers(0, 256, size * _TOKENS))
        ),
        "token_count": np.full(size, _TOKENS), "arm": np.array(_ARMS)[numbers % 2],
    }  # fmt: skip
    schema = pa.schema([*SCHEMAS["requests"], pa.field("token_count", pa.int64()), pa.field("arm", pa.string())])
    return _fitting(pa.table({name: pa.array(values) for name, values in columns.items()}), schema)


def _fitting(table: pa.Table, schema: pa.Schema) -> pa.Table:
    """With exactly these columns; those that are not there are null."""
    names = table.schema.names
    columns = [
        table[field.name].cast(field.type) if field.name in names else pa.nulls(table.num_rows, field.type)
        for field in schema
    ]
    return pa.table(columns, schema=schema)


if __name__ == "__main__":
    for line in aggregate_rows(int(sys.argv[1]) if len(sys.argv) > 1 else ROWS):
        print("  ".join(part for part in line if part))
