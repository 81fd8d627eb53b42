"""When a target may be hurt: windows on the wall clock of a time zone."""

from datetime import date, datetime, timedelta
from datetime import time as time_of_day
from typing import Annotated

import msgspec

from chaos.scheduling.calendar import Clock, Day, minutes, zone

_DAYS = ("mon", "tue", "wed", "thu", "fri", "sat", "sun")
_DAY_MINUTES = 24 * 60
_JOINED_MAX = 15
"""Windows that follow each other without a gap are one, for so many of them: that is as good as always."""


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
        here = zone(self.zone)
        wall = datetime.fromtimestamp(unix_s, here).replace(tzinfo=None)
        ends: datetime | None = None
        for _ in range(_JOINED_MAX):
            at = ends or wall
            found = [end for window in self.allow if (end := window.around(at)) is not None]
            if not found:
                break
            ends = max(found)
        if ends is None:
            return 0.0
        # Of two equal times in autumn the first: an hour too few is no harm.
        return max(0.0, ends.replace(tzinfo=here, fold=0).timestamp() - unix_s)

    def day(self, unix_s: float) -> str:
        """The date there."""
        return datetime.fromtimestamp(unix_s, zone(self.zone)).date().isoformat()

    def told(self) -> str:
        """For people."""
        parts = [
            f"{' '.join(window.days) or 'daily'} {_clock(window.begin)}-{_clock(window.end)}" for window in self.allow
        ]
        return f"{', '.join(parts)} {self.zone}"


def _clock(value: Clock) -> str:
    since = minutes(value)
    return f"{since // 60:02d}:{since % 60:02d}"
