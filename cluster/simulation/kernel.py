"""A virtual clock: a heap of callbacks, and coroutines that sleep on it."""

from collections.abc import Callable, Coroutine, Generator
from heapq import heappop, heappush
from typing import Any, Generic, TypeVar

Result = TypeVar("Result")


class DeadlockError(Exception):
    """A coroutine waits for something that no event on the heap will ever bring."""


class CancelledTask(BaseException):
    """Raised inside a coroutine that was cancelled, at its present await."""


class _Until:
    """What a suspended coroutine waits for: a time, or another task."""

    __slots__ = ("task", "time_s")

    def __init__(self, time_s: float | None, task: "Task[Any] | None" = None) -> None:
        self.time_s = time_s
        self.task = task

    def __await__(self) -> Generator["_Until", None, None]:
        yield self


class Task(Generic[Result]):
    """A coroutine on the kernel. Await it for its result; its exception is raised there."""

    def __init__(self, kernel: "Kernel", coroutine: Coroutine[Any, Any, Result]) -> None:
        self._kernel = kernel
        self._coroutine = coroutine
        self._waiters: list[Callable[[], None]] = []
        self._result: Result | None = None
        self._error: BaseException | None = None
        self._cancelled = False
        self._turn = 0
        self.done = False

    def cancel(self) -> None:
        """End the coroutine at its present await; nothing if it has ended."""
        if not self.done and not self._cancelled:
            self._cancelled = True
            self._kernel.at(self._kernel.now, lambda: self._step(CancelledTask()))

    def __await__(self) -> Generator[_Until, None, Result]:
        if not self.done:
            yield _Until(None, self)
        if self._error is not None:
            raise self._error
        return self._result  # type: ignore[return-value]

    def _resume(self, turn: int) -> None:
        # What a cancelled await waited for still comes, and must not cut short a later one.
        if turn == self._turn:
            self._step(None)

    def _step(self, error: BaseException | None) -> None:
        if self.done:
            return
        self._turn += 1
        turn = self._turn
        try:
            until = self._coroutine.throw(error) if error is not None else self._coroutine.send(None)
        except StopIteration as stop:
            self._result = stop.value
            self._finish()
            return
        except BaseException as raised:
            self._error = raised
            self._finish()
            return
        if until.task is not None:
            until.task._waiters.append(lambda: self._resume(turn))
        else:
            self._kernel.at(until.time_s, lambda: self._resume(turn))

    def _finish(self) -> None:
        self.done = True
        for waiter in self._waiters:
            self._kernel.at(self._kernel.now, waiter)
        self._waiters.clear()


class Kernel:
    """Virtual time in seconds from 0. Callbacks of one instant run in the order in which they were scheduled."""

    def __init__(self) -> None:
        self.now = 0.0
        self._heap: list[tuple[float, int, Callable[[], None]]] = []
        self._counter = 0

    def at(self, time_s: float, callback: Callable[[], None]) -> None:
        """Run `callback` at `time_s`, or at once (in its turn) if that has passed."""
        self._counter += 1
        heappush(self._heap, (time_s if time_s > self.now else self.now, self._counter, callback))

    async def sleep(self, seconds: float) -> None:
        """Suspend the calling coroutine for virtual seconds; others of the same instant run meanwhile."""
        await _Until(self.now + max(0.0, seconds))

    def spawn(self, coroutine: Coroutine[Any, Any, Result]) -> Task[Result]:
        """Start a coroutine at the present instant."""
        task = Task(self, coroutine)
        self.at(self.now, lambda: task._resume(0))
        return task

    def run(self, coroutine: Coroutine[Any, Any, Result]) -> Result:
        """Run events until the coroutine has ended. Raises what it raises, DeadlockError if the heap runs dry."""
        task = self.spawn(coroutine)
        heap = self._heap
        while not task.done:
            if not heap:
                raise DeadlockError("nothing is scheduled and the coroutine still waits")
            self.now, _, callback = heappop(heap)
            callback()
        if task._error is not None:
            raise task._error
        return task._result  # type: ignore[return-value]

    def run_until(self, time_s: float) -> None:
        """Run all events up to and including `time_s`."""
        heap = self._heap
        while heap and heap[0][0] <= time_s:
            self.now, _, callback = heappop(heap)
            callback()
        self.now = max(self.now, time_s)
