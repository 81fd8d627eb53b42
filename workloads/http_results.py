"""The results directory of a drive of somebody else's endpoint, as `analysis` reads it."""

import os
import platform
import secrets
import sys
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

import msgspec
import yaml

from analysis.history import History, RunInfo
from analysis.judge import judge, write_verdict
from analysis.merge import merge, write_parquet
from analysis.reader import load_history
from analysis.recorder import RecorderError
from analysis.report import write_report
from analysis.verdict import Verdict
from analysis.whole_file import point_latest, write_whole
from workloads.plan import LoadPlan, plan_rows

WORLD = "http"
NAME = "drive"
INVARIANTS = (1, 4, 9)
"""What callers can judge from outside: 1 wholly; 4 without the tokens that nodes made; 9 with overload as a reason."""
_PACKAGES = ("aiohttp", "numpy", "pandas", "pyarrow")


class HttpResults:
    """`<out>/<run id>/`. Raises RecorderError where the disk does not take what is written."""

    def __init__(self, out: Path, experiment: Mapping[str, object], seed: int) -> None:
        """experiment: the content of `experiment.yaml`. What is written at once says that the run has not ended."""
        stamp = datetime.now(UTC).strftime("%Y%m%dT%H%M%S")
        self.run_id = f"{stamp}-{NAME}-{WORLD}-{secrets.token_hex(2)}"
        self.path = out / self.run_id
        self.raw = self.path / "raw"
        self._seed = seed
        try:
            self.raw.mkdir(parents=True)
        except OSError as error:
            raise RecorderError(f"{self.path}: cannot be made: {error.strerror}") from error
        self._write("experiment.yaml", yaml.safe_dump(dict(experiment), sort_keys=False))
        self.write_plan(LoadPlan(()))
        self.write_info(complete=False, ended_by="the run has not ended in an orderly way", notes=[])
        point_latest(out, self.run_id)

    def write_plan(self, plan: LoadPlan) -> None:
        """`schedule.parquet`."""
        write_parquet(plan_rows(plan), self.path / "schedule.parquet")

    def write_info(self, *, complete: bool, ended_by: str, notes: Sequence[str]) -> None:
        """`run.json`."""
        info = RunInfo(
            run_id=self.run_id,
            experiment=NAME,
            world=WORLD,
            seed=self._seed,
            complete=complete,
            ended_by=ended_by,
            invariants=list(INVARIANTS),
            notes=list(notes),
            outside=True,
        )
        self._write_json("run.json", info)

    def write_environment(self, facts: Mapping[str, object]) -> dict[str, object]:
        """`environment.json`; returns what it holds."""
        environment: dict[str, object] = {
            "run_id": self.run_id,
            "seed": self._seed,
            "python": sys.version.split()[0],
            "platform": platform.platform(),
            "machine": platform.machine(),
            "cores": os.cpu_count(),
            "versions": {package: version(package) for package in _PACKAGES},
            **facts,
        }
        self._write_json("environment.json", environment)
        return environment

    def merge(self, origin_s: float) -> list[str]:
        """All tables from the raw rows; notes about what is missing."""
        return merge(self.raw, self.path, origin_s, {}).notes()

    def judge(self, environment: dict[str, object]) -> tuple[History, Verdict]:
        """`verdict.json` and the reports, from what is in the directory and nothing else. Raises UnreadableError."""
        history = load_history(self.path)
        verdict = judge(history)
        write_verdict(self.path, verdict)
        write_report(self.path, history, verdict, environment)
        return history, verdict

    def _write_json(self, name: str, value: Any) -> None:
        self._write(name, msgspec.json.format(msgspec.json.encode(value), indent=1).decode())

    def _write(self, name: str, text: str) -> None:
        try:
            write_whole(self.path / name, text)
        except OSError as error:
            raise RecorderError(f"{self.path / name}: cannot write: {error.strerror}") from error
