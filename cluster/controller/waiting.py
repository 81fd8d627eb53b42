"""WaitingRoom: accepted requests for which no worker has room, in the order in which they will get it."""

from cluster.controller.ledger import Entry
from cluster.protocol import PRIORITIES
from cluster.timers import Timers


class WaitingRoom:
    """Per model: high priority first, and whoever waits rises by one priority every `ageing_s` seconds.

    All rise alike, so the order is that of acceptance, had each priority brought a request `ageing_s` earlier: nobody
    waits for ever, and a stream that lost its worker stands where it would have stood. The ledger bounds how many
    there can be.
    """

    def __init__(self, ageing_s: float) -> None:
        self._ageing_s = ageing_s
        self._waiting: dict[str, Entry] = {}
        self._lines: dict[tuple[str, int], Timers[str]] = {}
        """The ids of each model and priority, by the time of acceptance."""

    def __len__(self) -> int:
        return len(self._waiting)

    def __contains__(self, entry: Entry) -> bool:
        return entry.id in self._waiting

    def add(self, entry: Entry) -> None:
        """Let a request wait; one that waits already keeps its place."""
        self._waiting[entry.id] = entry
        self._lines.setdefault(_line(entry), Timers()).set(entry.id, entry.accepted_s)

    def discard(self, entry: Entry) -> None:
        """The request waits no longer."""
        if self._waiting.pop(entry.id, None) is None:
            return
        line = self._lines[_line(entry)]
        line.clear(entry.id)
        if not line:
            del self._lines[_line(entry)]

    def first(self, model: str) -> Entry | None:
        """Who is next for a place at a worker that serves the model."""
        best: tuple[float, str] | None = None
        for priority in PRIORITIES:
            line = self._lines.get((model, priority))
            head = line.first() if line is not None else None
            if head is not None:
                since_s, request_id = head
                rank = since_s - priority * self._ageing_s
                if best is None or rank < best[0]:
                    best = (rank, request_id)
        return None if best is None else self._waiting[best[1]]

    def models(self) -> list[str]:
        """For which models somebody waits."""
        return list(dict.fromkeys(model for model, _ in self._lines))


def _line(entry: Entry) -> tuple[str, int]:
    return entry.submit.model, entry.submit.priority
