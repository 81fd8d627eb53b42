"""Metrics that comparisons of arms ask for: prefixes found in caches, sizes of batches, models warm in time."""

import json

from analysis.history import History
from analysis.measurement import Measurement, Metric, completed_lines, lines_of, proportion, span

HIT_SHARE = 0.9
"""Of an earlier turn's prompt: so much of it must come out of a cache to be a hit."""


def _prefix_hits(history: History, phase: str | None, confidence: float) -> Measurement:
    """Of completed later turns of sessions, those whose earlier turn's prompt came out of a cache, nearly all of it.

    The beginning that all prompts of a chat template share is always found, and is no hit.
    """
    rows = completed_lines(history, phase)
    rows = rows[rows["turn"] > 0]
    before = rows.assign(turn=rows["turn"] - 1).merge(
        history.schedule[["session_id", "turn", "prompt_tokens"]], on=["session_id", "turn"], suffixes=("", "_before")
    )
    hits = before["cached_tokens"] >= HIT_SHARE * before["prompt_tokens_before"]
    return proportion(int(hits.sum()), len(before), confidence)


def _batch_mean(history: History, phase: str | None, confidence: float) -> Measurement:
    """Sequences in a decode step, averaged over the steps that made tokens of the phase's requests.

    A worker's attempt of n tokens in steps of b sequences on average has its part in n / b steps.
    """
    attempts = history.attempts[(history.attempts["side"] == "worker") & (history.attempts["batch_mean"] > 0)]
    attempts = attempts[attempts["request_id"].isin(lines_of(history, phase)["request_id"])]
    steps = float((attempts["tokens"] / attempts["batch_mean"]).sum())
    value = float(attempts["tokens"].sum()) / steps if steps else None
    return Measurement(value, None, value, value, len(attempts), "observed")


def _prewarmed(history: History, phase: str | None, confidence: float) -> Measurement:
    """Models that were warm in time, of those that a worker was told to pre-warm."""
    start_s, end_s = span(history, phase)
    told = history.events[history.events["kind"] == "worker_action"]
    told = told[(told["time_s"] >= start_s) & (told["time_s"] < end_s)]
    done = [action["done"] for action in map(json.loads, told["detail"]) if action["action"] == "prewarm"]
    return proportion(sum(done), len(done), confidence)


ARM_METRICS: dict[str, Metric] = {
    "prefix_hit_rate": Metric("share", "higher", _prefix_hits, by_arm=True),
    "request_batch_mean": Metric("sequences", "higher", _batch_mean, by_arm=True),
    "prewarm_success_rate": Metric("share", "higher", _prewarmed),
}
