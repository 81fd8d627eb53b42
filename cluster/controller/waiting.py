"""WaitingRoom: accepted requests for which no worker has room, in the order in which they will get it."""

from collections import OrderedDict

from cluster.controller.ledger import Entry
from cluster.protocol import PRIORITIES


class WaitingRoom:
    """Per model: high priority first, and whoever waits rises by one priority every `ageing_s` seconds.

    All rise alike, so the order is that of arrival, had each priority brought a request `ageing_s` earlier: nobody
    waits for ever. The ledger bounds how many there can be.
    """

    def __init__(self, ageing_s: float) -> None:
        self._ageing_s = ageing_s
        self._lines: dict[tuple[str, int], OrderedDict[str, tuple[float, Entry]]] = {}

    def __len__(self) -> int:
        return sum(len(line) for line in self._lines.values())

    def __contains__(self, entry: Entry) -> bool:
        return entry.id in self._lines.get(_line(entry), ())

    def add(self, entry: Entry, now: float) -> None:
        """Let a request wait; one that waits already keeps its place."""
        self._lines.setdefault(_line(entry), OrderedDict()).setdefault(entry.id, (now, entry))

    def discard(self, entry: Entry) -> None:
        """The request waits no longer."""
        line = self._lines.get(_line(entry))
        if line is not None and line.pop(entry.id, None) is not None and not line:
            del self._lines[_line(entry)]

    def first(self, model: str) -> Entry | None:
        """Who is next for a place at a worker that serves the model."""
        lines = [line for priority in PRIORITIES if (line := self._lines.get((model, priority)))]
        heads = [next(iter(line.values())) for line in lines]
        return min(heads, key=self._rank)[1] if heads else None

    def _rank(self, waiting: tuple[float, Entry]) -> float:
        since_s, entry = waiting
        return since_s - entry.submit.priority * self._ageing_s

    def models(self) -> list[str]:
        """For which models somebody waits."""
        return list(dict.fromkeys(model for model, _ in self._lines))


def _line(entry: Entry) -> tuple[str, int]:
    return entry.submit.model, entry.submit.priority
