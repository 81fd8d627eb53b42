"""Results directories on disk, as a run leaves them: merged, or as its nodes wrote them."""

from pathlib import Path

import msgspec
import pyarrow as pa
import pyarrow.parquet as pq
import yaml

from analysis.merge import merge
from analysis.recorder import MetricsCollector
from analysis.tables import REFERENCES_SCHEMA, SCHEDULE_SCHEMA
from tests.analysis.histories import Run, clean_run


def save_raw(directory: Path, run: Run | None = None) -> Path:
    """What is there when all nodes were killed before anybody merged."""
    run = run or clean_run()
    raw = directory / "raw"
    raw.mkdir(parents=True)
    recorders: dict[tuple[str, int], MetricsCollector] = {}
    for rows in run.rows.values():
        for node, incarnation, row in rows:
            writer = (node, incarnation)
            if writer not in recorders:
                recorders[writer] = MetricsCollector(raw, node, incarnation, flush_rows=20)
            recorders[writer].append(row, 0.0)
    for recorder in recorders.values():
        recorder.flush()
    pq.write_table(pa.Table.from_pylist(run.schedule, schema=SCHEDULE_SCHEMA), directory / "schedule.parquet")
    references = pa.Table.from_pylist(run.references or [], schema=REFERENCES_SCHEMA)
    pq.write_table(references, directory / "references.parquet")
    info = msgspec.structs.replace(run.info, complete=False, ended_by="the run has not ended in an orderly way")
    (directory / "run.json").write_bytes(msgspec.json.encode(info))
    (directory / "experiment.yaml").write_text(yaml.safe_dump(run.experiment))
    (directory / "environment.json").write_text("{}")
    return directory


def save(directory: Path, run: Run | None = None) -> Path:
    """A run that ended and was merged."""
    run = run or clean_run()
    save_raw(directory, run)
    merge(directory / "raw", directory, 0.0, {})
    (directory / "run.json").write_bytes(msgspec.json.encode(run.info))
    return directory
