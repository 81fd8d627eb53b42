"""Load as a pure object: what to ask, and when. Each class is a cluster.caller.Source."""

import heapq
from collections.abc import Callable, Sequence

from cluster.node import Ask
from cluster.protocol import Token
from workloads.plan import ClosedSegment, LoadPlan
from workloads.schedule import ScheduledRequest

TURN_MIN_S = 0.01
"""A place of a closed segment asks again after that at the earliest: what is refused at once must not be asked for
ever within one instant."""


class OpenLoop:
    """Executes a schedule whatever the cluster does. `start_s` is the schedule's zero in the client's clock."""

    def __init__(self, schedule: Sequence[ScheduledRequest], start_s: float, model: str, timeout_s: float) -> None:
        self._schedule = schedule
        self._start_s = start_s
        self._model = model
        self._timeout_s = timeout_s
        self._next = 0

    def due(self, now: float) -> list[Ask]:
        """See Source."""
        asks: list[Ask] = []
        while self._next < len(self._schedule) and self._start_s + self._schedule[self._next].intended_s <= now:
            request = self._schedule[self._next]
            self._next += 1
            asks.append(_ask(request, self._start_s + request.intended_s, self._model, self._timeout_s))
        return asks

    def next_time(self) -> float | None:
        """See Source."""
        if self.finished:
            return None
        return self._start_s + self._schedule[self._next].intended_s

    def ended(self, request_id: str, now: float) -> list[Ask]:
        """See Source: an open loop does not care."""
        return []

    @property
    def finished(self) -> bool:
        """See Source."""
        return self._next >= len(self._schedule)


class _Places:
    """The places of a closed loop: so many, from a time until another. A place that is free asks again, in time."""

    def __init__(self, concurrency: int, start_s: float, stop_s: float) -> None:
        self._concurrency = concurrency
        self._start_s = start_s
        self._stop_s = stop_s
        self._begun = False
        self._taken: dict[str, float] = {}
        """Request id to the time of its ask."""
        self._free: list[float] = []
        """When free places ask again, a heap."""

    def due(self, now: float) -> int:
        """How many places ask now."""
        if not self._begun:
            self._begun = now >= self._start_s
            return self._concurrency if self._begun else 0
        count = 0
        while self._free and self._free[0] <= now:
            heapq.heappop(self._free)
            count += 1
        return count if now < self._stop_s else 0

    def next_time(self) -> float | None:
        """When `due` will have something to say."""
        if not self._begun:
            return self._start_s
        return self._free[0] if self._free else None

    def take(self, request_id: str, now: float) -> None:
        """A place has asked this."""
        self._taken[request_id] = now

    def ended(self, request_id: str, now: float) -> int:
        """How many places ask because of this end; a place that has only just asked does so later."""
        asked_s = self._taken.pop(request_id, None)
        if asked_s is None or now >= self._stop_s:
            return 0
        if now >= asked_s + TURN_MIN_S:
            return 1
        heapq.heappush(self._free, asked_s + TURN_MIN_S)
        return 0

    @property
    def idle(self) -> bool:
        """Whether the time is over, or nothing is left that could ask again."""
        return self._begun and not self._taken and not self._free


class ClosedLoop:
    """Keeps `concurrency` requests in flight from `start_s` until `stop_s`, taking prompts in turn."""

    def __init__(
        self,
        prompts: Sequence[tuple[tuple[Token, ...], int]],
        concurrency: int,
        start_s: float,
        stop_s: float,
        model: str,
        timeout_s: float,
        prefix: str,
    ) -> None:
        self._prompts = prompts
        self._places = _Places(concurrency, start_s, stop_s)
        self._model = model
        self._timeout_s = timeout_s
        self._prefix = prefix
        self._asked = 0

    def due(self, now: float) -> list[Ask]:
        """See Source."""
        return [self._ask(now) for _ in range(self._places.due(now))]

    def next_time(self) -> float | None:
        """See Source."""
        return self._places.next_time()

    def ended(self, request_id: str, now: float) -> list[Ask]:
        """See Source: another takes the place of each that ends in time."""
        return [self._ask(now) for _ in range(self._places.ended(request_id, now))]

    @property
    def finished(self) -> bool:
        """See Source."""
        return self._places.idle

    def _ask(self, now: float) -> Ask:
        prompt, max_tokens = self._prompts[self._asked % len(self._prompts)]
        self._asked += 1
        request_id = f"{self._prefix}{self._asked}"
        self._places.take(request_id, now)
        return Ask(request_id, self._model, prompt, max_tokens, now, self._timeout_s, prompt_id=request_id)


class SegmentLoop:
    """Carries out one closed segment. A segment that has no request left before its time is over says so, once."""

    def __init__(
        self,
        segment: ClosedSegment,
        start_s: float,
        model: str,
        timeout_s: float,
        ran_dry: Callable[[str, float], None] = lambda segment, now: None,
    ) -> None:
        """start_s: the plan's zero in the client's clock. ran_dry: told of the segment's name and the time."""
        self._segment = segment
        self._places = _Places(segment.concurrency, start_s + segment.start_s, start_s + segment.stop_s)
        self._model = model
        self._timeout_s = timeout_s
        self._ran_dry = ran_dry
        self._next = 0

    def due(self, now: float) -> list[Ask]:
        """See Source."""
        return self._take(self._places.due(now), now)

    def next_time(self) -> float | None:
        """See Source."""
        return self._places.next_time()

    def ended(self, request_id: str, now: float) -> list[Ask]:
        """See Source: another takes the place of each that ends in time. Requests of others are none of ours."""
        return self._take(self._places.ended(request_id, now), now)

    @property
    def finished(self) -> bool:
        """See Source."""
        return self._next >= len(self._segment.requests) or self._places.idle

    def _take(self, count: int, now: float) -> list[Ask]:
        requests = self._segment.requests[self._next : self._next + count]
        if len(requests) < count and not self._segment.is_burst:
            self._ran_dry(self._segment.name, now)
            self._ran_dry = lambda segment, now: None
        self._next += len(requests)
        for request in requests:
            self._places.take(request.request_id, now)
        return [_ask(request, now, self._model, self._timeout_s) for request in requests]


class PlannedLoad:
    """Carries out a generator's plan: its open loop and its closed segments, each in its time."""

    def __init__(
        self,
        plan: LoadPlan,
        start_s: float,
        model: str,
        timeout_s: float,
        ran_dry: Callable[[str, float], None] = lambda segment, now: None,
    ) -> None:
        """start_s: the plan's zero in the client's clock. ran_dry: see SegmentLoop."""
        self._parts: list[OpenLoop | SegmentLoop] = [OpenLoop(plan.requests, start_s, model, timeout_s)]
        self._parts += [SegmentLoop(segment, start_s, model, timeout_s, ran_dry) for segment in plan.closed]

    def due(self, now: float) -> list[Ask]:
        """See Source."""
        return [ask for part in self._parts for ask in part.due(now)]

    def next_time(self) -> float | None:
        """See Source."""
        times = [time_s for part in self._parts if (time_s := part.next_time()) is not None]
        return min(times, default=None)

    def ended(self, request_id: str, now: float) -> list[Ask]:
        """See Source."""
        return [ask for part in self._parts for ask in part.ended(request_id, now)]

    @property
    def finished(self) -> bool:
        """See Source."""
        return all(part.finished for part in self._parts)


def _ask(request: ScheduledRequest, intended_s: float, model: str, timeout_s: float) -> Ask:
    return Ask(
        request.request_id,
        model,
        request.prompt,
        request.max_tokens,
        intended_s,
        timeout_s,
        request.session_id,
        request.turn,
        request.prompt_id,
        worker=request.worker,
    )
