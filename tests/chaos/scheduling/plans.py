"""Schedules for tests, made without a file, and the account that every schedule owes."""

from collections.abc import Sequence

from chaos.scheduling.calendar import Cron
from chaos.scheduling.plan import Entry, Notify, Plan
from chaos.scheduling.records import Ended, Missed, Opened, Record, Started


def plan(*crons: str, timezone: str = "UTC", **fields: object) -> Plan:
    """Entries a, b, c, ... of an experiment that is never looked at."""
    entries = {
        chr(ord("a") + place): Entry(experiment="network_partition", cron=cron, **fields)  # type: ignore[arg-type]
        for place, cron in enumerate(crons)
    }
    return Plan(name="test", timezone=timezone, entries=entries, notify=Notify(webhook="http://127.0.0.1:1/"))


def fates(records: Sequence[Record], entry: str) -> list[tuple[int, int, str]]:
    """Of an entry, in order: slots after, up to, and what became of them."""
    found = []
    for record in records:
        if record.entry != entry:
            continue
        if isinstance(record, Missed):
            found.append((record.after_s, record.until_s, "missed"))
        elif isinstance(record, Ended):
            found.append((record.slot_s - 1, record.slot_s, record.outcome))
    return sorted(found)


def unaccounted(records: Sequence[Record], entry: str, cron: Cron) -> list[str]:
    """What is wrong with an entry's account: slots without a fate or with two, starts that nobody ended."""
    problems: list[str] = []
    opened = [record.after_s for record in records if isinstance(record, Opened) and record.entry == entry]
    found = fates(records, entry)
    if not opened or not found:
        return problems
    last = max(until for _, until, _ in found)
    for slot in cron.after(opened[0]):
        if slot > last:
            break
        of_it = [fate for after, until, fate in found if after < slot <= until]
        if len(of_it) != 1:
            problems.append(f"{entry}@{slot}: {of_it or 'nothing'}")
    starts = [record.slot_s for record in records if isinstance(record, Started) and record.entry == entry]
    problems += [f"{entry}@{slot}: started {starts.count(slot)} times" for slot in starts if starts.count(slot) > 1]
    return problems


def changes(records: list[Record]) -> list[str]:
    """Which ends of runs brought another verdict, told from the records alone."""
    standing: dict[str, str] = {}
    found = []
    for record in records:
        if isinstance(record, Ended) and record.verdict:
            if record.verdict != standing.get(record.entry, "pass"):
                found.append(f"{record.entry}@{record.slot_s}")
            standing[record.entry] = record.verdict
    return found
