"""The hours around the nights in which clocks are put on or back, against the wall clock minute by minute."""

from datetime import datetime, timedelta
from zoneinfo import ZoneInfo

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from chaos.staging.hours import Hours, Window

# An hour at night, half an hour, at midnight, two hours, against the sun, and a zone that does nothing.
ZONES = {
    "Europe/Berlin": ("2026-03-29", "2026-10-25"),
    "America/New_York": ("2026-03-08", "2026-11-01"),
    "Australia/Lord_Howe": ("2026-10-04", "2026-04-05"),
    "America/Havana": ("2026-03-08", "2026-11-01"),
    "Antarctica/Troll": ("2026-03-29", "2026-10-25"),
    "Europe/Dublin": ("2026-03-29", "2026-10-25"),
    "Asia/Kolkata": ("2026-03-29", "2026-10-25"),
}
LOOKED_MINUTES = 30 * 60

clocks = st.integers(0, 24 * 4 - 1).map(lambda quarter: quarter * 15)
windows = st.builds(
    Window,
    begin=clocks,
    end=clocks,
    days=st.sampled_from([(), ("sat",), ("sun",), ("sat", "sun"), ("fri", "mon")]),
)


def inside(windows: tuple[Window, ...], wall: datetime) -> bool:
    """By the definition, told once more in other words."""
    for window in windows:
        begin, end = int(window.begin), int(window.end)
        minute = wall.hour * 60 + wall.minute
        days = [("mon", "tue", "wed", "thu", "fri", "sat", "sun")[(wall.weekday() - back) % 7] for back in (0, 1)]
        today, since_yesterday = (not window.days or day in window.days for day in days)
        if begin < end:
            within = today and begin <= minute < end
        else:
            within = (today and minute >= begin) or (since_yesterday and minute < end)
        if within:
            return True
    return False


@settings(max_examples=150, deadline=None)
@given(
    st.sampled_from([(name, night) for name, nights in ZONES.items() for night in nights]),
    st.lists(windows, min_size=1, max_size=3).map(tuple),
    st.integers(-20 * 60, 8 * 60),
    st.sampled_from([0.0, 0.25, 59.999]),
)
def test_they_end_at_the_first_instant_at_which_the_wall_clock_is_outside(
    where: tuple[str, str], allow: tuple[Window, ...], offset_minutes: int, seconds: float
) -> None:
    name, night = where
    here = ZoneInfo(name)
    minute_s = datetime.fromisoformat(night).replace(tzinfo=here).timestamp() + offset_minutes * 60
    left_s = Hours(zone=name, allow=allow).left_s(minute_s + seconds)
    expected_s: float | None = None
    for number in range(LOOKED_MINUTES):
        at_s = minute_s + number * 60
        if not inside(allow, datetime.fromtimestamp(at_s, here)):
            expected_s = max(0.0, at_s - minute_s - seconds)
            break
    if expected_s is None:
        assert left_s >= LOOKED_MINUTES * 60 - 60
    else:
        assert left_s == pytest.approx(expected_s, abs=0.002)


def left_s(name: str, window: tuple[str, str], at: str, fold: int = 0) -> float:
    hours = Hours(zone=name, allow=(Window(begin=window[0], end=window[1]),))
    return hours.left_s(datetime.fromisoformat(at).replace(tzinfo=ZoneInfo(name), fold=fold).timestamp())


def test_an_end_that_is_left_out_comes_when_the_clock_is_put_on() -> None:
    # At 02:00 it shows 03:00, which is past 02:30.
    assert left_s("Europe/Berlin", ("22:00", "02:30"), "2026-03-29T01:59:00") == 60.0
    assert left_s("Europe/Berlin", ("22:00", "02:30"), "2026-03-29T03:00:00") == 0.0
    assert left_s("Europe/Berlin", ("22:00", "05:00"), "2026-03-29T01:00:00") == 3 * 3600
    assert left_s("Europe/Berlin", ("02:15", "02:45"), "2026-03-29T01:59:59") == 0.0


def test_of_an_hour_that_comes_twice_both_are_inside() -> None:
    assert left_s("Europe/Berlin", ("22:00", "02:30"), "2026-10-25T02:15:00") == 15 * 60
    assert left_s("Europe/Berlin", ("22:00", "02:30"), "2026-10-25T02:45:00") == 0.0
    assert left_s("Europe/Berlin", ("22:00", "02:30"), "2026-10-25T02:15:00", fold=1) == 15 * 60
    # The clock goes back to before the window began.
    assert left_s("Europe/Berlin", ("02:30", "05:00"), "2026-10-25T02:40:00") == 20 * 60


def test_always_is_always() -> None:
    for name, nights in ZONES.items():
        for night in nights:
            since = datetime.fromisoformat(night) - timedelta(days=1)
            always = Hours(zone=name, allow=(Window(begin="00:00", end="00:00"),))
            assert always.left_s(since.replace(tzinfo=ZoneInfo(name)).timestamp()) > 13 * 86_400
