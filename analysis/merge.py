"""From the raw files of all nodes to one Parquet file per table, on one clock."""

from pathlib import Path

import msgspec
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from analysis.recorder import END_OF_STREAM, RecorderError
from analysis.tables import SCHEMAS, TIME_COLUMNS
from analysis.whole_file import replacing


class MergeReport(msgspec.Struct, frozen=True):
    """What was merged. rows: table to count.

    unclosed: files whose writer was killed, so rows may be missing at their end. truncated: those of them that end in
    the middle of a batch. foreign: files that hold something else and were left out.
    """

    rows: dict[str, int]
    files: int
    unclosed: list[str]
    truncated: list[str]
    foreign: list[str]

    def notes(self) -> list[str]:
        """What a reader of the run should know, one sentence each."""
        told = [f"{name}: cut in the middle of a batch, its last rows are lost" for name in self.truncated]
        told += [f"{name}: its writer was killed, rows may be missing" for name in self.unclosed]
        return told + [f"{name}: not one of our tables, left out" for name in self.foreign]


class _Raw(msgspec.Struct):
    batches: list[pa.RecordBatch]
    closed: bool
    truncated: bool


def _read(path: Path, schema: pa.Schema) -> _Raw | None:
    """The whole batches of a stream; None when it is not a stream of this table."""
    payload = path.read_bytes()
    raw = _Raw(batches=[], closed=payload.endswith(END_OF_STREAM), truncated=False)
    try:
        reader = pa.ipc.open_stream(pa.BufferReader(payload))
    except (pa.ArrowInvalid, OSError):
        # A writer that died within its very first write has left a part of the schema, which is no news of anyone.
        raw.truncated = schema.serialize().to_pybytes().startswith(payload)
        return raw if raw.truncated else None
    if not reader.schema.equals(schema):
        return None
    try:
        raw.batches.extend(reader)
    except (pa.ArrowInvalid, OSError):
        raw.truncated = True
    return raw


def _on_run_clock(table: pa.Table, columns: tuple[str, ...], origin_s: float, offsets: dict[str, float]) -> pa.Table:
    by_row = np.array([offsets.get(node, 0.0) for node in table["node"].to_pylist()], dtype=float)
    for name in columns:
        shifted = pc.subtract(pc.subtract(table[name], pa.array(by_row)), pa.scalar(float(origin_s)))
        table = table.set_column(table.schema.get_field_index(name), table.schema.field(name), shifted)
    if "segments" in table.schema.names:
        lists = table["segments"].combine_chunks()
        segments = lists.flatten()
        lengths = pc.list_value_length(lists).to_numpy(zero_copy_only=False)
        received = segments.field("received_s").to_numpy(zero_copy_only=False)
        shifted = received - np.repeat(by_row, lengths) - origin_s
        names = [field.name for field in segments.type]
        parts = [pa.array(shifted) if name == "received_s" else segments.field(name) for name in names]
        starts = pa.array(np.concatenate([[0], np.cumsum(lengths)]), type=pa.int32())
        rebuilt = pa.ListArray.from_arrays(starts, pa.StructArray.from_arrays(parts, fields=list(segments.type)))
        position = table.schema.get_field_index("segments")
        table = table.set_column(position, table.schema.field("segments"), rebuilt)
    return table


def write_parquet(table: pa.Table, path: Path) -> None:
    """Write a table so that a reader sees the old file, the whole new one, or none. Raises RecorderError."""
    try:
        with replacing(path) as part:
            pq.write_table(table, part, compression="zstd", write_page_checksum=True)
    except OSError as error:
        raise RecorderError(f"{path}: cannot write: {error.strerror or error}") from error


def merge(
    raw: Path, out: Path, origin_s: float, clock_offsets: dict[str, float], *, leave_out: str = ""
) -> MergeReport:
    """Merge `<table>.<node>.<incarnation>.arrow` of `raw` into `<table>.parquet` in `out`, for all tables.

    Rows are ordered by node, incarnation and sequence. A time becomes `time - clock_offsets[node] - origin_s` (an
    offset is how far the node's clock is ahead of the clock of `origin_s`, seconds; 0 when it is not listed). Requests
    get one more column, `token_count`.
    leave_out: rows about requests whose id begins with this (a capacity probe's) do not belong to the run.
    Raises RecorderError when a file cannot be written.
    """
    batches: dict[str, list[pa.RecordBatch]] = {name: [] for name in SCHEMAS}
    report = MergeReport(rows={}, files=0, unclosed=[], truncated=[], foreign=[])
    paths = sorted(raw.glob("*.arrow"))
    for path in paths:
        name = path.name.split(".", 1)[0]
        stream = _read(path, SCHEMAS[name]) if name in SCHEMAS else None
        if stream is None:
            report.foreign.append(path.name)
            continue
        batches[name].extend(stream.batches)
        if stream.truncated:
            report.truncated.append(path.name)
        elif not stream.closed:
            report.unclosed.append(path.name)
    for name, schema in SCHEMAS.items():
        table = pa.Table.from_batches(batches[name], schema=schema)
        if leave_out and "request_id" in schema.names:
            table = table.filter(pc.invert(pc.starts_with(table["request_id"], leave_out)))
        table = table.sort_by([(key, "ascending") for key in ("node", "incarnation", "sequence")])
        table = _on_run_clock(table, TIME_COLUMNS[name], origin_s, clock_offsets)
        if name == "requests":
            # So that nobody who only counts has to read them all.
            table = table.append_column("token_count", pc.list_value_length(table["tokens"]).cast(pa.int64()))
        write_parquet(table, out / f"{name}.parquet")
        report.rows[name] = table.num_rows
    return msgspec.structs.replace(report, files=len(paths) - len(report.foreign))
