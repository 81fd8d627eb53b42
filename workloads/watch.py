"""What a client's caller sees of a load while it runs: counts, and latencies of the recent past."""

from collections import deque
from collections.abc import Callable, Container

import msgspec

from analysis.schema import EventRow
from cluster.errors import TRAITS, Code
from cluster.node import Ask, Deliver
from workloads.capacity import Completion

_RECENT_S = 5.0
_RECENT_MAX = 20_000


class Standing(msgspec.Struct, frozen=True):
    """Counts since the load began, and end-to-end latencies (seconds) of the last five seconds."""

    offered: int = 0
    completed: int = 0
    failed: int = 0
    refused: int = 0
    cancelled: int = 0
    recent_s: tuple[float, ...] = ()
    finished: bool = True

    @property
    def in_flight(self) -> int:
        """Asked and not ended."""
        return self.offered - self.completed - self.failed - self.refused - self.cancelled


class LoadWatch:
    """Told of every ask and every end. What of a closed load is asked is decided by the run, so that is recorded."""

    def __init__(
        self, closed: Container[str] = (), record: Callable[[EventRow], None] = lambda row: None, name: str = ""
    ) -> None:
        """closed: ids of the requests of closed loads. record: where a row goes. name: the client's."""
        self._closed = closed
        self._record = record
        self._name = name
        self._counts = dict.fromkeys(("offered", "completed", "failed", "refused", "cancelled"), 0)
        self._recent: deque[tuple[float, float]] = deque(maxlen=_RECENT_MAX)

    def asked(self, ask: Ask) -> None:
        """A request was handed to the client."""
        self._counts["offered"] += 1
        if ask.request_id in self._closed:
            self._record(EventRow(ask.intended_s, "request_asked", self._name, ask.request_id))

    def ran_dry(self, segment: str, now: float) -> None:
        """A closed load has nothing left to ask before its time is over."""
        self._record(EventRow(now, "load_ran_dry", segment))

    def ended(self, ask: Ask, end: Deliver, now: float) -> None:
        """It has ended."""
        if end.code is None:
            self._counts["completed"] += 1
            self._recent.append((now, now - ask.intended_s))
        elif end.code == Code.CANCELLED:
            self._counts["cancelled"] += 1
        else:
            self._counts["refused" if TRAITS[Code(end.code)].refusal else "failed"] += 1

    def standing(self, now: float, finished: bool) -> Standing:
        """The present state. finished: whether nothing more will be asked."""
        while self._recent and self._recent[0][0] < now - _RECENT_S:
            self._recent.popleft()
        return Standing(**self._counts, recent_s=tuple(latency for _, latency in self._recent), finished=finished)


class ProbeWatch:
    """Keeps the completions of a capacity probe that began at `began_s` on the client's clock."""

    def __init__(self, completions: list[Completion], began_s: float) -> None:
        self._completions = completions
        self._began_s = began_s

    def asked(self, ask: Ask) -> None:
        """A request was handed to the client."""

    def ended(self, ask: Ask, end: Deliver, now: float) -> None:
        """It has ended."""
        if end.code is None:
            self._completions.append(Completion(now - self._began_s, end.total))


def total(standings: list[Standing]) -> Standing:
    """Several clients' standings as one."""
    return Standing(
        offered=sum(part.offered for part in standings),
        completed=sum(part.completed for part in standings),
        failed=sum(part.failed for part in standings),
        refused=sum(part.refused for part in standings),
        cancelled=sum(part.cancelled for part in standings),
        recent_s=tuple(latency for part in standings for latency in part.recent_s),
        finished=all(part.finished for part in standings),
    )
