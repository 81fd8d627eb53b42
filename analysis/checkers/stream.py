"""Invariant 2: a delivered stream has every index once, in order, and nothing after its end."""

from collections.abc import Iterator
from typing import Any

from analysis.checkers.finding import judged, records, violation, violations
from analysis.facts import finished
from analysis.history import History
from analysis.verdict import InvariantResult

NUMBER = 2
NAME = "streams are whole: no gap, no duplicate, nothing after the end"


def check(history: History) -> InvariantResult:
    """The segments of a row tile 0..n-1 and hold its n tokens; no attempt works for a request that nobody made."""
    if history.info.outside:
        return _as_text_tells(history)
    rows = finished(history)
    found = [violation(row, f"request {row['request_id']}: {text}") for row in records(rows) for text in _breaches(row)]
    if len(history.schedule):
        attempts = history.attempts[history.attempts["begun_s"] >= 0]
        known = attempts["request_id"].isin(history.schedule["request_id"])
        known |= attempts["request_id"].isin(history.requests["request_id"])
        found += violations(
            attempts[~known], lambda row: f"an attempt on {row['worker']} worked for {row['request_id']}, unknown here"
        )
    tokens = int(rows["tokens"].map(len).sum())
    return judged(NUMBER, NAME, found, f"{tokens} tokens of {len(rows)} requests lie in order, each once")


def _as_text_tells(history: History) -> InvariantResult:
    """An endpoint sends text without numbers: whether some of it is missing or doubled nobody sees, only what comes
    after a stream has said its reason to finish."""
    rows = finished(history)
    after = rows[rows["strays"] > 0]
    found = violations(
        after, lambda row: f"request {row['request_id']}: {row['strays']} pieces of text came after the stream's end"
    )
    held = f"nothing came after the end of {len(rows)} streams; what is missing in a text cannot be seen"
    return judged(NUMBER, NAME, found, held)


def _breaches(row: Any) -> Iterator[str]:
    expected = 0
    last_s = float("-inf")
    for segment in row["segments"]:
        index, count = segment["index"], segment["count"]
        if count < 1:
            yield f"an empty segment at token {index}"
        if index > expected:
            yield f"tokens {expected} to {index - 1} are missing"
        elif index < expected:
            yield f"token {index} was delivered again after token {expected - 1}"
        expected = index + count
        if segment["received_s"] < last_s:
            yield f"token {index} came before the one in front of it"
        if segment["received_s"] > row["ended_s"]:
            yield f"token {index} came after the end"
        last_s = segment["received_s"]
    delivered = len(row["tokens"])
    if expected != delivered:
        yield f"its segments hold {expected} tokens, the caller got {delivered}"
    if delivered > row["max_tokens"]:
        yield f"{delivered} tokens are more than the {row['max_tokens']} asked for"
    elif row["outcome"] == "completed" and row["finish"] == "length" and delivered != row["max_tokens"]:
        yield f"it stopped for its length after {delivered} of {row['max_tokens']} tokens"
