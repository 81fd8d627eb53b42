"""Invariant 3: with greedy decoding the delivered tokens are those of the reference completion."""

from typing import Any

import numpy as np

from analysis.checkers.finding import judged, records, violation
from analysis.facts import CannotJudge, finished
from analysis.history import History
from analysis.verdict import InvariantResult, Outcome, Violation

NUMBER = 3
NAME = "delivered tokens are the model's own"


def check(history: History) -> InvariantResult:
    """Delivered tokens, also those of a request that failed later, are a prefix of the reference completion.

    A stream may leave the reference at a near-tie: if every token from there on lies within
    `log_probability_gap_max` of the reference model's best. That limit is the rounding of float32 where tokens are
    otherwise exact, larger where kernels depend on the batch's shape, and 0 where none may differ. Without
    `token_gaps` a stream that differs is inconclusive, but wrong where tokens are exact. A finish of `stop` is right
    only where the reference ended, which is before the output cap.
    """
    if history.references is None:
        raise CannotJudge("there are no reference completions")
    references = dict(zip(history.references["prompt_id"], history.references["tokens"], strict=True))
    rows = finished(history)
    rows = rows[rows["tokens"].map(len) > 0]
    unknown = rows.loc[~rows["prompt_id"].isin(references.keys()), "prompt_id"]
    if len(unknown):
        raise CannotJudge(f"{len(unknown)} requests have no reference completion (prompt {unknown.iloc[0]} first)")
    found: list[Violation] = []
    unmeasured = 0
    ties = 0
    for row in records(rows):
        reference = references[row["prompt_id"]]
        at = _first_difference(row["tokens"], reference[: row["max_tokens"]])
        text = None
        if at is not None:
            allowed = _within_gap(history, row["request_id"], at)
            if allowed is None and history.info.exact_tokens:
                allowed = False
            unmeasured += allowed is None
            ties += allowed is True
            if allowed is not False:
                continue
            text = f"request {row['request_id']}: token {at} is not the model's own"
        elif row["finish"] == "stop" and not len(row["tokens"]) == len(reference) < row["max_tokens"]:
            text = f"request {row['request_id']}: it stopped after {len(row['tokens'])} tokens, the model did not"
        if text is not None:
            found.append(violation(row, text))
    if unmeasured and not found:
        text = f"{unmeasured} streams differ from the reference and their log-probability gaps were not measured"
        return InvariantResult(NUMBER, NAME, Outcome.INCONCLUSIVE, 0, text)
    told = f"{len(rows) - ties} streams equal the reference completion of their prompt"
    if ties:
        told += f", {ties} took the other side of a near-tie (within {history.info.log_probability_gap_max:g} nats)"
    return judged(NUMBER, NAME, found, told)


def _first_difference(tokens: Any, expected: Any) -> int | None:
    common = min(len(tokens), len(expected))
    differing = np.flatnonzero(np.asarray(tokens[:common]) != np.asarray(expected[:common]))
    if len(differing):
        return int(differing[0])
    return common if len(tokens) > len(expected) else None


def _within_gap(history: History, request_id: str, at: int) -> bool | None:
    if history.token_gaps is None:
        return None
    gaps = history.token_gaps[history.token_gaps["request_id"] == request_id]
    if at not in set(gaps["index"]):
        return None
    return bool((gaps["gap"] <= history.info.log_probability_gap_max).all())
