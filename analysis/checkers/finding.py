"""From breaches to the result of an invariant."""

import math
from collections.abc import Callable
from typing import Any

import pandas as pd

from analysis.verdict import InvariantResult, Outcome, Violation

EXAMPLES_MAX = 5


def violation(row: dict[str, Any], text: str, time: str = "ended_s") -> Violation:
    """A breach that a row of a table shows, at the time in its column `time`."""
    time_s = row.get(time)
    known = time_s is not None and not math.isnan(time_s)
    node = row.get("node")
    return Violation(
        time_s=float(time_s) if known and time_s is not None else None,
        request_id=row.get("request_id") or "",
        node=node if isinstance(node, str) else "",
        text=text,
    )


def violations(rows: pd.DataFrame, text: Callable[[dict[str, Any]], str], time: str = "ended_s") -> list[Violation]:
    """Every row is a breach; `text` puts it into words."""
    return [violation(row, text(row), time) for row in records(rows)]


def judged(number: int, name: str, found: list[Violation], held: str) -> InvariantResult:
    """fail with the first few breaches by time, or pass with the sentence that says what held."""
    found = sorted(found, key=lambda breach: math.inf if breach.time_s is None else breach.time_s)
    if not found:
        return InvariantResult(number, name, Outcome.PASS, 0, held)
    more = f" (and {len(found) - 1} more)" if len(found) > 1 else ""
    return InvariantResult(number, name, Outcome.FAIL, len(found), f"{found[0].text}{more}", found[:EXAMPLES_MAX])


def records(rows: pd.DataFrame) -> list[dict[str, Any]]:
    """The rows as dictionaries, by column name."""
    columns = [rows[name].tolist() for name in rows.columns] if len(rows) else []
    return [dict(zip(map(str, rows.columns), values, strict=True)) for values in zip(*columns, strict=True)]
