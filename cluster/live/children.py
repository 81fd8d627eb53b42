"""Processes of a cluster that stays up, as plain children: started, watched, started again, ended in order."""

import asyncio
import contextlib
import os
import subprocess
import sys
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import BinaryIO

import msgspec
import psutil

import cluster
from cluster.live.broker import Broker, BrokerUnavailable
from cluster.live.process import (
    Answer,
    BeGateway,
    BeNode,
    DrainAsked,
    Drained,
    Failed,
    Look,
    Ready,
    Request,
    Standing,
    Stop,
)

Say = Callable[[str], None]
"""Tells the user one line."""

_PYTHON = (sys.executable, "-P", "-m")
"""Without the working directory on its path, where anything may be called as we are."""
_LOG_BYTES_MAX = 4 * 2**20
_LINE_BYTES_MAX = 2**24
_BACKOFF_S = 0.5
_BACKOFF_MAX_S = 30.0
_STABLE_S = 60.0
"""A child that has run for so long has earned a quick restart."""
_STOP_S = 5.0
_BROKER_S = 10.0
_BROKER_LOOK_S = 0.2


class ChildFailed(Exception):
    """A child could not begin. One line."""


def environment(extra: Mapping[str, str] | None = None, without: Sequence[str] = ()) -> dict[str, str]:
    """Of a child: ours, with a path to this very package. without: variables that it must not see."""
    kept = {name: value for name, value in os.environ.items() if name not in without}
    place = str(Path(cluster.__file__).resolve().parents[1])
    path = os.pathsep.join(part for part in (place, kept.get("PYTHONPATH", "")) if part)
    return {**kept, "PYTHONPATH": path, **(extra or {})}


class BoundedLog:
    """A log file that keeps the last lines: at `_LOG_BYTES_MAX` it becomes `<name>.1` and begins anew."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._file: BinaryIO = open(path, "ab", buffering=0)  # noqa: SIM115 - lives as long as the child
        self._size = path.stat().st_size

    def write(self, line: bytes) -> None:
        """Append. A full disk costs the line and nothing else."""
        with contextlib.suppress(OSError):
            if self._size + len(line) > _LOG_BYTES_MAX:
                self._file.close()
                self._path.replace(f"{self._path}.1")
                self._file = open(self._path, "ab", buffering=0)  # noqa: SIM115
                self._size = 0
            self._file.write(line)
            self._size += len(line)

    def close(self) -> None:
        """End."""
        self._file.close()


class Child:
    """One `cluster.live.process`. birth: makes its first line, anew for each life."""

    def __init__(
        self, name: str, birth: Callable[[], BeNode | BeGateway], log: Path, variables: Mapping[str, str], say: Say
    ) -> None:
        self.name = name
        self.restarts = -1
        self.incarnation = 0
        """Of its last life, as it said; the next one must be above it."""
        self.ready: Ready | None = None
        self._birth = birth
        self._log = BoundedLog(log)
        self._variables = dict(variables)
        self._say = say
        self._process: asyncio.subprocess.Process | None = None
        # Answers of one kind come in the order of their requests, but a drain may take longer than later looks.
        self._waiting: dict[type[Answer], deque[asyncio.Future[Answer]]] = {Standing: deque(), Drained: deque()}
        self._began: asyncio.Future[Ready] | None = None
        self._reason = ""
        self._stopping = False
        self._keeper: asyncio.Task[None] | None = None
        self._pumps: list[asyncio.Task[None]] = []

    @property
    def up(self) -> bool:
        """Whether it runs and has said that it is ready."""
        return self.ready is not None

    async def start(self, limit_s: float) -> None:
        """Start it, and keep it up from then on. Raises ChildFailed when it does not begin."""
        self.ready = await self._begin(limit_s)
        self._keeper = asyncio.create_task(self._keep(limit_s))

    async def ask(self, request: Request, limit_s: float) -> Answer | None:
        """The answer to a Look or DrainAsked; None when there is none in time."""
        if not self.up:
            return None
        answer: asyncio.Future[Answer] = asyncio.get_running_loop().create_future()
        self._waiting[Drained if isinstance(request, DrainAsked) else Standing].append(answer)
        self.tell(request)
        # Not wait_for: that cannot tell that the child has ended from that we are cancelled ourselves.
        await asyncio.wait((answer,), timeout=limit_s)
        return answer.result() if answer.done() and not answer.cancelled() else None

    async def look(self, limit_s: float) -> Standing | None:
        """How it stands; None when it does not say so in time."""
        answer = await self.ask(Look(), limit_s)
        return answer if isinstance(answer, Standing) else None

    def tell(self, request: Request) -> None:
        """A request without an answer."""
        if self._process is not None and self._process.stdin is not None and self.up:
            self._process.stdin.write(msgspec.json.encode(request) + b"\n")

    async def stop(self, limit_s: float = _STOP_S) -> None:
        """End it: in an orderly way, or else by force."""
        self._stopping = True
        if self._keeper is not None:
            self._keeper.cancel()
        process = self._process
        if process is not None and process.returncode is None:
            self.tell(Stop())
            assert process.stdin is not None
            process.stdin.close()
            try:
                await asyncio.wait_for(process.wait(), limit_s)
            except TimeoutError:
                with contextlib.suppress(ProcessLookupError):
                    process.kill()
                await process.wait()
        await asyncio.gather(*self._pumps, return_exceptions=True)
        self._log.close()

    async def _begin(self, limit_s: float) -> Ready:
        self.restarts += 1
        self._reason = ""
        self._began = asyncio.get_running_loop().create_future()
        process = self._process = await asyncio.create_subprocess_exec(
            *_PYTHON,
            "cluster.live.process",
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            limit=_LINE_BYTES_MAX,
            env=self._variables,
            # Ctrl-C in a terminal goes to a whole process group; ours decides in which order all end.
            start_new_session=True,
        )
        assert process.stdin is not None
        assert process.stdout is not None
        assert process.stderr is not None
        process.stdin.write(msgspec.json.encode(self._birth()) + b"\n")
        self._pumps = [
            asyncio.create_task(self._read(process.stdout)),
            asyncio.create_task(self._pump(process.stderr)),
        ]
        ended = asyncio.ensure_future(process.wait())
        try:
            await asyncio.wait((self._began, ended), timeout=limit_s, return_when=asyncio.FIRST_COMPLETED)
            if self._began.done():
                return self._began.result()
            if ended.done():
                await asyncio.gather(*self._pumps)
                why = self._reason or f"ended with code {process.returncode} at its start"
                raise ChildFailed(f"{self.name}: {why.removeprefix(f'{self.name}: ')}")
            process.kill()
            await ended
            raise ChildFailed(f"{self.name}: not ready within {limit_s:g} s")
        finally:
            ended.cancel()

    async def _keep(self, limit_s: float) -> None:
        backoff_s = _BACKOFF_S
        began_s = time.monotonic()
        while True:
            assert self._process is not None
            code = await self._process.wait()
            self.ready = None
            if time.monotonic() - began_s > _STABLE_S:
                backoff_s = _BACKOFF_S
            why = (self._reason or f"ended with code {code}").removeprefix(f"{self.name}: ")
            self._say(f"{self.name}: {why}; starting it again in {backoff_s:g} s")
            await asyncio.sleep(backoff_s)
            backoff_s = min(_BACKOFF_MAX_S, 2 * backoff_s)
            began_s = time.monotonic()
            try:
                self.ready = await self._begin(limit_s)
                self._say(f"{self.name}: up again, pid {self.ready.pid}")
            except (ChildFailed, OSError) as error:
                self._reason = self._reason or str(error)

    async def _read(self, stream: asyncio.StreamReader) -> None:
        while line := await stream.readline():
            try:
                answer = msgspec.json.decode(line, type=Answer)
            except msgspec.DecodeError:
                self._log.write(b"not a line of ours: " + line)
                continue
            match answer:
                case Ready():
                    self.incarnation = max(self.incarnation, answer.incarnation)
                    if self._began is not None and not self._began.done():
                        self._began.set_result(answer)
                case Failed(reason):
                    self._reason = reason
                case Standing() | Drained():
                    self._settle(answer)
        for waiting in self._waiting.values():
            while waiting:
                waiting.popleft().cancel()

    def _settle(self, answer: Standing | Drained) -> None:
        waiting = self._waiting[type(answer)]
        while waiting:
            first = waiting.popleft()
            if not first.done():
                first.set_result(answer)
                return

    async def _pump(self, stream: asyncio.StreamReader) -> None:
        while data := await stream.read(65_536):
            self._log.write(data)


class BrokerChild:
    """nats-server behind a tether."""

    def __init__(self, broker: Broker, log: Path, variables: Mapping[str, str], say: Say) -> None:
        self._broker = broker
        self._log = log
        self._variables = dict(variables)
        self._say = say
        self._tether: subprocess.Popen[bytes] | None = None
        self._keeper: asyncio.Task[None] | None = None
        self._server: psutil.Process | None = None
        self.pid = 0

    async def start(self) -> None:
        """Raises BrokerUnavailable."""
        await asyncio.to_thread(self._broker.start, self._spawn, _BROKER_S)
        self._keeper = asyncio.create_task(self._keep())

    async def stop(self) -> None:
        """End it."""
        if self._keeper is not None:
            self._keeper.cancel()
            await asyncio.gather(self._keeper, return_exceptions=True)
        await asyncio.to_thread(self._end)

    def _spawn(self, name: str, argv: Sequence[str]) -> int:
        self._end()
        with self._log.open("ab") as log:
            tether = self._tether = subprocess.Popen(
                [*_PYTHON, "cluster.live.tether", *argv],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
                env=self._variables,
                start_new_session=True,
            )
        assert tether.stdout is not None
        said = tether.stdout.readline().strip()
        if not said:
            raise BrokerUnavailable(f"{name} does not start; see {self._log}")
        self.pid = int(said)
        with contextlib.suppress(psutil.NoSuchProcess):
            self._server = psutil.Process(self.pid)
        return tether.pid

    def _end(self) -> None:
        tether, self._tether = self._tether, None
        if tether is None:
            return
        assert tether.stdin is not None
        assert tether.stdout is not None
        tether.stdin.close()
        try:
            tether.wait(2 * _STOP_S)
        except subprocess.TimeoutExpired:
            tether.kill()
            tether.wait()
        tether.stdout.close()
        if self._server is not None:
            # A tether that was killed has not ended what it held.
            with contextlib.suppress(psutil.NoSuchProcess):
                self._server.kill()

    async def _keep(self) -> None:
        backoff_s = _BACKOFF_S
        while True:
            await asyncio.sleep(_BROKER_LOOK_S)
            if self._tether is not None and self._tether.poll() is None:
                continue
            await asyncio.to_thread(self._end)
            self._say(f"nats-server: has ended; starting it again in {backoff_s:g} s")
            await asyncio.sleep(backoff_s)
            backoff_s = min(_BACKOFF_MAX_S, 2 * backoff_s)
            try:
                await asyncio.to_thread(self._broker.start, self._spawn, _BROKER_S)
                self._say(f"nats-server: up again, pid {self.pid}")
                backoff_s = _BACKOFF_S
            except BrokerUnavailable as error:
                self._say(f"nats-server: {error}")
