"""What a schedule remembers: records in the order in which they were decided, and what they amount to."""

from typing import Literal

import msgspec

CHANGES_MAX = 100
RECENT_MAX = 100
DEADLINE = "deadline"
"""In place of a verdict: the run was ended because it took too long."""
CRASHED = "crashed"
"""In place of a verdict: the run ended by itself without one, and not with an exit code of its own."""


class JournalDamaged(Exception):
    """The records contradict each other, or cannot be read. The message is one line."""


class _Record(msgspec.Struct, frozen=True, tag_field="record", kw_only=True):
    entry: str
    at_s: float
    """Unix time."""


class Opened(_Record, frozen=True, tag="opened"):
    """From `after_s` on, each slot of this expression is accounted for."""

    cron: str
    timezone: str
    after_s: int


class Closed(_Record, frozen=True, tag="closed"):
    """The entry is not in the file any more, or disabled."""


class Started(_Record, frozen=True, tag="started"):
    """A slot's run is about to be started. On disk before it is."""

    slot_s: int


class Ended(_Record, frozen=True, tag="ended"):
    """The run of the slot is over.

    ran: it came to its own end. missed: it could not even begin. verdict: its verdict, or why there is none (see
    chaos.playing.NO_VERDICT, DEADLINE, CRASHED), empty when the end says nothing about what was tested. results: its
    folder, below the schedule's.
    """

    slot_s: int
    outcome: Literal["ran", "interrupted", "missed"]
    verdict: str
    reason: str
    results: str
    quarantine: bool = False


class Missed(_Record, frozen=True, tag="missed"):
    """Every slot after `after_s` up to `until_s` was not started and never will be. exact: whether `slots` are all."""

    after_s: int
    until_s: int
    slots: int
    reason: str
    exact: bool = True


class Acknowledged(_Record, frozen=True, tag="acknowledged"):
    """Somebody knows of the failure in a slot: the entry may run again."""

    slot_s: int


class Told(_Record, frozen=True, tag="told"):
    """The change of verdict in a slot was delivered, or given up. problem: why, empty when delivered."""

    slot_s: int
    problem: str = ""


class Change(msgspec.Struct, frozen=True, kw_only=True):
    """A verdict that differs from the one before, to be told. before: empty when there was none."""

    entry: str
    slot_s: int
    at_s: float
    verdict: str
    before: str
    reason: str
    results: str
    quarantined: bool
    began: bool = True
    """Whether the run of the slot could begin at all."""

    @property
    def id(self) -> str:
        """The same however often it is sent."""
        return f"{self.entry}@{self.slot_s}"


class EntryState(msgspec.Struct, kw_only=True):
    """Of one entry. accounted_s: every slot up to then has ended, or runs. standing: the last verdict that counts."""

    cron: str
    timezone: str
    accounted_s: int
    open: bool = True
    standing: str = ""
    standing_slot_s: int = 0
    passed_slot_s: int = 0
    quarantined_s: int | None = None
    started_s: float = 0.0
    ran: int = 0
    interrupted: int = 0
    missed: int = 0
    recent: list[Ended | Missed] = []


class State(msgspec.Struct, frozen=True, tag_field="record", tag="state", kw_only=True):
    """All that the records amount to. Also a record: the first of a journal that was made shorter."""

    entries: dict[str, EntryState] = {}
    running: list[Started] = []
    """One at most."""
    changes: list[Change] = []
    """Still to be told, oldest first."""
    undelivered: list[Told] = []

    def apply(self, record: "Record") -> None:
        """What the record changes. Raises JournalDamaged when it cannot follow what was before."""
        if isinstance(record, Opened):
            self._opened(record)
            return
        state = self.entries.get(record.entry)
        if state is None:
            raise JournalDamaged(f"{record.entry}: {type(record).__name__.lower()} before it was opened")
        match record:
            case Closed():
                state.open = False
            case Started():
                if self.running or record.slot_s <= state.accounted_s:
                    raise JournalDamaged(f"{record.entry}: a slot is started twice, or two at once")
                self.running.append(record)
                state.accounted_s, state.started_s = record.slot_s, record.at_s
            case Ended():
                self._ended(state, record)
            case Missed():
                if record.until_s <= state.accounted_s or record.after_s != state.accounted_s:
                    raise JournalDamaged(f"{record.entry}: slots are accounted for twice, or left out")
                state.accounted_s = record.until_s
                state.missed += record.slots
                _remember(state, record)
            case Acknowledged():
                if state.quarantined_s == record.slot_s:
                    state.quarantined_s = None
            case Told():
                self._told(record)

    def _opened(self, record: Opened) -> None:
        state = self.entries.get(record.entry)
        if state is None:
            self.entries[record.entry] = EntryState(
                cron=record.cron, timezone=record.timezone, accounted_s=record.after_s
            )
            return
        state.cron, state.timezone, state.open = record.cron, record.timezone, True
        # A clock that was set back must not make slots come again.
        state.accounted_s = max(state.accounted_s, record.after_s)

    def _ended(self, state: EntryState, record: Ended) -> None:
        if [(run.entry, run.slot_s) for run in self.running] != [(record.entry, record.slot_s)]:
            raise JournalDamaged(f"{record.entry}: a run has ended that was not started")
        self.running.clear()
        match record.outcome:
            case "ran":
                state.ran += 1
            case "interrupted":
                state.interrupted += 1
            case "missed":
                state.missed += 1
        _remember(state, record)
        if record.quarantine:
            state.quarantined_s = record.slot_s
        before = state.standing
        if not record.verdict:
            return
        state.standing, state.standing_slot_s = record.verdict, record.slot_s
        if record.verdict == "pass":
            state.passed_slot_s = record.slot_s
        if record.verdict != (before or "pass"):
            self.changes.append(
                Change(
                    entry=record.entry,
                    slot_s=record.slot_s,
                    at_s=record.at_s,
                    verdict=record.verdict,
                    before=before,
                    reason=record.reason,
                    results=record.results,
                    quarantined=record.quarantine,
                    began=record.outcome != "missed",
                )
            )

    def _told(self, record: Told) -> None:
        kept = [change for change in self.changes if (change.entry, change.slot_s) != (record.entry, record.slot_s)]
        self.changes[:] = kept
        if record.problem:
            self.undelivered.append(record)
            del self.undelivered[:-CHANGES_MAX]


Record = Opened | Closed | Started | Ended | Missed | Acknowledged | Told


def _remember(state: EntryState, record: Ended | Missed) -> None:
    state.recent = [*state.recent[-RECENT_MAX + 1 :], record]
