"""Slots through the year, its ends of summer time included, and windows without runs."""

from datetime import UTC, date, datetime
from itertools import islice, pairwise, takewhile
from zoneinfo import ZoneInfo

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from chaos.scheduling.calendar import Blackout, CalendarError, Cron, covering, jitter_s, zone

BERLIN = ZoneInfo("Europe/Berlin")
NIGHTS = ("30 2 * * *", "0 2,3 * * *", "*/20 1-3 * * *", "15 * * * *", "* * * * *", "0 0 * * 1", "5 1 L * *")


def locally(expression: str, day: date, count: int) -> list[str]:
    """The slots from midnight on, on the wall clock of Berlin with its offset."""
    cron = Cron(expression, "Europe/Berlin")
    begin = datetime(day.year, day.month, day.day, tzinfo=BERLIN).timestamp() - 1
    return [f"{cron.local(slot):%d %H:%M%z}" for slot in islice(cron.after(begin), count)]


def test_a_night_in_the_hour_that_is_left_out_begins_at_its_end_once() -> None:
    assert locally("30 2 * * *", date(2026, 3, 29), 2) == ["29 03:00+0200", "30 02:30+0200"]
    assert locally("0 2,3 * * *", date(2026, 3, 29), 2) == ["29 03:00+0200", "30 02:00+0200"]


def test_a_night_in_the_hour_that_comes_twice_begins_in_the_first() -> None:
    assert locally("30 2 * * *", date(2026, 10, 25), 2) == ["25 02:30+0200", "26 02:30+0100"]


def test_what_goes_by_elapsed_time_has_no_gap_and_no_pile() -> None:
    for day in (date(2026, 3, 29), date(2026, 10, 25)):
        begin = datetime(day.year, day.month, day.day, tzinfo=BERLIN).timestamp() - 1
        slots = list(islice(Cron("*/30 * * * *", "Europe/Berlin").after(begin), 20))
        assert {after - before for before, after in pairwise(slots)} == {1_800}


@settings(max_examples=60, deadline=None)
@given(
    expression=st.sampled_from(NIGHTS),
    name=st.sampled_from(("Europe/Berlin", "America/New_York", "Australia/Lord_Howe", "Asia/Kathmandu", "UTC")),
    near=st.sampled_from((1_774_742_400, 1_792_882_800, 1_772_953_200, 1_793_512_800, 1_775_316_600, 1_800_000_000)),
    offset_s=st.integers(-20_000, 20_000),
)
def test_wherever_one_begins_to_look_the_slots_are_the_same(
    expression: str, name: str, near: int, offset_s: int
) -> None:
    """So a restart at any time finds the slots that the scheduler before it would have found."""
    cron = Cron(expression, name)
    end = near + 40_000
    whole = list(takewhile(lambda slot: slot <= end, cron.after(near - 40_000)))
    begin = near + offset_s
    assert list(takewhile(lambda slot: slot <= end, cron.after(begin))) == [slot for slot in whole if slot > begin]
    assert all(after > before for before, after in pairwise(whole))


@pytest.mark.parametrize(
    ("expression", "name", "said"),
    [
        ("0 25 * * *", "UTC", "bad hour"),
        ("0 0 30 2 *", "UTC", "bad day"),
        ("* * * * * *", "UTC", "expected five fields"),
        ("@daily", "UTC", "expected five fields"),
        ("* * * * *", "Europe/Berln", "no time zone"),
        ("* * * * *", "../etc/passwd", "no time zone"),
    ],
)
def test_what_means_nothing_is_refused(expression: str, name: str, said: str) -> None:
    with pytest.raises(CalendarError, match=said):
        Cron(expression, name)


def test_a_window_over_midnight_belongs_to_the_day_on_which_it_begins() -> None:
    window = Blackout(why="night shift", begin="22:00", end=6 * 60, days=("fri",))
    for day, hour, inside in ((15, 21, False), (15, 22, True), (16, 5, True), (16, 6, False), (16, 22, False)):
        assert window.covers(datetime(2027, 1, day, hour, tzinfo=UTC)) is inside


def test_a_window_of_whole_days_and_who_is_asked_first() -> None:
    freeze = Blackout(why="freeze", since=date(2026, 12, 20), until=date(2027, 1, 5))
    mornings = Blackout(why="mornings", begin="08:00", end="12:00")
    at = datetime(2027, 1, 5, 9, tzinfo=UTC)
    assert covering((freeze, mornings), at) == "freeze"
    assert covering((freeze, mornings), at.replace(day=6)) == "mornings"
    assert covering((freeze, mornings), at.replace(day=6, hour=12)) == ""


@pytest.mark.parametrize(
    "fields", [{}, {"begin": "8am", "end": "9am"}, {"since": date(2027, 1, 2), "until": date(2027, 1, 1)}]
)
def test_a_window_that_means_nothing_is_refused(fields: dict[str, object]) -> None:
    with pytest.raises(CalendarError):
        Blackout(why="x", **fields)  # type: ignore[arg-type]


def test_jitter_is_spread_over_its_limit() -> None:
    found = [jitter_s("a", 60 * place, 100.0) for place in range(1_000)]
    assert 0 <= min(found) < 2
    assert 98 < max(found) < 100
    assert 45 < sum(found) / len(found) < 55


def test_a_zone_is_found() -> None:
    assert zone("Europe/Berlin").key == "Europe/Berlin"
