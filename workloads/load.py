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
        self._concurrency = concurrency
        self._start_s = start_s
        self._stop_s = stop_s
        self._model = model
        self._timeout_s = timeout_s
        self._prefix = prefix
        self._asked = 0
        self.finished = False

    def due(self, now: float) -> list[Ask]:
        """See Source: the first round."""
        if now < self._start_s or self._asked:
            return []
        return [self._ask(now) for _ in range(self._concurrency)]

    def next_time(self) -> float | None:
        """See Source."""
        return None if self._asked else self._start_s

    def ended(self, request_id: str, now: float) -> list[Ask]:
        """See Source: another takes the place of each that ends in time."""
        if now < self._stop_s:
            return [self._ask(now)]
        self.finished = True
        return []

    def _ask(self, now: float) -> Ask:
        prompt, max_tokens = self._prompts[self._asked % len(self._prompts)]
        self._asked += 1
        request_id = f"{self._prefix}{self._asked}"
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
        self._start_s = start_s + segment.start_s
        self._stop_s = start_s + segment.stop_s
        self._model = model
        self._timeout_s = timeout_s
        self._ran_dry = ran_dry
        self._next = 0
        self._begun = False
        self._in_flight: dict[str, float] = {}
        """Request id to the time of its ask."""
        self._places: list[float] = []
        """When free places ask again, a heap."""

    def due(self, now: float) -> list[Ask]:
        """See Source."""
        if not self._begun:
            if now < self._start_s:
                return []
            self._begun = True
            return self._take(now, self._segment.concurrency)
        free = 0
        while self._places and self._places[0] <= now:
            heapq.heappop(self._places)
            free += 1
        return self._take(now, free) if now < self._stop_s else []

    def next_time(self) -> float | None:
        """See Source."""
        if not self._begun:
            return self._start_s
        return self._places[0] if self._places else None

    def ended(self, request_id: str, now: float) -> list[Ask]:
        """See Source: another takes the place of each that ends in time. Requests of others are none of ours."""
        asked_s = self._in_flight.pop(request_id, None)
        if asked_s is None or now >= self._stop_s or self._segment.is_burst:
            return []
        if now >= asked_s + TURN_MIN_S:
            return self._take(now, 1)
        heapq.heappush(self._places, asked_s + TURN_MIN_S)
        return []

    @property
    def finished(self) -> bool:
        """See Source."""
        if self._next >= len(self._segment.requests):
            return True
        return self._begun and not self._in_flight and not self._places

    def _take(self, now: float, count: int) -> list[Ask]:
        requests = self._segment.requests[self._next : self._next + count]
        if len(requests) < count:
            self._ran_dry(self._segment.name, now)
            self._ran_dry = lambda segment, now: None
        self._next += len(requests)
        self._in_flight.update((request.request_id, now) for request in requests)
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
