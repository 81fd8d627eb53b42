"""The browser of runs: what it lists, opens and refuses, and that what strangers wrote stays text."""

import asyncio
import os
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import quote

import msgspec
import pytest
import yaml
from aiohttp.test_utils import TestClient, TestServer
from msgspec.structs import replace
from yarl import URL

from analysis.runs import Filter, Shelf, Slot
from analysis.serve import Browser, main
from analysis.verdict import CriterionResult, Outcome, Verdict
from tests.analysis import report_fixture
from tests.analysis.histories import INFO

HOSTILE = '"><script>alert(1)</script>'


def keep(root: Path, run_id: str, *, verdict: Verdict | None = None, experiment: str = "network_partition") -> Path:
    """A results directory as a run leaves it."""
    folder = root / run_id
    folder.mkdir(parents=True)
    info = replace(INFO, run_id=run_id, experiment=experiment, complete=verdict is not None)
    (folder / "run.json").write_bytes(msgspec.json.encode(info))
    (folder / "experiment.yaml").write_text(yaml.safe_dump(report_fixture.EXPERIMENT))
    if verdict is not None:
        (folder / "verdict.json").write_bytes(msgspec.json.encode(replace(verdict, experiment=experiment)))
        (folder / "report.html").write_text("<p>the report</p>")
    return folder


def judged(outcome: Outcome, measured: float = 1.0) -> Verdict:
    criterion = CriterionResult("detection", outcome, measured, "<= 3", "s", 3, (0.5, 1.5), "measured")
    return replace(report_fixture.verdict(report_fixture.empty_history(), outcome), criteria=[criterion])


@pytest.fixture
def root(tmp_path: Path) -> Path:
    keep(tmp_path, "20260102T030405-network_partition-live-aaaa", verdict=judged(Outcome.PASS, 1.25))
    keep(tmp_path / "nightly", "20260103T030405-network_partition-live-bbbb", verdict=judged(Outcome.FAIL, 4.5))
    keep(tmp_path, "20260104T030405-slow_worker-live-cccc", experiment="slow_worker")
    (tmp_path / "latest").symlink_to("20260102T030405-network_partition-live-aaaa")
    (tmp_path / "not-a-run").mkdir()
    broken = tmp_path / "broken"
    broken.mkdir()
    (broken / "run.json").write_text("{")
    return tmp_path


class Answer(NamedTuple):
    """What a browser gets."""

    status: int
    text: str
    headers: Mapping[str, str]


def ask(root: Path, path: str, **options: Any) -> Answer:
    """One question to a browser of the runs below `root`."""

    async def asked() -> Answer:
        server = TestServer(Browser(root).application(("127.0.0.1",)))
        async with TestClient(server) as client, client.get(URL(path, encoded=True), **options) as answer:
            return Answer(answer.status, await answer.text(), answer.headers)

    return asyncio.run(asked())


def test_every_run_is_listed_once_and_the_newest_first(root: Path) -> None:
    runs = Shelf(root).runs()
    assert [run.info.run_id[-4:] for run in runs] == ["cccc", "bbbb", "aaaa"]
    assert [run.state for run in runs] == ["no verdict", "fail", "pass"]
    assert runs[1].path == "nightly/20260103T030405-network_partition-live-bbbb"
    page = ask(root, "/").text
    rows = page[page.index("<tbody") :]
    assert rows.index("slow worker") < rows.index("network partition")
    assert "3 of 3 runs" in page


@pytest.mark.parametrize(
    ("wanted", "found"),
    [
        (Filter(experiment="slow_worker"), ["cccc"]),
        (Filter(state="pass"), ["aaaa"]),
        (Filter(words="NIGHTLY partition"), ["bbbb"]),
        (Filter(world="live"), []),
    ],
)
def test_a_filter_keeps_what_it_names(root: Path, wanted: Filter, found: list[str]) -> None:
    assert [run.info.run_id[-4:] for run in Shelf(root).runs() if wanted.passes(run)] == found


def test_a_new_verdict_is_seen_and_a_removed_run_forgotten(root: Path) -> None:
    shelf = Shelf(root)
    assert shelf.runs()[0].state == "no verdict"
    keep(root / "again", "20260105T030405-slow_worker-live-dddd", verdict=judged(Outcome.INVALID))
    (root / "20260104T030405-slow_worker-live-cccc" / "run.json").unlink()
    assert [run.state for run in shelf.runs()] == ["invalid", "fail", "pass"]


def test_the_report_of_a_run_is_shown_and_nothing_else_of_the_disk(root: Path) -> None:
    run = "20260102T030405-network_partition-live-aaaa"
    (root / run / "secret.txt").write_text("secret")
    (root / "secret.html").write_text("secret")
    assert ask(root, f"/runs/{run}/report.html").text == "<p>the report</p>"
    assert "not_applicable" not in ask(root, f"/runs/{run}/verdict.json").headers["Content-Type"]
    for path in (f"/runs/{run}/secret.txt", "/runs/../secret.html", f"/runs/{run}/../../run.json",
                 f"/runs/{run}%2F..%2F..%2Fsecret.html/report.html", "/runs/latest/report.html"):  # fmt: skip
        answer = ask(root, path)
        assert answer.status == 404
        assert "secret" not in answer.text
    missing = ask(root, "/runs/20260104T030405-slow_worker-live-cccc/report.html")
    assert (missing.status, "analysis.report" in missing.text) == (404, True)


def test_another_name_for_this_host_is_refused(root: Path) -> None:
    assert ask(root, "/", headers={"Host": "rebound.example"}).status == 403
    assert ask(root, "/", headers={"Host": "127.0.0.1:8600"}).status == 200


@pytest.mark.parametrize("path", ["/", "/live", "/trend?experiment=network_partition", "/nosuch", "/compare"])
def test_no_page_may_run_a_script(root: Path, path: str) -> None:
    policy = ask(root, path).headers["Content-Security-Policy"]
    assert policy.startswith("default-src 'none'")
    assert "script-src" not in policy


def test_a_trend_has_a_mark_for_each_run_that_measured(root: Path) -> None:
    page = ask(root, "/trend?experiment=network_partition&criterion=detection").text
    assert page.count('class="t"') == 2
    assert "1.25 s" in page
    assert "4.50 s" in page
    assert "No run has measured this" in ask(root, "/trend?experiment=slow_worker").text


def test_a_run_in_progress_is_shown_until_it_goes_stale(root: Path) -> None:
    snapshot = {"offered": 7421, "completed": 5, "failed": 0, "refused": 0, "in_flight": 2, "left_s": 3.0,
                "latency_p50_s": 0.5, "latency_p95_s": None, "latency_p99_s": None, "workers": {"worker-0": "ready"},
                "breakers": {"worker-0": "half_open"}, "faults": [f"cut {HOSTILE}"]}  # fmt: skip
    told = {"phase": "fault", "duration_s": 9.0, "notes": ["a note"], "snapshot": snapshot}
    path = root / "20260104T030405-slow_worker-live-cccc" / "progress.json"
    path.write_bytes(msgspec.json.encode(told))
    page = ask(root, "/live").text
    assert "7421" in page
    assert "half open" in page
    assert "<script" not in page
    assert Shelf(root).runs()[0].state == "running"
    os.utime(path, (0, time.time() - 60))
    assert "Nothing runs now" in ask(root, "/live").text
    path.write_text("{")
    assert Shelf(root).runs()[0].state == "no verdict"


def test_what_strangers_wrote_stays_text(root: Path) -> None:
    folder = keep(root, f"20260106T030405-x-{HOSTILE.replace('/', '')}", verdict=judged(Outcome.PASS))
    hostile = replace(INFO, run_id=HOSTILE, experiment=HOSTILE, world=HOSTILE, ended_by=HOSTILE)
    (folder / "run.json").write_bytes(msgspec.json.encode(hostile))
    for path in ("/", f"/trend?experiment={quote(HOSTILE)}", f"/?words={quote(HOSTILE)}"):
        page = ask(root, path).text
        assert "<script" not in page
        assert "alert(1)" in page


def test_a_missing_folder_is_said_in_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([str(tmp_path / "nosuch")]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert "no such folder" in line


def test_runs_of_a_schedule_are_shown_by_entry(root: Path) -> None:
    for entry, run_id, measured in (("one", "aaa1", 2.5), ("two", "bbb2", 7.5)):
        slot = root / "nightly" / entry / "20260105T030000Z"
        keep(slot, f"20260105T030405-network_partition-live-{run_id}", verdict=judged(Outcome.PASS, measured))
        (slot / "slot.json").write_bytes(msgspec.json.encode(Slot("nightly", entry, 1_767_582_000)))
    assert {run.entry for run in Shelf(root).runs()} == {"", "nightly/one", "nightly/two"}
    listed = ask(root, "/?entry=nightly/one").text
    assert "live-aaa1" in listed
    assert "live-bbb2" not in listed
    assert "entry=nightly/one" in listed, "its trend is of the entry"
    trend = ask(root, "/trend?experiment=network_partition&entry=nightly/one").text
    assert "live-aaa1" in trend
    assert "live-bbb2" not in trend
    assert "live-bbb2" in ask(root, "/trend?experiment=network_partition").text


def test_the_findings_of_all_runs_lead_to_the_run_that_failed_last(root: Path) -> None:
    page = ask(root, "/findings")
    assert page.status == 200
    assert "detection" in page.text
    assert "nightly/20260103T030405-network_partition-live-bbbb" in page.text
    assert "what the experiment expects was not kept" in page.text.lower()
    keep(root, f"20260106T030405-{'x' * 8}-live-dddd", verdict=replace(judged(Outcome.FAIL), experiment=HOSTILE))
    assert HOSTILE not in ask(root, "/findings").text
