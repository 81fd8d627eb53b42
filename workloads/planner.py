"""From what the phases of a run are to do to the plan of its load, and to what that asks of a cluster."""

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Literal

import msgspec
from msgspec.structs import replace

from cluster.policy import WorkerPolicy
from workloads.arrivals import Stretch
from workloads.capacity import Capacity, InfeasibleRate, share_of_capacity
from workloads.plan import ClosedSegment, LoadPlan, PhaseLoad, rate_per_s
from workloads.schedule import ScheduledRequest, build_schedule, first_requests
from workloads.spec import WorkloadSpec
from workloads.vocabulary import PromptVocabulary

CLOSED_HEADROOM = 3.0
"""A closed segment is planned for so many times the measured capacity: a cluster that is faster has run the probe of a
different load."""
_SEED_STEP = 1_000_003
"""Between the seeds of the segments of a run: their prompts have nothing in common."""


class PlannedPhase(msgspec.Struct, frozen=True):
    """A phase of a run. load: None does what the workload says, `none` nothing."""

    name: str
    duration_s: float
    load: PhaseLoad | Literal["none"] | None = None


def build_plan(
    spec: WorkloadSpec,
    phases: Sequence[PlannedPhase],
    base_per_s: float,
    capacity: Capacity,
    seed: int,
    vocabulary: PromptVocabulary,
    *,
    context_max_tokens: int = WorkerPolicy().context_max_tokens,
) -> LoadPlan:
    """The load of all phases. base_per_s: the workload's rate in requests per second.

    The open loop is one schedule of the workload, so the n-th request is the same one whatever the phases do; where a
    phase has a burst, a closed load or none, nothing of it comes. Raises ValueError as build_schedule does.
    """
    requests = build_schedule(
        spec,
        base_per_s,
        sum(phase.duration_s for phase in phases),
        seed,
        vocabulary,
        context_max_tokens=context_max_tokens,
        profile=tuple(_profile(phases, base_per_s, capacity.requests_per_s)),
    )
    closed: list[ClosedSegment] = []
    start_s = 0.0
    for number, phase in enumerate(phases, 1):
        stop_s = start_s + phase.duration_s
        concurrency = _in_flight(phase.load)
        if concurrency:
            count = concurrency + (0 if _is_burst(phase.load) else _headroom(capacity, phase.duration_s))
            segment_seed = seed + number * _SEED_STEP
            taken = segment_requests(
                phase.name, start_s, count, spec, segment_seed, vocabulary, context_max_tokens=context_max_tokens
            )
            closed.append(ClosedSegment(phase.name, start_s, stop_s, concurrency, taken))
        start_s = stop_s
    return LoadPlan(tuple(requests), tuple(closed))


def segment_requests(
    name: str,
    start_s: float,
    count: int,
    spec: WorkloadSpec,
    seed: int,
    vocabulary: PromptVocabulary,
    *,
    context_max_tokens: int = WorkerPolicy().context_max_tokens,
) -> tuple[ScheduledRequest, ...]:
    """So many requests of the workload for a closed segment, whose ids, sessions and prompts are its own."""
    requests = first_requests(spec, count, seed, vocabulary, context_max_tokens=context_max_tokens)
    return tuple(
        replace(
            request,
            request_id=f"{name}-{number:06d}",
            intended_s=start_s,
            session_id=f"{name}-{request.session_id}",
            prompt_id=f"{name}-{request.prompt_id}",
        )
        for number, request in enumerate(requests)
    )


def statements(
    phases: Iterable[PlannedPhase],
    base_per_s: float,
    capacity: Capacity,
    deadline_s: float,
    latency_limits_s: Mapping[str, float] | None = None,
) -> dict[str, str]:
    """Of each phase with a load of its own, in one line: what it offers, against what the cluster was measured to do.

    deadline_s: after which a request is given up. latency_limits_s: by phase, the lowest limit that the experiment sets
    a latency. Raises InfeasibleRate for an absolute rate above the capacity (a share or a multiple above it asks for
    overload and gets it), and for so many in flight that even their mean latency is above its limit.
    """
    limits_s = latency_limits_s or {}
    found: dict[str, str] = {}
    for phase in phases:
        match phase.load:
            case None:
                continue
            case "none":
                found[phase.name] = "no load"
            case PhaseLoad(rate=str() as rate):
                found[phase.name] = _rate_statement(phase, rate, base_per_s, capacity)
            case PhaseLoad(burst=int() as burst):
                found[phase.name] = _burst_statement(burst, capacity, deadline_s)
            case PhaseLoad(closed=int() as closed):
                _refuse_long_waits(phase.name, closed, capacity, limits_s.get(phase.name, math.inf))
                found[phase.name] = _closed_statement(closed, capacity, deadline_s)
    return found


def _rate_statement(phase: PlannedPhase, text: str, base_per_s: float, capacity: Capacity) -> str:
    per_s = rate_per_s(text, base_per_s, capacity.requests_per_s)
    over_per_s = per_s - capacity.requests_per_s
    if over_per_s > 0 and text.strip().endswith("/s"):
        measured = share_of_capacity(per_s, capacity.requests_per_s, capacity.tokens_per_s)
        raise InfeasibleRate(
            f"phases.{phase.name}.load.rate {text} is {measured}: lower it, add workers, or give a share such as 60%"
        )
    said = f"{per_s:.1f} requests/s ({text}), {share_of_capacity(per_s, capacity.requests_per_s)}"
    if over_per_s > 0:
        said += f"; this is overload: about {over_per_s * phase.duration_s:.0f} requests wait when it ends"
    return said


def _burst_statement(burst: int, capacity: Capacity, deadline_s: float) -> str:
    work_s = burst / capacity.requests_per_s
    said = f"{burst} requests at once, {work_s:.1f} s of work at {_capacity(capacity)}"
    if work_s > deadline_s:
        late = burst - math.floor(capacity.requests_per_s * deadline_s)
        said += f"; about {late} of them cannot be served within client.deadline_s = {deadline_s:g} s"
    return said


def _closed_statement(closed: int, capacity: Capacity, deadline_s: float) -> str:
    # Little's law: in flight = throughput x latency.
    each_s = closed / capacity.requests_per_s
    said = f"{closed} in flight (closed loop), each for about {each_s:.1f} s at {_capacity(capacity)}"
    if each_s > deadline_s:
        said += f"; that is longer than client.deadline_s = {deadline_s:g} s, so most will not be served in time"
    return said


def _refuse_long_waits(name: str, closed: int, capacity: Capacity, limit_s: float) -> None:
    each_s = closed / capacity.requests_per_s
    if each_s > limit_s:
        raise InfeasibleRate(
            f"phases.{name}.load.closed: {closed} in flight take {each_s:.1f} s each at {_capacity(capacity)} "
            f"({capacity.tokens_per_s:.0f} tokens/s), and the experiment allows {limit_s:g} s: "
            f"keep at most {math.floor(capacity.requests_per_s * limit_s)} in flight, or add workers"
        )


def _capacity(capacity: Capacity) -> str:
    return f"the measured capacity of {capacity.requests_per_s:.1f} requests/s"


def _profile(phases: Iterable[PlannedPhase], base_per_s: float, capacity_per_s: float) -> Iterator[Stretch]:
    """The phases whose open loop is not the workload's own."""
    start_s = 0.0
    for phase in phases:
        end_s = start_s + phase.duration_s
        if isinstance(phase.load, PhaseLoad) and phase.load.rate is not None:
            yield Stretch(start_s, end_s, rate_per_s(phase.load.rate, base_per_s, capacity_per_s) / base_per_s)
        elif phase.load is not None:
            yield Stretch(start_s, end_s, 0.0)
        start_s = end_s


def _in_flight(load: PhaseLoad | Literal["none"] | None) -> int:
    return (load.burst or load.closed or 0) if isinstance(load, PhaseLoad) else 0


def _is_burst(load: PhaseLoad | Literal["none"] | None) -> bool:
    return isinstance(load, PhaseLoad) and load.burst is not None


def _headroom(capacity: Capacity, duration_s: float) -> int:
    return math.ceil(CLOSED_HEADROOM * capacity.requests_per_s * duration_s)
