"""What a report shows: the rows and figures of its sections, as pure functions of a history and its verdict."""

import json
import shlex

import msgspec
import numpy as np
import pandas as pd

from analysis import canvas
from analysis.history import History, Phase
from analysis.verdict import CriterionResult, Verdict

SUFFERED_MAX = 50
SLOWEST_MAX = 10
P95_SAMPLES_MIN = 20
OUTCOMES = ("completed", "failed", "refused", "cancelled")
HEADLINES = {
    "pass": "Shown: every expectation was met and no invariant was broken.",
    "fail": "Refuted: an expectation was missed or an invariant was broken.",
    "inconclusive": "Not shown: there are too few samples to say.",
    "invalid": "Proves nothing: the run did not do what it claims.",
}
# In the order in which they happen after an injection.
RECOVERY = {
    "detection_s": ("Detection", "from the injection until the cluster noticed"),
    "mitigation_s": ("Mitigation", "from the injection until callers were served well again"),
    "return_to_steady_s": ("Return to steady state", "from the heal until the cluster was whole again"),
}


class Figure(msgspec.Struct, frozen=True):
    """A key figure: what it is, its value, and what to compare it with."""

    label: str
    value: str
    note: str = ""


class PhaseRow(msgspec.Struct, frozen=True):
    """The load of one phase, by intended time. Percentiles are of completed requests, None with too few of them."""

    name: str
    start_s: float
    end_s: float | None
    offered: int
    completed: int
    failed: int
    refused: int
    cancelled: int
    p50_s: float | None
    p95_s: float | None
    under_fault: bool

    @property
    def success(self) -> float | None:
        """Share of the offered requests that completed."""
        return self.completed / self.offered if self.offered else None


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


class RecoveryStep(msgspec.Struct, frozen=True):
    """One part of the recovery: how long it took, its limit, and its share of the longest part for a bar."""

    label: str
    meaning: str
    criterion: CriterionResult
    share: float


def phase_rows(history: History) -> list[PhaseRow]:
    """The load of each phase that began."""
    requests = history.requests
    intended = canvas.floats(requests, "intended_s")
    taken = canvas.floats(requests, "ended_s") - intended
    outcome = requests["outcome"].to_numpy()
    windows = canvas.timeline(history).windows
    rows = []
    for phase in history.phases():
        inside = (intended >= phase.start_s) & (intended < phase.end_s)
        done = taken[inside & (outcome == "completed")]
        done = done[np.isfinite(done)]
        counted = {name: int((outcome[inside] == name).sum()) for name in OUTCOMES}
        rows.append(
            PhaseRow(
                phase.name.replace("_", " "), phase.start_s, phase.end_s if np.isfinite(phase.end_s) else None,
                int(inside.sum()), **counted, p50_s=float(np.median(done)) if len(done) else None,
                p95_s=float(np.quantile(done, 0.95)) if len(done) >= P95_SAMPLES_MIN else None,
                under_fault=any(_covers(window, phase) for window in windows),
            )
        )  # fmt: skip
    return rows


def _covers(window: canvas.Window, phase: Phase) -> bool:
    """A fault belongs to the phase it began in: its heal may come a moment after the phase ends."""
    return phase.start_s <= window.start_s < phase.end_s


def figures(history: History, verdict: Verdict) -> list[Figure]:
    """The handful of numbers that a reader wants first."""
    counts = verdict.counts
    rows = phase_rows(history)
    struck = next((row for row in rows if row.under_fault), None)
    before = [row for row in rows if struck is not None and row.start_s < struck.start_s]
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
        Figure("Completed", f"{counts.completed:,}", ", ".join(bad) or "none lost"),
    ]
    if struck is not None:
        lost = struck.offered - struck.completed
        note = f"{lost:,} of {struck.offered:,} lost"
        shown.append(Figure(f"Success in {struck.name}", percent(struck.success), note))
        for label, of in (("Median latency", "p50_s"), ("95th percentile", "p95_s")):
            was = seconds(getattr(base, of)) if base is not None else "–"
            shown.append(Figure(label, seconds(getattr(struck, of)), f"in {struck.name}; before: {was}"))
    shown += [
        Figure(step.label, seconds(step.criterion.measured), f"limit {limit(step.criterion)}")
        for step in recovery(history, verdict)
    ]
    return shown


def recovery(history: History, verdict: Verdict) -> list[RecoveryStep]:
    """Detection, mitigation and return to steady state, as far as the experiment asked for them."""
    found: dict[str, CriterionResult] = {}
    for criterion in verdict.criteria:
        found.setdefault(_metric(history, criterion.name), criterion)
    steps = [(label, meaning, found[metric]) for metric, (label, meaning) in RECOVERY.items() if metric in found]
    longest = max([step[2].measured or 0.0 for step in steps], default=0.0) or 1.0
    return [RecoveryStep(*step, share=(step[2].measured or 0.0) / longest) for step in steps]


def _metric(history: History, name: str) -> str:
    """The metric of a criterion; by its name where the experiment does not tell."""
    expectations = history.experiment.get("expectations")
    asked = expectations.get(name) if isinstance(expectations, dict) else None
    metric = asked.get("metric") if isinstance(asked, dict) else None
    return str(metric) if metric else f"{name}_s"


def suffered(history: History, verdict: Verdict) -> list[RequestLine]:
    """The first requests that the verdict names as having suffered."""
    wanted = verdict.suffered[:SUFFERED_MAX]
    rows = history.requests[history.requests["request_id"].isin(wanted)]
    lines = {line.request_id: line for line in _lines(history, rows)}
    return [lines.get(name) or RequestLine(name, "", None, None, "no row", "", 0, "") for name in wanted]


def slowest(history: History) -> list[RequestLine]:
    """The slowest requests that completed."""
    completed = history.requests[history.requests["outcome"] == "completed"]
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
    return [
        shlex.join(
            ["python", "-m", "chaos.run", f"{place}/experiment.yaml", "--world", info.world, "--seed", str(info.seed)]
        ),
        shlex.join(["python", "-m", "analysis.report", place]),
    ]


def title(history: History, verdict: Verdict) -> str:
    """The experiment's own title, else its name."""
    return str(history.experiment.get("title") or verdict.experiment)


def seconds(value: float | None) -> str:
    """A duration with three digits at most, `–` where there is none."""
    if value is None or not np.isfinite(value):
        return "–"
    if abs(value) < 0.9995:
        return f"{value * 1000:.0f} ms"
    return f"{value:.2f} s" if abs(value) < 10 else f"{value:,.1f} s"


def clock(value: float | None) -> str:
    """A time of the run, in seconds since it began."""
    return "–" if value is None or not np.isfinite(value) else f"{value:.2f} s"


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
    if unit in {"share", "ratio", "fraction"}:
        return percent(value)
    if unit == "s":
        return seconds(value)
    return f"{value:,.4g}{' ' + unit if unit else ''}"


def interval(criterion: CriterionResult) -> str:
    """The interval of a criterion's value, `–` where there is none."""
    if criterion.interval is None:
        return "–"
    low, high = (quantity(bound, criterion.unit) for bound in criterion.interval)
    return f"{low} to {high}"


def limit(criterion: CriterionResult) -> str:
    """The limit of a criterion, with its unit where that is not understood by itself."""
    unit = "" if criterion.unit in {"share", "ratio", "fraction", ""} or not criterion.limit else f" {criterion.unit}"
    return criterion.limit.replace(">=", "≥").replace("<=", "≤") + unit
