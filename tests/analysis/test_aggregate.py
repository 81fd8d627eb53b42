"""The summary of a whole is the merge of those of its parts, and says what the history says."""

import itertools
import json
import math
from pathlib import Path

import msgspec
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.feather as feather
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from analysis.aggregate import as_tasks, main, summarise
from analysis.facts import counts
from analysis.history import UnreadableError
from analysis.partitions import find, split
from analysis.reader import load_history
from analysis.scan import scan
from analysis.schema import EventRow
from analysis.sketch import sketch
from analysis.summary import ERROR, Group, Key, Summary
from tests.analysis.histories import Run, clean_run
from tests.analysis.saved_runs import save, save_raw

OUTCOMES = ("completed", "failed", "refused", "cancelled")


@pytest.fixture(scope="module")
def merged(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save(tmp_path_factory.mktemp("merged") / "run", mixed_run())


def mixed_run() -> Run:
    """Arms, every kind of end, and a request that nobody heard of again."""
    run = clean_run()
    for number, row in enumerate(run.find("requests")):
        if number % 7 == 3:
            run.change(row, outcome="failed", code="WORKER_LOST", first_token_s=None, tokens=[], segments=[])
        elif number % 11 == 5:
            run.change(row, outcome="refused", code="QUEUE_FULL", first_token_s=None, tokens=[], segments=[])
    run.drop(run.find("requests", request_id="r40")[0])
    for number, line in enumerate(run.schedule):
        line["arm"] = ("sticky", "moved")[number % 2]
    return run


def same(one: Summary, other: Summary) -> bool:
    return (one.groups, one.seconds, one.rows) == (other.groups, other.seconds, other.rows)


@settings(max_examples=20, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    cuts=st.lists(st.integers(0, 400), max_size=6),
    per_group=st.integers(20, 200),
    order=st.randoms(use_true_random=False),
    table=st.sampled_from(["requests", "attempts"]),
)
def test_the_parts_make_the_whole_however_it_is_cut(
    merged: Path, tmp_path_factory: pytest.TempPathFactory, cuts: list[int], per_group: int, order: object, table: str
) -> None:
    rows = pq.read_table(merged / f"{table}.parquet")
    folder = tmp_path_factory.mktemp("parts")
    pq.write_table(rows, folder / "whole.parquet")
    whole = summarise(folder / "whole.parquet")
    assert whole.rows == {table: rows.num_rows}
    bounds = sorted({0, rows.num_rows, *(min(cut, rows.num_rows) for cut in cuts)})
    parts = folder / "parts"
    parts.mkdir()
    for number, (start, end) in enumerate(itertools.pairwise(bounds)):
        part = rows.slice(start, end - start)
        if number % 2:
            with pa.OSFile(str(parts / f"{number}.arrow"), "wb") as file, pa.ipc.new_stream(file, part.schema) as out:
                out.write_table(part)
        else:
            pq.write_table(part, parts / f"{number}.parquet", row_group_size=per_group)
    assert same(summarise(parts), whole)
    found = find([parts]).partitions
    order.shuffle(found)  # type: ignore[attr-defined]
    total, backwards = Summary(), Summary()
    for piece in found:
        total = total.merge(scan(piece))
        backwards = scan(piece).merge(backwards)
    assert same(total, whole)
    assert same(backwards, whole)


def test_merging_is_associative(merged: Path) -> None:
    one, two, three = (summarise(merged / f"{name}.parquet") for name in ("requests", "attempts", "requests"))
    assert same(one.merge(two).merge(three), one.merge(two.merge(three)))
    assert same(one.merge(two), two.merge(one))
    assert not same(one, one.merge(three))


def test_it_says_what_the_history_says(merged: Path) -> None:
    history = load_history(merged)
    summary = summarise(merged)
    whole, expected = summary.select(), counts(history)
    assert whole.offered == expected.offered == len(history.schedule)
    assert whole.in_flight == expected.in_flight == 1
    for outcome in OUTCOMES:
        assert whole.outcomes().get(outcome, 0) == getattr(expected, outcome)
    assert whole.outcomes()["failed"] > 10
    assert whole.codes() == {"QUEUE_FULL": whole.outcomes()["refused"], "WORKER_LOST": whole.outcomes()["failed"]}
    assert whole.sums["token_count"] == int(history.requests["tokens"].map(len).sum())
    rows = history.requests.merge(history.schedule[["request_id", "arm"]], on="request_id")
    done = rows[rows["outcome"] == "completed"]
    for phase in history.phases():
        for arm in ("sticky", "moved"):
            inside = done[
                (done["intended_s"] >= phase.start_s) & (done["intended_s"] < phase.end_s) & (done["arm"] == arm)
            ]
            group = summary.select(phase=phase.name, arm=arm)
            exact = (inside["ended_s"] - inside["intended_s"]).to_numpy()
            assert len(exact) > 3
            assert group.sketches["latency_s"] == sketch(exact, ERROR)
            gaps = (inside["ended_s"] - inside["first_token_s"]) / (inside["tokens"].map(len) - 1)
            assert group.sketches["inter_token_s"].quantile(0.5) == pytest.approx(
                gaps.quantile(0.5, interpolation="lower"), rel=ERROR * 1.001
            )
    assert sum(second.offered for second in summary.seconds.values()) == expected.offered
    ended = [math.floor(time_s) for time_s in done["ended_s"]]
    assert summary.seconds[10].ended["completed"] == ended.count(10)


def test_queue_wait_and_prefill_are_told_by_worker(merged: Path) -> None:
    summary = summarise(merged)
    attempts = load_history(merged).attempts
    for worker in ("worker-0", "worker-1", "worker-2"):
        group = summary.select("attempts", worker=worker)
        mine = attempts[(attempts["side"] == "worker") & (attempts["worker"] == worker)]
        assert group.rows == len(mine) > 10
        wait = group.sketches["queue_wait_s"]
        assert wait.samples == len(mine)
        assert wait.quantile(0.5) == pytest.approx(0.01, rel=0.02)
    assert summary.select("dispatches").rows == int((attempts["side"] == "controller").sum())


def test_raw_files_say_the_same_as_the_merged_tables(merged: Path, tmp_path: Path) -> None:
    raw = save_raw(tmp_path / "run", mixed_run())
    found = summarise(raw)
    assert same(found, summarise(merged))
    assert any("incomplete" in note for note in found.notes)
    assert any("never merged" in note for note in found.notes)


def test_many_runs_are_one_on_top_of_the_other_and_their_arms_are_their_own(merged: Path, tmp_path: Path) -> None:
    save(tmp_path / "a", mixed_run())
    swapped = mixed_run()
    for line in swapped.schedule:
        line["arm"] = {"sticky": "moved", "moved": "sticky"}[line["arm"]]
    save(tmp_path / "b", swapped)
    (tmp_path / "latest").symlink_to("b")
    both, one = summarise(tmp_path), summarise(merged)
    assert both.select().rows == 2 * one.select().rows
    assert both.select(arm="moved").rows == one.select().rows
    assert summarise(tmp_path / "a", tmp_path / "a").rows == one.rows


def test_of_a_closed_load_what_was_asked_was_offered(tmp_path: Path) -> None:
    run = clean_run()
    for number, line in enumerate(run.schedule):
        line["segment"] = "hold" if number >= 300 else ""
    asked = run.schedule[300:310]
    for line in run.schedule[310:]:
        run.drop(run.find("requests", request_id=line["request_id"])[0])
    for line in asked:
        run.add("client-0", EventRow(line["intended_s"], "request_asked", "client-0", line["request_id"]))
    directory = save(tmp_path / "run", run)
    assert summarise(directory).select().offered == 310 == counts(load_history(directory)).offered


def test_rows_that_bring_phase_and_arm_keep_them(tmp_path: Path) -> None:
    rows = {
        "intended_s": [0.0, 1.0],
        "ended_s": [1, 3],
        "outcome": ["completed", None],
        "phase": ["p", None],
        "arm": "ab",
    }
    pq.write_table(pa.table({**rows, "arm": ["a", "b"]}), tmp_path / "rows.parquet")
    summary = summarise(tmp_path)
    assert set(summary.groups) == {Key("requests", "p", "a", ""), Key("requests", "", "b", "")}
    assert summary.select().ended == {("completed", ""): 1, ("", ""): 1}
    assert summary.select().offered == 2


def test_what_is_written_can_be_read_and_adds_up(
    merged: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([str(merged), "--out", str(tmp_path), "--workers", "0"]) == 0
    told = capsys.readouterr().out
    assert "in this process" in told
    assert "rows/s" in told
    summary = summarise(merged)
    read = json.loads((tmp_path / "summary.json").read_text())
    assert sum(group["offered"] or 0 for group in read["groups"]) == summary.select().offered
    assert len(read["seconds"]) == len(summary.seconds)
    table = feather.read_table(tmp_path / "summary.arrow")
    latency = table.filter((pc.field("name") == "latency_s") & pc.field("second").is_null())
    assert sum(sum(row["buckets"]) for row in latency.to_pylist()) == summary.select().outcomes()["completed"]
    assert not list(tmp_path.glob(".*"))
    # A folder that holds a summary is still a folder of rows.
    pq.write_table(pq.read_table(merged / "requests.parquet"), tmp_path / "rows.parquet")
    assert summarise(tmp_path).select().rows == summary.select().rows


def test_what_cannot_be_read_is_one_line_and_exit_code_2(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    empty = tmp_path / "empty"
    empty.mkdir()
    foreign, half, text = (tmp_path / name for name in ("foreign.parquet", "half.parquet", "text.arrow"))
    pq.write_table(pa.table({"x": [1]}), foreign)
    half.write_bytes(foreign.read_bytes()[:40])
    text.write_text("not Arrow")
    wrong = tmp_path / "wrong.parquet"
    pq.write_table(pa.table({"intended_s": ["soon"], "ended_s": [1.0], "outcome": ["completed"]}), wrong)
    numbers = tmp_path / "numbers.parquet"
    pq.write_table(pa.table({"intended_s": [1.0], "ended_s": [1.0], "outcome": [[1]]}), numbers)
    for path in (empty, foreign, half, text, wrong, numbers, tmp_path / "gone"):
        assert main([str(path), "--out", str(tmp_path)]) == 2
        told = capsys.readouterr().err
        assert told.startswith("analysis.aggregate: ")
        assert path.name in told
        assert told.count("\n") == 1


def test_names_without_end_are_refused_and_not_collected(tmp_path: Path) -> None:
    names = [f"code {number}" for number in range(2_000)]
    rows = {"intended_s": np.zeros(2_000), "ended_s": np.ones(2_000), "outcome": ["failed"] * 2_000, "code": names}
    pq.write_table(pa.table(rows), tmp_path / "rows.parquet")
    with pytest.raises(UnreadableError, match="1000 different"):
        summarise(tmp_path)
    pq.write_table(
        pa.table({**rows, "intended_s": np.full(2_000, 1e300), "code": [""] * 2_000}), tmp_path / "rows.parquet"
    )
    assert len(summarise(tmp_path).seconds) == 2


def test_the_name_of_a_code_cannot_act_on_a_terminal(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rows = {
        "intended_s": [0.0],
        "ended_s": [1.0],
        "outcome": ["failed"],
        "code": ["\x1b[2J\u202eX"],
        "phase": ["\x1b]0;a\x07"],
    }
    pq.write_table(pa.table(rows), tmp_path / "rows.parquet")
    assert main([str(tmp_path)]) == 0
    told = capsys.readouterr().out
    assert "[2JX" in told
    assert not {"\x1b", "\x07", "\u202e"} & set(told)


def test_a_dictionary_of_long_names_is_not_spelt_out(tmp_path: Path) -> None:
    """A small file may say a megabyte of a name in each of a million rows."""
    size = 1_000_000
    name = pa.DictionaryArray.from_arrays(pa.array(np.zeros(size, np.int32)), pa.array(["w" * 1_000_000]))
    rows = pa.table({"intended_s": np.zeros(size), "ended_s": np.ones(size), "outcome": name})
    pq.write_table(rows, tmp_path / "rows.parquet")
    assert (tmp_path / "rows.parquet").stat().st_size < 2_000_000
    assert summarise(tmp_path).select().outcomes() == {"w" * 200: size}


@pytest.mark.verify
def test_ray_tasks_say_the_same(merged: Path) -> None:
    found = find([merged])
    assert len(found.partitions) > 3
    assert same(as_tasks(found, workers=2), summarise(merged))
    spoilt = [msgspec.structs.replace(part, path=part.path + ".gone") for part in found.partitions]
    with pytest.raises(UnreadableError, match="gone"):
        as_tasks(msgspec.structs.replace(found, partitions=[*found.partitions, spoilt[0]]), workers=2)


def test_a_parquet_file_is_cut_by_its_row_groups(merged: Path, tmp_path: Path) -> None:
    rows = pq.read_table(merged / "requests.parquet")
    pq.write_table(rows, tmp_path / "rows.parquet", row_group_size=50)
    parts = split(tmp_path / "rows.parquet", "requests", find([tmp_path]).runs[0], 150)
    assert [part.rows for part in parts] == [150, 150, rows.num_rows - 300]
    assert [part.row_groups for part in parts] == [(0, 1, 2), (3, 4, 5), (6,)]


def test_an_empty_group_says_nothing() -> None:
    group = Group()
    assert (group.rows, group.in_flight, group.codes()) == (0, 0, {})
