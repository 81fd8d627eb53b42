"""WaitingRoom: accepted requests for which no worker has room, in the order in which they will get it."""

from collections import OrderedDict

from cluster.controller.ledger import Entry
from cluster.protocol import PRIORITIES


class WaitingRoom:
    """Per model: high priority first, then first come first served; one level is gained every `ageing_s` of waiting.

    So nobody waits for ever behind others of a higher priority. The ledger bounds how many there can be.
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

    def first(self, model: str, now: float) -> Entry | None:
        """Who is next for a place at a worker that serves the model."""
        best: Entry | None = None
        best_rank = (0.0, 0.0)
        for priority in PRIORITIES:
            line = self._lines.get((model, priority))
            if line:
                since_s, entry = next(iter(line.values()))
                rank = (priority + (now - since_s) // self._ageing_s, -since_s)
                if best is None or rank > best_rank:
                    best, best_rank = entry, rank
        return best

    def models(self) -> list[str]:
        """For which models somebody waits."""
        return list(dict.fromkeys(model for model, _ in self._lines))


def _line(entry: Entry) -> tuple[str, int]:
    return entry.submit.model, entry.submit.priority
