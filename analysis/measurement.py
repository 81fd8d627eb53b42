"""What a metric is: a value with its bounds, over a phase of a history."""

from collections.abc import Callable
from typing import NamedTuple

import msgspec
import pandas as pd

from analysis import statistics
from analysis.facts import CannotJudge, offered, run_end_s
from analysis.history import History

Values = Callable[[History, str | None], "pd.Series[float]"]
"""(history, phase) to one value per request, labelled by request_id."""


class Measurement(msgspec.Struct, frozen=True):
    """A metric over a phase, in the metric's unit. value is None where the data do not support one.

    lower, upper: one-sided bounds at the asked confidence, None where the sample is too small for one; interval: the
    two-sided one at the same confidence. estimator: proportion (exact), percentile (order statistics), mean (batch
    means), ratio (see analysis.comparison), slope (Theil and Sen), or observed: the thing itself, whose bounds are the
    value. note: what else must be known of it, a phrase.
    """

    value: float | None
    interval: tuple[float, float] | None
    lower: float | None
    upper: float | None
    samples: int
    estimator: str
    note: str = ""


class Metric(NamedTuple):
    """unit: `s`, `1/s`, `share`, `executions` or `attempts`. better: `higher` or `lower`.

    measure: (history, phase, confidence) to Measurement; a phase of None is the whole run. Requests belong to the
    phase in which they were to be sent. Raises CannotJudge.

    by_arm: it is about requests, so that it means something for those of one arm of a comparison alone. per_time: it
    is divided by the length of the phase. values, share: of a percentile, which one, and of what. first_token: its time
    ends there, and not at the end of the answer.
    """

    unit: str
    better: str
    measure: Callable[[History, str | None, float], Measurement]
    by_arm: bool = False
    per_time: bool = False
    values: Values | None = None
    share: float = 0.5
    first_token: bool = False


def span(history: History, phase: str | None) -> tuple[float, float]:
    """Start and end of a phase, or of all phases, seconds since the run began. Raises CannotJudge if it never began."""
    phases = [each for each in history.phases() if phase in (None, each.name)]
    if not phases:
        raise CannotJudge("no phase ever began" if phase is None else f"the phase {phase} never began")
    return phases[0].start_s, min(phases[-1].end_s, run_end_s(history))


def lines_of(history: History, phase: str | None) -> pd.DataFrame:
    """The requests of a phase. In a run that was cut those in flight are unknown; in a complete one they hung."""
    start_s, end_s = span(history, phase)
    lines = offered(history)
    inside = lines[(lines["intended_s"] >= start_s) & (lines["intended_s"] < end_s)]
    return inside if history.info.complete else inside[inside["outcome"] != "in_flight"]


def completed_lines(history: History, phase: str | None) -> pd.DataFrame:
    """The completed requests of a phase, see lines_of."""
    lines = lines_of(history, phase)
    return lines[lines["outcome"] == "completed"]


def proportion(hits: int, samples: int, confidence: float) -> Measurement:
    """A share with its exact bounds; no value without samples."""
    if samples == 0:
        return Measurement(None, None, None, None, 0, "proportion")
    return Measurement(
        value=hits / samples,
        interval=statistics.proportion_interval(hits, samples, confidence),
        lower=statistics.proportion_lower(hits, samples, confidence),
        upper=statistics.proportion_upper(hits, samples, confidence),
        samples=samples,
        estimator="proportion",
    )
