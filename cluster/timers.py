"""Many deadlines, one next wake-up: a heap that forgets replaced entries lazily."""

import heapq
from collections.abc import Hashable
from typing import Generic, TypeVar

Key = TypeVar("Key", bound=Hashable)


class Timers(Generic[Key]):
    """At most one time per key, in the owner's clock (seconds). Keys due at one time come out in the order set."""

    def __init__(self) -> None:
        self._heap: list[tuple[float, int, Key]] = []
        self._current: dict[Key, tuple[float, int]] = {}
        self._counter = 0

    def __len__(self) -> int:
        return len(self._current)

    def set(self, key: Key, time_s: float) -> None:
        """Make `key` due at `time_s`, replacing its earlier time."""
        present = self._current.get(key)
        if present is not None and present[0] == time_s:
            return
        self._counter += 1
        self._current[key] = (time_s, self._counter)
        heapq.heappush(self._heap, (time_s, self._counter, key))
        # Replaced entries stay in the heap until they surface; rebuild before they outnumber the live ones.
        if len(self._heap) > 64 and len(self._heap) > 4 * len(self._current):
            self._heap = [(time, count, key) for key, (time, count) in self._current.items()]
            heapq.heapify(self._heap)

    def clear(self, key: Key) -> None:
        """Forget `key`; nothing happens if it has no time."""
        self._current.pop(key, None)

    def next(self) -> float | None:
        """The earliest time, None when there is none."""
        heap, current = self._heap, self._current
        while heap:
            time_s, count, key = heap[0]
            present = current.get(key)
            if present is not None and present[1] == count:
                return time_s
            heapq.heappop(heap)
        return None

    def first(self) -> tuple[float, Key] | None:
        """The earliest time and whose it is, None when there is none."""
        time_s = self.next()
        return None if time_s is None else (time_s, self._heap[0][2])

    def due(self, now: float) -> list[Key]:
        """Take out all keys whose time has come, earliest first."""
        keys: list[Key] = []
        while (time_s := self.next()) is not None and time_s <= now:
            key = heapq.heappop(self._heap)[2]
            del self._current[key]
            keys.append(key)
        return keys
