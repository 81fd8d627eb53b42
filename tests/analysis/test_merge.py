"""The merge: order, clocks, and files that are not whole."""

from pathlib import Path

import msgspec
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from analysis.history import UnreadableError
from analysis.merge import merge, write_parquet
from analysis.reader import load_history, read_table
from analysis.recorder import MetricsCollector, RecorderError
from analysis.schema import EventRow
from analysis.tables import SCHEMAS
from tests.analysis.histories import clean_run


def record(directory: Path, node: str, incarnation: int, count: int) -> Path:
    recorder = MetricsCollector(directory, node, incarnation, flush_rows=2)
    for number in range(count):
        recorder.append(EventRow(float(number), "note"), 0.0)
    recorder.close()
    return directory / f"events.{node}.{incarnation}.arrow"


@settings(max_examples=25, suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(
    writers=st.dictionaries(
        st.tuples(st.sampled_from(["worker-0", "worker-10", "worker-2", "a.b"]), st.integers(1, 11)),
        st.integers(1, 7),
        max_size=6,
    )
)
def test_rows_are_ordered_by_node_incarnation_and_sequence(
    tmp_path_factory: pytest.TempPathFactory, writers: dict[tuple[str, int], int]
) -> None:
    directory = tmp_path_factory.mktemp("raw")
    for (node, incarnation), count in writers.items():
        record(directory, node, incarnation, count)
    merge(directory, directory, 0.0, {})
    frame = read_table(directory / "events.parquet", SCHEMAS["events"])
    expected = [(*writer, number) for writer, count in writers.items() for number in range(count)]
    assert list(zip(frame["node"], frame["incarnation"], frame["sequence"], strict=True)) == sorted(expected)


def test_times_become_seconds_since_the_run_began(tmp_path: Path) -> None:
    row = clean_run().find("requests")[3]
    for node in ("client-0", "client-1"):
        recorder = MetricsCollector(tmp_path, node, 1)
        recorder.append(row, 0.0)
        recorder.append(EventRow(7.0, "note"), 0.0)
        recorder.close()
    merge(tmp_path, tmp_path, 100.0, {"client-1": 5.0})
    events = read_table(tmp_path / "events.parquet", SCHEMAS["events"])
    assert events["time_s"].tolist() == [-93.0, -98.0]
    requests = read_table(tmp_path / "requests.parquet", SCHEMAS["requests"])
    for column in ("intended_s", "sent_s", "first_token_s", "ended_s", "deadline_s"):
        assert requests[column].tolist() == pytest.approx([getattr(row, column) - 100, getattr(row, column) - 105])
    for shift, segments in zip((100, 105), requests["segments"], strict=True):
        assert [part["received_s"] for part in segments] == pytest.approx(
            [part.received_s - shift for part in row.segments]
        )
        assert [part["count"] for part in segments] == [part.count for part in row.segments]


def test_any_cut_of_a_file_leaves_a_prefix(tmp_path: Path) -> None:
    path = record(tmp_path, "n", 1, 6)
    payload = path.read_bytes()
    kept = []
    for size in (*range(0, len(payload), 24), len(payload) - 8):
        path.write_bytes(payload[:size])
        report = merge(tmp_path, tmp_path, 0.0, {})
        frame = read_table(tmp_path / "events.parquet", SCHEMAS["events"])
        assert frame["sequence"].tolist() == list(range(report.rows["events"]))
        assert len(report.notes()) == 1
        assert report.foreign == []
        kept.append(report.rows["events"])
    assert kept == sorted(kept)
    assert set(kept) == {0, 2, 4, 6}


def test_foreign_files_are_named_and_left_out(tmp_path: Path) -> None:
    record(tmp_path, "n", 1, 2)
    (tmp_path / "events.other.1.arrow").write_bytes(b"not arrow at all")
    (tmp_path / "holidays.n.1.arrow").write_bytes(b"")
    (tmp_path / "nodes.n.1.arrow").write_bytes((tmp_path / "events.n.1.arrow").read_bytes())
    report = merge(tmp_path, tmp_path, 0.0, {})
    assert report.foreign == ["events.other.1.arrow", "holidays.n.1.arrow", "nodes.n.1.arrow"]
    assert report.rows["events"] == 2
    assert report.files == 1


def test_a_merge_of_nothing_writes_every_table(tmp_path: Path) -> None:
    assert merge(tmp_path / "never", tmp_path, 0.0, {}).files == 0
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(f"{name}.parquet" for name in SCHEMAS)


def test_the_same_rows_make_the_same_bytes(tmp_path: Path) -> None:
    record(tmp_path, "n", 1, 5)
    merge(tmp_path, tmp_path, 0.0, {})
    first = (tmp_path / "events.parquet").read_bytes()
    merge(tmp_path, tmp_path, 0.0, {})
    assert (tmp_path / "events.parquet").read_bytes() == first


def test_an_unwritable_place_is_a_clear_error(tmp_path: Path) -> None:
    with pytest.raises(RecorderError, match="cannot write"):
        merge(tmp_path, tmp_path / "gone", 0.0, {})
    (tmp_path / "events.parquet").mkdir()
    with pytest.raises(RecorderError, match="cannot write"):
        write_parquet(SCHEMAS["events"].empty_table(), tmp_path / "events.parquet")
    assert not list(tmp_path.glob(".*.part"))


def save(directory: Path) -> None:
    run = clean_run()
    history = run.history()
    for name in SCHEMAS:
        getattr(history, name).to_parquet(directory / f"{name}.parquet")
    history.schedule.to_parquet(directory / "schedule.parquet")
    assert history.references is not None
    history.references.to_parquet(directory / "references.parquet")
    (directory / "run.json").write_bytes(msgspec.json.encode(history.info))
    (directory / "experiment.yaml").write_text("name: network_partition\n")


def test_a_results_directory_is_read_back(tmp_path: Path) -> None:
    save(tmp_path)
    history = load_history(tmp_path)
    assert len(history.requests) == len(history.schedule)
    assert history.references is not None
    assert history.token_gaps is None
    assert [phase.name for phase in history.phases()] == ["warm_up", "baseline", "fault", "recovery"]


@pytest.mark.parametrize(
    ("file", "content", "message"),
    [
        ("requests.parquet", None, "missing"),
        ("requests.parquet", b"", "not a readable Parquet file"),
        ("requests.parquet", b"PAR1 and nothing else", "not a readable Parquet file"),
        ("schedule.parquet", None, "missing"),
        ("run.json", b"{}", "not a run description"),
    ],
)
def test_a_spoilt_file_is_one_line(tmp_path: Path, file: str, content: bytes | None, message: str) -> None:
    save(tmp_path)
    (tmp_path / file).unlink()
    if content is not None:
        (tmp_path / file).write_bytes(content)
    with pytest.raises(UnreadableError, match=message) as caught:
        load_history(tmp_path)
    assert file in str(caught.value)
    assert "\n" not in str(caught.value)


def test_half_a_parquet_file_and_one_of_another_table_are_refused(tmp_path: Path) -> None:
    save(tmp_path)
    whole = (tmp_path / "nodes.parquet").read_bytes()
    (tmp_path / "nodes.parquet").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(UnreadableError, match=r"nodes\.parquet: not a readable Parquet file"):
        load_history(tmp_path)
    (tmp_path / "nodes.parquet").write_bytes((tmp_path / "events.parquet").read_bytes())
    with pytest.raises(UnreadableError, match=r"nodes\.parquet: not this table: no column role"):
        load_history(tmp_path)
