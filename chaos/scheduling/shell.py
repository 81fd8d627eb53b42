"""The scheduler's process: does what the machine decides, and tells it what came of that."""

import asyncio
import contextlib
import os
import time
from collections.abc import Callable, Coroutine
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Protocol

from chaos.notify import Webhook
from chaos.scheduling.journal import FOLDER, Journal
from chaos.scheduling.machine import Command, End, Finish, Machine, Start, Tell, Tidy, Write
from chaos.scheduling.plan import Plan
from chaos.scheduling.records import Acknowledged, Change, Ended, Missed, Record, Started, Told
from chaos.scheduling.retention import tidy
from chaos.scheduling.runner import Runner

TICK_S = 1.0
ACKS = "acks"
Say = Callable[[str], None]


class Clock(Protocol):
    """Time as the scheduler sees it."""

    def unix_s(self) -> float:
        """Unix time, which may jump."""

    def mono_s(self) -> float:
        """A time that never jumps."""

    async def sleep(self, seconds: float) -> None:
        """Wait."""


class SystemClock:
    """The machine's own."""

    def unix_s(self) -> float:
        """See Clock."""
        return time.time()

    def mono_s(self) -> float:
        """See Clock."""
        return time.monotonic()

    async def sleep(self, seconds: float) -> None:
        """See Clock."""
        await asyncio.sleep(seconds)


class Scheduler:
    """One schedule, until it is stopped. published: called whenever something may have changed.

    Raises JournalError when the state cannot be written: then nothing more is started, and the run is ended.
    """

    def __init__(
        self,
        plan: Plan,
        journal: Journal,
        runner: Runner,
        webhook: Webhook | None,
        clock: Clock,
        say: Say,
        published: Callable[[], None] = lambda: None,
    ) -> None:
        self._plan = plan
        self._journal = journal
        self._runner = runner
        self._webhook = webhook
        self._clock = clock
        self._say = say
        self._published = published
        self._news: asyncio.Queue[Finish | tuple[Change, str]] = asyncio.Queue()
        self._group = asyncio.TaskGroup()
        self._inherited = False
        self._stopped = False
        self.machine = Machine(plan, journal.state)

    async def run(self) -> None:
        """Go on until `stop`; then until the run that was going on has ended."""
        state = self._journal.state
        async with self._group:
            self._do(self.machine.begin(self._clock.unix_s()))
            if state.running:
                self._inherited = True
                self._say(f"{state.running[0].entry}: a run of an earlier scheduler is waited for")
                waits = self._group.create_task(self._watch(self._runner.inherited(state.running[0])))
            while not self._stopped or (state.running and not self._inherited):
                self._take_acknowledgements()
                self._do(self.machine.tick(self._clock.unix_s(), self._clock.mono_s()))
                self._journal.shorten(state)
                self._published()
                await self._hear()
            if self._inherited:
                waits.cancel()
        self._published()

    def stop(self, reason: str) -> None:
        """Start nothing more, and tell the run to end."""
        self._stopped = True
        self._do(self.machine.stop(reason))

    def _do(self, commands: list[Command]) -> None:
        for command in commands:
            match command:
                case Write(record):
                    self._journal.write(record)
                    self._tell_user(record)
                case Start(entry, slot_s):
                    self._group.create_task(self._watch(self._runner.run(entry, slot_s)))
                case End(reason):
                    self._say(f"the run is told to end: {reason}")
                    self._runner.end()
                case Tell(change):
                    self._group.create_task(self._post(change))
                case Tidy(entry):
                    self._group.create_task(self._tidy(entry))

    async def _hear(self) -> None:
        """Wait a moment, or for news, and act on them."""
        heard = asyncio.create_task(self._news.get())
        pause = asyncio.create_task(self._clock.sleep(TICK_S))
        try:
            await asyncio.wait((heard, pause), return_when=asyncio.FIRST_COMPLETED)
        finally:
            pause.cancel()
            if not heard.done():
                heard.cancel()
        if not heard.done() or heard.cancelled():
            return
        news = heard.result()
        now_s = self._clock.unix_s()
        if isinstance(news, Finish):
            self._inherited = False
            self._do(self.machine.ended(news, now_s))
        else:
            change, problem = news
            self._do(self.machine.told(change, problem, now_s, self._clock.mono_s()))

    async def _watch(self, run: Coroutine[Any, Any, Finish]) -> None:
        await self._news.put(await run)

    async def _post(self, change: Change) -> None:
        problem = "no webhook is set" if self._webhook is None else await self._webhook.post(change)
        if problem:
            self._say(f"{change.entry}: not told yet that it is {change.verdict}: {problem}")
        await self._news.put((change, problem))

    async def _tidy(self, entry: str) -> None:
        for line in await asyncio.to_thread(tidy, self._plan, entry, self._clock.unix_s()):
            self._say(line)

    def _take_acknowledgements(self) -> None:
        folder = self._plan.folder / FOLDER / ACKS
        for name in self._plan.entries:
            path = folder / name
            with contextlib.suppress(OSError, ValueError):
                slot_s = int(path.read_text())
                self._do(self.machine.acknowledge(name, slot_s, self._clock.unix_s()))
                path.unlink()

    def _tell_user(self, record: Record) -> None:
        line = said(record)
        if line:
            self._say(line)


def said(record: Record) -> str:
    """A record in words; empty for one that says nothing to people."""
    match record:
        case Started():
            return f"{record.entry}: slot {shown(record.slot_s)} starts"
        case Ended():
            what = _ended(record)
            quarantine = "; quarantined until it is acknowledged" if record.quarantine else ""
            return f"{record.entry}: slot {shown(record.slot_s)} {what}: {record.reason}{quarantine}"
        case Missed():
            slots = f"slot {shown(record.until_s)}" if record.slots == 1 else f"{record.slots} slots"
            more = "" if record.exact else " or more"
            return f"{record.entry}: {slots}{more} missed: {record.reason}"
        case Acknowledged():
            return f"{record.entry}: acknowledged"
        case Told(problem=""):
            return ""
        case Told():
            return (
                f"{record.entry}: nobody could be told of the change in slot {shown(record.slot_s)}: {record.problem}"
            )
    return ""


def _ended(record: Ended) -> str:
    match record.outcome:
        case "ran":
            return record.verdict
        case "missed":
            return f"missed, it could not start ({record.verdict})"
        case "interrupted":
            return f"interrupted {record.verdict}".strip()


def shown(unix_s: float) -> str:
    """A time for people and machines."""
    return datetime.fromtimestamp(unix_s, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def acknowledge(folder: Path, name: str, slot_s: int) -> None:
    """Leave word for the scheduler that runs. Raises OSError."""
    acks = folder / ACKS
    acks.mkdir(parents=True, exist_ok=True)
    part = acks / f".{name}.{os.getpid()}.part"
    part.write_text(str(slot_s))
    os.replace(part, acks / name)
