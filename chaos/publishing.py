"""A run's progress in a file beside its rows, so that a results browser can show what runs now."""

import time
from collections.abc import Callable
from pathlib import Path

import msgspec

from analysis.whole_file import write_whole
from chaos.progress import Progress, Snapshot

FILE = "progress.json"
_EVERY_S = 1.0


class PublishedProgress:
    """Shows progress as Progress does, and keeps `progress.json` in the results directory up to date.

    The file holds `phase`, `duration_s` (null: nobody knows), `notes` (the last few) and `snapshot` (chaos.progress).
    """

    NOTES_MAX = 8

    def __init__(self, shown: Progress, directory: Path, clock: Callable[[], float] = time.monotonic) -> None:
        self._shown = shown
        self._path = directory / FILE
        self._clock = clock
        self._next_s = float("-inf")
        self._phase = ""
        self._duration_s: float | None = None
        self._notes: list[str] = []
        self._snapshot: Snapshot | None = None

    def phase(self, name: str, duration_s: float | None = None) -> None:
        """See Progress."""
        self._shown.phase(name, duration_s)
        self._phase, self._duration_s = name, duration_s
        self._write()

    def update(self, snapshot: Snapshot) -> None:
        """See Progress."""
        self._shown.update(snapshot)
        self._snapshot = snapshot
        if self._clock() >= self._next_s:
            self._write()

    def note(self, text: str) -> None:
        """See Progress."""
        self._shown.note(text)
        self._notes = [*self._notes, text][-self.NOTES_MAX :]
        self._write()

    def close(self) -> None:
        """The run is over: nothing is in progress any more."""
        self._path.unlink(missing_ok=True)

    def _write(self) -> None:
        self._next_s = self._clock() + _EVERY_S
        told = {"phase": self._phase, "duration_s": self._duration_s, "notes": self._notes, "snapshot": self._snapshot}
        try:
            write_whole(self._path, msgspec.json.encode(told))
        except OSError:
            # The run matters more than its display; what it cannot write of its rows it says itself.
            return
