"""A run as a child process: its lines as they come, signals to it, and which processes it leaves behind.

Other runs may go on at the same time on the same machine, so what belongs to a run is never told by a program's name:
every process of it was born below the runner (watched while it runs), or carries the run's mark in its environment.
"""

import contextlib
import os
import re
import secrets
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import IO, Self

import psutil

ROOT = Path(__file__).resolve().parent.parent
MARK = "MLX_CHAOS_TEST_MARK"
LEFT_MAX_S = 10.0
"""How long after its runner's end a process may still be there."""
_LOOK_S = 0.5
_POLL_S = 0.2
_TAIL_LINES = 12


class Family:
    """The processes of one run. A pid is only ever meant together with its time of birth."""

    def __init__(self, mark: str) -> None:
        self._mark = mark
        self._known: dict[int, psutil.Process] = {}

    def look(self) -> None:
        """Learn about the descendants of those that are known. Cheap: it must not disturb what is measured."""
        for process in list(self._known.values()):
            with contextlib.suppress(psutil.Error):
                for child in process.children(recursive=True):
                    self._known.setdefault(child.pid, child)

    def add(self, pid: int) -> None:
        """Begin with this one."""
        with contextlib.suppress(psutil.Error):
            self._known[pid] = psutil.Process(pid)

    def alive(self) -> list[str]:
        """One line for each that still runs. Also finds by their mark those that no look has seen."""
        for process in psutil.process_iter():
            with contextlib.suppress(psutil.Error):
                if process.environ().get(MARK) == self._mark:
                    self._known.setdefault(process.pid, process)
        self.look()
        lines = []
        for process in self._known.values():
            with contextlib.suppress(psutil.Error):
                # is_running compares the time of birth as well; a zombie has ended.
                if process.is_running() and process.status() != psutil.STATUS_ZOMBIE:
                    lines.append(f"{process.pid} {' '.join(process.cmdline())[:120] or process.name()}")
        return lines

    def standing_still(self) -> list[str]:
        """One line for each that has been stopped by a signal and does not go on. Cheap, as `look`."""
        self.look()
        lines = []
        for process in self._known.values():
            with contextlib.suppress(psutil.Error):
                if process.is_running() and process.status() == psutil.STATUS_STOPPED:
                    lines.append(f"{process.pid} {process.name()}")
        return lines

    def end(self) -> None:
        """Kill whatever is left, so that one failure does not spoil what comes after it."""
        self.alive()
        for process in self._known.values():
            with contextlib.suppress(psutil.Error):
                process.kill()


class Run:
    """One run in a session of its own, as from a terminal. Use it in a `with`: whatever is left then is killed.

    out: where results go. module: what runs, `chaos.run` or something that takes the same arguments.
    """

    def __init__(
        self,
        arguments: Sequence[str],
        out: Path,
        module: str = "chaos.run",
        environment: Mapping[str, str] | None = None,
    ) -> None:
        self.out = out
        self.lines: list[str] = []
        self.errors: list[str] = []
        self.began_s = time.monotonic()
        self._news = threading.Condition()
        mark = secrets.token_hex(8)
        self.family = Family(mark)
        command = [sys.executable, "-m", module, *arguments, "--out", str(out)]
        self._process = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            errors="replace",
            start_new_session=True,
            cwd=ROOT,
            env={**os.environ, "PYTHONUNBUFFERED": "1", **(environment or {}), MARK: mark},
        )
        self.family.add(self._process.pid)
        for pipe, lines in ((self._process.stdout, self.lines), (self._process.stderr, self.errors)):
            assert pipe is not None
            threading.Thread(target=self._read, args=(pipe, lines), daemon=True).start()
        threading.Thread(target=self._watch, daemon=True).start()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if self._process.poll() is None:
            # The keeper and the run's own clean-up do better than a list of pids.
            self._process.kill()
            self.left()
        self.family.end()
        self._process.wait()

    @property
    def pid(self) -> int:
        """The runner's."""
        return self._process.pid

    @property
    def results(self) -> Path | None:
        """The newest results directory, None while there is none."""
        latest = self.out / "latest"
        return latest.resolve() if latest.exists() else None

    def await_line(self, pattern: str, limit_s: float) -> bool:
        """Wait until a line of its output matches; False at the limit, or when it has ended without one."""
        wanted = re.compile(pattern)
        ends_s = time.monotonic() + limit_s
        with self._news:
            while not any(wanted.search(line) for line in self.lines):
                if time.monotonic() > ends_s or self._process.poll() is not None:
                    return any(wanted.search(line) for line in self.lines)
                self._news.wait(_POLL_S)
        return True

    def interrupt(self) -> None:
        """Ctrl-C: the terminal sends it to the whole process group. Nothing if that has ended."""
        self.family.look()
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.pid, signal.SIGINT)

    def kill(self) -> None:
        """kill -9 of the runner and nothing else."""
        self.family.look()
        self._process.kill()

    def wait(self, limit_s: float) -> int | None:
        """Its exit code, as a shell tells it (130 after SIGINT); None when it still runs at the limit."""
        try:
            code = self._process.wait(limit_s)
        except subprocess.TimeoutExpired:
            return None
        return code if code >= 0 else 128 - code

    def left(self, limit_s: float = LEFT_MAX_S) -> tuple[list[str], float]:
        """Which of its processes still run `limit_s` from now, and after how many seconds the last one had gone."""
        began_s = time.monotonic()
        while True:
            alive = self.family.alive()
            after_s = time.monotonic() - began_s
            if not alive or after_s > limit_s:
                return alive, after_s
            time.sleep(_POLL_S)

    def tail(self) -> str:
        """The last of what it said, for people."""
        return "\n".join([*self.lines[-_TAIL_LINES:], *self.errors[-_TAIL_LINES:]])

    def _read(self, pipe: IO[str], lines: list[str]) -> None:
        for line in pipe:
            with self._news:
                lines.append(line.rstrip("\n"))
                self._news.notify_all()

    def _watch(self) -> None:
        while self._process.poll() is None:
            self.family.look()
            time.sleep(_LOOK_S)
