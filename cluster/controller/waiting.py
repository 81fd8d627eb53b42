"""WaitingRoom: accepted requests for which no worker has room, in the order in which they will get it."""

from collections.abc import Container

from cluster.controller.ledger import Entry
from cluster.protocol import PRIORITIES
from cluster.timers import Timers

Line = tuple[str, str]
"""A model, and the worker wished for; empty: any."""


class WaitingRoom:
    """Per line: high priority first, and whoever waits rises by one priority every `ageing_s` seconds.

    Those who wish for a certain worker wait in a line of their own, or they would hold up those who do not.

    All rise alike, so the order is that of acceptance, had each priority brought a request `ageing_s` earlier: nobody
    waits for ever, and a stream that lost its worker stands where it would have stood. The ledger bounds how many
    there can be.
    """

    def __init__(self, ageing_s: float) -> None:
        self._ageing_s = ageing_s
        self._waiting: dict[str, tuple[Entry, Line]] = {}
        self._lines: dict[Line, dict[int, Timers[str]]] = {}
        """The ids of each line and priority, by the time of acceptance."""

    def __len__(self) -> int:
        return len(self._waiting)

    def __contains__(self, entry: Entry) -> bool:
        return entry.id in self._waiting

    def add(self, entry: Entry) -> None:
        """Let a request wait; one that waits already keeps its place."""
        if entry.id in self._waiting:
            return
        line = line_of(entry)
        self._waiting[entry.id] = (entry, line)
        self._lines.setdefault(line, {}).setdefault(entry.submit.priority, Timers()).set(entry.id, entry.accepted_s)

    def discard(self, entry: Entry) -> None:
        """The request waits no longer."""
        known = self._waiting.pop(entry.id, None)
        if known is None:
            return
        line = known[1]
        levels = self._lines[line]
        ids = levels[entry.submit.priority]
        ids.clear(entry.id)
        if not ids:
            del levels[entry.submit.priority]
        if not levels:
            del self._lines[line]

    def first(self, line: Line) -> Entry | None:
        """Who is next in a line."""
        head = self._head(line)
        return None if head is None else self._waiting[head[1]][0]

    def next(self, held_up: Container[Line]) -> Entry | None:
        """Who is next in whatever line, but for lines whose first cannot go now."""
        heads = [head for line in self._lines if line not in held_up and (head := self._head(line)) is not None]
        return self._waiting[min(heads)[1]][0] if heads else None

    def _head(self, line: Line) -> tuple[float, str] | None:
        best: tuple[float, str] | None = None
        for priority in PRIORITIES:
            ids = self._lines.get(line, {}).get(priority)
            head = ids.first() if ids is not None else None
            if head is not None:
                since_s, request_id = head
                rank = since_s - priority * self._ageing_s
                if best is None or rank < best[0]:
                    best = (rank, request_id)
        return best


def line_of(entry: Entry) -> Line:
    """Where a request waits."""
    return entry.submit.model, entry.wish
