"""The recorder: what it was given is what is read back, whatever happens to the process or the disk."""

import errno
import os
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from analysis.checkers.finding import records
from analysis.merge import merge
from analysis.reader import INTEGER_MAX, read_table
from analysis.recorder import MetricsCollector, RecorderError
from analysis.schema import EventRow, RequestRow, Row, Segment
from analysis.tables import SCHEMAS, empty_frame
from tests.analysis.histories import clean_run

NAMES = st.text(max_size=8)
TIMES = st.floats(-1e9, 1e9)
COUNTS = st.integers(-INTEGER_MAX, INTEGER_MAX)
EVENTS = st.builds(EventRow, TIMES, NAMES, NAMES, NAMES, COUNTS, COUNTS, NAMES)
SEGMENTS = st.builds(Segment, COUNTS, COUNTS, COUNTS, COUNTS, NAMES, COUNTS, TIMES)
REQUESTS = st.builds(
    RequestRow,
    intended_s=TIMES,
    sent_s=TIMES,
    first_token_s=st.none() | TIMES,
    ended_s=TIMES,
    deadline_s=TIMES,
    tokens=st.lists(COUNTS, max_size=5),
    segments=st.lists(SEGMENTS, max_size=3),
    **dict.fromkeys(("request_id", "model", "session_id", "prompt_id", "outcome", "code", "finish"), NAMES),
    **dict.fromkeys(("turn", "prompt_tokens", "max_tokens", "submissions", "cached_tokens", "strays"), COUNTS),
)


def event(number: int) -> EventRow:
    return EventRow(float(number), "note", detail=f"n{number}")


def recorded(directory: Path, table: str = "events") -> list[dict[str, Any]]:
    merge(directory, directory, 0.0, {})
    frame = read_table(directory / f"{table}.parquet", SCHEMAS[table])
    return records(frame)


@settings(max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(rows=st.lists(EVENTS | REQUESTS, max_size=12), flush_rows=st.integers(1, 5))
def test_rows_come_back_as_they_were(
    tmp_path_factory: pytest.TempPathFactory, rows: list[Row], flush_rows: int
) -> None:
    directory = tmp_path_factory.mktemp("raw")
    recorder = MetricsCollector(directory, "worker-0", 3, flush_rows=flush_rows)
    for now, row in enumerate(rows):
        recorder.append(row, float(now))
    recorder.close()
    merge(directory, directory, 0.0, {})
    for row_type in (EventRow, RequestRow):
        frame = read_table(directory / f"{row_type.TABLE}.parquet", SCHEMAS[row_type.TABLE])
        expected = [(number, row) for number, row in enumerate(rows) if isinstance(row, row_type)]
        assert frame["sequence"].tolist() == [number for number, _ in expected]
        for (_, row), read in zip(expected, records(frame), strict=True):
            assert read["node"] == "worker-0"
            assert read["incarnation"] == 3
            assert as_read(read, row_type) == row


def as_read(read: dict[str, Any], row_type: type[Row]) -> Row:
    fields = {name: value for name, value in read.items() if name in row_type.__struct_fields__}
    if row_type is RequestRow:
        missing = fields["first_token_s"] != fields["first_token_s"]
        fields["first_token_s"] = None if missing else fields["first_token_s"]
        fields["tokens"] = list(fields["tokens"])
        fields["segments"] = [Segment(**segment) for segment in fields["segments"]]
    return row_type(**fields)


def test_every_table_of_a_whole_run_comes_back(tmp_path: Path) -> None:
    run = clean_run()
    recorders: dict[str, MetricsCollector] = {}
    for rows in run.rows.values():
        for node, incarnation, row in rows:
            if node not in recorders:
                recorders[node] = MetricsCollector(tmp_path, node, incarnation)
            recorders[node].append(row, 0.0)
    for recorder in recorders.values():
        recorder.close()
    report = merge(tmp_path, tmp_path, 0.0, {})
    assert report.rows == {table: len(rows) for table, rows in run.rows.items()}
    assert report.notes() == []


def test_rows_reach_the_disk_when_enough_wait_or_long_enough(tmp_path: Path) -> None:
    recorder = MetricsCollector(tmp_path, "n", 1, flush_rows=3, flush_s=0.5)
    assert list(tmp_path.iterdir()) == []
    recorder.append(event(0), 10.0)
    assert recorded(tmp_path) == []
    recorder.append(event(1), 10.5)
    assert len(recorded(tmp_path)) == 2
    for number in range(2, 5):
        recorder.append(event(number), 10.6)
    assert len(recorded(tmp_path)) == 5
    recorder.append(event(5), 10.7)
    recorder.flush()
    assert [row["detail"] for row in recorded(tmp_path)] == [f"n{number}" for number in range(6)]


def test_a_killed_process_leaves_its_whole_batches(tmp_path: Path) -> None:
    recorder = MetricsCollector(tmp_path, "n", 1, flush_rows=2)
    for number in range(5):
        recorder.append(event(number), 0.0)
    # As kill -9 leaves it: neither flushed nor closed.
    report = merge(tmp_path, tmp_path, 0.0, {})
    assert report.rows["events"] == 4
    assert report.unclosed == ["events.n.1.arrow"]


class FullDisk:
    """The first `room` bytes of a write fit; then the disk is full."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, recorder: MetricsCollector, room: int) -> None:
        self.file = recorder._streams["events"]._file
        self.room = room
        monkeypatch.setattr(recorder._streams["events"], "_file", self)

    def write(self, payload: memoryview) -> int:
        if self.room == 0:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        part = payload[: self.room]
        self.room -= len(part)
        return self.file.write(part)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.file, name)


@pytest.mark.parametrize("room", [0, 1, 100])
def test_a_full_disk_is_one_clear_error_and_spoils_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, room: int
) -> None:
    recorder = MetricsCollector(tmp_path, "n", 1, flush_rows=1)
    recorder.append(event(0), 0.0)
    FullDisk(monkeypatch, recorder, room)
    with pytest.raises(RecorderError, match=r"events\.n\.1\.arrow: cannot record: No space left on device"):
        recorder.append(event(1), 0.0)
    with pytest.raises(RecorderError, match="No space left"):
        recorder.append(event(2), 0.0)
    recorder.close()
    report = merge(tmp_path, tmp_path, 0.0, {})
    assert report.rows["events"] == 1
    assert report.truncated == []


def test_two_incarnations_never_share_a_file(tmp_path: Path) -> None:
    MetricsCollector(tmp_path, "n", 1, flush_rows=1).append(event(0), 0.0)
    with pytest.raises(RecorderError, match="File exists"):
        MetricsCollector(tmp_path, "n", 1, flush_rows=1).append(event(0), 0.0)


def test_a_missing_directory_is_a_clear_error(tmp_path: Path) -> None:
    recorder = MetricsCollector(tmp_path / "gone", "n", 1, flush_rows=1)
    with pytest.raises(RecorderError, match="No such file or directory"):
        recorder.append(event(0), 0.0)


def test_misuse_is_named(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="file name"):
        MetricsCollector(tmp_path, "../n", 1)
    with pytest.raises(ValueError, match="flush_rows"):
        MetricsCollector(tmp_path, "n", 1, flush_rows=0)
    recorder = MetricsCollector(tmp_path, "n", 1)
    recorder.close()
    recorder.close()
    with pytest.raises(RecorderError, match="closed"):
        recorder.append(event(0), 0.0)


def test_an_empty_frame_has_the_columns_and_types() -> None:
    frame = empty_frame("nodes")
    assert list(frame.columns) == SCHEMAS["nodes"].names
    assert frame["resident_bytes"].isna().sum() == 0
    assert str(frame["time_s"].dtype) == "float64"
