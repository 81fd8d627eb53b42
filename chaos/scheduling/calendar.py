"""When: the slots of a cron expression in a time zone, and the windows in which nothing may run.

A slot is a whole second of Unix time. Expressions are Debian's, summer time included: one that names its hour and
minute runs once a day, at the end of an hour that is left out and in the first of two equal ones; one with `*` in
either goes by elapsed time.
"""

import re
from collections.abc import Iterator, Sequence
from datetime import date, datetime, timedelta
from datetime import time as time_of_day
from typing import Annotated, Literal
from zlib import crc32
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

import msgspec
from cronsim import CronSim, CronSimError

_FIELDS = 5
_CLOCK = re.compile(r"([01]?\d|2[0-3]):([0-5]\d)")
_DAYS = ("mon", "tue", "wed", "thu", "fri", "sat", "sun")
_MINUTES_A_DAY = 24 * 60

Day = Literal["mon", "tue", "wed", "thu", "fri", "sat", "sun"]
Clock = str | Annotated[int, msgspec.Meta(ge=0, lt=_MINUTES_A_DAY)]
"""`HH:MM`, or what YAML makes of that without quotes: minutes since midnight."""


class CalendarError(ValueError):
    """An expression, a zone or a window that means nothing. One line."""


def zone(name: str) -> ZoneInfo:
    """The time zone of a name such as Europe/Berlin. Raises CalendarError."""
    try:
        return ZoneInfo(name)
    except (ZoneInfoNotFoundError, ValueError, OSError):
        raise CalendarError(f"no time zone {name[:60]!r}; expected a name such as Europe/Berlin or UTC") from None


class Cron:
    """The slots of an expression of five fields. Raises CalendarError."""

    def __init__(self, expression: str, timezone: str) -> None:
        self._expression = expression
        self._zone = zone(timezone)
        if len(expression.split()) != _FIELDS:
            raise CalendarError(f"{expression[:60]!r}: expected five fields: minute hour day month weekday")
        try:
            next(CronSim(expression, datetime(2026, 1, 1)))
        except CronSimError as error:
            raise CalendarError(f"{expression[:60]!r}: {str(error).lower()}") from None
        except StopIteration:
            raise CalendarError(f"{expression[:60]!r}: there is no such day") from None

    def after(self, unix_s: float) -> Iterator[int]:
        """The slots later than a time, in order, without end but for an expression that has no more."""
        last = int(unix_s // 1)
        # On the wall clock nothing tells the second of two equal hours from the first: begin before both of them.
        for at in CronSim(self._expression, datetime.fromtimestamp(last - _REACH_S, self._zone)):
            slot = int(at.timestamp())
            # Two times of a day may fall on the end of an hour that is left out.
            if slot > last:
                last = slot
                yield slot

    def local(self, unix_s: float) -> datetime:
        """A time on the wall clock of the zone."""
        return datetime.fromtimestamp(unix_s, self._zone)


_REACH_S = 3 * 3600


def jitter_s(name: str, slot_s: int, limit_s: float) -> float:
    """How much later than its time a slot begins: evenly spread over the limit, and the same after a restart."""
    return crc32(f"{name}@{slot_s}".encode()) / 2**32 * limit_s


class Blackout(
    msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True, rename={"begin": "from", "end": "to"}
):
    """A window without runs, on the wall clock: all that is said must hold.

    from, to: of each day; over midnight when `to` is not later, and then it belongs to the day on which it begins.
    since, until: the first and the last day. days: of the week. why: shown for each slot that is missed.
    """

    why: str
    begin: Clock = 0
    end: Clock = 0
    days: tuple[Day, ...] = ()
    since: date | None = None
    until: date | None = None

    def __post_init__(self) -> None:
        begin, end = minutes(self.begin), minutes(self.end)
        if begin == end and not self.days and self.since is None and self.until is None:
            raise CalendarError("expected days, since, until, or from and to")
        if self.since is not None and self.until is not None and self.until < self.since:
            raise CalendarError("until is before since")

    def covers(self, at: datetime) -> bool:
        """Whether a time on the wall clock lies in it."""
        wall = at.replace(tzinfo=None)
        return any(self._of_day(wall.date() - timedelta(days=back), wall) for back in (0, 1))

    def _of_day(self, day: date, wall: datetime) -> bool:
        if self.days and _DAYS[day.weekday()] not in self.days:
            return False
        if (self.since is not None and day < self.since) or (self.until is not None and day > self.until):
            return False
        midnight = datetime.combine(day, time_of_day())
        begin, end = minutes(self.begin), minutes(self.end)
        if end <= begin:
            end += _MINUTES_A_DAY
        return midnight + timedelta(minutes=begin) <= wall < midnight + timedelta(minutes=end)


def minutes(clock: Clock) -> int:
    """Since midnight. Raises CalendarError."""
    if isinstance(clock, int):
        return clock
    match = _CLOCK.fullmatch(clock)
    if match is None:
        raise CalendarError(f"{clock[:20]!r}: expected a time such as 08:30")
    return int(match[1]) * 60 + int(match[2])


def covering(windows: Sequence[Blackout], at: datetime) -> str:
    """Why nothing may run at a time on the wall clock; empty when something may."""
    return next((window.why for window in windows if window.covers(at)), "")
