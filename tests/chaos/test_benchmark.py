"""The runner that users call from Python: the same verdicts as the command, errors in one line, and nothing left."""

import ast
import os
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import pytest

from analysis.facts import CannotJudge
from analysis.metrics import UnknownMetricError
from chaos import benchmark
from chaos.benchmark import BenchmarkError, BenchmarkResult, BenchmarkRunner
from chaos.experiment import ExperimentError
from tests.chaos.simulated_runs import SHORT
from tests.processes import ROOT

LIGHT = (*SHORT, "workload.rate_min=8/s", "workload.rate=8/s")
TOO_MUCH = (*SHORT, "workload.rate=9000/s", "workload.rate_max=9000/s")


@pytest.fixture(scope="module")
def partition(tmp_path_factory: pytest.TempPathFactory) -> BenchmarkResult:
    out = tmp_path_factory.mktemp("partition")
    return BenchmarkRunner("network_partition", world="simulated", settings=LIGHT, out=out).run()


def test_a_run_comes_to_the_verdict_that_its_directory_holds(partition: BenchmarkResult) -> None:
    assert partition.verdict in ("pass", "inconclusive"), partition.explanation
    assert partition.judgement.complete
    assert (partition.directory / "report.html").exists()
    assert partition.explanation.startswith(f"network_partition: {partition.verdict}")
    assert partition.environment["seed"] == 1


def test_metrics_agree_with_the_criteria_of_the_verdict(partition: BenchmarkResult) -> None:
    judged = partition.criterion("success_after_heal")
    measured = partition.metric("success_rate", phase="recovery")
    assert (judged.measured, judged.samples) == (measured.value, measured.samples)
    assert measured.samples >= 50
    assert partition.metric("success_rate").samples == partition.judgement.counts.offered


def test_what_is_asked_wrongly_is_told(partition: BenchmarkResult) -> None:
    with pytest.raises(UnknownMetricError, match="there are success_rate"):
        partition.metric("latency_p51_s")
    with pytest.raises(UnknownMetricError):
        partition.metric("latency_p51_s", arm="sticky")
    with pytest.raises(CannotJudge, match="never began"):
        partition.metric("latency_p95_s", phase="lunch")
    with pytest.raises(ValueError, match="versus"):
        partition.metric("latency_p95_s", versus="moved")
    with pytest.raises(KeyError, match="success_after_heal"):
        partition.criterion("beauty")


def test_a_wrong_experiment_is_refused_before_anything_runs(tmp_path: Path) -> None:
    with pytest.raises(ExperimentError, match="no such experiment"):
        BenchmarkRunner("network_patition", out=tmp_path)
    with pytest.raises(ExperimentError, match="lasts_s"):
        BenchmarkRunner("network_partition", settings=["phases.fault.lasts_s=3"], out=tmp_path)
    with pytest.raises(ValueError, match="world"):
        BenchmarkRunner("network_partition", world="real", out=tmp_path)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="seed"):
        BenchmarkRunner("network_partition", seed=-1, out=tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_a_run_without_a_verdict_raises_what_the_command_says_and_prints_nothing(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    runner = BenchmarkRunner("network_partition", world="simulated", settings=TOO_MUCH, out=tmp_path)
    with pytest.raises(BenchmarkError, match=r"^network_partition: .*9000/s is \d+% of the measured capacity") as told:
        runner.run()
    assert "\n" not in str(told.value)
    assert capfd.readouterr() == ("", "")


_SLEEPER = """
import signal, sys, time, pathlib
def healed(*_):
    pathlib.Path(sys.argv[1]).write_text("healed")
    sys.exit(130)
signal.signal(signal.SIGINT, healed)
print("phase start", flush=True)
time.sleep(60)
"""


def _sleeping_runner(tmp_path: Path, limit_s: float | None) -> BenchmarkRunner:
    runner = BenchmarkRunner("network_partition", world="simulated", out=tmp_path, limit_s=limit_s)
    runner._command = [sys.executable, "-c", _SLEEPER, str(tmp_path / "trace")]
    return runner


def test_a_run_that_takes_too_long_is_told_to_end_and_waited_for(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    runner = _sleeping_runner(tmp_path, 2.0)
    runner._quiet = False
    with pytest.raises(BenchmarkError, match="not over after 2 s"):
        runner.run()
    assert (tmp_path / "trace").read_text() == "healed"
    assert capfd.readouterr().out == "phase start\n"


def test_whatever_ends_the_wait_ends_the_run_in_an_orderly_way(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Impatient(Exception):
        pass

    def lose_patience(*_: object, **__: object) -> None:
        raise Impatient

    runner = _sleeping_runner(tmp_path, None)
    runner._quiet = False
    monkeypatch.setattr("builtins.print", lose_patience)
    with pytest.raises(Impatient):
        runner.run()
    assert (tmp_path / "trace").read_text() == "healed"


def test_the_example_in_the_docstring_is_a_test_file_that_passes(tmp_path: Path) -> None:
    text = benchmark.__doc__ or ""
    code = textwrap.dedent("\n".join(line for line in text.splitlines() if line.startswith("    ") or not line))
    assert sum(isinstance(part, ast.FunctionDef) for part in ast.parse(code).body) == 4
    # The reader's run at its own length takes half a minute; what the example shows does not depend on it.
    settings = '["workload.rate=20/s", "workload.sessions=12"]'
    assert code.count(settings) == 1
    code = code.replace(settings, repr([*SHORT, "workload.sessions=12"]))
    (tmp_path / "test_ours.py").write_text(code)
    began_s = time.monotonic()
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", str(tmp_path / "test_ours.py")],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "3 passed" in done.stdout, f"in {time.monotonic() - began_s:.0f} s: {done.stdout}"
