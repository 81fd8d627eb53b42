"""What a kept cache is worth by the length of the prefix that it holds, and from which length on that is enough."""

from collections.abc import Mapping
from typing import Any

import msgspec
import numpy as np

from analysis.arms import prefix_lengths, values_by_number
from analysis.comparison import BLOCKS_MIN, Percentile, compare
from analysis.history import History
from analysis.metrics import METRICS
from analysis.statistics import Values

POINTS_MAX = 8
PAIRS_MIN = max(8, BLOCKS_MIN)
"""Of a point. A median of fewer pairs jumps."""
ENOUGH = 0.40
"""A gain that is promised: 40 % lower latency."""


class GainPoint(msgspec.Struct, frozen=True):
    """Pairs of sessions whose shared prefix has from `least_tokens` to `most_tokens`.

    tokens: their median prefix. cached_tokens: the median of what the workers took out of a cache. gain: 1 minus the
    ratio of the metric with the cache to that without, so 0.4 is 40 % lower; interval: two-sided; lower: one-sided.
    """

    least_tokens: int
    most_tokens: int
    tokens: float
    cached_tokens: float
    gain: float
    interval: tuple[float, float]
    lower: float
    pairs: int


class PrefixGain(msgspec.Struct, frozen=True):
    """The gain over the sweep, shortest prefixes first.

    reached_tokens: the shortest prefix from which on every point gains `enough`; shown_tokens: the same by the points'
    one-sided lower bounds, so that it is shown and not only seen. None: no such prefix in the sweep.
    """

    metric: str
    arm: str
    versus: str
    enough: float
    points: list[GainPoint]
    reached_tokens: int | None
    shown_tokens: int | None

    def sentence(self) -> str:
        """For a report: from which prefix on."""
        what = f"{self.enough:.0%} lower {self.metric.removesuffix('_s').replace('_', ' ')}"
        longest = self.points[-1]
        if self.reached_tokens is None:
            return (
                f"{what} is not reached at any prefix of the sweep; the longest, {longest.least_tokens} to "
                f"{longest.most_tokens} tokens, gain {longest.gain:.0%}"
            )
        text = f"{what} is reached from a shared prefix of {self.reached_tokens} tokens on"
        if self.shown_tokens is None:
            return f"{text}, which is seen and not shown: the bounds of the longest prefixes are lower"
        return text if self.shown_tokens == self.reached_tokens else f"{text}, and shown from {self.shown_tokens} on"


def gain_arms(history: History) -> tuple[str, str] | None:
    """The arm that goes back to its cache and the one that is sent away from it; None where these are not compared."""
    comparison, arms = (history.experiment.get(name) for name in ("comparison", "arms"))
    if not isinstance(comparison, dict) or not isinstance(arms, dict) or comparison.get("by") != "sessions":
        return None
    kept = {name: spec for name, spec in arms.items() if _spec(spec).get("prefix", "kept") == "kept"}
    at_home = [str(name) for name, spec in kept.items() if not _spec(spec).get("worker")]
    away = [str(name) for name, spec in kept.items() if _spec(spec).get("worker") == "away"]
    return (at_home[0], away[0]) if at_home and away else None


def prefix_gain(
    history: History, metric: str = "latency_p50_s", *, enough: float = ENOUGH, confidence: float = 0.95
) -> PrefixGain | None:
    """The gain by prefix length, from pairs of sessions; None without such arms or with too few pairs for two points.

    metric: a percentile of analysis.metrics. Raises CannotJudge.
    """
    arms = gain_arms(history)
    if arms is None:
        return None
    arm, versus = arms
    asked = METRICS[metric]
    treatment, control = (values_by_number(history, asked, name, _phase(history), confidence) for name in arms)
    prefixes, cached = prefix_lengths(history, arm), _cached(history, arm)
    numbers = sorted(treatment.keys() & control.keys() & prefixes.keys(), key=lambda number: prefixes[number])
    count = min(POINTS_MAX, len(numbers) // PAIRS_MIN)
    if count < 2:
        return None
    points = []
    for part in np.array_split(np.array(numbers), count):
        own = [int(number) for number in part]
        sides: tuple[list[Values], list[Values]] = ([treatment[n] for n in own], [control[n] for n in own])
        found = compare(*sides, Percentile(asked.share), paired=True, confidence=confidence)
        if found is None:
            continue
        lengths = [prefixes[number] for number in own]
        points.append(
            GainPoint(
                least_tokens=min(lengths),
                most_tokens=max(lengths),
                tokens=float(np.median(lengths)),
                cached_tokens=float(np.median([cached.get(number, 0) for number in own])),
                gain=1 - found.ratio,
                interval=(1 - found.interval[1], 1 - found.interval[0]),
                lower=1 - found.upper,
                pairs=len(own),
            )
        )
    if len(points) < 2:
        return None
    reached = _from(points, [point.gain >= enough for point in points])
    shown = _from(points, [point.lower >= enough for point in points])
    return PrefixGain(metric, arm, versus, enough, points, reached, shown)


def _from(points: list[GainPoint], enough: list[bool]) -> int | None:
    """The shortest prefix of the first point from which on all are enough."""
    first = len(points)
    while first and enough[first - 1]:
        first -= 1
    return points[first].least_tokens if first < len(points) else None


def _cached(history: History, arm: str) -> dict[int, int]:
    plan = history.schedule[history.schedule["arm"] == arm]
    rows = plan[["request_id", "block"]].merge(history.requests[["request_id", "cached_tokens"]], on="request_id")
    return {int(number): int(tokens) for number, tokens in zip(rows["block"], rows["cached_tokens"], strict=True)}


def _phase(history: History) -> str | None:
    comparison = history.experiment.get("comparison")
    return str(comparison["phase"]) if isinstance(comparison, dict) and "phase" in comparison else None


def _spec(value: object) -> Mapping[str, Any]:
    return value if isinstance(value, dict) else {}
