"""What is asked of a cluster in a run: requests at fixed times, and stretches in which so many are kept in flight."""

import re
from typing import Any

import msgspec
import pyarrow as pa
from msgspec.structs import replace

from workloads.schedule import ScheduledRequest, schedule_rows, split
from workloads.spec import PER_S_MAX, Positive, Rate

TIMES_MAX = 1000.0
_TIMES = re.compile(r"^(?P<value>\d+(\.\d+)?)\s*x$", re.ASCII)


class ClosedSegment(msgspec.Struct, frozen=True):
    """Keeps `concurrency` requests in flight from `start_s` until `stop_s`, seconds since the load began.

    It takes `requests` in turn; their intended_s is when each is really sent, so the one that they are planned with
    says only from when on. A burst is a segment whose requests number `concurrency` and are asked once.
    """

    name: str
    start_s: float
    stop_s: float
    concurrency: int
    requests: tuple[ScheduledRequest, ...]

    @property
    def is_burst(self) -> bool:
        """Whether all of it is asked at once, and nothing after."""
        return len(self.requests) == self.concurrency


class LoadPlan(msgspec.Struct, frozen=True):
    """Everything that a run may ask. requests: the open loop, in order of their time. closed: in order of theirs."""

    requests: tuple[ScheduledRequest, ...]
    closed: tuple[ClosedSegment, ...] = ()

    def every_request(self) -> list[ScheduledRequest]:
        """Those of the open loop, then those of the closed segments, asked or not."""
        return [*self.requests, *(request for segment in self.closed for request in segment.requests)]


class PhaseLoad(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """What a phase does instead of the workload's load. Exactly one is set; raises ValueError naming the field.

    rate: an open loop at `10x` the workload's rate, `50/s`, or `120%` of the measured capacity. burst: so many requests
    at once as the phase begins, and nothing else. closed: so many requests kept in flight for the whole phase.
    closed_per_worker: the same, as often as there are workers; whoever knows how many makes `closed` of it.
    """

    rate: str | None = None
    burst: Positive | None = None
    closed: Positive | None = None
    closed_per_worker: Positive | None = None

    def __post_init__(self) -> None:
        said = [name for name in self.__struct_fields__ if getattr(self, name) is not None]
        if len(said) != 1:
            known = "rate, burst, closed and closed_per_worker"
            raise ValueError(f"expected one of {known}, got {' and '.join(said) or 'none of them'}")
        if self.rate is not None:
            try:
                rate_per_s(self.rate, 1.0, 1.0)
            except ValueError as error:
                raise ValueError(f"rate: {error}") from None


def for_workers(load: PhaseLoad, workers: int) -> PhaseLoad:
    """The load with so many in flight in all, where it says how many for each worker."""
    return load if load.closed_per_worker is None else PhaseLoad(closed=load.closed_per_worker * workers)


def rate_per_s(text: str, base_per_s: float, capacity_per_s: float) -> float:
    """Requests per second of a phase's rate, where the workload's is `base_per_s`. Raises ValueError."""
    times = _TIMES.match(text.strip())
    if times is not None:
        value = float(times["value"])
        if not 0 < value <= TIMES_MAX:
            raise ValueError(f"expected at most {TIMES_MAX:g}x and more than 0, got {text!r}")
        return min(value * base_per_s, PER_S_MAX)
    try:
        rate = Rate.parse(text)
    except ValueError as error:
        raise ValueError(str(error).replace("12/s or 60%", "10x, 50/s or 120%")) from None
    return rate.per_s if rate.per_s is not None else (rate.share or 0.0) * capacity_per_s


def closed_ids(plan: LoadPlan) -> frozenset[str]:
    """The ids of all requests of closed segments."""
    return frozenset(request.request_id for segment in plan.closed for request in segment.requests)


def divide(plan: LoadPlan, generators: int) -> list[LoadPlan]:
    """One plan per generator. Requests in flight and those to take are dealt in turn, as evenly as it goes.

    Raises ValueError below one generator.
    """
    opened = split(plan.requests, generators)
    return [
        LoadPlan(tuple(part), tuple(_share(segment, number, generators) for segment in plan.closed))
        for number, part in enumerate(opened)
    ]


def _share(segment: ClosedSegment, number: int, generators: int) -> ClosedSegment:
    each, over = divmod(segment.concurrency, generators)
    concurrency = each + (number < over)
    requests = segment.requests[number::generators] if concurrency else ()
    return replace(segment, concurrency=concurrency, requests=requests)


def plan_rows(plan: LoadPlan) -> Any:
    """The `pyarrow.Table` of `schedule.parquet`: every planned request, whether it will be asked or not."""
    closed = (schedule_rows(segment.requests, segment.name) for segment in plan.closed)
    return pa.concat_tables([schedule_rows(plan.requests), *closed])
