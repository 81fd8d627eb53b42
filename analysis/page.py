"""What a report shows: the rows and figures of its sections, as pure functions of a history and its verdict."""

import json
import re
import shlex

import msgspec
import numpy as np
import pandas as pd

from analysis import canvas
from analysis.facts import CannotJudge, finished, offered
from analysis.history import History, Phase
from analysis.metrics import measure
from analysis.time_shares import time_shares
from analysis.verdict import Counts, CriterionResult, Verdict

SUFFERED_MAX = 50
SHARES = ("share", "ratio")
SLOWEST_MAX = 10
TITLE_MAX = 140
BARS_MAX = 16
SHARE_MIN = 0.0005
"""A part with less of the time, in every bar, is left out."""
PART_COLOURS = {
    "send": canvas.YELLOW, "bus": canvas.SKY, "controller": canvas.ORANGE, "retry": canvas.VERMILLION,
    "queue": canvas.PURPLE, "prefill": canvas.GREEN, "decode": canvas.BLUE, "unknown": canvas.GREY,
}  # fmt: skip
OUTCOMES = ("completed", "failed", "refused", "cancelled", "in_flight")
HEADLINES = {
    "pass": "Shown: every expectation was met and no invariant was broken.",
    "fail": "Refuted: an expectation was missed or an invariant was broken.",
    "inconclusive": "Not shown: what was recorded is too little to say.",
    "invalid": "Proves nothing: the run did not do what it claims.",
}


class Figure(msgspec.Struct, frozen=True):
    """A key figure: what it is, its value, and what to compare it with."""

    label: str
    value: str
    note: str = ""


class PhaseRow(msgspec.Struct, frozen=True):
    """The load of one phase, by intended time, in the metrics that criteria use; None where samples are too few."""

    name: str
    start_s: float
    end_s: float | None
    offered: int
    completed: int
    failed: int
    refused: int
    cancelled: int
    in_flight: int
    success: float | None
    p50_s: float | None
    p95_s: float | None
    under_fault: bool


class ShareBar(msgspec.Struct, frozen=True):
    """Where the time of the mean request of a phase or arm goes: name of the part, its share, its seconds."""

    label: str
    requests: int
    mean_s: float
    parts: list[tuple[str, float, float]]


class RequestLine(msgspec.Struct, frozen=True):
    """One request for a table of requests."""

    request_id: str
    phase: str
    intended_s: float | None
    latency_s: float | None
    outcome: str
    code: str
    tokens: int
    route: str


def phase_rows(history: History) -> list[PhaseRow]:
    """The load of each phase that began."""
    lines = offered(history)
    intended = canvas.floats(lines, "intended_s")
    outcome = lines["outcome"].to_numpy()
    windows = canvas.time_axis(history).windows
    rows = []
    for phase in history.phases():
        inside = (intended >= phase.start_s) & (intended < phase.end_s)
        counted = {name: int((outcome[inside] == name).sum()) for name in OUTCOMES}
        rows.append(
            PhaseRow(
                phase.name.replace("_", " "),
                phase.start_s,
                phase.end_s if np.isfinite(phase.end_s) else None,
                int(inside.sum()),
                **counted,
                success=_measured(history, "success_rate", phase),
                p50_s=_measured(history, "latency_p50_s", phase),
                p95_s=_measured(history, "latency_p95_s", phase),
                under_fault=any(_covers(window, phase) for window in windows),
            )
        )
    return rows


def share_bars(history: History) -> list[ShareBar]:
    """A bar for each arm, or for each phase where there are none, with its parts in the order of PARTS."""
    shares = time_shares(history)
    armed = any(each.arm for each in shares)
    return [
        ShareBar(
            (each.arm if armed else each.phase).replace("_", " "), each.requests, each.mean_s,
            [(part, each.share(part), seconds_spent) for part, seconds_spent in each.parts.items()],
        )
        for each in shares[:BARS_MAX]
    ]  # fmt: skip


def _measured(history: History, metric: str, phase: Phase) -> float | None:
    try:
        return measure(history, metric, phase.name).value
    except CannotJudge:
        return None


def _covers(window: canvas.Window, phase: Phase) -> bool:
    """A fault belongs to the phase it began in: its heal may come a moment after the phase ends."""
    return phase.start_s <= window.start_s < phase.end_s


def figures(counts: Counts, rows: list[PhaseRow]) -> list[Figure]:
    """The numbers that a reader wants first: of the load, and of the phase under fault."""
    hit = [row for row in rows if row.under_fault]
    # Of several the one in which most went wrong: the first may be the harmless one.
    struck = min(hit, key=lambda row: 1.0 if row.success is None else row.success, default=None)
    before = [row for row in rows if hit and row.start_s < hit[0].start_s]
    base = next((row for row in rows if row.name == "baseline"), before[-1] if before else None)
    bad = [
        f"{count:,} {name}"
        for count, name in (
            (counts.failed, "failed"), (counts.refused, "refused"), (counts.cancelled, "cancelled"),
            (counts.in_flight, "unfinished"),
        )
        if count
    ]  # fmt: skip
    shown = [
        Figure("Offered", f"{counts.offered:,}", "requests"),
        Figure("Completed", f"{counts.completed:,}", ", ".join(bad) or ("none lost" if counts.offered else "")),
    ]
    if struck is not None:
        lost = struck.offered - struck.completed - struck.cancelled
        note = f"{lost:,} of {struck.offered:,} lost" + ("; the worst phase" if len(hit) > 1 else "")
        shown.append(Figure(f"Success in {struck.name}", percent(struck.success), note))
        for label, of in (("Median latency", "p50_s"), ("95th percentile", "p95_s")):
            was = seconds(getattr(base, of)) if base is not None else "–"
            shown.append(Figure(label, seconds(getattr(struck, of)), f"in {struck.name}; before: {was}"))
    return shown


def calm_figures(rows: list[PhaseRow]) -> list[Figure]:
    """Success and latency of the phase with the most requests but the warm-up: what a run without a fault is about."""
    measured = [row for row in rows if not row.name.startswith("warm")] or rows
    if not measured:
        return []
    row = max(measured, key=lambda each: each.offered)
    place = f"in {row.name}"
    return [
        Figure("Success", percent(row.success), place),
        Figure("Median latency", seconds(row.p50_s), place),
        Figure("95th percentile", seconds(row.p95_s), place),
    ]


def suffered(history: History, verdict: Verdict) -> list[RequestLine]:
    """The first requests that the verdict names as having suffered."""
    wanted = verdict.suffered[:SUFFERED_MAX]
    rows = history.requests[history.requests["request_id"].isin(wanted)]
    lines = {line.request_id: line for line in _lines(history, rows)}
    return [lines.get(name) or RequestLine(name, "", None, None, "never ended", "", 0, "") for name in wanted]


def slowest(history: History) -> list[RequestLine]:
    """The slowest requests that completed."""
    rows = finished(history)
    completed = rows[rows["outcome"] == "completed"]
    taken = canvas.floats(completed, "ended_s") - canvas.floats(completed, "intended_s")
    order = np.argsort(-np.nan_to_num(taken, nan=-1), kind="stable")[:SLOWEST_MAX]
    return _lines(history, completed.iloc[order])


def _lines(history: History, requests: pd.DataFrame) -> list[RequestLine]:
    phases = history.phases()
    routes = _routes(history.attempts, set(requests["request_id"]))
    lines = []
    for row in requests.to_dict("records"):
        intended = float(row["intended_s"])
        phase = next((phase.name for phase in phases if phase.start_s <= intended < phase.end_s), "")
        route = routes.get(str(row["request_id"]), "")
        lines.append(
            RequestLine(
                str(row["request_id"]), phase.replace("_", " "), intended, float(row["ended_s"]) - intended,
                str(row["outcome"]), str(row["code"]), len(row["tokens"]), route,
            )
        )  # fmt: skip
    return lines


def _routes(attempts: pd.DataFrame, requests: set[object]) -> dict[str, str]:
    """The workers each request was tried on, in order: as the controller saw it, else as the workers did."""
    chosen = attempts[attempts["request_id"].isin(requests)].sort_values("begun_s", kind="stable")
    routes: dict[str, str] = {}
    for side in ("worker", "controller"):
        for request_id, rows in chosen[chosen["side"] == side].groupby("request_id", sort=False):
            routes[str(request_id)] = " → ".join(str(worker) for worker in rows["worker"])
    return routes


def flattened(value: object, path: str = "") -> list[tuple[str, str]]:
    """Nested mappings and lists as pairs of dotted path and text, for people to read."""
    if isinstance(value, dict):
        dot = f"{path}." if path else ""
        return [pair for name, part in value.items() for pair in flattened(part, f"{dot}{name}")]
    if isinstance(value, list) and any(isinstance(part, dict | list) for part in value):
        return [pair for number, part in enumerate(value) for pair in flattened(part, f"{path}.{number}")]
    if isinstance(value, list):
        return [(path, ", ".join(str(part) for part in value))]
    return [(path, value if isinstance(value, str) else json.dumps(value, default=str))]


def rerun(history: History) -> list[str]:
    """Commands that repeat this run and remake this report, from the folder that holds `results`."""
    info = history.info
    place = f"results/{info.run_id}"
    command = history.experiment.get("command")
    if isinstance(command, list):
        # Not of an experiment file, so it says itself how it was run.
        return [shlex.join(map(str, command)), shlex.join(["python", "-m", "analysis.report", place])]
    return [
        shlex.join(
            ["python", "-m", "chaos.run", f"{place}/experiment.yaml", "--world", info.world, "--seed", str(info.seed)]
        ),
        shlex.join(["python", "-m", "analysis.report", place]),
    ]


def title(history: History, verdict: Verdict) -> str:
    """The experiment's own title, else its name."""
    return canvas.clean(history.experiment.get("title") or verdict.experiment, TITLE_MAX)


def seconds(value: float | None) -> str:
    """A duration with three digits at most, `–` where there is none."""
    if value is None or not np.isfinite(value):
        return "–"
    if value == 0:
        return "0 s"
    if abs(value) < 0.9995:
        return f"{value * 1000:.0f} ms"
    return f"{value:.2f} s" if abs(value) < 10 else f"{value:,.1f} s"


def brief(value: float) -> str:
    """A part of a duration: as `seconds`, and to a tenth of a millisecond where it is short."""
    if value < 0.000_05:
        return "0 s"
    return f"{value * 1000:.1f} ms" if value < 0.01 else seconds(value)


def clock(value: float | None) -> str:
    """A time of the run, in seconds since it began."""
    if value is None or not np.isfinite(value):
        return "–"
    return f"{0 if abs(value) < 0.005 else value:.2f} s"


def percent(value: float | None) -> str:
    """A share in percent, and never rounded up to all or down to none."""
    if value is None or not np.isfinite(value):
        return "–"
    if value in (0, 1):
        return f"{value * 100:.0f} %"
    return f"{value * 100:.{3 if value < 0.001 or value >= 0.9999 else 2 if value >= 0.95 else 1}f} %"


def quantity(value: float | None, unit: str) -> str:
    """A measured value with its unit."""
    if value is None or not np.isfinite(value):
        return "–"
    if unit in SHARES:
        return percent(value)
    if unit == "s":
        return seconds(value)
    return f"{value:,.4g}{' ' + unit if unit else ''}"


def mebibytes(value: int | None) -> str:
    """Bytes as MiB."""
    return "–" if value is None else f"{value / 2**20:,.0f} MiB"


def interval(criterion: CriterionResult) -> str:
    """The interval of a criterion's value, `–` where there is none."""
    if criterion.interval is None:
        return "–"
    low, high = (quantity(bound, criterion.unit) for bound in criterion.interval)
    return f"{low} to {high}"


def limit(criterion: CriterionResult) -> str:
    """The limit of a criterion, with its unit where that is not understood by itself."""
    shown = criterion.limit.replace(">=", "≥").replace("<=", "≤")
    if criterion.unit in SHARES:
        return re.sub(r"\d+(\.\d+)?", lambda number: f"{float(number.group()) * 100:g} %", shown)
    return f"{shown} {criterion.unit}" if criterion.unit and re.search(r"\d", shown) else shown


def sentence(text: str) -> str:
    """A remark of a checker as a sentence: a capital in front, unless a name stands there, and a full stop."""
    words = text.strip()
    if words and "_" not in words.split()[0]:
        words = words[0].upper() + words[1:]
    return words if not words or words[-1] in ".!?" else words + "."
