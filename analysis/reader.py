"""Read a results directory into a History."""

from collections.abc import Mapping
from pathlib import Path

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from analysis.history import History, UnreadableError, read_experiment, read_info
from analysis.tables import REFERENCES_SCHEMA, SCHEDULE_ADDED, SCHEDULE_SCHEMA, SCHEMAS, TOKEN_GAPS_SCHEMA


def read_table(path: Path, schema: pa.Schema, added: Mapping[str, str | int] | None = None) -> pd.DataFrame:
    """A Parquet file as a frame with exactly the columns of `schema`. Raises UnreadableError.

    added: columns that may be missing, and what they hold then.
    """
    try:
        table = pq.ParquetFile(path).read()
    except FileNotFoundError:
        raise UnreadableError(f"{path}: missing") from None
    except (pa.ArrowException, OSError) as error:
        raise UnreadableError(f"{path}: not a readable Parquet file: {_line(error)}") from None
    for name, value in (added or {}).items():
        if name not in table.schema.names:
            table = table.append_column(name, pa.repeat(value, table.num_rows))
    missing = [name for name in schema.names if name not in table.schema.names]
    if missing:
        raise UnreadableError(f"{path}: not this table: no column {', '.join(missing)}")
    try:
        frame: pd.DataFrame = table.select(schema.names).cast(schema).to_pandas()
    except pa.ArrowException as error:
        raise UnreadableError(f"{path}: not this table: {_line(error)}") from None
    return frame


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
