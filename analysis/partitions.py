"""Where rows lie, in parts that can be read apart: row groups of Parquet files, and the files of single nodes.

Batches of bounded size come out, with the columns that are summarised and never with tokens or segments, so the memory
does not depend on the number of rows.
"""

import math
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import msgspec
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from analysis.history import Phase, UnreadableError, read_info
from analysis.salvage import origin_s as origin_of

BATCH_ROWS = 128 * 1024
PARTITION_ROWS = 2**20
"""Small row groups are taken together up to so many rows."""

PARTITIONS_MAX = 100_000
PHASES_MAX = 1_000
RUNS_MAX = 10_000

_TEXT = ("outcome", "code", "worker", "side", "arm", "phase", "segment")
_COLUMNS: dict[str, tuple[str, ...]] = {
    "requests": (
        "request_id", "intended_s", "sent_s", "first_token_s", "ended_s", "outcome", "code", "prompt_tokens",
        "cached_tokens", "submissions", "token_count", "arm", "phase",
    ),
    "attempts": (
        "request_id", "side", "worker", "begun_s", "started_s", "first_token_s", "ended_s", "outcome", "code",
        "tokens", "cached_tokens", "arm", "phase",
    ),
    "schedule": ("request_id", "intended_s", "arm", "segment"),
    "events": ("kind", "time_s", "request_id", "subject"),
}  # fmt: skip
_NEEDED = {
    "requests": ("intended_s", "ended_s", "outcome"),
    "attempts": ("side", "worker", "begun_s", "ended_s", "outcome"),
    "schedule": ("request_id", "intended_s"),
    "events": ("kind", "time_s", "subject"),
}
_SUFFIXES = (".parquet", ".arrow", ".arrows", ".feather")
_OURS = "summary."


class Run(msgspec.Struct, frozen=True):
    """What all partitions of a run share. origin_s: what to take from its times; end_s: when it ended, in the run.

    planned: its requests are offered by its schedule, and else by their own rows.
    """

    name: str
    phases: tuple[Phase, ...] = ()
    origin_s: float = 0.0
    end_s: float = math.inf
    planned: bool = False


class Partition(msgspec.Struct, frozen=True):
    """Rows of one table of one run. row_groups: of a Parquet file; empty for an Arrow file, which is read whole."""

    path: str
    table: str
    run: Run
    row_groups: tuple[int, ...] = ()
    rows: int = 0
    """For an Arrow file an estimate from its size."""


class Found(msgspec.Struct, frozen=True):
    """What there is to read."""

    partitions: list[Partition]
    runs: list[Run]
    notes: list[str]

    @property
    def rows(self) -> int:
        """About how many rows the partitions hold."""
        return sum(part.rows for part in self.partitions)


def find(paths: Sequence[Path]) -> Found:
    """The partitions of results directories, of folders of them, or of folders and files with bare rows.

    Raises UnreadableError, one line, where there is nothing to read.
    """
    found = Found([], [], [])
    for path in dict.fromkeys(path.resolve() for path in paths):
        if not path.exists():
            raise UnreadableError(f"{path}: missing")
        runs = [path] if (path / "run.json").is_file() else sorted(each.parent for each in path.glob("*/run.json"))
        # `latest` is a link to one of the others.
        runs = [run for run in runs if run == path or not run.is_symlink()]
        for run in runs:
            _add_run(found, run)
        if not runs:
            _add_rows(found, path)
    if len(found.partitions) > PARTITIONS_MAX or len(found.runs) > RUNS_MAX:
        raise UnreadableError(f"more than {PARTITIONS_MAX} partitions or {RUNS_MAX} runs; name fewer directories")
    if not found.partitions:
        raise UnreadableError(f"{', '.join(str(path) for path in paths)}: neither results nor Parquet or Arrow files")
    return found


def _add_run(found: Found, path: Path) -> None:
    info = read_info(path)
    merged = {name: path / f"{name}.parquet" for name in ("requests", "attempts", "events")}
    if all(file.exists() for file in merged.values()):
        files = {name: [file] for name, file in merged.items()}
        zero_s = 0.0
    else:
        every = {name: sorted((path / "raw").glob(f"{name}.*.arrow")) for name in merged}
        files = {name: [file for file in listed if _begun(file)] for name, listed in every.items()}
        zero_s = origin_of(path / "raw")
        found.notes.append(f"{info.run_id}: never merged, read from what each node had written")
    if not info.complete:
        found.notes.append(f"{info.run_id}: incomplete, ended by: {info.ended_by}")
    schedule = path / "schedule.parquet"
    planned = schedule.exists() and _parquet(schedule).metadata.num_rows > 0
    run = _described(str(path), files, zero_s, planned)
    found.runs.append(run)
    for table, listed in files.items():
        for file in listed:
            found.partitions.extend(split(file, table, run))
    if planned:
        found.partitions.extend(split(schedule, "schedule", msgspec.structs.replace(run, origin_s=0.0)))


def _described(name: str, files: dict[str, list[Path]], zero_s: float, planned: bool) -> Run:
    run = Run(name, (), zero_s, math.inf, planned)
    starts: list[tuple[float, str]] = []
    ends: dict[str, float] = {}
    ended: float | None = None
    last_s = 0.0
    for batch in _all(files["events"], "events", run):
        times = pc.subtract(batch["time_s"], zero_s)
        last_s = max(last_s, pc.max(times).as_py() or 0.0)
        wanted = pc.is_in(batch["kind"], pa.array(["phase_started", "phase_ended", "run_ended"]))
        for kind, subject, time_s in zip(
            batch["kind"].filter(wanted).to_pylist(), batch["subject"].filter(wanted).to_pylist(),
            times.filter(wanted).to_pylist(), strict=True,
        ):  # fmt: skip
            if kind == "phase_started":
                starts.append((time_s, str(subject)))
            elif kind == "phase_ended":
                ends[str(subject)] = time_s
            else:
                ended = max(ended or 0.0, time_s)
    if len(starts) > PHASES_MAX:
        raise UnreadableError(f"{name}: more than {PHASES_MAX} phases")
    if ended is None:
        # As facts.run_end_s has it: in a run that was cut, the last moment of which anybody told.
        for table in ("requests", "attempts"):
            told = [pc.max(batch["ended_s"]).as_py() for batch in _all(files[table], table, run, ("ended_s",))]
            last_s = max([last_s, *(time_s - zero_s for time_s in told if time_s is not None)])
    phases = tuple(Phase(phase, start_s, ends.get(phase, math.inf)) for start_s, phase in sorted(starts))
    return msgspec.structs.replace(run, phases=phases, end_s=last_s if ended is None else ended)


def _all(files: list[Path], table: str, run: Run, only: tuple[str, ...] = ()) -> Iterator[pa.RecordBatch]:
    for file in files:
        for part in split(file, table, run):
            yield from batches(part, only=only)


def _add_rows(found: Found, path: Path) -> None:
    if path.is_dir():
        files = [file for file in sorted(path.rglob("*")) if file.suffix in _SUFFIXES and file.is_file()]
        files = [file for file in files if not file.name.startswith((_OURS, "."))]
    else:
        files = [path]
    run = Run(str(path))
    for file in files[: PARTITIONS_MAX + 1]:
        names = _names(file)
        table = "attempts" if "side" in names else "requests" if set(_NEEDED["requests"]) <= names else ""
        if table:
            found.partitions.extend(split(file, table, run))
        elif path.is_dir():
            found.notes.append(f"{file}: neither requests nor attempts, left out")
        else:
            raise UnreadableError(f"{file}: not rows of requests: no {', '.join(_NEEDED['requests'])}")
    if files:
        found.runs.append(run)


def split(path: Path, table: str, run: Run, rows_each: int = PARTITION_ROWS) -> list[Partition]:
    """The partitions of one file: ranges of row groups of a Parquet file, an Arrow file as a whole."""
    if path.suffix != ".parquet":
        return [Partition(str(path), table, run, (), path.stat().st_size // 100)]
    metadata = _parquet(path).metadata
    parts: list[Partition] = []
    for number in range(metadata.num_row_groups):
        rows = metadata.row_group(number).num_rows
        if parts and parts[-1].rows + rows <= rows_each:
            before = parts.pop()
            parts.append(Partition(str(path), table, run, (*before.row_groups, number), before.rows + rows))
        else:
            parts.append(Partition(str(path), table, run, (number,), rows))
    return parts


def batches(part: Partition, *, named: bool = False, only: tuple[str, ...] = ()) -> Iterator[pa.RecordBatch]:
    """The rows of a partition in batches, of its table's columns those that are there (or `only` these).

    named: with the request ids, which take more room than all other columns. Names come dictionary encoded. A stream
    whose end is missing ends there. Raises UnreadableError with one line.
    """
    columns = only or tuple(name for name in _COLUMNS[part.table] if named or name != "request_id")
    try:
        read = _parquet_batches if part.row_groups else _arrow_batches
        for batch in read(part, columns):
            yield _typed(batch, part)
    except (pa.ArrowException, OSError, OverflowError) as error:
        raise UnreadableError(f"{part.path}: not a readable file of rows: {line(error)}") from None


def _parquet_batches(part: Partition, columns: Sequence[str]) -> Iterator[pa.RecordBatch]:
    file = _parquet(Path(part.path))
    names = [name for name in columns if name in file.schema_arrow.names]
    _check(part, names, columns, file.schema_arrow.names)
    yield from file.iter_batches(BATCH_ROWS, row_groups=list(part.row_groups), columns=names, use_threads=False)


def _arrow_batches(part: Partition, columns: Sequence[str]) -> Iterator[pa.RecordBatch]:
    with pa.OSFile(part.path) as file, _arrow_reader(file) as reader:
        names = [name for name in columns if name in reader.schema.names]
        _check(part, names, columns, reader.schema.names)
        number = 0
        while number < getattr(reader, "num_record_batches", math.inf):
            try:
                batch = reader.get_batch(number) if hasattr(reader, "get_batch") else reader.read_next_batch()
            except StopIteration:
                return
            except (pa.ArrowInvalid, OSError):
                # The writer was killed within its last batch.
                return
            number += 1
            chosen = batch.select(names)
            kinds = dict(zip(batch.schema.names, batch.schema.types, strict=True))
            if "token_count" not in names and pa.types.is_list(kinds.get("tokens", pa.null())):
                chosen = chosen.append_column("token_count", pc.list_value_length(batch["tokens"]))
            for start in range(0, chosen.num_rows, BATCH_ROWS):
                yield chosen.slice(start, BATCH_ROWS)


def _arrow_reader(file: Any) -> Any:
    try:
        return pa.ipc.open_file(file)
    except pa.ArrowInvalid:
        file.seek(0)
        return pa.ipc.open_stream(file)


def _check(part: Partition, names: Sequence[str], columns: Sequence[str], every: Sequence[str]) -> None:
    twice = sorted({name for name in names if every.count(name) > 1})
    if twice:
        raise UnreadableError(f"{part.path}: more than one column {', '.join(twice)}")
    missing = [name for name in _NEEDED[part.table] if name in columns and name not in names]
    if missing:
        raise UnreadableError(f"{part.path}: not rows of {part.table}: no column {', '.join(missing)}")


def _typed(batch: pa.RecordBatch, part: Partition) -> pa.RecordBatch:
    """Numbers as 64 bits, names as a dictionary, whatever the file has. Raises ArrowException where that cannot be."""
    arrays = []
    for name, array in zip(batch.schema.names, batch.columns, strict=True):
        if name.endswith("_s"):
            arrays.append(array.cast(pa.float64()))
        elif name in _TEXT:
            arrays.append(array if pa.types.is_dictionary(array.type) else array.cast(pa.string()).dictionary_encode())
        elif name in ("request_id", "kind", "subject"):
            arrays.append(array.cast(pa.string()))
        else:
            arrays.append(array.cast(pa.int64()))
    typed = pa.RecordBatch.from_arrays(arrays, names=batch.schema.names)
    # A text need not be one: bytes of a spoilt file would come to light only where somebody reads them.
    typed.validate(full=True)
    return typed


def _parquet(path: Path) -> pq.ParquetFile:
    try:
        metadata = pq.read_metadata(path)
        columns = {metadata.schema.column(number).path for number in range(metadata.num_columns)}
        # Never spelt out: a small file can say a long name very often.
        return pq.ParquetFile(path, metadata=metadata, read_dictionary=[name for name in _TEXT if name in columns])
    except FileNotFoundError:
        raise UnreadableError(f"{path}: missing") from None
    except (pa.ArrowException, OSError) as error:
        raise UnreadableError(f"{path}: not a readable Parquet file: {line(error)}") from None


def _begun(path: Path) -> bool:
    """Whether a node's file has its schema: a node that was killed in its very first write has told nothing."""
    try:
        return bool(_names(path))
    except UnreadableError:
        return False


def _names(path: Path) -> set[str]:
    if path.suffix == ".parquet":
        return set(_parquet(path).schema_arrow.names)
    try:
        with pa.OSFile(str(path)) as file, _arrow_reader(file) as reader:
            return set(reader.schema.names)
    except (pa.ArrowException, OSError) as error:
        raise UnreadableError(f"{path}: not a readable Arrow file: {line(error)}") from None


def line(error: BaseException) -> str:
    """The first line of a library's complaint."""
    lines = str(error).splitlines()
    return lines[0][:300] if lines else type(error).__name__
