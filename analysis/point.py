"""What a sweep keeps of one run: the figures of one phase, and under what conditions they were measured."""

from collections.abc import Mapping
from typing import Any

import msgspec

from analysis.facts import CannotJudge
from analysis.history import History
from analysis.load_metrics import latency_objective_s
from analysis.measurement import lines_of, span
from analysis.metrics import measure

_CONFIDENCE = 0.95
FIGURES = {
    "success": "success_rate",
    "requests_per_s": "throughput_requests_per_s",
    "tokens_per_s": "throughput_tokens_per_s",
    "latency_p50_s": "latency_p50_s",
    "latency_p95_s": "latency_p95_s",
    "latency_p99_s": "latency_p99_s",
    "ttft_p50_s": "ttft_p50_s",
    "ttft_p95_s": "ttft_p95_s",
    "inter_token_p50_s": "inter_token_p50_s",
    "batch_mean": "batch_mean",
}


class Figures(msgspec.Struct, frozen=True, kw_only=True):
    """One phase of a run, from `settle_s` after its start. A value is None where the data do not support one.

    in_flight: of a closed load; None of an open one. ran_dry: a closed load had nothing left to ask. goodput_per_s:
    completed within the latency that the steady state allows. *_cpu: mean over the phase, of all cores of the busiest
    host (share), of the processes of all workers and of those of all nodes (cores).
    """

    phase: str
    duration_s: float
    in_flight: int | None
    ran_dry: bool
    offered: int
    completed: int
    failed: int
    refused: int
    offered_per_s: float
    goodput_per_s: float | None
    success: float | None
    requests_per_s: float | None
    tokens_per_s: float | None
    latency_p50_s: float | None
    latency_p95_s: float | None
    latency_p99_s: float | None
    ttft_p50_s: float | None
    ttft_p95_s: float | None
    inter_token_p50_s: float | None
    batch_mean: float | None
    host_cpu_share: float | None
    workers_cpu_cores: float | None
    nodes_cpu_cores: float | None = None


def loaded_phases(experiment: Mapping[str, Any]) -> list[str]:
    """The phases of a resolved experiment that have a load of their own to be measured under: a rate, or so many in
    flight. Warm-ups are none; where nothing is left it is the baseline."""
    baseline = str(experiment.get("baseline_phase", "baseline"))
    recovery = str(experiment.get("recovery_phase", "recovery"))
    found = [
        name
        for name, phase in experiment["phases"].items()
        if name not in (baseline, recovery)
        and isinstance(phase.get("load"), Mapping)
        and (phase["load"].get("rate") or phase["load"].get("closed"))
    ]
    return found or [baseline]


def measure_point(history: History, phase: str, settle_s: float) -> Figures:
    """The figures of a phase without its first seconds, in which the load before it ends and its own begins.

    Raises CannotJudge when the phase never began, or is over before it has settled.
    """
    settled = _settled(history, phase, settle_s)
    start_s, end_s = span(settled, phase)
    if end_s <= start_s:
        raise CannotJudge(f"the phase {phase} is over before it has settled for {settle_s:g} s")
    lines = lines_of(settled, phase)
    outcome = lines["outcome"]
    load = _load(history, phase)
    length_s = end_s - start_s
    measured = {name: _value(settled, metric, phase) for name, metric in FIGURES.items()}
    dry = history.events[history.events["kind"] == "load_ran_dry"]
    return Figures(
        phase=phase,
        duration_s=length_s,
        in_flight=load.get("closed"),
        ran_dry=bool((dry["subject"] == phase).any()),
        offered=len(lines),
        completed=int((outcome == "completed").sum()),
        failed=int((outcome == "failed").sum()),
        refused=int((outcome == "refused").sum()),
        offered_per_s=len(lines) / length_s,
        goodput_per_s=_goodput_per_s(settled, phase, length_s),
        host_cpu_share=_cpu(settled, "host", start_s, end_s),
        workers_cpu_cores=_cpu(settled, "worker", start_s, end_s),
        nodes_cpu_cores=_cpu(settled, "", start_s, end_s),
        **measured,
    )


def _settled(history: History, phase: str, settle_s: float) -> History:
    """The same history with a phase that begins later."""
    events = history.events
    begins = (events["kind"] == "phase_started") & (events["subject"] == phase)
    later = events.assign(time_s=events["time_s"].where(~begins, events["time_s"] + settle_s))
    return msgspec.structs.replace(history, events=later)


def _load(history: History, phase: str) -> Mapping[str, Any]:
    phases: Any = history.experiment.get("phases")
    told = phases.get(phase) if isinstance(phases, Mapping) else None
    load = told.get("load") if isinstance(told, Mapping) else None
    return load if isinstance(load, Mapping) else {}


def _value(history: History, metric: str, phase: str) -> float | None:
    try:
        return measure(history, metric, phase, _CONFIDENCE).value
    except CannotJudge:
        return None


def _goodput_per_s(history: History, phase: str, length_s: float) -> float | None:
    try:
        limit_s = latency_objective_s(history)
    except CannotJudge:
        return None
    lines = lines_of(history, phase)
    good = (lines["outcome"] == "completed") & (lines["ended_s"] - lines["intended_s"] <= limit_s)
    return float(good.sum()) / length_s


def _cpu(history: History, role: str, start_s: float, end_s: float) -> float | None:
    """The sum over nodes of their mean shares; of hosts the highest, for one of them is the bottleneck.

    role: empty for all nodes that are no host.
    """
    roles = history.nodes["role"]
    chosen = roles == role if role else roles != "host"
    rows = history.nodes[chosen & history.nodes["time_s"].between(start_s, end_s)]
    each = rows.groupby("node")["cpu_share"].mean().dropna()
    if each.empty:
        return None
    return float(each.max() if role == "host" else each.sum())
