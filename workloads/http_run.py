"""One drive of an endpoint, from the schedule to raw rows: requests, phases, and samples of the driver itself."""

import asyncio
import signal
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from urllib.parse import urlsplit

import psutil

from analysis.recorder import MetricsCollector
from analysis.schema import EventRow, Gauges, NodeRow, RequestRow
from workloads.http import HttpDriver, HttpTarget
from workloads.load import OpenLoop
from workloads.request import ScheduledRequest

LEAD_S = 0.5
"""From the making of connections' first objects to time zero."""
_SAMPLE_S = 0.5
_SHOW_S = 5.0
_CONNECT_S = 5.0


class Unreachable(Exception):
    """Nobody listens at the target. The message is one line."""


async def reach(target: HttpTarget) -> None:
    """See that somebody listens, before minutes are spent on finding out. Raises Unreachable."""
    parts = urlsplit(target.url)
    port = parts.port or (443 if parts.scheme == "https" else 80)
    try:
        async with asyncio.timeout(_CONNECT_S):
            _, writer = await asyncio.open_connection(parts.hostname, port)
    except TimeoutError:
        raise Unreachable(f"{target.url}: no connection within {_CONNECT_S:g} s") from None
    except OSError as error:
        raise Unreachable(f"{target.url}: {error.strerror or error}") from None
    writer.close()


class HttpRun:
    """Runs once. phases: name to length in seconds, one after the other. tell: takes lines of progress."""

    def __init__(
        self,
        target: HttpTarget,
        schedule: Sequence[ScheduledRequest],
        phases: Mapping[str, float],
        timeout_s: float,
        raw: Path,
        tell: Callable[[str], None],
        connections_max: int,
    ) -> None:
        self._target = target
        self._schedule = schedule
        self._phases = phases
        self._timeout_s = timeout_s
        self._tell = tell
        self._connections_max = connections_max
        self._requests = MetricsCollector(raw, "client-0", 1)
        self._events = MetricsCollector(raw, "driver", 1)
        self._latencies: list[float] = []
        self._untold = self._spread = 0
        self.origin_s = 0.0
        """Time zero on the event loop's clock."""
        self.complete = False
        self.failures: dict[tuple[str, str], int] = {}
        self.cpu_share = 0.0
        """Of a core, that the driver took."""

    async def conduct(self) -> None:
        """Offer everything and wait for the last end. Ctrl-C or SIGTERM ends it early, with `complete` false.

        Raises BadTarget, RecorderError.
        """
        loop = asyncio.get_running_loop()
        async with HttpDriver(self._target, self._record, self._connections_max) as driver:
            self.origin_s = loop.time() + LEAD_S
            source = OpenLoop(self._schedule, self.origin_s, self._target.model, self._timeout_s)
            load = loop.create_task(self._load(driver, source))
            watch = loop.create_task(self._watch(driver))
            numbers = (signal.SIGINT, signal.SIGTERM)
            for number in numbers:
                loop.add_signal_handler(number, load.cancel)
            cpu_s, began_s = time.process_time(), time.monotonic()
            try:
                await load
                self.complete = True
            except asyncio.CancelledError:
                self._tell("interrupted: what was in flight is given up")
            finally:
                self.cpu_share = (time.process_time() - cpu_s) / max(1e-9, time.monotonic() - began_s)
                for number in numbers:
                    loop.remove_signal_handler(number)
                watch.cancel()
                await asyncio.wait([watch])
                self.failures = driver.failures
                self._untold, self._spread = driver.untold, driver.spread
                self._requests.close()
                self._events.close()
        if not watch.cancelled() and (error := watch.exception()) is not None:
            raise error

    def notes(self) -> list[str]:
        """What a reader of the rows must know."""
        found = ["token ids are not known (-1): an endpoint tells text. Lengths of prompts in the schedule are words"]
        if self._untold:
            found.append(
                f"the endpoint did not say how many tokens {self._untold} answers had: each piece counts as one"
            )
        if self._spread:
            found.append(
                f"{self._spread} answers came in fewer or more pieces than tokens: their tokens are spread over "
                "the pieces by length, so times between single tokens are estimates"
            )
        return found

    async def _load(self, driver: HttpDriver, source: OpenLoop) -> None:
        try:
            async with asyncio.TaskGroup() as group:
                group.create_task(driver.run(source))
                group.create_task(self._walk())
        except BaseExceptionGroup as failures:
            # Callers know single errors; the first has ended the other task.
            raise failures.exceptions[0] from None

    async def _walk(self) -> None:
        """Tell of the phases. The load's times are in the schedule, so nothing depends on when this wakes."""
        await self._until(0.0)
        self._event("run_started", detail=f"{len(self._schedule)} requests in {sum(self._phases.values()):g} s")
        end_s = 0.0
        for name, duration_s in self._phases.items():
            self._tell(f"phase {name} ({duration_s:g} s)")
            self._event("phase_started", name)
            end_s += duration_s
            await self._until(end_s)
            self._event("phase_ended", name)

    async def _until(self, time_s: float) -> None:
        await asyncio.sleep(max(0.0, self.origin_s + time_s - asyncio.get_running_loop().time()))

    def _event(self, kind: str, subject: str = "", detail: str = "") -> None:
        now = asyncio.get_running_loop().time()
        self._events.append(EventRow(now, kind, subject, detail=detail), now)

    async def _watch(self, driver: HttpDriver) -> None:
        """Sample the driver and show how things stand, until cancelled: then the run is over."""
        loop, process = asyncio.get_running_loop(), psutil.Process()
        process.cpu_percent()
        due_s = shown_s = self.origin_s
        try:
            while True:
                await asyncio.sleep(max(0.0, due_s - loop.time()))
                now = loop.time()
                self._requests.append(self._sample(driver, process, now, now - due_s), now)
                if now - shown_s >= _SHOW_S:
                    shown_s = now
                    self._tell(self._standing(driver, now))
                due_s = max(due_s + _SAMPLE_S, now)
        finally:
            self._event("run_ended")

    def _sample(self, driver: HttpDriver, process: psutil.Process, now: float, lag_s: float) -> NodeRow:
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

    def _standing(self, driver: HttpDriver, now: float) -> str:
        counts = ", ".join(f"{name} {count}" for name, count in sorted(driver.outcomes.items()))
        recent, self._latencies = sorted(self._latencies), []
        median = f"; p50 {1000 * recent[len(recent) // 2]:.0f} ms" if recent else ""
        said = f"offered {driver.asked}, in flight {driver.in_flight}, {counts or 'none ended'}"
        return f"{now - self.origin_s:6.1f} s  {said}{median}"

    def _record(self, row: RequestRow) -> None:
        self._requests.append(row, row.ended_s)
        if row.outcome == "completed":
            self._latencies.append(row.ended_s - row.intended_s)
