"""Invariant 8: levels never exceed their configured bounds, and return to base after the load."""

import pandas as pd

from analysis.checkers.finding import judged, violations
from analysis.facts import CLOCK_TOLERANCE_S, CannotJudge, finished
from analysis.history import History
from analysis.verdict import InvariantResult, Violation

NUMBER = 8
NAME = "levels stay below their bounds and return to base"
_BOUNDS = {
    "queue_depth": "queue_max",
    "active": "active_max",
    "open_requests": "open_requests_max",
    "kv_bytes": "kv_bytes_max",
    "cache_bytes": "cache_bytes_max",
    "memory_bytes": "memory_bytes_max",
    "sessions": "sessions_max",
}
# One for a node's own inbox; a controller also hears what is for all controllers, and its share of what is for any.
# Every further one is a message that it handles twice, or a leak.
_SUBSCRIPTIONS_MAX = {"client": 1, "controller": 3, "worker": 1}
# Kept caches and the weights stay, and so do remembered sessions.
_BASED = ("queue_depth", "active", "open_requests", "kv_bytes")


def check(history: History) -> InvariantResult:
    """Every sample is judged against its own bound (-1: none), and no node subscribes more often than its role needs.

    The last sample of a node, if taken after the last request had ended, shows an empty node. A node without such a
    sample, killed perhaps, is unknown; where all are, a complete run has not shown that anything returns to its base.
    """
    samples = history.nodes
    if samples.empty:
        raise CannotJudge("no node was ever sampled")
    last = _last_samples(history)
    found: list[Violation] = []
    for gauge, bound in _BOUNDS.items():
        found += _exceeded(samples, gauge, bound)
    found += _oversubscribed(samples)
    for gauge in _BASED:
        found += _left_over(last, gauge)
    if not found and last.empty and history.info.complete and not finished(history).empty:
        raise CannotJudge("no node was sampled after the last request had ended")
    held = f"{len(samples)} samples within their bounds; {len(last)} nodes seen empty after the load"
    return judged(NUMBER, NAME, found, held)


def _exceeded(samples: pd.DataFrame, gauge: str, bound: str) -> list[Violation]:
    over = samples[(samples[bound] >= 0) & (samples[gauge] > samples[bound])]
    return violations(
        over, lambda row: f"{gauge} of {row['node']} is {row[gauge]}, its bound is {row[bound]}", "time_s"
    )


def _oversubscribed(samples: pd.DataFrame) -> list[Violation]:
    bounds = samples["role"].map(_SUBSCRIPTIONS_MAX)
    over = samples[samples["subscriptions"] > bounds]
    return violations(
        over,
        lambda row: (
            f"{row['node']} has {row['subscriptions']} subscriptions, its bound is {_SUBSCRIPTIONS_MAX[row['role']]}"
        ),
        "time_s",
    )


def _left_over(last: pd.DataFrame, gauge: str) -> list[Violation]:
    left = last[last[gauge] > 0]
    return violations(left, lambda row: f"{gauge} of {row['node']} is still {row[gauge]} after the load", "time_s")


def _last_samples(history: History) -> pd.DataFrame:
    rows = finished(history)
    if not history.info.complete or rows.empty:
        return history.nodes.iloc[:0]
    drained_s = rows["ended_s"].max() + CLOCK_TOLERANCE_S
    last = history.nodes.sort_values(["time_s", "incarnation"], kind="stable").drop_duplicates("node", keep="last")
    drained: pd.DataFrame = last[last["time_s"] >= drained_s]
    return drained
