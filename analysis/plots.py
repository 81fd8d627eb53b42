"""The plots of a report: pure functions from a history to SVG text, all on the time axis of `analysis.canvas`."""

from collections.abc import Callable

import msgspec
import numpy as np
import numpy.typing as npt
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.patches import PathPatch
from matplotlib.path import Path as Outline
from matplotlib.ticker import FixedLocator, FuncFormatter, MaxNLocator, NullLocator

from analysis import canvas
from analysis.canvas import BLUE, FAINT, GREEN, GREY, INK, ORANGE, PURPLE, SKY, VERMILLION, Floats, Size
from analysis.facts import offered
from analysis.history import History
from analysis.lanes import state_lanes
from analysis.time_shares import arm_of, arm_order
from analysis.usage import USAGE, gpu, largest, memory, processor, worker_lanes

Flags = npt.NDArray[np.bool_]

# Bad outcomes first: stacked from below they share the baseline, where small numbers can be compared.
OUTCOMES = {"in_flight": GREY, "failed": VERMILLION, "refused": ORANGE, "cancelled": PURPLE, "completed": BLUE}
CURVE_STYLES = (
    (BLUE, "-"), (VERMILLION, "-"), (GREEN, (0, (5, 1.5))), (PURPLE, (0, (1.5, 1))), (INK, (0, (6, 1, 1, 1))),
)  # fmt: skip
DOTS_MAX = 4000
P50_SAMPLES_MIN, P95_SAMPLES_MIN = 5, 20


class Key(msgspec.Struct, frozen=True):
    """One entry of a plot's key: what a colour means. shape: area, dot, cross, triangle, line or dashed."""

    label: str
    colour: str
    shape: str = "area"


class Plot(msgspec.Struct, frozen=True):
    """A plot, drawn for wide pages and for narrow ones, with the words that go with it.

    section: where in the report it stands: `time`, `latency` or `workers`.
    """

    name: str
    section: str
    title: str
    caption: str
    alternative: str
    key: list[Key]
    wide: str
    narrow: str


def draw(history: History) -> list[Plot]:
    """All plots of a run, in reading order."""
    arms = arm_order(history)
    drawn = [
        _plot(
            history, "outcomes", "time", outcomes, "What happened to the requests",
            "Requests per second, by intended time.",
        ),
        _plot(
            history, "latency", "time", latency, "Latency",
            "From the intended send time to the end of the answer; one dot per request, at its intended time.",
        ),
        _plot(
            history, "states", "time", state_lanes, "Who was trusted, and who was reachable",
            "Membership and circuit breakers as the controller saw them, links as each node noticed.",
        ),
        _plot(
            history, "distribution", "latency", distribution, f"Latency by {'arm' if arms else 'phase'}",
            "Share of the offered requests that had completed after so many seconds. A request that never completed "
            "keeps its curve below 100 %.",
        ),
        _plot(
            history, "work", "workers", work, "Work per worker",
            "Tokens per second that each worker made, all to one scale.",
        ),
        _plot(
            history, "queues", "workers", queues, "Queues and batches",
            "Sequences in the running batch and requests waiting on each worker, from the node samples.",
        ),
        _plot(history, "memory", "workers", memory, "Memory", _memory_caption(history)),
        _plot(
            history, "processor", "workers", processor, "Processor",
            "Share of a core that each node's process used; of a host, of all its cores.",
        ),
        _plot(history, "gpu", "workers", gpu, "GPU", "Share of the time in which the GPU was busy."),
    ]  # fmt: skip
    # What a world does not measure is said in a line of text and needs no empty plot, see usage.unmeasured.
    return [plot for plot in drawn if plot.name not in USAGE or not canvas.is_blank(plot.wide)]


def _memory_caption(history: History) -> str:
    if history.nodes["resident_bytes"].notna().any():
        return "Resident memory of each node's process, all to one scale."
    return (
        "What each worker's ledger says it holds: weights, running requests and kept caches. No process was measured."
    )


def _plot(
    history: History, name: str, section: str, of: Callable[[History, Size], str], title: str, caption: str
) -> Plot:
    wide, narrow = of(history, canvas.WIDE), of(history, canvas.NARROW)
    entries = [] if canvas.is_blank(wide) else key(name, history)
    return Plot(name, section, title, caption, f"{title}. {caption}", entries, wide, narrow)


def key(name: str, history: History) -> list[Key]:
    """What the colours of a plot mean; outcomes that never happened are left out."""
    seen = set(offered(history)["outcome"].tolist())
    happened = [outcome for outcome in reversed(OUTCOMES) if outcome in seen]
    match name:
        case "outcomes":
            return [Key(outcome.replace("in_flight", "never ended"), OUTCOMES[outcome]) for outcome in happened]
        case "latency":
            shapes = {"completed": "dot", "failed": "cross", "refused": "triangle", "cancelled": "triangle"}
            lines = [Key("median", INK, "line"), Key("95th percentile", INK, "dashed")] if "completed" in seen else []
            return [Key(name, OUTCOMES[name], shapes[name]) for name in happened if name in shapes] + lines
        case "states":
            return [
                Key("ready, closed, up", GREEN, "line"),
                Key("joined, suspected, half-open", ORANGE),
                Key("dead, open, down", VERMILLION),
            ]
        case "queues":
            return [Key("in the batch", SKY), Key("waiting", VERMILLION, "line")]
        case "distribution":
            styles = zip(_groups(history, offered(history)), CURVE_STYLES, strict=False)
            return [
                Key(canvas.clean(name, 40).replace("_", " "), colour, "line" if dash == "-" else "dashed")
                for name, (colour, dash) in styles
            ]
        case "memory" if history.nodes["mlx_active_bytes"].notna().any():
            return [Key("resident", SKY), Key("held by MLX", VERMILLION, "line")]
    return []


@canvas.drawing
def outcomes(history: History, size: Size) -> str:
    """Requests per second by outcome, stacked, at the time they were meant to be sent."""
    alternative = "Requests per second over time, stacked by outcome"
    requests = offered(history)
    if requests.empty:
        return canvas.blank(size, "No request was recorded.", alternative)
    line = canvas.time_axis(history)
    figure, axes = canvas.over_time(size, 170, line)
    edges = canvas.nice_bins(line.end_s)
    width = edges[1] - edges[0]
    below = np.zeros(len(edges) - 1)
    intended = canvas.floats(requests, "intended_s")
    for outcome, colour in OUTCOMES.items():
        chosen = (requests["outcome"] == outcome).to_numpy()
        if chosen.any():
            counted, _ = np.histogram(intended[chosen], edges)
            above = below + counted / width
            axes.stairs(above, edges, baseline=below, fill=True, color=colour, linewidth=0)
            below = above
    canvas.grid(axes)
    axes.set_ylim(0, max(1.0, float(below.max()) * 1.08))
    _y_ticks(axes, "/s")
    return canvas.svg(figure, f"outcomes-{size.name}", alternative)


@canvas.drawing
def latency(history: History, size: Size) -> str:
    """End-to-end latency of completed requests over time, rolling percentiles, and at the top edge who never came."""
    alternative = "Latency of each request over time, with rolling median and 95th percentile"
    requests = offered(history)
    if requests.empty:
        return canvas.blank(size, "No request was recorded.", alternative)
    line = canvas.time_axis(history)
    figure, axes = canvas.over_time(size, 240, line)
    completed = requests[requests["outcome"] == "completed"].sort_values("intended_s", kind="stable")
    at = canvas.floats(completed, "intended_s")
    taken = np.maximum(canvas.floats(completed, "ended_s") - at, 1e-4)
    known = np.isfinite(at) & np.isfinite(taken)
    at, taken = at[known], taken[known]
    _latency_scale(axes, taken)
    _dots(axes, size, *_thinned(at, taken, axes), line.end_s)
    # The names of two lines that end together stand one above the other.
    for share, dash, least, raised in ((0.5, "-", P50_SAMPLES_MIN, -6), (0.95, (0, (3, 1.2)), P95_SAMPLES_MIN, 6)):
        grid_s, level = rolling(at, taken, share, least, line.end_s)
        axes.plot(grid_s, level, color=canvas.PAGE, linewidth=4, alpha=0.75)
        axes.plot(grid_s, level, color=INK, linewidth=1.7, linestyle=dash)
        shown = np.flatnonzero(np.isfinite(level))
        if len(shown) and size is canvas.WIDE:
            end = (grid_s[shown[-1]], level[shown[-1]])
            axes.annotate(
                f"p{share * 100:.0f}", end, xytext=(6, raised), textcoords="offset points", va="center",
                fontsize=size.font, color=INK, annotation_clip=False,
            )  # fmt: skip
    for outcome, marker in (("failed", "x"), ("refused", "v"), ("cancelled", "v")):
        times = canvas.floats(requests[requests["outcome"] == outcome], "intended_s")
        axes.plot(
            _spread(times, line.end_s), np.full(len(_spread(times, line.end_s)), 0.965), marker, markersize=5,
            color=OUTCOMES[outcome], markeredgewidth=1.6, transform=axes.get_xaxis_transform(), clip_on=False, zorder=6,
        )  # fmt: skip
    canvas.grid(axes)
    return canvas.svg(figure, f"latency-{size.name}", alternative)


def _spread(times: Floats, end_s: float) -> Floats:
    """Times rounded to a five-hundredth of the axis, each once: marks that would lie on top of each other are one."""
    step = end_s / 500
    return np.unique(np.round(times[np.isfinite(times)] / step)) * step


def _latency_scale(axes: Axes, taken: Floats) -> None:
    low, high = (float(np.quantile(taken, 0.001)), float(taken.max())) if len(taken) else (0.0, 1.0)
    if low > 0 and high / low > 8:
        axes.set_yscale("log")
        # Room above the dots for the marks of those that never came.
        axes.set_ylim(low * 0.8, high * (high / low) ** 0.14)
        axes.yaxis.set_major_locator(FixedLocator([f * 10.0**p for p in range(-4, 5) for f in (1, 2, 5)]))
        axes.yaxis.set_minor_locator(NullLocator())
    else:
        axes.set_ylim(0, max(high, 1e-3) * 1.18)
        axes.yaxis.set_major_locator(MaxNLocator(5))
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: seconds(value)))


def seconds(value: float) -> str:
    """A duration for an axis: as few digits as tell it."""
    return f"{value * 1000:g} ms" if 0 < value < 0.0995 else f"{value:g} s"


def _thinned(at: Floats, taken: Floats, axes: Axes) -> tuple[Floats, Floats]:
    """At most `DOTS_MAX` dots: of those that share a cell of an ever coarser raster one stays, so no outlier goes."""
    if len(at) <= DOTS_MAX:
        return at, taken
    height = np.log(taken) if axes.get_yscale() == "log" else taken
    for cells in (400, 200, 100, 50):
        columns = np.floor((at - at.min()) / (np.ptp(at) or 1) * cells)
        rows = np.floor((height - height.min()) / (np.ptp(height) or 1) * cells / 2)
        _, first = np.unique(columns * 1000 + rows, return_index=True)
        if len(first) <= DOTS_MAX:
            break
    return at[first], taken[first]


def _dots(axes: Axes, size: Size, at: Floats, taken: Floats, end_s: float) -> None:
    """Dots as the shortest strokes with round caps: a third of the bytes of markers."""
    corners = np.repeat(np.column_stack([at, taken]), 2, axis=0)
    # Not of no length at all, which matplotlib would leave out.
    corners[1::2, 0] += 0.05 * end_s / size.axes_width
    codes = np.tile([Outline.MOVETO, Outline.LINETO], len(at))
    if len(at):
        axes.add_patch(
            PathPatch(
                Outline(corners, codes), fill=False, edgecolor=BLUE, alpha=0.6, capstyle="round",
                linewidth=3.2 if size is canvas.WIDE else 2.6,
            )
        )  # fmt: skip


def rolling(at: Floats, value: Floats, share: float, samples_min: int, end_s: float) -> tuple[Floats, Floats]:
    """A percentile over the seconds before each time, NaN where they hold fewer samples than that percentile needs.

    at must ascend. The window looks back only: a centred one would show the effect of a fault before the fault.
    """
    grid_s = np.linspace(0, end_s, 145)
    first, last = np.searchsorted(at, grid_s - max(3.0, end_s / 30)), np.searchsorted(at, grid_s, side="right")
    level = [
        float(np.quantile(value[i:j], share)) if j - i >= samples_min else np.nan
        for i, j in zip(first, last, strict=True)
    ]
    return grid_s, np.array(level)


@canvas.drawing
def work(history: History, size: Size) -> str:
    """Tokens per second made by each worker, from the workers' own rows of attempts."""
    alternative = "Tokens per second made by each worker over time"
    made = history.attempts[(history.attempts["side"] == "worker") & (history.attempts["tokens"] > 0)]
    if made.empty:
        return canvas.blank(size, "No work of a worker was recorded.", alternative)
    line = canvas.time_axis(history)
    edges = canvas.nice_bins(line.end_s)
    lanes = {str(worker): _token_rate(rows, edges) for worker, rows in made.groupby("worker", sort=True)}
    return worker_lanes(history, size, "work", alternative, lanes, edges, "tokens/s")


def _token_rate(rows: pd.DataFrame, edges: Floats) -> Floats:
    """Tokens per second in each bin, those of an attempt spread evenly from its first token to its end."""
    count = canvas.floats(rows, "tokens")
    end = canvas.floats(rows, "ended_s")
    begin = np.fmin(canvas.floats(rows, "first_token_s"), end)
    span = np.maximum(end - begin, 1e-6)
    done = np.array([np.nansum(count * np.clip((edge - begin) / span, 0, 1)) for edge in edges])
    return np.diff(done) / np.diff(edges)


@canvas.drawing
def queues(history: History, size: Size) -> str:
    """Batch size and queue depth of each worker over time, from the node samples."""
    alternative = "Batch size and waiting requests of each worker over time"
    samples = history.nodes[history.nodes["role"] == "worker"]
    if samples.empty:
        return canvas.blank(size, "No sample of a worker was recorded.", alternative)
    edges = canvas.nice_bins(canvas.time_axis(history).end_s)
    groups = {str(node): rows for node, rows in samples.groupby("node", sort=True)}
    batch = {node: largest(rows, "active", edges) for node, rows in groups.items()}
    waiting = {node: largest(rows, "queue_depth", edges) for node, rows in groups.items()}
    return worker_lanes(history, size, "queues", alternative, batch, edges, "", waiting)


def _groups(history: History, requests: pd.DataFrame) -> dict[str, Flags]:
    """What has a curve of its own, and which requests are its: every arm, else every phase that is measured."""
    arms = arm_order(history)[: len(CURVE_STYLES)]
    if arms:
        of = requests["request_id"].map(arm_of(history)).to_numpy()
        return {arm: of == arm for arm in arms}
    intended = canvas.floats(requests, "intended_s")
    phases = [phase for phase in history.phases() if not phase.name.startswith("warm")]
    return {phase.name: (intended >= phase.start_s) & (intended < phase.end_s) for phase in phases[: len(CURVE_STYLES)]}


@canvas.drawing
def distribution(history: History, size: Size) -> str:
    """Share of the offered requests of each arm, or phase, that had completed after a time."""
    alternative = "Cumulative share of requests completed by latency, one curve per arm or phase"
    requests = offered(history)
    if requests.empty or not _groups(history, requests):
        return canvas.blank(size, "No request was recorded in a phase.", alternative)
    if not history.info.complete:
        requests = requests[requests["outcome"] != "in_flight"]
    figure, axes = canvas.plain_axes(size, 210)
    intended = canvas.floats(requests, "intended_s")
    taken = canvas.floats(requests, "ended_s") - intended
    completed = (requests["outcome"] == "completed").to_numpy() & np.isfinite(taken)
    groups = list(_groups(history, requests).values())
    _latency_axis(axes, taken[completed & np.any(groups, axis=0)])
    for inside, (colour, dash) in zip(groups, CURVE_STYLES, strict=False):
        done = np.sort(taken[inside & completed])
        if len(done):
            share = np.arange(1, len(done) + 1) / inside.sum()
            kept = np.unique(np.linspace(0, len(done) - 1, 400).astype(int))
            axes.plot(done[kept], share[kept], color=colour, linestyle=dash, linewidth=1.9, drawstyle="steps-post")
    axes.set_ylim(0, 1.02)
    axes.yaxis.set_major_locator(FixedLocator([0, 0.25, 0.5, 0.75, 0.95]))
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:.0%}"))
    axes.set_xlabel("seconds from the intended send time", fontsize=size.font, color=FAINT, labelpad=2)
    canvas.grid(axes)
    return canvas.svg(figure, f"distribution-{size.name}", alternative)


def _latency_axis(axes: Axes, taken: Floats) -> None:
    low, high = (float(taken.min()), float(taken.max())) if len(taken) else (0.0, 1.0)
    if low > 0 and high / low > 8:
        axes.set_xscale("log")
        axes.set_xlim(low * 0.9, high * 1.1)
        axes.xaxis.set_major_locator(FixedLocator([f * 10.0**p for p in range(-4, 5) for f in (1, 2, 5)]))
        axes.xaxis.set_minor_locator(NullLocator())
    else:
        axes.set_xlim(0, high * 1.05 or 1)
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: seconds(value)))


def _y_ticks(axes: Axes, unit: str) -> None:
    axes.yaxis.set_major_locator(MaxNLocator(4, integer=True))
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}{unit}"))
