"""Who ends a run at a target when its owner, the clock or the budget says so, and who lets single faults strike."""

import asyncio
import contextlib
import os
import time
from collections import deque
from collections.abc import Callable

import msgspec

from analysis.schema import EventRow
from analysis.statistics import percentile
from chaos.guard import Stopped
from chaos.keeper import Keeper
from chaos.staging.addresses import demand_private
from chaos.staging.ask import AskError, ask
from chaos.staging.budget import DayBudget
from chaos.staging.identity import demand_fingerprint
from chaos.staging.probes import ask_probes
from chaos.target import Steady, Target, TargetError

LOOK_S = 0.25
"""How often stop file, hours and budget are looked at."""
URL_EVERY_S = 0.5
_URL_S = 3.0
"""How long the stop URL may take to say that the run may go on."""
_ENDED_MAX = 100_000

STOP, HOURS, BUDGET, TARGET = "stop_file", "hours", "stop_condition", "target"
"""Who has ended a run: somebody who asked for it, the end of the hours, too much harm, a target that is not as it must
be. See analysis.judge for what each makes of the verdict."""


class Ended(msgspec.Struct, frozen=True):
    """A request that has ended. Times on the monotonic clock, seconds; latency from the intended time."""

    intended_s: float
    ended_s: float
    completed: bool
    cancelled: bool = False


class Warden:
    """Watches from `begin` to `close`. What trips it first counts; then the load is halted and nothing more strikes."""

    def __init__(
        self,
        target: Target,
        budget: DayBudget,
        record: Callable[[EventRow], None],
        halt: Callable[[], None],
        overdue: Callable[[float], int],
        keeper: Keeper | None = None,
    ) -> None:
        """halt: stops the load at once. overdue: how many requests that were to be sent before a time have no end."""
        self._target = target
        self._budget = budget
        self._record = record
        self._halt = halt
        self._overdue = overdue
        self._keeper = keeper
        self._task: asyncio.Task[None] | None = None
        self._asking: asyncio.Task[str] | None = None
        self._asked_s = float("-inf")
        self._ended: deque[Ended] = deque(maxlen=_ENDED_MAX)
        self._uncharged = 0
        self._faults: list[tuple[float, float]] = []
        self.stopped: Stopped | None = None

    def begin(self) -> None:
        """Watch from now on."""
        self._task = asyncio.create_task(self._watch())

    async def close(self) -> None:
        """Watch no longer."""
        for task in (self._task, self._asking):
            if task is not None:
                task.cancel()
                with contextlib.suppress(asyncio.CancelledError):
                    await task
        self._charge()

    def check(self) -> None:
        """Raises Stopped when the run has to end, and whatever has ended the watching itself."""
        if self.stopped is not None:
            raise self.stopped
        if self._task is not None and self._task.done():
            self._task.result()

    def trip(self, by: str, reason: str) -> None:
        """End the run; the first reason counts."""
        if self.stopped is None:
            self.stopped = Stopped(by, reason)
            self._record(EventRow(time.monotonic(), "guard", by, detail=reason))
            self._halt()

    def ended(self, request: Ended) -> None:
        """A request of ours has ended."""
        self._ended.append(request)
        self._uncharged += not request.completed and not request.cancelled

    def fault_over(self, began_s: float, ended_s: float) -> None:
        """A fault was in force: what suffered from it says nothing about the steady state."""
        self._faults.append((began_s, ended_s))

    async def permit(self, duration_s: float, ttl_s: float, proxies: Callable[[], list[str]]) -> str:
        """Why a fault may not strike now, empty when it may; blocks for seconds at most. A refusal ends the run.

        proxies: what is wrong with the links that it is for, a line each.
        """
        if self.stopped is not None:
            return self.stopped.reason
        refused = await asyncio.to_thread(self._refusal, duration_s, ttl_s, proxies)
        if refused:
            self.trip(TARGET, f"nothing was injected: {refused}")
        return refused

    def _refusal(self, duration_s: float, ttl_s: float, proxies: Callable[[], list[str]]) -> str:
        target = self._target
        try:
            left_s = target.hours.left_s(time.time())
            if left_s < duration_s:
                return f"hours: {left_s:.0f} s are left of {target.hours.told()}, the fault takes {duration_s:g} s"
            if self._budget.failed_left < 0:
                return self._too_many_failed()
            if self._budget.fault_left_s < ttl_s:
                return (
                    f"budget.fault_s: {self._budget.fault_left_s:.1f} s are left today, the fault may take {ttl_s:g} s"
                )
            demand_private(target)
            demand_fingerprint(target)
            wrong = proxies()
            if wrong:
                return wrong[0]
            wrong = ask_probes(target)
            if wrong:
                return wrong[0]
        except (TargetError, AskError) as error:
            return str(error)
        now = time.monotonic()
        return unsteady(
            target.steady, list(self._ended), self._faults, self._overdue(now - target.steady.window_s), now
        )

    def _too_many_failed(self) -> str:
        limit, failed = self._target.budget.failed_requests, self._budget.spent().failed
        return f"budget.failed_requests: {failed} requests have failed today, {limit} may"

    async def _watch(self) -> None:
        while self.stopped is None:
            self._look()
            await asyncio.sleep(LOOK_S)

    def _look(self) -> None:
        target = self._target
        if target.stop.file is not None and os.path.lexists(target.stop.file):
            return self.trip(STOP, f"{target.stop.file} exists")
        if target.stop.url is not None:
            self._look_at_url(target.stop.url)
        if target.hours.left_s(time.time()) <= 0:
            return self.trip(HOURS, f"the hours are over: {target.hours.told()}")
        if self._keeper is not None and not self._keeper.alive():
            return self.trip(TARGET, "the keeper has ended; without it no fault may stay in force")
        try:
            self._charge()
            if self._budget.failed_left < 0:
                return self.trip(BUDGET, self._too_many_failed())
        except (TargetError, OSError) as error:
            return self.trip(TARGET, f"the day's budget cannot be kept: {error}")
        return None

    def _charge(self) -> None:
        count, self._uncharged = self._uncharged, 0
        if count:
            self._budget.charge_failed(count)

    def _look_at_url(self, url: str) -> None:
        task = self._asking
        if task is not None and task.done():
            said, self._asking = task.result(), None
            if said:
                self.trip(STOP, said)
        if self._asking is None and self.stopped is None and time.monotonic() >= self._asked_s + URL_EVERY_S:
            self._asked_s = time.monotonic()
            self._asking = asyncio.create_task(asyncio.to_thread(may_go_on, url))


def may_go_on(url: str) -> str:
    """Why a run must end by the word of its stop URL; empty while it may go on. Blocks."""
    try:
        status = ask(url, _URL_S).status
    except AskError as error:
        return str(error)
    return "" if status == 200 else f"{url} answers {status}"


def unsteady(steady: Steady, ended: list[Ended], faults: list[tuple[float, float]], overdue: int, now: float) -> str:
    """Why the cluster is not in its steady state; empty when it is.

    Looks at requests that have ended in the last `window_s`, without those that met a fault. overdue: requests that
    are open for longer than that; they count as failed.
    """
    since_s = now - steady.window_s
    met = [
        request
        for request in ended
        if request.ended_s >= since_s
        and not request.cancelled
        and not any(began_s <= request.ended_s and request.intended_s <= over_s for began_s, over_s in faults)
    ]
    if len(met) < steady.requests_min:
        return (
            f"steady.requests_min: {len(met)} requests have ended in the last {steady.window_s:g} s, "
            f"{steady.requests_min} are needed to call the cluster well"
        )
    failed, count = sum(not request.completed for request in met) + overdue, len(met) + overdue
    if failed > (1 - steady.success_min) * count + 1e-9:
        said = f"{failed} of {count} requests failed or hang in the last {steady.window_s:g} s"
        return f"the cluster is sick already: {said}, steady.success_min is {steady.success_min:g}"
    p95_s = percentile([request.ended_s - request.intended_s for request in met if request.completed], 0.95)
    most_s = steady.latency_p95_s_max
    if most_s is not None and p95_s is not None and p95_s > most_s:
        return f"the cluster is slow already: p95 latency {p95_s:.2f} s, steady.latency_p95_s_max is {most_s:g} s"
    return ""
