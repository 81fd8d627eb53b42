"""Arrow schemas of the tables, derived from the row structs, and the way from rows to Arrow."""

import types
from collections.abc import Sequence
from typing import Any, Union, get_args, get_origin

import msgspec
import pandas as pd
import pyarrow as pa

from analysis.schema import ROW_TYPES, STAMP, Row

_SCALARS: dict[object, Any] = {str: pa.string(), int: pa.int64(), float: pa.float64(), bool: pa.bool_()}


def _arrow_type(annotation: Any) -> Any:
    if get_origin(annotation) in (Union, types.UnionType):
        (annotation,) = (part for part in get_args(annotation) if part is not type(None))
    if annotation in _SCALARS:
        return _SCALARS[annotation]
    if get_origin(annotation) is list:
        return pa.list_(_arrow_type(get_args(annotation)[0]))
    if isinstance(annotation, type) and issubclass(annotation, msgspec.Struct):
        return pa.struct([(field.name, _arrow_type(field.type)) for field in msgspec.structs.fields(annotation)])
    raise TypeError(f"no Arrow type for {annotation!r}")


def _schema(row_type: type[Row]) -> Any:
    stamp = [(name, _SCALARS[kind]) for name, kind in STAMP.items()]
    return pa.schema(stamp + [(field.name, _arrow_type(field.type)) for field in msgspec.structs.fields(row_type)])


SCHEMAS: dict[str, Any] = {row_type.TABLE: _schema(row_type) for row_type in ROW_TYPES}
"""Table name to `pyarrow.Schema`, the columns of STAMP first."""

TIME_COLUMNS: dict[str, tuple[str, ...]] = {row_type.TABLE: row_type.TIME_COLUMNS for row_type in ROW_TYPES}

SCHEDULE_SCHEMA: Any = pa.schema(
    [
        ("request_id", pa.string()),
        ("intended_s", pa.float64()),
        ("session_id", pa.string()),
        ("turn", pa.int64()),
        ("prompt_id", pa.string()),
        ("prompt_tokens", pa.int64()),
        ("max_tokens", pa.int64()),
        ("arm", pa.string()),
        ("worker", pa.string()),
        ("block", pa.int64()),
        ("segment", pa.string()),
    ]
)
"""`schedule.parquet`: what was to be sent; intended_s in seconds since the run began.

arm, block: of a comparison, see workloads.schedule.ScheduledRequest. worker: the wished one. segment: of a closed load,
empty for the open loop; its requests are sent when one before them ends, or never, and intended_s is the earliest time.
"""

SCHEDULE_ADDED: dict[str, str | int] = {"arm": "", "worker": "", "block": -1, "segment": ""}
"""Columns that schedules of earlier runs do not have, and what they hold there."""

REFERENCES_SCHEMA: Any = pa.schema([("prompt_id", pa.string()), ("tokens", pa.list_(pa.int64()))])
"""`references.parquet`: see `History.references`."""

TOKEN_GAPS_SCHEMA: Any = pa.schema([("request_id", pa.string()), ("index", pa.int64()), ("gap", pa.float64())])
"""`token_gaps.parquet`: see `History.token_gaps`."""

Stamped = tuple[int, Row]
"""A row with its sequence number."""


def to_batch(table: str, node: str, incarnation: int, rows: Sequence[Stamped]) -> Any:
    """The rows of one table as a `pyarrow.RecordBatch` with the schema of that table."""
    schema = SCHEMAS[table]
    size = len(rows)
    columns: list[list[Any]] = [[node] * size, [incarnation] * size, [sequence for sequence, _ in rows]]
    for field in list(schema)[len(STAMP) :]:
        values = [getattr(row, field.name) for _, row in rows]
        if pa.types.is_list(field.type) and pa.types.is_struct(field.type.value_type):
            values = [[msgspec.structs.astuple(item) for item in items] for items in values]
        columns.append(values)
    arrays = [pa.array(values, type=field.type) for values, field in zip(columns, schema, strict=True)]
    return pa.record_batch(arrays, schema=schema)


def empty_frame(table: str) -> pd.DataFrame:
    """A frame with the columns and dtypes of the table and no rows."""
    frame: pd.DataFrame = SCHEMAS[table].empty_table().to_pandas()
    return frame
