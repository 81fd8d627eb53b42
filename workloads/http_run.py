"""One drive of an endpoint, from the plan to raw rows: its phases, and the driver processes that share its load."""

import asyncio
import signal
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from urllib.parse import urlsplit

from analysis.recorder import MetricsCollector
from analysis.schema import EventRow
from workloads.http import HttpTarget
from workloads.http_share import DrivenShare, HttpShare, Share, ShareFailed, ShareResult, ShareSpec, Standing
from workloads.plan import LoadPlan, divide

INTERRUPTED = "interrupted"
LEAD_S = 0.5
"""From the making of connections' first objects to time zero."""
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
    """Runs once. phases: name to length in seconds, one after the other. tell: takes lines of progress.

    processes: how many drive; one does so in this process. connections_max: of all of them together.
    """

    def __init__(
        self,
        target: HttpTarget,
        plan: LoadPlan,
        phases: Mapping[str, float],
        timeout_s: float,
        raw: Path,
        tell: Callable[[str], None],
        connections_max: int,
        processes: int = 1,
    ) -> None:
        self._plan = plan
        self._phases = phases
        self._tell = tell
        self._events = MetricsCollector(raw, "driver", 1)
        specs = [
            ShareSpec(f"client-{number}", target, part, timeout_s, str(raw), -(-connections_max // processes))
            for number, part in enumerate(divide(plan, processes))
        ]
        self._shares: list[Share] = [HttpShare(specs[0])] if processes == 1 else [DrivenShare(spec) for spec in specs]
        self._results: list[ShareResult] = []
        self.origin_s = 0.0
        """Time zero on the event loop's clock."""
        self.complete = False
        self.ended_by = INTERRUPTED
        """Why, where it is not complete."""

    async def conduct(self) -> None:
        """Offer everything and wait for the last end. Ctrl-C or SIGTERM ends it early, with `complete` false.

        So does the death of a driver process. Raises BadTarget, RecorderError, and ShareFailed when one does not start.
        """
        loop = asyncio.get_running_loop()
        numbers = (signal.SIGINT, signal.SIGTERM)
        try:
            await asyncio.gather(*(share.start() for share in self._shares))
            self.origin_s = loop.time() + LEAD_S
            parts = [asyncio.ensure_future(share.conduct(self.origin_s)) for share in self._shares]
            walk = loop.create_task(self._walk())
            show = loop.create_task(self._show())
            for number in numbers:
                loop.add_signal_handler(number, self._interrupt, walk)
            try:
                await self._follow(parts, walk)
            finally:
                for number in numbers:
                    loop.remove_signal_handler(number)
                for task in (walk, show):
                    task.cancel()
                await asyncio.wait((walk, show, *parts))
                self._event("run_ended")
        finally:
            await asyncio.gather(*(share.stop() for share in self._shares))
            self._events.close()

    @property
    def cpu_share(self) -> float:
        """Of a core, that the busiest driver process took."""
        return max((result.cpu_share for result in self._results), default=0.0)

    @property
    def failures(self) -> dict[tuple[str, str], int]:
        """How often each failure was seen, by code and what was said about it."""
        found: Counter[tuple[str, str]] = Counter()
        for result in self._results:
            for code, detail, count in result.failures:
                found[code, detail] += count
        return dict(found)

    def notes(self) -> list[str]:
        """What a reader of the rows must know."""
        found = ["token ids are not known (-1): an endpoint tells text. Lengths of prompts in the schedule are words"]
        untold, spread = (sum(getattr(result, name) for result in self._results) for name in ("untold", "spread"))
        if untold:
            found.append(f"the endpoint did not say how many tokens {untold} answers had: each piece counts as one")
        if spread:
            found.append(
                f"{spread} answers came in fewer or more pieces than tokens: their tokens are spread over "
                "the pieces by length, so times between single tokens are estimates"
            )
        return found

    async def _follow(self, parts: Sequence[asyncio.Future[ShareResult]], walk: "asyncio.Task[None]") -> None:
        """Until all have ended; what one of them raises ends the others, and is raised."""
        waiting: set[asyncio.Future[ShareResult] | asyncio.Task[None]] = {*parts, walk}
        error: BaseException | None = None
        while waiting:
            done, waiting = await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED)
            for part in done:
                if not part.cancelled() and (failed := part.exception()) is not None and error is None:
                    error = failed
                    self._give_up(walk)
        ended = [part for part in parts if not part.cancelled() and part.exception() is None]
        self._results = [part.result() for part in ended]
        if isinstance(error, ShareFailed):
            self._tell(f"{error}; what was in flight is given up")
            self.ended_by = str(error)
        elif error is not None:
            raise error
        self.complete = error is None and all(result.complete for result in self._results)

    def _interrupt(self, walk: "asyncio.Task[None]") -> None:
        self._tell("interrupted: what was in flight is given up")
        self._give_up(walk)

    def _give_up(self, walk: "asyncio.Task[None]") -> None:
        walk.cancel()
        for share in self._shares:
            share.give_up()

    async def _walk(self) -> None:
        """Tell of the phases. The load's times are in the plan, so nothing depends on when this wakes."""
        await self._until(0.0)
        total_s = sum(self._phases.values())
        self._event("run_started", detail=f"{len(self._plan.requests)} requests of an open loop in {total_s:g} s")
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

    async def _show(self) -> None:
        loop = asyncio.get_running_loop()
        while True:
            await asyncio.sleep(_SHOW_S)
            self._tell(self._line([share.take_standing() for share in self._shares], loop.time()))

    def _line(self, standings: list[Standing], now: float) -> str:
        outcomes: Counter[str] = Counter()
        for standing in standings:
            outcomes.update(standing.outcomes)
        counts = ", ".join(f"{name} {count}" for name, count in sorted(outcomes.items()))
        recent = sorted(latency for standing in standings for latency in standing.recent_s)
        median = f"; p50 {1000 * recent[len(recent) // 2]:.0f} ms" if recent else ""
        asked, in_flight = (sum(getattr(each, name) for each in standings) for name in ("asked", "in_flight"))
        return f"{now - self.origin_s:6.1f} s  offered {asked}, in flight {in_flight}, {counts or 'none ended'}{median}"
