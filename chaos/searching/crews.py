"""Who does the tasks of a search: this process, processes of this host, or (chaos.searching.on_ray) a Ray cluster."""

import sys
import tempfile
from collections import deque
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from pathlib import Path
from typing import Protocol

import msgspec

from chaos.children import Children
from chaos.searching.tasks import Result, Task, perform

RUNS_MAX = 2
"""Of one task: a process that was killed may not have been at fault; one that is killed twice may well be."""
_WAKE_S = 0.5
"""How long Ctrl-C waits at most."""


class Crew(Protocol):
    """Does tasks, so many at once. Whoever hires one has to close it, which ends whatever still runs."""

    at_once: int

    def submit(self, number: int, task: Task) -> None:
        """Have a task done. number: what it is called afterwards."""

    def next(self) -> tuple[int, Result]:
        """Wait for one that is done."""

    def close(self) -> None:
        """End it all."""


class Alone:
    """One after the other, in this process."""

    at_once = 1

    def __init__(self) -> None:
        self._waiting: deque[tuple[int, Task]] = deque()

    def submit(self, number: int, task: Task) -> None:
        """See Crew."""
        self._waiting.append((number, task))

    def next(self) -> tuple[int, Result]:
        """See Crew."""
        number, task = self._waiting.popleft()
        return number, perform(task)

    def close(self) -> None:
        """See Crew."""
        self._waiting.clear()


class Processes:
    """In processes of this host, which end with us, even when we are killed."""

    def __init__(self, at_once: int) -> None:
        self.at_once = at_once
        self._children = Children()
        self._folder = tempfile.TemporaryDirectory(prefix="search-tasks-")
        self._pool = ThreadPoolExecutor(at_once)
        self._running: dict[Future[Result], int] = {}

    def submit(self, number: int, task: Task) -> None:
        """See Crew."""
        self._running[self._pool.submit(self._run, number, task)] = number

    def next(self) -> tuple[int, Result]:
        """See Crew."""
        while True:
            for future in wait(self._running, timeout=_WAKE_S, return_when=FIRST_COMPLETED).done:
                return self._running.pop(future), future.result()

    def close(self) -> None:
        """See Crew."""
        self._children.interrupt()
        self._pool.shutdown(cancel_futures=True)
        self._folder.cleanup()

    def _run(self, number: int, task: Task) -> Result:
        given, left, log = (Path(self._folder.name) / f"{number}.{kind}" for kind in ("task", "result", "log"))
        given.write_bytes(msgspec.json.encode(task))
        code = 0
        for _ in range(RUNS_MAX):
            code = self._children.run([sys.executable, "-m", "chaos.searching.tasks", str(given), str(left)], log)
            if code == 0:
                return msgspec.json.decode(left.read_bytes(), type=Result)
        said = log.read_text(errors="replace").strip().splitlines()[-1:]
        return Result(lost=f"its process ended with {code} {RUNS_MAX} times{': ' if said else ''}{''.join(said)}")
