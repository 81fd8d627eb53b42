"""The command against the stub: a results directory that analysis reads, and mistakes told in one line."""

import asyncio
import itertools
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import msgspec
import psutil
import pyarrow.parquet as pq
import pytest
import yaml
from aiohttp import web

from analysis import report
from analysis.judge import judge, read_verdict
from analysis.reader import load_history
from analysis.recorder import MetricsCollector, RecorderError
from analysis.verdict import EXIT_CODES, Outcome
from tests.processes import ROOT
from workloads import drive, roofline
from workloads.capacity import Capacity
from workloads.http_probe import Probe
from workloads.roofline import Roofline
from workloads.stub_server import StubServer

LIMITS = Roofline(30.0, 64, 16, 0.9, 0.4, 100.0, 150, 0.002, 0.001, 0.004, 0.0, 0.001, 0.002, 0, 1.0)


class Served:
    """An application on a thread of its own."""

    def __init__(self, application: web.Application) -> None:
        self._application = application
        self._up = threading.Event()
        self._loop = asyncio.new_event_loop()
        self._over = asyncio.Event()
        self.url = ""
        self._thread = threading.Thread(target=self._loop.run_until_complete, args=(self._serve(),), daemon=True)
        self._thread.start()
        assert self._up.wait(10)

    def end(self) -> None:
        self._loop.call_soon_threadsafe(self._over.set)
        self._thread.join(10)

    async def _serve(self) -> None:
        runner = web.AppRunner(self._application, shutdown_timeout=0.1)
        await runner.setup()
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        self.url = f"http://127.0.0.1:{runner.addresses[0][1]}/v1"
        self._up.set()
        await self._over.wait()
        await runner.cleanup()


@pytest.fixture(scope="module")
def stub() -> Iterator[str]:
    served = Served(StubServer(0.01, 0.001).application)
    yield served.url
    served.end()


@pytest.fixture
def known_roofline(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(drive, "roofline", lambda cache: LIMITS)


def run(url: str, out: Path, *more: str) -> int:
    return drive.main(["--url", url, "--model", "m", "--warm-up", "0", "--out", str(out), *more])


@pytest.mark.usefixtures("known_roofline")
def test_a_drive_leaves_what_analysis_reads_and_judges_alike(
    stub: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    more = ["--rate", "300/s", "--duration", "2", "--slo", "1", "--expect", "latency_p95_s<=1", "--seed", "3"]
    more += ["--processes", "1"]
    code = run(stub, tmp_path, *more, "--set", "output_tokens=[2,4]")
    told = capsys.readouterr().out
    directory = tmp_path / "latest"
    verdict = read_verdict(directory)
    assert verdict.counts.completed == verdict.counts.offered > 500, told
    # That it was also quick enough is not for a test to say.
    assert code == EXIT_CODES[verdict.verdict], told
    assert {each.name: each.verdict for each in verdict.criteria}["success"] is Outcome.PASS
    judged = {each.number: each.verdict for each in verdict.invariants}
    assert {number for number, outcome in judged.items() if outcome is Outcome.PASS} == {1, 4, 9}
    assert {outcome for number, outcome in judged.items() if number not in (1, 4, 9)} == {Outcome.NOT_APPLICABLE}
    assert "client roofline on this host: 30 requests/s at most" in told
    assert "NOTE: that is 1000% of what a driver does" in told
    assert "goodput (within --slo)       100.00 %" in told
    planned = pq.read_table(directory / "schedule.parquet")["request_id"].to_pylist()
    assert sorted(pq.read_table(directory / "requests.parquet")["request_id"].to_pylist()) == planned
    assert report.main([str(directory)]) == code
    page = (directory / "report.md").read_text()
    assert "workloads.drive" in page
    assert "roofline.requests_per_s" in page


_turns = itertools.count()


async def _fails_every_second(request: web.Request) -> web.StreamResponse:
    if next(_turns) % 2:
        return web.json_response({"error": {"message": "<b>down</b>"}}, status=500)
    return web.json_response({"error": {"message": "busy"}}, status=429)


@pytest.mark.usefixtures("known_roofline")
def test_errors_are_counted_by_code_and_only_overload_is_explained(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    application = web.Application()
    application.router.add_post("/v1/completions", _fails_every_second)
    served = Served(application)
    code = run(served.url, tmp_path, "--rate", "40/s", "--duration", "1", "--api", "completions")
    served.end()
    told = capsys.readouterr().out
    assert code == 1, told
    assert "HTTP_500" in told
    assert "HTTP_429" in told
    history = load_history(tmp_path / "latest")
    half = len(history.requests) // 2
    verdict = judge(history)
    by_number = {each.number: each for each in verdict.invariants}
    assert abs(by_number[9].violations - half) <= 1 < half
    assert all("HTTP_500" in example.text for example in by_number[9].examples)
    assert (by_number[1].verdict, by_number[4].verdict) == (Outcome.PASS, Outcome.PASS)
    assert abs(verdict.counts.refused - half) <= 1


def test_the_key_is_nowhere_in_the_results_and_a_lost_row_breaks_conservation_from_outside_too(
    stub: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OUR_KEY", "sk-very-secret")
    more = ["--no-roofline", "--rate", "60/s", "--duration", "1", "--api-key-env", "OUR_KEY"]
    # Too few requests to claim 99 %.
    assert run(stub, tmp_path, *more) in (3, 4)
    directory = (tmp_path / "latest").resolve()
    files = [path for path in directory.rglob("*") if path.is_file()]
    assert len(files) > 8
    assert all(b"sk-very-secret" not in path.read_bytes() for path in files)
    assert yaml.safe_load((directory / "experiment.yaml").read_text())["target"]["key_env"] == "OUR_KEY"
    rows = pq.read_table(directory / "requests.parquet")
    pq.write_table(rows.slice(1), directory / "requests.parquet")
    broken = {each.number for each in judge(load_history(directory)).invariants if each.verdict is Outcome.FAIL}
    assert broken == {1, 4}


@pytest.mark.parametrize(
    ("more", "said"),
    [
        (["--rate", "60%"], "expected requests per second"),
        (["--rate", "fast"], "rate"),
        (["--set", "output_tokens=[9,3]"], "output_tokens"),
        (["--set", "colour=red"], "colour"),
        (["--set", "colour"], "FIELD=VALUE"),
        (["--extra", "[1]"], "--extra"),
        (["--expect", "beauty<=1"], "--expect beauty<=1"),
        (["--expect", "latency_p95_s<1"], "METRIC<=LIMIT"),
        (["--workload", "nowhere.yaml"], "nowhere.yaml"),
        (["--api-key-env", "NOT_THERE"], "NOT_THERE"),
        (["--url", "nonsense"], "nonsense"),
        (["--closed", "4", "--rate", "5/s"], "--closed, --rate: expected one of them"),
        (["--closed", "40", "--connections", "20"], "--closed 40: expected at most --connections"),
        (["--closed", "4", "--context-words", "10"], "the context holds 10"),
        (["--rate", "0.001/s", "--duration", "1"], "no request at all"),
        (["--context-words", "10"], "the context holds 10"),
    ],
)
def test_a_mistake_is_one_line_and_leaves_nothing(
    more: list[str], said: str, stub: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(stub, tmp_path / "out", "--no-roofline", *more) == 2
    told = capsys.readouterr().err
    assert said in told
    assert told.count("\n") == 1
    assert not (tmp_path / "out").exists()


def test_nobody_listens(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("http://127.0.0.1:9/v1", tmp_path, "--no-roofline") == 5
    assert capsys.readouterr().err.startswith("workloads.drive: http://127.0.0.1:9/v1: ")


def test_a_disk_that_takes_no_more_is_told_in_one_line(
    stub: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> None:
        raise RecorderError("requests.client-0.1.arrow: cannot record: No space left on device")

    monkeypatch.setattr(MetricsCollector, "append", full)
    assert run(stub, tmp_path, "--no-roofline", "--rate", "20/s", "--duration", "1") == 5
    told = capsys.readouterr().err
    assert told == "workloads.drive: requests.client-0.1.arrow: cannot record: No space left on device\n"


def test_ctrl_c_ends_the_load_and_leaves_a_report_marked_incomplete(stub: str, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "workloads.drive", "--url", stub, "--model", "m", "--out", str(tmp_path)]
    command += ["--no-roofline", "--rate", "30/s", "--warm-up", "1", "--duration", "60"]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) as process:
        assert process.stdout is not None
        told = [process.stdout.readline()]
        while told[-1] and not told[-1].startswith("phase load"):
            told.append(process.stdout.readline())
        process.send_signal(signal.SIGINT)
        told += process.stdout.readlines()
    said = "".join(told)
    assert process.returncode == 130, said
    assert "Traceback" not in said
    verdict = read_verdict(tmp_path / "latest")
    assert not verdict.complete
    assert verdict.verdict is not Outcome.PASS
    assert verdict.counts.completed > 10
    assert (tmp_path / "latest" / "report.html").exists()


def test_so_many_are_kept_in_flight(stub: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    more = ["--no-roofline", "--closed", "6", "--duration", "1", "--processes", "1", "--set", "output_tokens=[2,4]"]
    code = run(stub, tmp_path, *more)
    told = capsys.readouterr().out
    history = load_history(tmp_path / "latest")
    verdict = judge(history)
    assert code == EXIT_CODES[verdict.verdict], told
    assert verdict.counts.completed == verdict.counts.offered > 20, told
    assert "keeping 6 requests in flight (closed loop, seed 1)" in told
    assert "a probe of 2 s with 6 in flight" in told
    assert {each.name: each.verdict for each in verdict.criteria}["closed load (self-check)"] is Outcome.PASS
    assert history.experiment["phases"] == {"load": {"duration_s": 1.0, "load": {"closed": 6}}}
    rows = history.requests.sort_values("sent_s")
    at_once = [((rows["sent_s"] <= time_s) & (rows["ended_s"] > time_s)).sum() for time_s in rows["sent_s"]]
    assert max(at_once) == 6
    assert not rows["request_id"].str.startswith("probe").any(), "the probe is no part of the run"


def test_several_processes_drive_one_load(stub: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    more = ["--no-roofline", "--rate", "100/s", "--duration", "2", "--processes", "3", "--set", "output_tokens=[2,4]"]
    run(stub, tmp_path, *more)
    told = capsys.readouterr().out
    directory = tmp_path / "latest"
    history = load_history(directory)
    verdict = judge(history)
    assert verdict.complete, told
    assert verdict.counts.completed == verdict.counts.offered > 100, told
    assert sorted(history.requests["node"].unique()) == ["client-0", "client-1", "client-2"]
    owners = history.requests.groupby("session_id")["node"].nunique()
    assert owners.max() == 1, "a chat stays with one driver"
    planned = pq.read_table(directory / "schedule.parquet")["request_id"].to_pylist()
    assert sorted(history.requests["request_id"]) == sorted(planned)
    # One time zero for all: nobody sends before it.
    assert (history.requests["sent_s"] >= history.requests["intended_s"]).all()
    assert (history.requests.groupby("node")["intended_s"].min() < 1.0).all()
    assert "3 driver processes share the load" in told
    workload = history.experiment["workload"]
    assert isinstance(workload, dict)
    assert workload["generators"] == 3


def driving(stub: str, out: Path) -> "subprocess.Popen[str]":
    """Two processes that drive for a minute; returned when they have begun."""
    command = [sys.executable, "-m", "workloads.drive", "--url", stub, "--model", "m", "--out", str(out)]
    command += ["--no-roofline", "--rate", "30/s", "--warm-up", "0", "--duration", "60", "--processes", "2"]
    process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    assert process.stdout is not None
    line = process.stdout.readline()
    while line and not line.startswith("phase load"):
        line = process.stdout.readline()
    return process


def drivers_of(process: "subprocess.Popen[str]") -> list[psutil.Process]:
    return [each for each in psutil.Process(process.pid).children() if "workloads.http_share" in each.cmdline()]


def test_a_driver_that_dies_ends_the_others_and_leaves_an_incomplete_report(stub: str, tmp_path: Path) -> None:
    with driving(stub, tmp_path) as process:
        drivers = drivers_of(process)
        assert len(drivers) == 2
        drivers[0].kill()
        assert process.stdout is not None
        said = process.stdout.read()
    assert process.returncode == 5, said
    assert "Traceback" not in said
    assert "the driver process has ended with code -9; what was in flight is given up" in said
    assert not read_verdict(tmp_path / "latest").complete
    assert psutil.wait_procs(drivers, timeout=20)[1] == []


def test_drivers_end_with_the_command_also_when_it_is_killed(stub: str, tmp_path: Path) -> None:
    with driving(stub, tmp_path) as process:
        drivers = drivers_of(process)
        process.kill()
    assert len(drivers) == 2
    assert psutil.wait_procs(drivers, timeout=20)[1] == []


@pytest.mark.parametrize(
    ("options", "cores", "found"),
    [
        (["--rate", "10/s"], 8, 1),
        (["--rate", "31/s"], 8, 3),
        (["--rate", "31/s"], 2, 2),
        (["--rate", "3000/s"], 8, 8),
        (["--rate", "9/s", "--set", "output_tokens=100"], 8, 4),
    ],
)
def test_a_load_is_spread_before_a_driver_is_half_busy(
    options: list[str], cores: int, found: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "cpu_count", lambda: cores)
    given = drive._parser().parse_args(["--url", "http://127.0.0.1:9/v1", "--model", "m", "--duration", "3", *options])
    spec = drive._workload(given)
    limits = msgspec.structs.replace(LIMITS, tokens_per_s=500.0)
    assert drive._processes(spec, drive._plan(spec, given), given, limits, None) == found


def test_a_closed_loop_is_spread_by_what_its_probe_took() -> None:
    given = drive._parser().parse_args(["--url", "http://127.0.0.1:9/v1", "--model", "m", "--closed", "4"])
    busy = Probe(Capacity(10.0, 100.0, 20, 2.0), 0.7)
    spec = drive._workload(given)
    plan = drive._plan(spec, given, busy.capacity)
    assert drive._processes(spec, plan, given, None, busy) == min(2, os.cpu_count() or 1)
    assert drive._processes(spec, plan, given, None, msgspec.structs.replace(busy, cpu_share=0.2)) == 1


def test_a_roofline_is_measured_against_a_stub_in_a_process_of_its_own() -> None:
    found = asyncio.run(roofline.measure(0.5, 100.0))
    assert found.failed == 0
    assert found.samples > 20
    assert found.requests_per_s > 10
    # Time only ever adds; that it adds little is for `make bench` to show, on a quiet machine.
    assert found.ttft_error_p50_s > 0
    assert "client roofline on this host" in found.lines()[0]


def test_a_remembered_roofline_is_used_while_it_is_fresh(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "roofline.json"
    monkeypatch.setattr(roofline, "cache_path", lambda client: path)
    monkeypatch.setattr(time, "time", lambda: 1000.0)
    roofline.remember(path, LIMITS)
    assert roofline.roofline() == LIMITS
    monkeypatch.setattr(time, "time", lambda: 1.0 + roofline.CACHED_S)
    assert roofline._remembered(path) is None
    path.write_bytes(b"{")
    assert roofline._remembered(path) is None
    linked = tmp_path / "linked.json"
    linked.symlink_to(path)
    assert roofline._remembered(linked) is None
