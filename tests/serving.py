"""`python -m cluster.serve` as a child process, for whoever wants to ask a running cluster."""

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
from types import TracebackType
from typing import Self

import psutil
import requests

from tests.processes import LEFT_MAX_S, MARK, ROOT, Family

START_S = 120.0
_ADDRESS = re.compile(r"^curl (http://\S+)/v1/chat/completions")


class Serving:
    """A cluster that serves on a free port. In a `with` it is up, and nothing of it is left afterwards."""

    def __init__(self, *arguments: str, environment: Mapping[str, str] | None = None) -> None:
        self.lines: list[str] = []
        self.url = ""
        mark = secrets.token_hex(8)
        self.family = Family(mark)
        self._process = subprocess.Popen(
            [sys.executable, "-m", "cluster.serve", "--port", "0", *arguments],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
            start_new_session=True,
            cwd=ROOT,
            env={**os.environ, "PYTHONUNBUFFERED": "1", **(environment or {}), MARK: mark},
        )
        self.family.add(self._process.pid)
        self._up = threading.Event()
        threading.Thread(target=self._read, daemon=True).start()

    def __enter__(self) -> Self:
        self._up.wait(START_S)
        if not self.url:
            self.__exit__(None, None, None)
            raise AssertionError("it did not come up:\n" + "\n".join(self.lines))
        self.family.look()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if self._process.poll() is None:
            self._process.kill()
            self.left()
        self.family.end()
        self._process.wait()

    @property
    def curl(self) -> str:
        """The line that a user would paste."""
        return next(line for line in self.lines if _ADDRESS.match(line))

    def pid_of(self, node: str) -> int:
        """Of a node's first life."""
        for line in self.lines:
            if found := re.match(rf"{re.escape(node)}: .* pid (\d+)$", line):
                return int(found[1])
        raise LookupError(f"{node} has not told its pid")

    def metrics(self) -> dict[str, float]:
        """What /metrics says, by series."""
        text = requests.get(f"{self.url}/metrics", timeout=10).text
        series = [line.rpartition(" ") for line in text.splitlines() if not line.startswith("#")]
        return {name: float(value) for name, _, value in series}

    def node(self, level: str, role: str) -> float:
        """A level of all nodes of a role together."""
        found = self.metrics()
        return sum(
            value
            for name, value in found.items()
            if name.startswith(f"mlxc_node_{level}{{") and f'role="{role}"' in name
        )

    def await_level(self, level: str, role: str, least: float, most: float, limit_s: float = 15.0) -> float:
        """Wait until a level lies in these bounds; the level. Raises AssertionError."""
        ends_s = time.monotonic() + limit_s
        while True:
            value = self.node(level, role)
            if least <= value <= most:
                return value
            assert time.monotonic() < ends_s, f"{level} of {role} is {value}, not in {least} to {most}"
            time.sleep(0.2)

    def await_line(self, pattern: str, limit_s: float) -> str:
        """Wait for a line that matches."""
        ends_s = time.monotonic() + limit_s
        while time.monotonic() < ends_s:
            for line in list(self.lines):
                if re.search(pattern, line):
                    return line
            time.sleep(0.1)
        raise AssertionError(f"no line like {pattern}:\n" + "\n".join(self.lines[-20:]))

    def resident_bytes(self) -> int:
        """Of all processes together."""
        total = 0
        for process in psutil.Process(self._process.pid).children(recursive=True):
            with contextlib.suppress(psutil.Error):
                total += process.memory_info().rss
        return total

    def interrupt(self) -> int | None:
        """Ctrl-C; the exit code, None when it still runs half a minute later."""
        self.family.look()
        os.killpg(self._process.pid, signal.SIGINT)
        try:
            return self._process.wait(30)
        except subprocess.TimeoutExpired:
            return None

    def kill(self) -> None:
        """kill -9 of the parent and nothing else."""
        self.family.look()
        self._process.kill()
        self._process.wait()

    def left(self, limit_s: float = LEFT_MAX_S) -> Sequence[str]:
        """Which of its processes still run after a while."""
        ends_s = time.monotonic() + limit_s
        while (alive := self.family.alive()) and time.monotonic() < ends_s:
            time.sleep(0.2)
        return alive

    def _read(self) -> None:
        assert self._process.stdout is not None
        for line in self._process.stdout:
            self.lines.append(line.rstrip("\n"))
            if found := _ADDRESS.match(line):
                self.url = found[1]
                self._up.set()
        self._up.set()
