"""Rows of a node whose clock differs from its host's, in the host's clock: all rows of a run must have the same."""

import math

from msgspec.structs import replace

from analysis.schema import RequestRow, Row


def in_host_clock(row: Row, ahead_s: float) -> Row:
    """The row with its times `ahead_s` seconds earlier. The clocks of clients do not differ."""
    if not ahead_s:
        return row
    assert not isinstance(row, RequestRow)
    times = {name: getattr(row, name) for name in row.TIME_COLUMNS}
    return replace(row, **{name: time_s - ahead_s for name, time_s in times.items() if time_s is not None})


def host_time(time_s: float, ahead_s: float) -> float:
    """The earliest time of the host's clock at which a clock that is ahead by so much shows `time_s` or later."""
    host_s = time_s - ahead_s
    # Rounding may have made it too early by the smallest step there is.
    while host_s + ahead_s < time_s:
        host_s = math.nextafter(host_s, math.inf)
    return host_s
