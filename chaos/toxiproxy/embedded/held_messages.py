"""Messages that a fault holds back, within bounds, until they are due."""

from bisect import bisect_left, insort
from typing import Generic, TypeVar

from chaos.toxiproxy.embedded.message_choice import Delay, Hold

MESSAGES_MAX = 4_096
BYTES_MAX = 16 * 2**20

T = TypeVar("T")


class HeldMessages(Generic[T]):
    """What one fault holds of one sequence of messages. Times are seconds of any one clock."""

    def __init__(self) -> None:
        self.overflowed = 0
        """Messages that went on before their time because there were too many."""
        self._items: dict[int, tuple[T, int, tuple[float, int, int]]] = {}
        self._due: list[tuple[float, int, int]] = []
        self._arrivals = 0
        self._bytes = 0

    def __len__(self) -> int:
        return len(self._items)

    @property
    def size_bytes(self) -> int:
        """Of all that is held."""
        return self._bytes

    def hold(self, item: T, size_bytes: int, verdict: Delay | Hold, now_s: float) -> list[T]:
        """Hold a message back. Returns what goes on at once instead: a window that is full, or the oldest of too many.

        What was due before has to be released before.
        """
        arrival = self._arrivals
        self._arrivals += 1
        if isinstance(verdict, Delay):
            key = (now_s + verdict.delay_s, arrival, arrival)
        else:
            # A window goes on as one: all of it when its first message has to.
            key = (self._due[0][0] if self._due else now_s + verdict.hold_s, verdict.rank, arrival)
        self._items[arrival] = (item, size_bytes, key)
        insort(self._due, key)
        self._bytes += size_bytes
        if isinstance(verdict, Hold) and len(self._items) >= verdict.window:
            return self._take(len(self._due))
        freed: list[T] = []
        while len(self._items) > MESSAGES_MAX or self._bytes > BYTES_MAX:
            freed.append(self._take_oldest())
        return freed

    def due_s(self) -> float | None:
        """When the next message has to go on; None if nothing is held."""
        return self._due[0][0] if self._due else None

    def release(self, now_s: float) -> list[T]:
        """What is due by now: in the order of the times, of equal ones in the order of arrival, or of the ranks."""
        if not self._due or self._due[0][0] > now_s:
            return []
        return self._take(bisect_left(self._due, (now_s, float("inf"))))

    def flush(self) -> list[T]:
        """Everything, in the order of arrival."""
        items = [item for item, _, _ in self._items.values()]
        self._items.clear()
        self._due.clear()
        self._bytes = 0
        return items

    def _take(self, count: int) -> list[T]:
        taken = [self._items.pop(arrival) for _, _, arrival in self._due[:count]]
        del self._due[:count]
        self._bytes -= sum(size_bytes for _, size_bytes, _ in taken)
        return [item for item, _, _ in taken]

    def _take_oldest(self) -> T:
        item, size_bytes, key = self._items.pop(next(iter(self._items)))
        del self._due[bisect_left(self._due, key)]
        self._bytes -= size_bytes
        self.overflowed += 1
        return item
