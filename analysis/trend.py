"""A criterion over many runs of one experiment: its values, their intervals, and what each run made of it."""

from collections.abc import Sequence

import msgspec
from markupsafe import Markup

from analysis import canvas
from analysis.runs import Listed
from analysis.verdict import CriterionResult

_HEIGHT = 240
_COLOURS = {
    "pass": canvas.GREEN,
    "fail": canvas.VERMILLION,
    "inconclusive": canvas.ORANGE,
    "invalid": canvas.PURPLE,
}
_MARKS = {"pass": "o", "fail": "X", "inconclusive": "^", "invalid": "s"}


class Point(msgspec.Struct, frozen=True):
    """One run's measurement, in the criterion's unit."""

    run: Listed
    found: CriterionResult
    measured: float


def points(runs: Sequence[Listed], criterion: str) -> list[Point]:
    """Of the runs that measured the criterion, in the given order."""
    found = [(run, run.criteria[criterion]) for run in runs if criterion in run.criteria]
    return [Point(run, result, result.measured) for run, result in found if result.measured is not None]


def draw(shown: Sequence[Point]) -> dict[str, Markup]:
    """`wide` and `narrow`: the values in the order of the runs, with their intervals, as SVG."""
    return {size.name: Markup(_drawn(shown, size)) for size in (canvas.WIDE, canvas.NARROW)}


@canvas.drawing
def _drawn(shown: Sequence[Point], size: canvas.Size) -> str:
    if not shown:
        return canvas.blank(size, "No run has measured this.", "Nothing to show")
    figure, axes = canvas.plain_axes(size, _HEIGHT)
    canvas.grid(axes)
    axes.set_xlabel("runs, the newest on the right", fontsize=size.font, color=canvas.FAINT, labelpad=2)
    axes.set_xlim(-0.5, len(shown) - 0.5)
    axes.set_xticks([])
    for place, point in enumerate(shown):
        outcome = point.found.verdict.value
        colour = _COLOURS.get(outcome, canvas.GREY)
        if point.found.interval is not None:
            axes.plot([place, place], point.found.interval, color=colour, linewidth=2, alpha=0.55)
        axes.plot([place], [point.measured], marker=_MARKS.get(outcome, "D"), color=colour, markersize=7)
    measured = [point.measured for point in shown]
    axes.plot(range(len(shown)), measured, color=canvas.FAINT, linewidth=0.8, zorder=0)
    unit = shown[-1].found.unit
    return canvas.svg(figure, f"trend-{size.name}", f"{shown[-1].found.name} in {unit} over {len(shown)} runs")
