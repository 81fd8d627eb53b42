"""A run whose runner was killed is readable afterwards, from what its nodes had written."""

from pathlib import Path

import pyarrow.parquet as pq

from analysis.recorder import MetricsCollector
from analysis.salvage import salvage
from analysis.schema import EventRow
from analysis.tables import SCHEMAS


def killed_run(directory: Path) -> Path:
    raw = directory / "raw"
    raw.mkdir()
    director = MetricsCollector(raw, "director", 1)
    director.append(EventRow(98.0, "note"), 98.0)
    director.append(EventRow(100.0, "run_started"), 100.0)
    director.flush()
    client = MetricsCollector(raw, "client-0", 1)
    for number in range(4):
        client.append(EventRow(101.0 + number, "resubmitted", request_id=f"r{number}"), 101.0)
    client.append(EventRow(99.0, "resubmitted", request_id="probe-0-1"), 101.0)
    client.flush()
    # Neither is closed: their processes were killed.
    return directory


def test_rows_are_put_on_the_clock_that_began_with_the_run(tmp_path: Path) -> None:
    notes = salvage(killed_run(tmp_path))
    events = pq.read_table(tmp_path / "events.parquet").to_pylist()
    assert [row["time_s"] for row in events if row["kind"] == "resubmitted"] == [1.0, 2.0, 3.0, 4.0]
    assert [row["time_s"] for row in events if row["kind"] == "run_started"] == [0.0]
    assert all((tmp_path / f"{name}.parquet").exists() for name in SCHEMAS)
    assert any("killed" in note for note in notes)


def test_a_torn_file_loses_its_last_batch_and_nothing_else(tmp_path: Path) -> None:
    killed_run(tmp_path)
    path = tmp_path / "raw" / "events.client-0.1.arrow"
    path.write_bytes(path.read_bytes()[:-40])
    assert salvage(tmp_path)
    events = pq.read_table(tmp_path / "events.parquet").to_pylist()
    assert [row["kind"] for row in events] == ["note", "run_started"]


def test_a_run_that_was_merged_is_left_alone(tmp_path: Path) -> None:
    salvage(killed_run(tmp_path))
    before = {path.name: path.stat().st_mtime_ns for path in tmp_path.glob("*.parquet")}
    assert salvage(tmp_path) == []
    assert {path.name: path.stat().st_mtime_ns for path in tmp_path.glob("*.parquet")} == before
