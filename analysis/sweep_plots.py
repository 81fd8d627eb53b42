"""The plots of a sweep: throughput and efficiency over workers, latency over workers and against load, as SVG."""

from collections.abc import Callable, Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.ticker import FixedLocator, FuncFormatter, NullLocator

from analysis import canvas, page
from analysis.canvas import FAINT, INK, Size
from analysis.plots import CURVE_STYLES, Key, Plot
from analysis.sweep_view import Curve, Series, SweepReport

SERIES_MAX = len(CURVE_STYLES)
_LOG_FROM = 20
_HEIGHT = 280
_MARKS = ("o", "s", "^", "D", "v")


def draw(report: SweepReport) -> list[Plot]:
    """Those for which there is data, in reading order."""
    series, curves, found = report.series[:SERIES_MAX], report.curves[:SERIES_MAX], []
    left = (
        f" Of {len(report.series)} series the first {SERIES_MAX} are drawn." if len(report.series) > SERIES_MAX else ""
    )
    lines = "Lines at the dots are 95 % intervals from what repeats differ by."
    if series:
        law = " Thin curves are fitted scaling laws." if any(each.law for each in series) else ""
        found += [
            _plot(
                "throughput", throughput, series, "Throughput over workers",
                f"Requests per second. {lines}{law}{left}",
            ),
            _plot(
                "efficiency", efficiency, series, "Efficiency over workers",
                f"Throughput for each worker, as a share of that of the smallest cluster. {lines}{left}",
            ),
            _plot(
                "latency", latency, series, "Latency over workers",
                f"Median (solid) and 95th percentile (dashed) from end to end, medians over repeats.{left}",
            ),
        ]  # fmt: skip
    if curves:
        key = _key([each.label for each in curves])
        title, caption = (
            "Latency against load",
            "Median latency over the requests that were completed; the ring is the knee.",
        )
        drawn = [against_load(curves, size) for size in (canvas.WIDE, canvas.NARROW)]
        found.append(Plot("load", "load", title, caption, f"{title}. {caption}", key, *drawn))
    return found


def _plot(
    name: str, of: Callable[[Sequence[Series], Size], str], series: Sequence[Series], title: str, caption: str
) -> Plot:
    drawn = [of(series, size) for size in (canvas.WIDE, canvas.NARROW)]
    key = _key([each.label for each in series])
    return Plot(name, "workers", title, caption, f"{title}. {caption}", key, *drawn)


def _key(labels: Sequence[str]) -> list[Key]:
    return [
        Key(canvas.clean(label, 90), colour, "line" if dash == "-" else "dashed")
        for label, (colour, dash) in zip(labels, CURVE_STYLES, strict=False)
    ]


@canvas.drawing
def throughput(series: Sequence[Series], size: Size) -> str:
    """Requests per second over workers, with laws, and what perfect scaling of the first series would be."""
    figure, axes = canvas.plain_axes(size, _HEIGHT)
    counts = _over_workers(axes, size, series)
    first = series[0].levels[0]
    ideal = np.array([counts[0], counts[-1]], dtype=float)
    axes.plot(ideal, ideal * first.mean / first.workers, color=FAINT, linewidth=1.2, linestyle=(0, (2, 2)))
    for each, (colour, dash), mark in zip(series, CURVE_STYLES, _MARKS, strict=False):
        workers = [level.workers for level in each.levels]
        for level in each.levels:
            if level.interval is not None:
                axes.plot([level.workers] * 2, level.interval, color=colour, linewidth=2.4, alpha=0.6)
        joined = dash if each.law is None else "none"
        axes.plot(
            workers, [level.mean for level in each.levels], color=colour, linewidth=1.5, linestyle=joined, marker=mark,
            markersize=6,
        )  # fmt: skip
        if each.law is not None:
            fine = np.linspace(workers[0], workers[-1], 200)
            axes.plot(fine, [each.law.throughput(count) for count in fine], color=colour, linewidth=1.3, linestyle=dash)
    highest = max((level.interval or (0, level.mean))[1] for each in series for level in each.levels)
    axes.set_ylim(0, 1.12 * min(highest, 3 * max(level.mean for each in series for level in each.levels)))
    top = axes.get_ylim()[1]
    at = min(counts[-1], top * 0.93 * first.workers / first.mean)
    canvas.legible(axes, size, "perfect", (at, at * first.mean / first.workers), INK, ha="right", va="bottom")
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}/s"))
    return canvas.svg(figure, f"throughput-{size.name}", "Requests per second over the number of workers")


@canvas.drawing
def efficiency(series: Sequence[Series], size: Size) -> str:
    """The share of perfect scaling that each point keeps."""
    figure, axes = canvas.plain_axes(size, _HEIGHT * 0.75)
    _over_workers(axes, size, series)
    axes.axhline(1, color=FAINT, linewidth=1.2, linestyle=(0, (2, 2)))
    for each, (colour, dash), mark in zip(series, CURVE_STYLES, _MARKS, strict=False):
        for point in each.efficiencies:
            if point.interval is not None:
                axes.plot([point.workers] * 2, point.interval, color=colour, linewidth=2.4, alpha=0.6)
        workers = [each.levels[0].workers, *(point.workers for point in each.efficiencies)]
        values = [1.0, *(point.value for point in each.efficiencies)]
        axes.plot(workers, values, color=colour, linewidth=1.5, linestyle=dash, marker=mark, markersize=6)
    highest = max((point.value for each in series for point in each.efficiencies), default=1.0)
    axes.set_ylim(0, max(1.15, 1.1 * highest))
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:.0%}"))
    return canvas.svg(figure, f"efficiency-{size.name}", "Efficiency over the number of workers")


@canvas.drawing
def latency(series: Sequence[Series], size: Size) -> str:
    """Median and 95th percentile over workers."""
    figure, axes = canvas.plain_axes(size, _HEIGHT * 0.75)
    _over_workers(axes, size, series)
    highest = 0.0
    for each, (colour, _), mark in zip(series, CURVE_STYLES, _MARKS, strict=False):
        for points, dash in ((each.latency_p50_s, "-"), (each.latency_p95_s, (0, (3, 1.5)))):
            if points:
                workers, values = zip(*points, strict=True)
                axes.plot(workers, values, color=colour, linewidth=1.5, linestyle=dash, marker=mark, markersize=5)
                highest = max(highest, *values)
    axes.set_ylim(0, 1.1 * highest or 1.0)
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: page.seconds(value)))
    return canvas.svg(figure, f"latency-{size.name}", "Latency over the number of workers")


@canvas.drawing
def against_load(curves: Sequence[Curve], size: Size) -> str:
    """Median latency over throughput, a line for each cluster."""
    figure, axes = canvas.plain_axes(size, _HEIGHT)
    canvas.grid(axes)
    highest = 0.0
    for each, (colour, dash), mark in zip(curves, CURVE_STYLES, _MARKS, strict=False):
        made = [point.throughput for point in each.points]
        taken = [point.latency_p50_s for point in each.points]
        axes.plot(made, taken, color=colour, linewidth=1.5, linestyle=dash, marker=mark, markersize=6)
        if each.knee is not None:
            axes.plot(
                [each.knee.throughput], [each.knee.latency_s], marker="o", markersize=14, color=colour, fillstyle="none"
            )
        highest = max(highest, *taken)
    axes.set_xlim(left=0)
    axes.set_ylim(0, 1.12 * highest)
    axes.set_xlabel("completed requests per second", fontsize=size.font, color=FAINT, labelpad=2)
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: page.seconds(value)))
    return canvas.svg(figure, f"load-{size.name}", "Median latency over completed requests per second")


def _over_workers(axes: Axes, size: Size, series: Sequence[Series]) -> list[int]:
    """The x axis; the numbers of workers on it."""
    counts = sorted({level.workers for each in series for level in each.levels})
    canvas.grid(axes)
    if counts[-1] >= _LOG_FROM * counts[0]:
        axes.set_xscale("log")
        axes.set_xlim(counts[0] / 1.15, counts[-1] * 1.15)
    else:
        room = 0.04 * (counts[-1] - counts[0])
        axes.set_xlim(counts[0] - room, counts[-1] + room)
    axes.xaxis.set_major_locator(FixedLocator(counts))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.0f}"))
    axes.set_xlabel("workers", fontsize=size.font, color=FAINT, labelpad=2)
    return counts
