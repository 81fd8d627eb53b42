"""Experiments from Python: run one, look at its verdict and its numbers. For tests of your own and for notebooks.

A test of your own, with a threshold of your own and a table of your own beside ours:

    import time
    from pathlib import Path

    import pytest

    from analysis.recorder import MetricsCollector
    from analysis.report import PerformanceReporter
    from analysis.schema import EventRow
    from chaos.benchmark import BenchmarkResult, BenchmarkRunner

    @pytest.fixture(scope="module")
    def partition(tmp_path_factory: pytest.TempPathFactory) -> BenchmarkResult:
        out = tmp_path_factory.mktemp("partition")
        settings = ["workload.rate=20/s", "workload.sessions=12"]
        return BenchmarkRunner("network_partition", world="simulated", settings=settings, seed=1, out=out).run()

    def test_a_cut_link_costs_nobody_his_answer(partition: BenchmarkResult) -> None:
        assert partition.verdict == "pass", partition.explanation
        assert partition.metric("latency_p95_s", phase="fault").value < 2.0

    def test_the_report_is_ours_to_place(partition: BenchmarkResult, tmp_path: Path) -> None:
        PerformanceReporter(partition.history, partition.judgement, partition.environment).write(tmp_path)
        assert (tmp_path / "report.html").exists()

    def test_rows_of_our_own_are_kept_beside_those_of_the_run(partition: BenchmarkResult) -> None:
        collector = MetricsCollector(partition.directory / "raw", "our-probe", incarnation=1)
        collector.append(EventRow(time.monotonic(), "note", "our-probe", detail="we were here"), time.monotonic())
        collector.close()
        assert list((partition.directory / "raw").glob("events.our-probe.*"))

`world="live"` runs the same on real NATS, Toxiproxy, Ray and MLX, in minutes.
"""

import contextlib
import json
import os
import re
import signal
import subprocess
import sys
import threading
from collections import deque
from collections.abc import Iterator, Sequence
from functools import cached_property
from pathlib import Path
from typing import Literal

from analysis import arms
from analysis.history import History
from analysis.judge import read_verdict
from analysis.measurement import Measurement
from analysis.metrics import METRICS, UnknownMetricError, measure
from analysis.reader import load_history
from analysis.verdict import EXIT_CODES, CriterionResult, Outcome, Verdict
from chaos.experiment import ExperimentError, find
from chaos.resolve import load

World = Literal["live", "simulated"]

HEAL_S_MAX = 90.0
"""How long a run that is told to end may take to heal and to report, seconds."""
_LINES_MAX = 200
_REPORT = re.compile(r"^report: (?P<path>.+)[/\\]report\.html$")
_COMPLAINT = "chaos.run: "


class BenchmarkError(Exception):
    """The run came to no verdict. The message is one line: what was missing or wrong."""


class BenchmarkResult:
    """A run that came to a verdict."""

    def __init__(self, directory: Path) -> None:
        """directory: of the results. Raises analysis.history.UnreadableError."""
        self.directory = directory
        self.judgement: Verdict = read_verdict(directory)

    @property
    def verdict(self) -> Outcome:
        """`pass`, `fail`, `inconclusive` or `invalid`; compares with these words."""
        return self.judgement.verdict

    @property
    def explanation(self) -> str:
        """Verdict, reasons and where the report is, in a few lines: the message of an assertion."""
        lines = [f"{self.judgement.experiment}: {self.verdict}", *self.judgement.reasons[:5]]
        return "\n".join([*lines, f"report: {self.directory / 'report.html'}"])

    @cached_property
    def history(self) -> History:
        """All rows of the run as pandas frames. Raises analysis.history.UnreadableError."""
        return load_history(self.directory)

    @cached_property
    def environment(self) -> dict[str, object]:
        """What the run ran on: versions, cores, BLAS and the like."""
        found: dict[str, object] = json.loads((self.directory / "environment.json").read_text(encoding="utf-8"))
        return found

    def metric(
        self,
        name: str,
        phase: str | None = None,
        arm: str | None = None,
        *,
        versus: str | None = None,
        confidence: float = 0.95,
    ) -> Measurement:
        """A metric (see analysis.metrics.METRICS, in its unit) over a phase, or over the whole run.

        arm: only requests of that arm of a comparison. versus: the ratio metric(arm) / metric(versus), paired. Raises
        UnknownMetricError, ValueError for versus without arm, and analysis.facts.CannotJudge where the run lacks what
        the metric needs, such as a phase that never began.
        """
        if arm is None:
            if versus is not None:
                raise ValueError(f"versus: {versus} is compared with an arm, and none was named")
            return measure(self.history, name, phase, confidence)
        if name not in METRICS:
            raise UnknownMetricError(f"{name}: no such metric; there are {', '.join(METRICS)}")
        if versus is None:
            return arms.measure_arm(self.history, METRICS[name], arm, phase, confidence)
        return arms.measure_ratio(self.history, METRICS[name], arm, versus, phase, confidence)

    def criterion(self, name: str) -> CriterionResult:
        """A criterion of the verdict by its name in the experiment file. Raises KeyError naming those there are."""
        known = {each.name: each for each in self.judgement.criteria}
        if name not in known:
            raise KeyError(f"{name}: the run has no such criterion; it has {', '.join(known)}")
        return known[name]


class BenchmarkRunner:
    """Runs one experiment with the command that a person would use, in a process of its own.

    So a test measures what the command measures: nothing of the caller's process (signals, Ray, BLAS) is in the run,
    and nothing of the run stays in the caller. Whatever ends the wait (Ctrl-C, a time-out of pytest), the run is told
    to end, and has healed what it broke before `run` returns or raises.
    """

    def __init__(
        self,
        experiment: str,
        *,
        world: World = "live",
        settings: Sequence[str] = (),
        seed: int = 1,
        out: Path = Path("results"),
        profile: str | None = None,
        policy: str | None = None,
        model: str | None = None,
        quiet: bool = True,
        limit_s: float | None = None,
    ) -> None:
        """Check everything before anything starts. Raises chaos.experiment.ExperimentError (one line) and ValueError.

        experiment: a name of the catalogue or a .yaml file. settings: as for `--set`, say `cluster.workers=1`. out:
        results go into a new folder below it. profile: one of the experiment's own, such as `prd`. policy: a profile of
        the cluster, or a .yaml file. quiet: the run's progress is not
        printed. limit_s: after so many seconds the run is told to end, and BenchmarkError raised.
        """
        if world not in ("live", "simulated"):
            raise ValueError(f"world: expected live or simulated, got {world!r}")
        if seed < 0:
            raise ValueError(f"seed: expected 0 or more, got {seed}")
        self._settings = [*settings, *([f"cluster.model={model}"] if model is not None else [])]
        load(find(experiment), self._settings, policy, profile)
        command = [sys.executable, "-m", "chaos.run", experiment, "--world", world, "--seed", str(seed)]
        command += ["--out", str(out)]
        for option, value in (("--profile", profile), ("--policy", policy)):
            command += [option, value] if value is not None else []
        self._command = command + [word for setting in self._settings for word in ("--set", setting)]
        self._quiet = quiet
        self._limit_s = limit_s
        self._name = experiment

    def run(self) -> BenchmarkResult:
        """Run it to its verdict, whatever that is. Raises BenchmarkError when it comes to none."""
        lines: deque[str] = deque(maxlen=_LINES_MAX)
        results: Path | None = None
        with _running(self._command) as process, self._limited(process) as expired:
            assert process.stdout is not None
            for line in process.stdout:
                lines.append(line.rstrip("\n"))
                if not self._quiet:
                    print(line, end="", flush=True)
                if found := _REPORT.match(lines[-1]):
                    results = Path(found["path"])
            code = process.wait()
        if expired.is_set():
            raise BenchmarkError(f"{self._name}: not over after {self._limit_s:g} s; it was ended")
        if results is None or code not in EXIT_CODES.values():
            raise BenchmarkError(f"{self._name}: {_complaint(lines, code)}")
        return BenchmarkResult(results.resolve())

    @contextlib.contextmanager
    def _limited(self, process: "subprocess.Popen[str]") -> Iterator[threading.Event]:
        """Tell the run to end when its time is over; the event says that it was."""
        expired = threading.Event()
        if self._limit_s is None:
            yield expired
            return

        def expire() -> None:
            expired.set()
            _interrupt(process)

        timer = threading.Timer(self._limit_s, expire)
        timer.daemon = True
        timer.start()
        try:
            yield expired
        finally:
            timer.cancel()


@contextlib.contextmanager
def _running(command: Sequence[str]) -> Iterator["subprocess.Popen[str]"]:
    """The run, in a session of its own: a Ctrl-C reaches it once, from us, and not twice."""
    process = subprocess.Popen(
        command,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",
        start_new_session=True,
        env={**os.environ, "PYTHONUNBUFFERED": "1"},
    )
    try:
        yield process
    finally:
        if process.poll() is None:
            _interrupt(process)
            try:
                # Read to the end: a full pipe would keep it from healing.
                process.communicate(timeout=HEAL_S_MAX)
            except subprocess.TimeoutExpired:
                # Its keeper heals.
                process.kill()
                process.wait()
        if process.stdout is not None:
            process.stdout.close()


def _interrupt(process: "subprocess.Popen[str]") -> None:
    with contextlib.suppress(ProcessLookupError):
        process.send_signal(signal.SIGINT)


def _complaint(lines: Sequence[str], code: int) -> str:
    """What the run said of its end, else its last line."""
    said = [line.removeprefix(_COMPLAINT) for line in lines if line.startswith(_COMPLAINT)]
    last = next((line for line in reversed(lines) if line.strip()), "it said nothing")
    return said[-1] if said else f"exit code {code}: {last}"


__all__ = ["BenchmarkError", "BenchmarkResult", "BenchmarkRunner", "ExperimentError"]
