"""`python -m workloads.http_share`: one driver process of a drive, with its share of the plan.

HttpShare is the share itself, in whatever process; DrivenShare is one in a process of its own. Time zero is on the
host's monotonic clock, which all processes of a host have in common.
"""

import asyncio
import subprocess
import sys
import time
from collections import deque
from pathlib import Path
from typing import Protocol

import msgspec
import psutil

from analysis.recorder import MetricsCollector, RecorderError
from analysis.schema import EventRow, Gauges, NodeRow, RequestRow
from cluster.live.children import environment
from workloads.http import BadTarget, HttpDriver, HttpTarget
from workloads.load import PlannedLoad
from workloads.plan import LoadPlan, closed_ids
from workloads.watch import LoadWatch

_SAMPLE_S = 0.5
_TELL_S = 1.0
_RECENT_MAX = 20_000
_START_S = 30.0
_END_S = 10.0


class ShareFailed(Exception):
    """A driver process does not come up, or has died. The message is one line."""


class ShareSpec(msgspec.Struct, frozen=True):
    """What a driver needs. name: as a node of the run. raw: where its rows go. The API key is in the environment."""

    name: str
    target: HttpTarget
    plan: LoadPlan
    timeout_s: float
    raw: str
    connections_max: int


class Standing(msgspec.Struct, frozen=True, tag="standing"):
    """Of a share, as of now. recent_s: latencies of what completed since the last one that was taken, seconds."""

    asked: int = 0
    in_flight: int = 0
    outcomes: dict[str, int] = {}
    recent_s: list[float] = []


class ShareResult(msgspec.Struct, frozen=True, tag="result"):
    """What became of a share. failures: code, what was said, how often. untold, spread: see HttpDriver."""

    complete: bool
    cpu_share: float
    failures: list[tuple[str, str, int]]
    untold: int
    spread: int


class _Failed(msgspec.Struct, frozen=True, tag="failed"):
    reason: str


class _Ready(msgspec.Struct, frozen=True, tag="ready"):
    pass


_Line = _Ready | Standing | ShareResult | _Failed


class Share(Protocol):
    """A part of a drive. Used once: start, conduct, stop."""

    async def start(self) -> None:
        """Be ready to begin. Raises ShareFailed."""

    async def conduct(self, origin_s: float) -> ShareResult:
        """Do it, with this time zero. Raises BadTarget, RecorderError, ShareFailed."""

    def take_standing(self) -> Standing:
        """How it stands."""

    def give_up(self) -> None:
        """Let go of what is in flight; `conduct` then returns soon."""

    async def stop(self) -> None:
        """Nothing of it is left after this."""


class HttpShare:
    """A share in this process."""

    def __init__(self, spec: ShareSpec) -> None:
        self._spec = spec
        self._rows = MetricsCollector(Path(spec.raw), spec.name, 1)
        self._recent: deque[float] = deque(maxlen=_RECENT_MAX)
        self._driver: HttpDriver | None = None
        self._load: asyncio.Task[None] | None = None
        self._given_up = False

    async def start(self) -> None:
        """See Share."""

    async def conduct(self, origin_s: float) -> ShareResult:
        """See Share."""
        spec, loop = self._spec, asyncio.get_running_loop()
        watch = LoadWatch(closed_ids(spec.plan), self._note, spec.name)
        source = PlannedLoad(spec.plan, origin_s, spec.target.model, spec.timeout_s, watch.ran_dry)
        cpu_s, began_s = time.process_time(), time.monotonic()
        sampling: asyncio.Task[None] | None = None
        complete = False
        try:
            async with HttpDriver(spec.target, self._record, spec.connections_max, watch.asked) as driver:
                self._driver = driver
                self._load = loop.create_task(driver.run(source))
                sampling = loop.create_task(self._sample_until_ended(driver, origin_s))
                if self._given_up:
                    self._load.cancel()
                await asyncio.wait((self._load, sampling), return_when=asyncio.FIRST_COMPLETED)
                if sampling.done():
                    # It never ends by itself.
                    self._load.cancel()
                await asyncio.wait((self._load,))
                complete = not self._load.cancelled()
        finally:
            if sampling is not None:
                sampling.cancel()
                await asyncio.wait((sampling,))
            cpu_share = (time.process_time() - cpu_s) / max(1e-9, time.monotonic() - began_s)
            self._rows.close()
        for task in (sampling, self._load):
            if not task.cancelled() and (error := task.exception()) is not None:
                raise error
        failures = [(code, detail, count) for (code, detail), count in driver.failures.items()]
        return ShareResult(complete, cpu_share, failures, driver.untold, driver.spread)

    def take_standing(self) -> Standing:
        """See Share."""
        driver = self._driver
        recent, self._recent = list(self._recent), deque(maxlen=_RECENT_MAX)
        return Standing() if driver is None else Standing(driver.asked, driver.in_flight, dict(driver.outcomes), recent)

    def give_up(self) -> None:
        """See Share."""
        self._given_up = True
        if self._load is not None:
            self._load.cancel()

    async def stop(self) -> None:
        """See Share."""

    def _record(self, row: RequestRow) -> None:
        self._rows.append(row, row.ended_s)
        if row.outcome == "completed":
            self._recent.append(row.ended_s - row.intended_s)

    def _note(self, row: EventRow) -> None:
        self._rows.append(row, row.time_s)

    async def _sample_until_ended(self, driver: HttpDriver, origin_s: float) -> None:
        loop, process = asyncio.get_running_loop(), psutil.Process()
        process.cpu_percent()
        due_s = origin_s
        while True:
            await asyncio.sleep(max(0.0, due_s - loop.time()))
            now = loop.time()
            self._rows.append(driver_sample(driver, process, now, now - due_s), now)
            due_s = max(due_s + _SAMPLE_S, now)


def driver_sample(driver: HttpDriver, process: psutil.Process, now: float, lag_s: float) -> NodeRow:
    """How a driver is. process: this one. lag_s: how late its loop was, seconds."""
    return NodeRow.of(
        now,
        Gauges(role="client", open_requests=driver.in_flight),
        link_up=True,
        messages_in=driver.outcomes.total(),
        messages_out=driver.asked,
        subscriptions=0,
        loop_lag_s=lag_s,
        cpu_share=process.cpu_percent() / 100,
        resident_bytes=process.memory_info().rss,
        gpu_busy_reason="the driver uses none",
    )


class DrivenShare:
    """A share in a process of its own, which gives up when its standard input ends: so also when we are killed."""

    def __init__(self, spec: ShareSpec) -> None:
        self._spec = spec
        self._process: asyncio.subprocess.Process | None = None
        self._standing = Standing()
        self._recent: deque[float] = deque(maxlen=_RECENT_MAX)

    async def start(self) -> None:
        """See Share."""
        self._process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "workloads.http_share"),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            limit=2**24,
            env=environment(),
            # Ctrl-C in a terminal goes to a whole process group; we say when to give up.
            start_new_session=True,
        )
        birth = msgspec.msgpack.encode(self._spec)
        try:
            async with asyncio.timeout(_START_S):
                await self._say(b"%d\n" % len(birth) + birth)
                line = await self._next_line()
        except TimeoutError:
            raise ShareFailed(f"{self._spec.name}: the driver process does not come up within {_START_S:g} s") from None
        if isinstance(line, _Failed):
            raise ShareFailed(f"{self._spec.name}: {line.reason}")

    async def conduct(self, origin_s: float) -> ShareResult:
        """See Share."""
        await self._say(b"%r\n" % origin_s)
        while True:
            match await self._next_line():
                case Standing() as standing:
                    self._recent.extend(standing.recent_s)
                    self._standing = standing
                case ShareResult() as result:
                    return result
                case _Failed(reason):
                    raise RecorderError(reason)
                case _Ready():
                    pass

    def take_standing(self) -> Standing:
        """See Share."""
        recent, self._recent = list(self._recent), deque(maxlen=_RECENT_MAX)
        return msgspec.structs.replace(self._standing, recent_s=recent)

    def give_up(self) -> None:
        """See Share."""
        if self._process is not None and self._process.stdin is not None:
            self._process.stdin.close()

    async def stop(self) -> None:
        """See Share."""
        process = self._process
        if process is None:
            return
        self.give_up()
        try:
            await asyncio.wait_for(process.wait(), _END_S)
        except TimeoutError:
            process.kill()
            await process.wait()

    async def _say(self, data: bytes) -> None:
        assert self._process is not None
        assert self._process.stdin is not None
        try:
            self._process.stdin.write(data)
            await self._process.stdin.drain()
        except OSError:
            raise ShareFailed(f"{self._spec.name}: the driver process has ended") from None

    async def _next_line(self) -> _Line:
        assert self._process is not None
        assert self._process.stdout is not None
        line = await self._process.stdout.readline()
        if not line:
            code = await self._process.wait()
            raise ShareFailed(f"{self._spec.name}: the driver process has ended with code {code}")
        told: _Line = msgspec.json.decode(line, type=_Line)
        return told


async def _serve() -> int:
    """The process of a DrivenShare."""
    lines = asyncio.StreamReader()
    await asyncio.get_running_loop().connect_read_pipe(lambda: asyncio.StreamReaderProtocol(lines), sys.stdin)
    try:
        birth = await lines.readexactly(int(await lines.readline()))
        share = HttpShare(msgspec.msgpack.decode(birth, type=ShareSpec))
        _tell(_Ready())
        origin_s = float(await lines.readline() or b"nan")
        if origin_s != origin_s:
            return 0
        helpers = [asyncio.create_task(_give_up_at_end(lines, share)), asyncio.create_task(_tell_standing(share))]
        try:
            result = await share.conduct(origin_s)
        finally:
            for helper in helpers:
                helper.cancel()
        _tell(share.take_standing())
        _tell(result)
    except asyncio.IncompleteReadError:
        return 0
    except (BadTarget, RecorderError, OSError) as error:
        _tell(_Failed(str(error)))
        return 5
    return 0


async def _give_up_at_end(lines: asyncio.StreamReader, share: HttpShare) -> None:
    while await lines.readline():
        pass
    share.give_up()


async def _tell_standing(share: HttpShare) -> None:
    while True:
        await asyncio.sleep(_TELL_S)
        _tell(share.take_standing())


def _tell(line: _Line) -> None:
    try:
        print(msgspec.json.encode(line).decode(), flush=True)
    except BrokenPipeError:
        # Nobody is there any more; the end of standard input says the same.
        return


if __name__ == "__main__":
    sys.exit(asyncio.run(_serve()))
