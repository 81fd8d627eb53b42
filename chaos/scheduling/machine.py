"""What a schedule does next: decided from its state and the time alone, so that it can be tested at any speed.

The shell does what is returned in order, and nothing that follows a `Write` before that is on the disk. Killed at any
point, it begins again with what was written.
"""

from collections.abc import Iterator
from itertools import islice, takewhile

import msgspec

from chaos.scheduling.calendar import Cron, jitter_s
from chaos.scheduling.plan import Entry, Plan
from chaos.scheduling.records import (
    CHANGES_MAX,
    DEADLINE,
    Acknowledged,
    Change,
    Closed,
    Ended,
    EntryState,
    Missed,
    Opened,
    Record,
    Started,
    State,
    Told,
)

COUNTED_MAX = 100_000
"""Slots that are counted one by one after a long absence."""
TELL_FIRST_S, TELL_MAX_S = 5.0, 900.0
"""Between tries to tell of a change: doubled from the first to the last."""
TELL_FOR_S = 3 * 86_400.0
ABSENT = "nobody was there to start it: the scheduler did not run, the machine slept, or the clock was set forward"
KILLED = "the scheduler was killed while it ran"


class Write(msgspec.Struct, frozen=True):
    """Append to the journal."""

    record: Record


class Start(msgspec.Struct, frozen=True):
    """Start the run of a slot."""

    entry: str
    slot_s: int


class End(msgspec.Struct, frozen=True):
    """Tell the run that goes on to end."""

    reason: str


class Tell(msgspec.Struct, frozen=True):
    """Post a change."""

    change: Change


class Tidy(msgspec.Struct, frozen=True):
    """Delete what need not be kept of an entry's results."""

    entry: str


Command = Write | Start | End | Tell | Tidy


class Finish(msgspec.Struct, frozen=True):
    """How a run's process ended. complete: with a verdict or an exit code of its own. The rest: as in Ended.

    started: whether anything of the experiment was done at all.
    """

    complete: bool
    verdict: str
    reason: str
    results: str
    started: bool = True


class Due(msgspec.Struct, frozen=True):
    """A slot whose time has come. due_s: with its jitter. until_s: when it is too late for it."""

    slot_s: int
    due_s: float
    until_s: float


class Machine:
    """One schedule. Times: `now_s` is Unix time, which may jump; `mono_s` never does."""

    def __init__(self, plan: Plan, state: State) -> None:
        self._plan = plan
        self._state = state
        self._crons: dict[str, Cron] = {name: plan.cron_of(name) for name in plan.entries}
        self._coming: dict[str, tuple[int, list[int]]] = {}
        self._blocked: dict[str, str] = {}
        """What a slot that is due waits for."""
        # A run of an earlier life: its end is looked for, not waited for.
        self._inherited = bool(state.running)
        self._began_mono_s = 0.0
        self._ending = ""
        self._telling = False
        self._tell_at_s = float("-inf")
        self._tries = 0
        self._stopping = False

    def begin(self, now_s: float) -> list[Command]:
        """Bring state and file together: what the file says now counts from now on."""
        out: list[Command] = []
        wanted = {name: entry for name, entry in self._plan.entries.items() if entry.enabled}
        for name, state in self._state.entries.items():
            if not state.open:
                continue
            entry = wanted.get(name)
            same = entry is not None and (entry.cron, self._plan.timezone_of(name)) == (state.cron, state.timezone)
            if not same:
                # What the old line of the file still promised was not kept.
                self._miss_up_to(name, Cron(state.cron, state.timezone), int(now_s), now_s, out)
                self._write(Closed(entry=name, at_s=now_s), out)
        for name, entry in wanted.items():
            known = self._state.entries.get(name)
            if known is None or not known.open:
                self._write(
                    Opened(
                        entry=name,
                        at_s=now_s,
                        cron=entry.cron,
                        timezone=self._plan.timezone_of(name),
                        after_s=int(now_s),
                    ),
                    out,
                )
        return out

    def stop(self, reason: str) -> list[Command]:
        """Nothing is started any more; what runs is told to end."""
        self._stopping = True
        return self._end(reason) if self._state.running else []

    def tick(self, now_s: float, mono_s: float) -> list[Command]:
        """What is to be done now."""
        out: list[Command] = []
        running = self._state.running[0] if self._state.running else None
        if running is not None:
            out += self._watch(running, now_s, mono_s)
        if not self._stopping:
            found = {name: self._advance(name, now_s, out) for name in self._plan.entries}
            waiting = [(name, due) for name, due in found.items() if due is not None]
            if running is None and waiting:
                # Of those equally due, the one that had its turn longest ago.
                name, due = min(waiting, key=lambda each: (each[1].due_s, self._state.entries[each[0]].started_s))
                self._write(Started(entry=name, slot_s=due.slot_s, at_s=now_s), out)
                out.append(Start(name, due.slot_s))
                self._began_mono_s, self._ending = mono_s, ""
                waiting.remove((name, due))
                running = self._state.running[0]
            for name, _ in waiting:
                assert running is not None
                self._blocked[name] = running.entry
        return out + self._tell(now_s, mono_s)

    def ended(self, finish: Finish, now_s: float) -> list[Command]:
        """The run that was started is over."""
        run = self._state.running[0]
        entry = self._plan.entries.get(run.entry)
        verdict, reason = finish.verdict, finish.reason
        if not finish.complete and (self._ending or self._inherited):
            reason = self._ending or KILLED
            verdict = DEADLINE if self._ending.startswith(DEADLINE) else ""
        out: list[Command] = []
        record = Ended(
            entry=run.entry,
            at_s=now_s,
            slot_s=run.slot_s,
            outcome="interrupted" if not finish.complete else "ran" if finish.started else "missed",
            verdict=verdict,
            reason=reason,
            results=finish.results,
            quarantine=verdict == "fail" and entry is not None and entry.quarantine,
        )
        self._write(record, out)
        self._inherited, self._ending = False, ""
        return [*out, Tidy(run.entry)] if entry is not None else out

    def acknowledge(self, name: str, slot_s: int, now_s: float) -> list[Command]:
        """Somebody knows of the failure in that slot; one that came later stays."""
        out: list[Command] = []
        state = self._state.entries.get(name)
        if state is not None and state.quarantined_s == slot_s:
            self._write(Acknowledged(entry=name, slot_s=slot_s, at_s=now_s), out)
        return out

    def told(self, change: Change, problem: str, now_s: float, mono_s: float) -> list[Command]:
        """What came of a `Tell`. problem: empty when it was delivered."""
        self._telling = False
        out: list[Command] = []
        if problem and now_s - change.at_s < TELL_FOR_S:
            self._tell_at_s = mono_s + min(TELL_MAX_S, TELL_FIRST_S * 2.0 ** min(self._tries, 16))
            self._tries += 1
            return out
        self._tries, self._tell_at_s = 0, mono_s
        if change in self._state.changes:
            self._write(Told(entry=change.entry, slot_s=change.slot_s, at_s=now_s, problem=problem), out)
        return out

    def slots(self, name: str, now_s: float) -> Iterator[Due]:
        """The entry's slots that have not been accounted for, in order, as far as they are still to come."""
        entry, state = self._plan.entries[name], self._state.entries.get(name)
        after_s = now_s if state is None or not state.open else max(state.accounted_s, now_s - entry.start_within_s)
        slots = self._crons[name].after(after_s)
        slot = next(slots, None)
        while slot is not None:
            following = next(slots, None)
            yield due_of(name, entry, slot, following)
            slot = following

    def _advance(self, name: str, now_s: float, out: list[Command]) -> Due | None:
        """Account for the slots that are too late; the one that is due, if any."""
        entry, state = self._plan.entries[name], self._state.entries.get(name)
        if not entry.enabled or state is None:
            return None
        horizon_s = int(now_s - entry.start_within_s - entry.jitter_s)
        coming = self._next(name, state)
        if coming and coming[0] <= horizon_s:
            self._miss_up_to(name, self._crons[name], horizon_s, now_s, out)
        while coming := self._next(name, state):
            due = due_of(name, entry, coming[0], coming[1] if len(coming) > 1 else None)
            if now_s < due.due_s:
                return None
            if now_s < due.until_s:
                reason = self._forbidden(name, state, now_s)
                if not reason:
                    return due
            else:
                blocker = self._blocked.get(name)
                reason = f"{blocker} still ran" if blocker else ABSENT
            after_s, until_s = state.accounted_s, due.slot_s
            missed = Missed(entry=name, at_s=now_s, after_s=after_s, until_s=until_s, slots=1, reason=reason)
            self._miss(missed, out)
        return None

    def _next(self, name: str, state: EntryState) -> list[int]:
        """The next slot that is not accounted for and the one after it, as far as there are such."""
        known = self._coming.get(name)
        if known is None or known[0] != state.accounted_s:
            slots = self._crons[name].after(state.accounted_s)
            known = (state.accounted_s, list(islice(slots, 2)))
            self._coming[name] = known
        return known[1]

    def _forbidden(self, name: str, state: EntryState, now_s: float) -> str:
        if state.quarantined_s is not None:
            return "quarantined: it failed, and nobody has acknowledged that"
        why = self._plan.blackout(name, now_s)
        return f"blackout: {why}" if why else ""

    def _miss_up_to(self, name: str, cron: Cron, horizon_s: int, now_s: float, out: list[Command]) -> None:
        after_s = self._state.entries[name].accounted_s
        slots = list(takewhile(lambda slot: slot <= horizon_s, islice(cron.after(after_s), COUNTED_MAX + 1)))
        if not slots:
            return
        exact = len(slots) <= COUNTED_MAX
        missed = Missed(
            entry=name,
            at_s=now_s,
            after_s=after_s,
            until_s=slots[-1] if exact else horizon_s,
            slots=min(len(slots), COUNTED_MAX),
            exact=exact,
            reason=ABSENT,
        )
        self._miss(missed, out)

    def _miss(self, missed: Missed, out: list[Command]) -> None:
        self._blocked.pop(missed.entry, None)
        self._write(missed, out)

    def _watch(self, running: Started, now_s: float, mono_s: float) -> list[Command]:
        entry: Entry | None = self._plan.entries.get(running.entry)
        if entry is None or self._inherited:
            return []
        if mono_s - self._began_mono_s >= entry.deadline_s:
            return self._end(f"{DEADLINE}: not over after {entry.deadline_s:g} s")
        why = self._plan.blackout(running.entry, now_s)
        return self._end(f"a blackout began: {why}") if why else []

    def _end(self, reason: str) -> list[Command]:
        if self._ending:
            return []
        self._ending = reason
        return [End(reason)]

    def _tell(self, now_s: float, mono_s: float) -> list[Command]:
        out: list[Command] = []
        changes = self._state.changes
        while len(changes) > CHANGES_MAX:
            oldest = changes[1 if self._telling else 0]
            problem = f"more than {CHANGES_MAX} wait to be told"
            self._write(Told(entry=oldest.entry, slot_s=oldest.slot_s, at_s=now_s, problem=problem), out)
        if not (self._plan.notify.webhook or self._plan.notify.webhook_env):
            for change in list(changes):
                self._write(Told(entry=change.entry, slot_s=change.slot_s, at_s=now_s), out)
        if changes and not self._telling and mono_s >= self._tell_at_s:
            self._telling = True
            out.append(Tell(changes[0]))
        return out

    def _write(self, record: Record, out: list[Command]) -> None:
        self._state.apply(record)
        out.append(Write(record))


def due_of(name: str, entry: Entry, slot_s: int, following_s: int | None) -> Due:
    """When a slot begins, and until when it may: before the next one of its entry is there."""
    gap_s = float("inf") if following_s is None else following_s - slot_s
    due_s = slot_s + jitter_s(name, slot_s, min(entry.jitter_s, gap_s / 2))
    return Due(slot_s, due_s, min(due_s + entry.start_within_s, slot_s + gap_s))
