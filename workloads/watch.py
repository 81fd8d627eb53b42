"""What a client's caller sees of a load while it runs: counts, and latencies of the recent past."""

from collections.abc import Callable, Container

import msgspec

from analysis.schema import EventRow
from cluster.errors import TRAITS, Code
from cluster.node import Ask, Deliver
from workloads.capacity import Completion
from workloads.lately import Lately, LoadWindow, together


class Standing(msgspec.Struct, frozen=True):
    """Counts since the load began, and of the last seconds the end-to-end latencies (seconds) and `lately`."""

    offered: int = 0
    completed: int = 0
    failed: int = 0
    refused: int = 0
    cancelled: int = 0
    recent_s: tuple[float, ...] = ()
    lately: Lately = Lately()
    finished: bool = True

    @property
    def in_flight(self) -> int:
        """Asked and not ended."""
        return self.offered - self.completed - self.failed - self.refused - self.cancelled


class LoadWatch:
    """Told of every ask and every end. What of a closed load is asked is decided by the run, so that is recorded."""

    def __init__(
        self,
        closed: Container[str] = (),
        record: Callable[[EventRow], None] = lambda row: None,
        name: str = "",
        window_s: float | None = None,
    ) -> None:
        """closed: ids of the requests of closed loads. record: where a row goes. name: the client's.

        window_s: how far `recent_s` and `lately` look back; None when nobody tells it of ends or asks for those.
        """
        self._closed = closed
        self._record = record
        self._name = name
        self._counts = dict.fromkeys(("offered", "completed", "failed", "refused", "cancelled"), 0)
        self._window = None if window_s is None else LoadWindow(window_s)

    def asked(self, ask: Ask) -> None:
        """A request was handed to the client."""
        self._counts["offered"] += 1
        if self._window is not None:
            self._window.asked(ask)
        if ask.request_id in self._closed:
            self._record(EventRow(ask.intended_s, "request_asked", self._name, ask.request_id))

    def ran_dry(self, segment: str, now: float) -> None:
        """A closed load has nothing left to ask before its time is over."""
        self._record(EventRow(now, "load_ran_dry", segment))

    def ended(self, ask: Ask, end: Deliver, now: float) -> None:
        """It has ended."""
        outcome = _outcome(end.code)
        self._counts[outcome] += 1
        if self._window is not None:
            self._window.ended(ask.request_id, outcome, now)

    def standing(self, now: float, finished: bool) -> Standing:
        """The present state. finished: whether nothing more will be asked."""
        window = self._window
        recent_s = () if window is None else window.latencies_s(now)
        lately = Lately() if window is None else window.seen(now)
        return Standing(**self._counts, recent_s=recent_s, lately=lately, finished=finished)


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
        lately=together(part.lately for part in standings),
        finished=all(part.finished for part in standings),
    )


def _outcome(code: str | None) -> str:
    if code is None:
        return "completed"
    if code == Code.CANCELLED:
        return "cancelled"
    return "refused" if TRAITS[Code(code)].refusal else "failed"
