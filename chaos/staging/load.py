"""The load on a target: one HTTP driver for each of its URLs, and what has come of it so far."""

import asyncio
import time
from collections import Counter
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

import psutil

from analysis.recorder import MetricsCollector
from analysis.schema import EventRow, RequestRow
from workloads.http import HttpDriver, HttpTarget
from workloads.http_share import driver_sample
from workloads.lately import LoadWindow
from workloads.load import PlannedLoad
from workloads.plan import LoadPlan, divide
from workloads.watch import Standing

_SAMPLE_S = 0.5
_STALL_S = 0.5
"""A sampler that wakes so late was not run by its host."""


class HttpLoad:
    """Offers a plan. Times are on the event loop's clock, which is the monotonic one, seconds."""

    def __init__(
        self,
        targets: Sequence[HttpTarget],
        in_flight_max: int,
        raw: Path,
        ended: Callable[[RequestRow], None],
        window_s: float,
    ) -> None:
        """in_flight_max: of all URLs together. ended: told of each request that has ended.

        window_s: how far back `standing` looks.
        """
        self._targets = targets
        self._in_flight_max = max(1, in_flight_max // len(targets))
        self._tell = ended
        incarnation = time.time_ns()
        self._rows = [MetricsCollector(raw, f"client-{number}", incarnation) for number in range(len(targets))]
        self._drivers: list[HttpDriver] = []
        self._tasks: list[asyncio.Task[None]] = []
        self._sampler: asyncio.Task[None] | None = None
        self._outcomes: Counter[str] = Counter()
        self._window = LoadWindow(window_s)
        self._intended: dict[str, float] = {}
        self._halted = False

    @property
    def failures(self) -> Counter[tuple[str, str]]:
        """How often each failure was seen, by code and what was said about it."""
        found: Counter[tuple[str, str]] = Counter()
        for driver in self._drivers:
            found.update(driver.failures)
        return found

    @property
    def notes(self) -> list[str]:
        """What a reader of the rows must know."""
        lines = ["token ids are not known (-1): an endpoint tells text. Lengths of prompts in the schedule are words"]
        untold = sum(driver.untold for driver in self._drivers)
        if untold:
            lines.append(f"the endpoint did not say how many tokens {untold} answers had: each piece counts as one")
        spread = sum(driver.spread for driver in self._drivers)
        if spread:
            lines.append(
                f"of {spread} answers tokens are spread over pieces: times between single tokens are estimates"
            )
        return [*lines, *(f"{count} x {code}: {detail}" for (code, detail), count in self.failures.most_common(5))]

    def begin(self, plan: LoadPlan, origin_s: float, timeout_s: float) -> None:
        """Offer the plan, whose zero is `origin_s`. Raises BadTarget when there is no key where there should be one."""
        self._intended = {request.request_id: origin_s + request.intended_s for request in plan.requests}
        self._sampler = asyncio.create_task(self._sample())
        parts = zip(self._targets, self._rows, divide(plan, len(self._targets)), strict=True)
        for target, rows, part in parts:
            ended = partial(self._ended, rows=rows)
            driver = HttpDriver(target, ended, self._in_flight_max, self._window.asked)
            source = PlannedLoad(part, origin_s, target.model, timeout_s)
            self._drivers.append(driver)
            self._tasks.append(asyncio.create_task(_run(driver, source)))

    @property
    def idle(self) -> bool:
        """Whether everything has been asked and has ended. Raises what ended a driver in another way."""
        for task in self._tasks:
            if task.done() and not task.cancelled():
                task.result()
        return all(task.done() for task in self._tasks)

    def overdue(self, before_s: float) -> int:
        """How many requests that were to be sent before a time have not ended."""
        return sum(intended_s < before_s for intended_s in self._intended.values())

    def standing(self) -> Standing:
        """The present state."""
        now = time.monotonic()
        return Standing(
            offered=sum(driver.asked for driver in self._drivers),
            recent_s=self._window.latencies_s(now),
            lately=self._window.seen(now),
            finished=self.idle,
            **{name: self._outcomes[name] for name in ("completed", "failed", "refused", "cancelled")},
        )

    def halt(self) -> None:
        """Ask nothing more and give up what is in flight, at once."""
        self._halted = True
        for task in self._tasks:
            task.cancel()

    async def close(self) -> None:
        """End whatever goes on and close the files."""
        self.halt()
        tasks = [*self._tasks, *([self._sampler] if self._sampler is not None else [])]
        if self._sampler is not None:
            self._sampler.cancel()
        if tasks:
            await asyncio.wait(tasks)
        for rows in self._rows:
            rows.close()

    def _ended(self, row: RequestRow, rows: MetricsCollector) -> None:
        self._intended.pop(row.request_id, None)
        self._outcomes[row.outcome] += 1
        self._window.ended(row.request_id, row.outcome, row.ended_s)
        rows.append(row, row.ended_s)
        self._tell(row)

    async def _sample(self) -> None:
        """How the drivers are, and whether their host ran them."""
        process = psutil.Process()
        process.cpu_percent()
        while True:
            due_s = time.monotonic() + _SAMPLE_S
            await asyncio.sleep(_SAMPLE_S)
            now = time.monotonic()
            if now - due_s > _STALL_S:
                self._rows[0].append(EventRow(now, "host_stall", "client-0", detail=f"{now - due_s:.2f} s"), now)
            for driver, rows in zip(self._drivers, self._rows, strict=True):
                rows.append(driver_sample(driver, process, now, now - due_s), now)


async def _run(driver: HttpDriver, source: PlannedLoad) -> None:
    async with driver:
        await driver.run(source)
