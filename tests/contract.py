"""What a results directory must hold, for the tests that make one."""

from pathlib import Path

import msgspec

from analysis.history import RunInfo, read_info
from analysis.judge import read_verdict
from analysis.merge import MergeReport, merge
from analysis.schema import PROBE_PREFIX
from analysis.verdict import Verdict

FILES = (
    "experiment.yaml",
    "environment.json",
    "requests.parquet",
    "attempts.parquet",
    "faults.parquet",
    "nodes.parquet",
    "events.parquet",
    "verdict.json",
    "report.md",
    "report.html",
    "junit.xml",
)


def missing(directory: Path) -> list[str]:
    """Files of the contract that are not there, or are empty."""
    paths = [directory / name for name in FILES]
    return [path.name for path in paths if not path.is_file() or path.stat().st_size == 0]


def verdict_of(directory: Path) -> Verdict:
    """`verdict.json`, by its published shape. Raises UnreadableError."""
    return read_verdict(directory)


def info_of(directory: Path) -> RunInfo:
    """`run.json`. Raises UnreadableError."""
    return read_info(directory)


def violations(verdict: Verdict) -> int:
    """Breaches of all invariants together."""
    return sum(invariant.violations for invariant in verdict.invariants)


def readable_rows(directory: Path, scratch: Path) -> MergeReport:
    """The rows that a run without an orderly end has left; nothing is written into its directory."""
    scratch.mkdir(parents=True, exist_ok=True)
    return merge(directory / "raw", scratch, 0.0, {}, leave_out=PROBE_PREFIX)


def measured(verdict: Verdict, name: str) -> float | None:
    """What a criterion measured, by its name; None when it is not there or does not apply."""
    return next((criterion.measured for criterion in verdict.criteria if criterion.name == name), None)


def as_json(verdict: Verdict) -> str:
    """For the message of a failed assertion."""
    kept = {name: getattr(verdict, name) for name in ("verdict", "reasons", "counts")}
    return msgspec.json.format(msgspec.json.encode(kept)).decode()
