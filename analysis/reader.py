"""Read a results directory into a History."""

import math
import types
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Union, get_args, get_origin

import msgspec
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from analysis.history import History, UnreadableError, read_experiment, read_info
from analysis.schema import ROW_TYPES
from analysis.tables import REFERENCES_SCHEMA, SCHEDULE_ADDED, SCHEDULE_SCHEMA, SCHEMAS, TOKEN_GAPS_SCHEMA

ROWS_MAX = 5_000_000
BYTES_MAX = 4 * 2**30
"""Of one table of a run that is judged; more rows than that can still be summarised."""

NUMBER_MAX = 1e12
INTEGER_MAX = 2**53
INCARNATION_MAX = 2**62
"""An incarnation is a time in nanoseconds, which is more than 2**60."""

_OPTIONAL: frozenset[str] = frozenset(
    field.name
    for row_type in ROW_TYPES
    for field in msgspec.structs.fields(row_type)
    if get_origin(field.type) in (Union, types.UnionType) and type(None) in get_args(field.type)
)


def read_table(path: Path, schema: pa.Schema, added: Mapping[str, str | int] | None = None) -> pd.DataFrame:
    """A Parquet file as a frame with exactly the columns of `schema`. Raises UnreadableError.

    added: columns that may be missing, and what they hold then. The file may be a stranger's: values that no run can
    have, or more of them than fit into memory, are refused and not passed on.
    """
    try:
        table = _read(path, schema)
    except FileNotFoundError:
        raise UnreadableError(f"{path}: missing") from None
    except (pa.ArrowException, OSError, OverflowError) as error:
        raise UnreadableError(f"{path}: not a readable Parquet file: {_line(error)}") from None
    for name, value in (added or {}).items():
        if name not in table.schema.names:
            table = table.append_column(name, pa.repeat(value, table.num_rows))
    missing = [name for name in schema.names if name not in table.schema.names]
    if missing:
        raise UnreadableError(f"{path}: not this table: no column {', '.join(missing)}")
    try:
        # In two steps, so that a name is never spelt out before all of them are known to fit.
        table = table.select(schema.names).cast(schema)
        table.validate(full=True)
        _check_values(path, table, [name for name in added or {} if name in schema.names])
        frame: pd.DataFrame = table.to_pandas()
    except (pa.ArrowException, KeyError) as error:
        raise UnreadableError(f"{path}: not this table: {_line(error)}") from None
    return frame


def _read(path: Path, schema: pa.Schema) -> pa.Table:
    metadata = pq.read_metadata(path)
    if metadata.num_rows > ROWS_MAX:
        raise UnreadableError(f"{path}: {metadata.num_rows:,} rows, of at most {ROWS_MAX:,}; see analysis.aggregate")
    columns = [metadata.schema.column(number).path for number in range(metadata.num_columns)]
    names = {column.split(".")[0] for column in columns}
    texts = [field.name for field in schema if pa.types.is_string(field.type) and columns.count(field.name) == 1]
    file = pq.ParquetFile(path, metadata=metadata, read_dictionary=texts, page_checksum_verification=True)
    table = file.read(columns=[name for name in schema.names if name in names])
    size = sum(_spelt_bytes(column) for column in table.columns)
    if size > BYTES_MAX:
        raise UnreadableError(f"{path}: {size:,} bytes of values, of at most {BYTES_MAX:,}")
    return table


def _spelt_bytes(column: pa.ChunkedArray) -> int:
    """What a column takes when its dictionary is spelt out: a small file can say a long text very often."""
    if not pa.types.is_dictionary(column.type):
        return int(column.nbytes)
    total = 0
    for chunk in column.chunks:
        lengths = pc.binary_length(chunk.dictionary) if len(chunk.dictionary) else chunk.dictionary
        counts = pc.value_counts(chunk.indices.drop_null())
        if len(counts):
            taken = lengths.take(counts.field("values")).cast(pa.int64())
            total += pc.sum(pc.multiply(taken, counts.field("counts"))).as_py() or 0
    return total


def _check_values(path: Path, table: pa.Table, may_be_null: Sequence[str]) -> None:
    """Raises UnreadableError for what the row types do not allow: nothing in a column that is always filled, and times
    and numbers out of all bounds."""
    nullable = {*may_be_null, *_OPTIONAL}
    for name, column in zip(table.schema.names, table.columns, strict=True):
        parts = {name: column}
        if pa.types.is_list(column.type):
            inner = column.combine_chunks().flatten()
            of_struct = pa.types.is_struct(inner.type)
            parts[f"{name}.item"] = inner
            parts |= {f"{name}.{field.name}": inner.field(field.name) for field in inner.type} if of_struct else {}
        for place, values in parts.items():
            if values.null_count and name not in nullable:
                raise UnreadableError(f"{path}: not this table: column {place}: a value is missing")
            if pa.types.is_floating(values.type) and not _within(values, math.inf if place == "gap" else NUMBER_MAX):
                # A token that the model would never choose is endlessly far below its best one.
                raise UnreadableError(f"{path}: not this table: column {place}: not within {NUMBER_MAX:g}")
            limit = INCARNATION_MAX if place.endswith("incarnation") else INTEGER_MAX
            if pa.types.is_integer(values.type) and not _within(values, limit):
                raise UnreadableError(f"{path}: not this table: column {place}: not within {limit:g}")


def _within(values: Any, limit: float) -> bool:
    """Whether all values are numbers from -limit to limit."""
    known = values.drop_null()
    found = pc.and_(pc.less_equal(known, limit), pc.greater_equal(known, -limit))
    return bool(pc.all(found).as_py() is not False)


def load_history(directory: Path) -> History:
    """The history of a results directory. Raises UnreadableError with one line for the user."""
    tables = {name: read_table(directory / f"{name}.parquet", schema) for name, schema in SCHEMAS.items()}
    return History(
        info=read_info(directory),
        experiment=read_experiment(directory),
        schedule=read_table(directory / "schedule.parquet", SCHEDULE_SCHEMA, SCHEDULE_ADDED),
        references=_optional(directory / "references.parquet", REFERENCES_SCHEMA),
        token_gaps=_optional(directory / "token_gaps.parquet", TOKEN_GAPS_SCHEMA),
        requests=tables["requests"],
        attempts=tables["attempts"],
        events=tables["events"],
        nodes=tables["nodes"],
        faults=tables["faults"],
    )


def _optional(path: Path, schema: pa.Schema) -> pd.DataFrame | None:
    return read_table(path, schema) if path.exists() else None


def _line(error: BaseException) -> str:
    lines = str(error).splitlines()
    return lines[0] if lines else type(error).__name__
