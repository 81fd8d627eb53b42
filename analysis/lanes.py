"""State lanes: membership, breakers and links as bars over time, from the events."""

from collections.abc import Callable

import msgspec
import pandas as pd
from matplotlib.axes import Axes

from analysis import canvas
from analysis.canvas import FAINT, GREEN, GREY, INK, ORANGE, VERMILLION, Size
from analysis.history import History
from analysis.timeline import breakers, membership

_LANE_PX = 19.0
_TROUBLED_MAX = 12
_ALL_MAX = 8


class Stretch(msgspec.Struct, frozen=True):
    """A time in which a node was in one state."""

    state: str
    start_s: float
    end_s: float


class Family(msgspec.Struct, frozen=True):
    """A kind of state: its changes in the events (time_s, node, state), the good one, and the one at the start."""

    title: str
    changes: Callable[[pd.DataFrame], pd.DataFrame]
    good: str
    initial: str = ""


COLOURS = {
    "ready": GREEN, "closed": GREEN, "up": GREEN, "joined": ORANGE, "suspected": ORANGE, "half_open": ORANGE,
    "dead": VERMILLION, "open": VERMILLION, "down": VERMILLION, "unknown": GREY,
}  # fmt: skip


def links(events: pd.DataFrame) -> pd.DataFrame:
    """Changes by time: time_s, worker (any node), state (up, down)."""
    told = events[events["kind"].isin(("link_up", "link_down"))].sort_values("time_s", kind="stable")
    named = told["subject"].where(told["subject"] != "", told["node"])
    return pd.DataFrame({"time_s": told["time_s"], "worker": named, "state": told["kind"].str.removeprefix("link_")})


FAMILIES = (
    Family("Membership", membership, "ready"),
    Family("Circuit breaker", breakers, "closed", "closed"),
    Family("Link", links, "up"),
)


def stretches(history: History, family: Family, end_s: float) -> dict[str, list[Stretch]]:
    """For each node in order of name, its states of one family from the first known one to the end of the run."""
    events = history.events
    found: dict[str, list[Stretch]] = {}
    if family.initial:
        # A breaker that never moved wrote no event, and was closed all the time.
        workers = events[events["kind"] == "worker_joined"].drop_duplicates("subject")
        for row in workers.to_dict("records"):
            found[str(row["subject"])] = [Stretch(family.initial, max(float(row["time_s"]), 0.0), end_s)]
    changes = family.changes(events)
    for node, state, time_s in zip(changes["worker"], changes["state"], changes["time_s"], strict=True):
        lane = found.setdefault(str(node), [])
        at_s = min(max(float(time_s), 0.0), end_s)
        if lane and lane[-1].state == state:
            continue
        if lane:
            lane[-1] = Stretch(lane[-1].state, lane[-1].start_s, at_s)
        lane.append(Stretch(str(state), at_s, end_s))
    return {
        node: [part for part in found[node] if part.end_s > part.start_s] for node in sorted(found, key=canvas.natural)
    }


@canvas.drawing
def state_lanes(history: History, size: Size) -> str:
    """Membership and breaker of each worker and the link of each node, as bars over the time of the run."""
    alternative = "Membership, circuit breaker and link state of each node over time"
    line = canvas.time_axis(history)
    sections = []
    for family in FAMILIES:
        lanes = stretches(history, family, line.end_s)
        shown = _shown(lanes, family)
        if lanes:
            sections.append((family, shown, len(lanes) - len(shown)))
    if not sections:
        return canvas.blank(size, "No change of state was recorded.", alternative)
    rows = sum(len(shown) + 1 + (hidden > 0) for _, shown, hidden in sections)
    figure, axes = canvas.over_time(size, rows * _LANE_PX + 6, line)
    axes.set_ylim(rows + 0.3, 0)
    ticks: list[tuple[float, str]] = []
    row = 0
    for family, shown, hidden in sections:
        # In the margin above the names: inside the plot it would lie over the fault windows.
        axes.annotate(
            family.title, (0, row + 0.5), xycoords=axes.get_yaxis_transform(), xytext=(3 - size.left, 0),
            textcoords="offset points", va="center", fontsize=size.font, color=INK, fontweight="bold",
            annotation_clip=False,
        )  # fmt: skip
        for offset, (node, lane) in enumerate(shown.items(), start=1):
            ticks.append((row + offset + 0.5, canvas.short(node, size)))
            _bars(axes, size, family, lane, row + offset + 0.5, line.end_s)
        row += len(shown) + 1
        if hidden:
            text = f"and {hidden} more that stayed {family.good}"
            axes.text(0, row + 0.5, text, va="center", fontsize=size.font, color=FAINT)
            row += 1
    axes.set_yticks([at for at, _ in ticks], [label for _, label in ticks])
    return canvas.svg(figure, f"states-{size.name}", alternative)


def _shown(lanes: dict[str, list[Stretch]], family: Family) -> dict[str, list[Stretch]]:
    """All lanes of a small cluster; of a large one those that ever left the good state after they had reached it."""
    if len(lanes) <= _ALL_MAX:
        return lanes
    troubled = {node: lane for node, lane in lanes.items() if sum(part.state == family.good for part in lane) != 1}
    return dict(list((troubled or lanes).items())[: _TROUBLED_MAX if troubled else _ALL_MAX])


def _bars(axes: Axes, size: Size, family: Family, lane: list[Stretch], at: float, end_s: float) -> None:
    """The good state as a thin line and every other as a thick bar with its name: told apart without colour too."""
    unit_px = size.axes_width / end_s
    for part in lane:
        good = part.state == family.good
        axes.plot(
            [part.start_s, max(part.end_s, part.start_s + 1 / unit_px)], [at, at], color=COLOURS[part.state],
            linewidth=3 if good else 12, solid_capstyle="butt", alpha=0.75 if good else 1.0,
        )  # fmt: skip
        if not good and (part.end_s - part.start_s) * unit_px > size.text_width(part.state) + 4:
            axes.text(
                (part.start_s + part.end_s) / 2, at, part.state.replace("_", "-"), ha="center", va="center_baseline",
                fontsize=size.font - 1.5, color="#000000",
            )  # fmt: skip
