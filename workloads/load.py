"""Load as a pure object: what to ask, and when. Each class is a cluster.caller.Source."""

from collections.abc import Sequence

from cluster.node import Ask
from cluster.protocol import Token
from workloads.schedule import ScheduledRequest


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
            asks.append(
                Ask(
                    request.request_id,
                    self._model,
                    request.prompt,
                    request.max_tokens,
                    self._start_s + request.intended_s,
                    self._timeout_s,
                    request.session_id,
                    request.turn,
                    request.prompt_id,
                )
            )
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
