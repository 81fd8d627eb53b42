"""What a run measured, as little as a comparison needs; and named baselines: such summaries of runs, kept in a folder.

A baseline is one JSON file, `NAME.json`. It holds no rows: of each metric its value and, where there are values per
request, those of each stretch of time, thinned where they are many.
"""

import math
import re
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Literal

import msgspec
import numpy as np
import pandas as pd
from scipy.stats import t as student_t

from analysis.criterion import Criterion
from analysis.facts import CannotJudge, model_name
from analysis.history import History, UnreadableError
from analysis.judge import judge, met_by_a_fault, read_criteria
from analysis.measurement import Measurement, Metric
from analysis.metrics import METRICS, UnknownMetricError, measure
from analysis.reader import load_history
from analysis.statistics import BATCHES, Values, effective_samples
from analysis.steady import settle
from analysis.text import clean
from analysis.whole_file import write_whole

SCHEMA = 1
FOLDER = Path("baselines")
RUNS_MAX = 100
HEADLINES = (
    *("success_rate", "latency_p50_s", "latency_p95_s", "latency_p99_s", "ttft_p50_s", "inter_token_p50_s"),
    *("throughput_requests_per_s", "throughput_tokens_per_s"),
)
"""Measured of the baseline phase beside the criteria of the experiment."""
_CONFIDENCE = 0.95
_VALUES_MAX = 200
"""Of one block; more are thinned to so many of their percentiles."""
_BYTES_MAX = 64 * 2**20
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")


class Measured(msgspec.Struct, frozen=True, kw_only=True):
    """A metric of one run. value: in `unit`, None where the run could not say. samples: what it is estimated from.

    estimator: see Measurement. spread: relative standard error of the value, with `freedom` degrees of freedom, where
    the estimator has one. share, blocks: of a percentile, which, and the values by stretches of the phase.
    effective: as how many independent values those count for the mean.
    """

    metric: str
    unit: str
    better: Literal["higher", "lower"]
    estimator: str
    value: float | None
    samples: int
    spread: float | None = None
    freedom: float = 0.0
    share: float = 0.0
    blocks: list[list[float]] = []
    effective: float | None = None


class RunSummary(msgspec.Struct, frozen=True, kw_only=True):
    """One run. measured: by criterion, or by headline as `metric (phase)`. notes: why it may not be what it seems."""

    run_id: str
    experiment: str
    world: str
    model: str
    seed: int
    complete: bool
    verdict: str
    measured: dict[str, Measured]
    notes: list[str] = []


class Side(msgspec.Struct, frozen=True, kw_only=True):
    """Runs of one experiment, and the shape of a baseline's file. saved: ISO 8601 in UTC; empty while never saved."""

    schema: int = SCHEMA
    name: str
    saved: str = ""
    runs: list[RunSummary]


def summarise(history: History) -> RunSummary:
    """Everything of a run that comparisons ask for. Raises UnreadableError when its criteria are malformed."""
    phase = str(history.experiment.get("baseline_phase") or "baseline")
    asked = read_criteria(history, "expectations")
    for name, criterion in read_criteria(history, "steady_state").items():
        asked[f"{name} ({phase})"] = msgspec.structs.replace(criterion, phase=phase)
    for metric in HEADLINES:
        asked.setdefault(f"{metric} ({phase})", Criterion(metric=metric, phase=phase))
    seen: dict[tuple[object, ...], str] = {}
    measured: dict[str, Measured] = {}
    for name, criterion in asked.items():
        # A headline that is also a criterion would be said twice.
        key = (criterion.metric, criterion.phase, criterion.arm, criterion.versus, criterion.while_faulted)
        found = _measured(history, criterion) if seen.setdefault(key, name) == name else None
        if found is not None:
            measured[clean(name)] = found
    return RunSummary(
        run_id=clean(history.info.run_id),
        experiment=clean(history.info.experiment),
        world=clean(history.info.world),
        model=clean(model_name(history)),
        seed=history.info.seed,
        complete=history.info.complete,
        verdict=judge(history).verdict.value,
        measured=measured,
        notes=_warm_up_notes(history, phase),
    )


def read_side(path: Path) -> Side:
    """A results directory, or a folder whose entries are such. Raises UnreadableError, a line for the user."""
    if (path / "run.json").exists():
        return Side(name=path.name, runs=[_read_run(path)])
    if not path.is_dir():
        raise UnreadableError(f"{path}: no results directory, no folder of such, and no baseline of that name")
    # `latest` is a link to a run that is there anyway.
    found = [each for each in sorted(path.iterdir()) if not each.is_symlink() and (each / "run.json").exists()]
    if not found:
        raise UnreadableError(f"{path}: no results directory, nor does it hold any")
    if len(found) > RUNS_MAX:
        raise UnreadableError(f"{path}: {len(found)} runs; expected at most {RUNS_MAX}")
    return Side(name=path.name, runs=[_read_run(each) for each in found])


def save(side: Side, name: str, folder: Path) -> Path:
    """Keep a side as a named baseline, in place of an older one. Raises UnreadableError for a wrong name, OSError."""
    path = _place(name, folder)
    folder.mkdir(parents=True, exist_ok=True)
    kept = msgspec.structs.replace(side, name=name, saved=datetime.now(UTC).isoformat(timespec="seconds"))
    write_whole(path, msgspec.json.encode(kept) + b"\n")
    return path


def read_baseline(name: str, folder: Path) -> Side:
    """A named baseline. Raises UnreadableError."""
    path = _place(name, folder)
    try:
        if path.stat().st_size > _BYTES_MAX:
            raise UnreadableError(f"{path}: larger than any baseline")
        data = path.read_bytes()
        version = msgspec.json.decode(data, type=dict[str, msgspec.Raw]).get("schema", msgspec.Raw(b"none"))
        if bytes(version) != str(SCHEMA).encode():
            said = clean(bytes(version).decode(errors="replace"), 20)
            raise UnreadableError(f"{path}: schema {said} of a baseline; this version reads {SCHEMA}: save it again")
        side = msgspec.json.decode(data, type=Side)
    except OSError as error:
        raise UnreadableError(f"{path}: cannot be read: {error.strerror}") from None
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise UnreadableError(f"{path}: not a baseline: {clean(error)}") from None
    if not side.runs:
        raise UnreadableError(f"{path}: not a baseline: it holds no run")
    return side


def names(folder: Path) -> list[str]:
    """The baselines of a folder."""
    return sorted(path.stem for path in folder.glob("*.json") if _NAME.fullmatch(path.stem))


def is_name(text: str) -> bool:
    """Whether a baseline may be called so."""
    return _NAME.fullmatch(text) is not None


def _place(name: str, folder: Path) -> Path:
    if not is_name(name):
        raise UnreadableError(f"{clean(name)}: expected the name of a baseline: letters, digits and . _ -, 64 at most")
    return folder / f"{name}.json"


def _read_run(directory: Path) -> RunSummary:
    return summarise(load_history(directory))


def _measured(history: History, criterion: Criterion) -> Measured | None:
    """None where the run does not even know the metric, or the phase never began."""
    try:
        counted = met_by_a_fault(history) if criterion.while_faulted else history
        seen = measure(
            counted, criterion.metric, criterion.phase, _CONFIDENCE, arm=criterion.arm, versus=criterion.versus
        )
    except (CannotJudge, UnknownMetricError):
        return None
    metric = METRICS[criterion.metric]
    spread, freedom = _spread(seen)
    values = _values(counted, metric, criterion) if seen.estimator == "percentile" else np.empty(0)
    return Measured(
        metric=criterion.metric,
        unit="" if seen.estimator == "ratio" else metric.unit,
        better="higher" if metric.better == "higher" else "lower",
        estimator=seen.estimator,
        value=seen.value if seen.value is not None and math.isfinite(seen.value) else None,
        samples=seen.samples,
        spread=spread,
        freedom=freedom,
        share=metric.share,
        blocks=[_thinned(block) for block in np.array_split(values, BATCHES)] if len(values) >= BATCHES else [],
        effective=effective_samples(values) if len(values) else None,
    )


def _values(history: History, metric: Metric, criterion: Criterion) -> Values:
    """In order of time. Those of an arm are spread over blocks of another kind, so that they have none here."""
    if metric.values is None or criterion.arm is not None:
        return np.empty(0)
    return _finite(metric.values(history, criterion.phase))


def _spread(seen: Measurement) -> tuple[float | None, float]:
    """From the two-sided interval back to the standard error that Student's t made it of."""
    if seen.interval is None or seen.value is None or seen.value <= 0 or seen.estimator not in ("mean", "ratio"):
        return None, 0.0
    lower, upper = seen.interval
    freedom = float(BATCHES if seen.estimator == "mean" else seen.samples) - 1
    if freedom < 1 or not math.isfinite(upper) or (seen.estimator == "ratio" and lower <= 0):
        return None, 0.0
    half = (upper - lower) / 2 / seen.value if seen.estimator == "mean" else math.log(upper / lower) / 2
    return half / float(student_t.ppf((1 + _CONFIDENCE) / 2, freedom)), freedom


def _finite(values: "pd.Series[float]") -> Values:
    series: Values = np.asarray(values, dtype=float)
    finite: Values = series[np.isfinite(series)]
    return finite


def _thinned(block: Values) -> list[float]:
    """As they are, or so many of their percentiles, which say the same of every percentile but the farthest."""
    if len(block) > _VALUES_MAX:
        block = np.quantile(block, (np.arange(_VALUES_MAX) + 0.5) / _VALUES_MAX, method="inverted_cdf")
    return [float(f"{value:.6g}") for value in block]


def _warm_up_notes(history: History, phase: str) -> list[str]:
    """What there is to say against the run's steady state."""
    values = METRICS["latency_p50_s"].values
    try:
        settled = settle(_finite(values(history, phase))) if values is not None else None
    except CannotJudge:
        return []
    if settled is None or settled.steady:
        return []
    return [f"latency never settled in phase {clean(phase)} (MSER-5): warm up longer, or load it less"]


def usable(runs: Sequence[RunSummary]) -> tuple[list[RunSummary], list[str]]:
    """The runs that may be compared, and a line for each that may not: cut ones, and those that prove nothing."""
    kept = [run for run in runs if run.complete and run.verdict != "invalid"]
    left_out = [
        f"left out {run.run_id}: {'it was cut' if not run.complete else 'its verdict is invalid'}"
        for run in runs
        if not run.complete or run.verdict == "invalid"
    ]
    return kept, left_out
