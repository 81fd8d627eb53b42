"""How a schedule stands, for people and for programs."""

import fcntl
import os
from collections.abc import Iterator
from typing import Any

import msgspec

from chaos.scheduling.journal import FOLDER
from chaos.scheduling.machine import Machine
from chaos.scheduling.plan import Plan
from chaos.scheduling.records import Change, Ended, Missed, State, Told
from chaos.scheduling.shell import said, shown

_RECENT = 5


class EntryStatus(msgspec.Struct, frozen=True, kw_only=True):
    """One entry. standing: its last verdict, empty before any. Times in UTC. recent: its last slots, newest last."""

    entry: str
    enabled: bool
    cron: str
    timezone: str
    standing: str
    quarantined: str
    running: str
    next: str
    ran: int
    interrupted: int
    missed: int
    note: str
    recent: list[Ended | Missed]


class Status(msgspec.Struct, frozen=True, kw_only=True):
    """A schedule. runs: whether its scheduler does."""

    schedule: str
    runs: bool
    results: str
    entries: list[EntryStatus]
    waiting: list[Change]
    undelivered: list[Told]


def status(plan: Plan, state: State, now_s: float) -> Status:
    """How it stands by its file and its journal."""
    machine = Machine(plan, state)
    return Status(
        schedule=plan.name,
        runs=_runs(plan),
        results=str(plan.folder),
        entries=[_entry(plan, state, machine, name, now_s) for name in plan.entries],
        waiting=state.changes,
        undelivered=state.undelivered,
    )


def _entry(plan: Plan, state: State, machine: Machine, name: str, now_s: float) -> EntryStatus:
    entry, known = plan.entries[name], state.entries.get(name)
    due = next(machine.slots(name, now_s), None) if entry.enabled else None
    running = [run.slot_s for run in state.running if run.entry == name]
    note = ""
    if known is not None and known.accounted_s > now_s + 1:
        note = f"the clock was further once: nothing begins before {shown(known.accounted_s)}"
    quarantined = known.quarantined_s if known is not None else None
    return EntryStatus(
        entry=name,
        enabled=entry.enabled,
        cron=entry.cron,
        timezone=plan.timezone_of(name),
        standing=known.standing if known is not None else "",
        quarantined=shown(quarantined) if quarantined is not None else "",
        running=shown(running[0]) if running else "",
        next=shown(due.due_s) if due is not None else "",
        ran=known.ran if known is not None else 0,
        interrupted=known.interrupted if known is not None else 0,
        missed=known.missed if known is not None else 0,
        note=note,
        recent=known.recent if known is not None else [],
    )


def table(told: Status) -> str:
    """As text."""
    lines = [f"{told.schedule}: the scheduler {'runs' if told.runs else 'does not run'}; results in {told.results}"]
    for each in told.entries:
        stands = "disabled" if not each.enabled else each.standing or "no verdict yet"
        lines.append(f"\n{each.entry}: {stands}; {each.ran} ran, {each.interrupted} interrupted, {each.missed} missed")
        lines.append(f"  when: {each.cron} ({each.timezone}), next {each.next or 'never'}")
        if each.running:
            lines.append(f"  runs now: slot {each.running}")
        if each.quarantined:
            lines.append(
                f"  QUARANTINED since the failure in slot {each.quarantined}: look at it, then --ack {each.entry}"
            )
        if each.note:
            lines.append(f"  {each.note}")
        lines += [f"  {said(record).partition(': ')[2]}" for record in each.recent[-_RECENT:]]
    if told.waiting:
        lines.append(f"\n{len(told.waiting)} changes still to be told, the oldest of {shown(told.waiting[0].at_s)}")
    lines += [said(record) for record in told.undelivered[-_RECENT:]]
    return "\n".join(lines) + "\n"


def coming(plan: Plan, machine: Machine, name: str, now_s: float) -> Iterator[str]:
    """The entry's next slots in words: on its wall clock, in UTC, and what stands against it."""
    cron = plan.cron_of(name)
    for due in machine.slots(name, now_s):
        why = plan.blackout(name, due.due_s)
        against = f"   missed: blackout: {why}" if why else ""
        local: Any = cron.local(due.due_s)
        yield f"{local:%a %Y-%m-%d %H:%M:%S %Z}   {shown(due.due_s)}{against}"


def _runs(plan: Plan) -> bool:
    try:
        descriptor = os.open(plan.folder / FOLDER / "lock", os.O_RDWR)
    except OSError:
        return False
    try:
        fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except OSError:
        return True
    finally:
        os.close(descriptor)
    return False
