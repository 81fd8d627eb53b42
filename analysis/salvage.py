"""The tables of a run whose runner was killed before it could merge them."""

from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc

from analysis.history import UnreadableError
from analysis.merge import merge
from analysis.recorder import RecorderError
from analysis.schema import PROBE_PREFIX
from analysis.tables import SCHEMAS


def salvage(directory: Path) -> list[str]:
    """Merge the raw rows of a results directory that has no tables yet; notes about what is missing.

    Time zero is the director's `run_started`, or else the first row of all. Nothing happens where the tables are
    there, or where there are no raw rows. Raises UnreadableError.
    """
    raw = directory / "raw"
    if all((directory / f"{name}.parquet").exists() for name in SCHEMAS) or not raw.is_dir():
        return []
    try:
        notes = merge(raw, directory, origin_s(raw), {}, leave_out=PROBE_PREFIX).notes()
    except RecorderError as error:
        raise UnreadableError(str(error)) from error
    return [*notes, "the run was killed: the tables were merged afterwards from what each node had written"]


def origin_s(raw: Path) -> float:
    first_s: float | None = None
    for path in sorted(raw.glob("events.*.arrow")):
        for batch in _batches(path):
            started = batch.filter(pc.equal(batch["kind"], "run_started"))
            if started.num_rows:
                return float(started["time_s"][0].as_py())
            least = pc.min(batch["time_s"]).as_py()
            if least is not None and (first_s is None or least < first_s):
                first_s = float(least)
    return first_s or 0.0


def _batches(path: Path) -> list[pa.RecordBatch]:
    """The whole batches of a stream whose end may be missing."""
    batches: list[pa.RecordBatch] = []
    try:
        with pa.OSFile(str(path)) as file, pa.ipc.open_stream(file) as reader:
            batches.extend(reader)
    except (pa.ArrowInvalid, OSError):
        return batches
    return batches
