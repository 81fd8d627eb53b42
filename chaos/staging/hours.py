"""When a target may be hurt: windows on the wall clock of a time zone.

It is allowed at an instant when the wall clock shows a time of a window then. So where a zone's clock is put on or
back, an hour that is left out is never allowed, and of one that comes twice both are.
"""

import math
from datetime import date, datetime, timedelta
from datetime import time as time_of_day
from typing import Annotated
from zoneinfo import ZoneInfo

import msgspec

from chaos.scheduling.calendar import Clock, Day, minutes, zone

_DAYS = ("mon", "tue", "wed", "thu", "fri", "sat", "sun")
_DAY_MINUTES = 24 * 60
_JOINED_MAX = 15
"""Windows that follow each other without a gap are one, for so many of them: that is as good as always."""
_LONG_S = 14 * 86_400.0
_STEP_S = 6 * 3_600.0
"""No zone changes its clock twice in that time."""


class Window(
    msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True, rename={"begin": "from", "end": "to"}
):
    """from, to: of each of the days; over midnight when `to` is not later, and then of the day on which it begins.

    days: all of them where none is named.
    """

    begin: Clock
    end: Clock
    days: tuple[Day, ...] = ()

    def __post_init__(self) -> None:
        minutes(self.begin)
        minutes(self.end)

    def around(self, wall: datetime) -> datetime | None:
        """The end of the window that a time on the wall clock lies in, None when it lies in none."""
        for back in (0, 1):
            day: date = wall.date() - timedelta(days=back)
            if self.days and _DAYS[day.weekday()] not in self.days:
                continue
            begin, end = minutes(self.begin), minutes(self.end)
            end += _DAY_MINUTES if end <= begin else 0
            midnight = datetime.combine(day, time_of_day())
            if midnight + timedelta(minutes=begin) <= wall < midnight + timedelta(minutes=end):
                return midnight + timedelta(minutes=end)
        return None


class Hours(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """zone: such as Europe/Berlin; it also says when a day of the budget begins. allow: outside of these nothing is
    injected, and what is in force is healed."""

    zone: str
    allow: Annotated[tuple[Window, ...], msgspec.Meta(min_length=1)]

    def __post_init__(self) -> None:
        zone(self.zone)

    def left_s(self, unix_s: float) -> float:
        """Seconds until the hours end; 0 outside of them."""
        here, at_s = zone(self.zone), unix_s
        # From one time at which the wall clock jumps, or a window ends, to the next, for as long as that stays inside.
        for _ in range(_JOINED_MAX):
            wall = datetime.fromtimestamp(at_s, here).replace(tzinfo=None)
            ends = self._around(wall)
            if ends is None or at_s - unix_s > _LONG_S:
                break
            # Windows end on whole minutes, and all offsets of our days are whole minutes too.
            over_s = float(round(at_s + (ends - wall).total_seconds()))
            jump_s = _jump_s(here, at_s, over_s)
            at_s = over_s if jump_s is None else jump_s
        return at_s - unix_s

    def _around(self, wall: datetime) -> datetime | None:
        """Until when a wall clock that does not jump stays in the windows; None when it is in none."""
        ends: datetime | None = None
        for _ in range(_JOINED_MAX):
            found = [end for window in self.allow if (end := window.around(ends or wall)) is not None]
            if not found:
                break
            ends = max(found)
        return ends

    def day(self, unix_s: float) -> date:
        """The date there."""
        return datetime.fromtimestamp(unix_s, zone(self.zone)).date()

    def told(self) -> str:
        """For people."""
        parts = [
            f"{' '.join(window.days) or 'daily'} {_clock(window.begin)}-{_clock(window.end)}" for window in self.allow
        ]
        return f"{', '.join(parts)} {self.zone}"


def _jump_s(here: ZoneInfo, since_s: float, until_s: float) -> float | None:
    """The first time, since excluded, until included, at which the wall clock is put on or back; None for none."""
    before = _offset_s(here, since_s)
    early_s = since_s
    while early_s < until_s:
        late_s = min(early_s + _STEP_S, until_s)
        if _offset_s(here, late_s) != before:
            break
        early_s = late_s
    else:
        return None
    low, high = int(early_s), math.ceil(late_s)
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if _offset_s(here, middle) == before else (low, middle)
    return float(high)


def _offset_s(here: ZoneInfo, unix_s: float) -> float:
    offset = datetime.fromtimestamp(unix_s, here).utcoffset()
    assert offset is not None
    return offset.total_seconds()


def _clock(value: Clock) -> str:
    since = minutes(value)
    return f"{since // 60:02d}:{since % 60:02d}"
