"""What all plots share: sizes, palette, one time axis with phases and fault windows, and SVG that follows the page.

Figures are drawn at one unit per CSS pixel. Colours leave here as CSS variables with a fallback, and ink as
`currentColor`, so that the page decides between light, dark and print.
"""

import functools
import re
import warnings
from collections.abc import Callable, Iterable
from html import escape
from io import StringIO
from typing import TypeVar

import matplotlib
import msgspec
import numpy as np
import numpy.typing as npt
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure
from matplotlib.patheffects import Normal, Stroke

from analysis.facts import fault_windows, run_end_s
from analysis.history import History, Phase
from analysis.text import clean as clean

Floats = npt.NDArray[np.float64]
T = TypeVar("T")

INK = "#010203"
FAINT = "#010204"
PAGE = "#010205"
# Okabe and Ito: told apart with every common colour blindness, and in grey by lightness.
BLUE, SKY, GREEN, ORANGE = "#0072b2", "#56b4e9", "#009e73", "#e69f00"
VERMILLION, PURPLE, YELLOW, GREY = "#d55e00", "#cc79a7", "#f0e442", "#8a8f98"
CSS_COLOURS: dict[str, str] = {
    INK: "currentColor",
    FAINT: "var(--plot-faint, #8a8f98)",
    PAGE: "var(--plot-page, #ffffff)",
    BLUE: "var(--plot-blue, #0072b2)",
    SKY: "var(--plot-sky, #56b4e9)",
    GREEN: "var(--plot-green, #009e73)",
    ORANGE: "var(--plot-orange, #e69f00)",
    VERMILLION: "var(--plot-vermillion, #d55e00)",
    PURPLE: "var(--plot-purple, #cc79a7)",
    YELLOW: "var(--plot-yellow, #f0e442)",
    GREY: "var(--plot-grey, #8a8f98)",
}
FAULT_COLOURS = (PURPLE, YELLOW, SKY, GREEN, ORANGE, GREY)
_FAULT_ROWS_MAX = 3
_ROW_PX = 15.0


class Size(msgspec.Struct, frozen=True):
    """A drawing size in CSS pixels: total width, the margins beside the axes, and the size of text."""

    name: str
    width: float
    left: float
    right: float
    font: float

    @property
    def axes_width(self) -> float:
        """Width of the axes between the margins."""
        return self.width - self.left - self.right

    def text_width(self, text: str) -> float:
        """Upper estimate of the width of a text, for a font that is not known here."""
        return 0.62 * self.font * len(text)


WIDE = Size("wide", 1000, 98, 50, 13)
NARROW = Size("narrow", 380, 66, 10, 11)


class Window(msgspec.Struct, frozen=True):
    """The time in which a fault was in place, its label, and its colour in every plot."""

    label: str
    colour: str
    start_s: float
    end_s: float


class TimeAxis(msgspec.Struct, frozen=True):
    """The common time axis of a run."""

    end_s: float
    phases: list[Phase]
    windows: list[Window]


def drawing(of: Callable[[T, Size], str]) -> Callable[[T, Size], str]:
    """Run a plot under settings of its own: neither a user's matplotlibrc nor another caller's changes reach it."""

    @functools.wraps(of)
    def settled(shown: T, size: Size) -> str:
        with matplotlib.rc_context():
            matplotlib.rcdefaults()
            matplotlib.rcParams.update({"svg.fonttype": "none", "svg.hashsalt": "mlx-chaos", "path.simplify": False})
            # A name with two dollar signs in it is a name, not mathematics.
            matplotlib.rcParams["text.parse_math"] = False
            return of(shown, size)

    return settled


def floats(frame: pd.DataFrame, column: str) -> Floats:
    """A column as floats; what is missing or no number becomes NaN."""
    return np.asarray(pd.to_numeric(frame[column], errors="coerce"), dtype=np.float64)


def time_axis(history: History) -> TimeAxis:
    """The time axis of a run: to the end of its last phase or the last thing recorded, whichever is later."""
    phases = history.phases()
    ends = [phase.end_s for phase in phases if np.isfinite(phase.end_s)]
    end_s = max([1.0, run_end_s(history), *ends])
    faults = fault_windows(history)
    names = list(dict.fromkeys(fault.name for fault in faults))
    windows = [
        Window(
            clean(f"{fault.kind} {', '.join(fault.targets)}", 40),
            FAULT_COLOURS[names.index(fault.name) % len(FAULT_COLOURS)],
            fault.injected_s,
            min(fault.healed_s, end_s),
        )
        for fault in faults
    ]
    return TimeAxis(end_s, phases, windows)


def over_time(size: Size, height: float, line: TimeAxis) -> tuple[Figure, Axes]:
    """A figure with axes of the given height over the whole run; phases and fault windows are already in it."""
    labels = _fault_labels(size, line)
    rows = 1 + max([row for *_, row in labels], default=-1) + 1
    top, bottom = rows * _ROW_PX + 6, 2.6 * size.font
    figure, axes = _figure(size, height, top, bottom)
    axes.set_xlim(0, line.end_s)
    axes.set_xlabel("seconds since the run began", fontsize=size.font, color=FAINT, labelpad=2)
    for window in line.windows:
        axes.axvspan(window.start_s, window.end_s, color=window.colour, alpha=0.16, linewidth=0, zorder=0)
        axes.plot(
            [window.start_s, window.end_s], [1, 1], transform=axes.get_xaxis_transform(), color=window.colour,
            linewidth=4, solid_capstyle="butt", clip_on=False, zorder=5,
        )  # fmt: skip
    for text, centre_s, row in labels:
        _above(axes, size, text, centre_s, row, INK)
    unit_px = size.axes_width / line.end_s
    for phase in line.phases:
        end_s = min(phase.end_s, line.end_s)
        if phase.start_s > 0:
            axes.axvline(phase.start_s, color=FAINT, linewidth=0.8, dashes=(2, 3), zorder=1)
        name = clean(phase.name, 24).replace("_", " ")
        if (end_s - phase.start_s) * unit_px >= size.text_width(name):
            _above(axes, size, name, (phase.start_s + end_s) / 2, rows - 1, FAINT)
    return figure, axes


def _above(axes: Axes, size: Size, text: str, at_s: float, row: int, colour: str) -> None:
    axes.annotate(
        text, (at_s, 1), xycoords=axes.get_xaxis_transform(), xytext=(0, 6 + row * _ROW_PX),
        textcoords="offset points", ha="center", va="bottom", fontsize=size.font, color=colour, annotation_clip=False,
    )  # fmt: skip


def _fault_labels(size: Size, line: TimeAxis) -> list[tuple[str, float, int]]:
    """Text, centre and row of the labels that find a place: each in the first row where it meets no other."""
    unit_px = size.axes_width / line.end_s
    taken: list[float] = []
    placed = []
    # A fault that comes and goes is named once; its colour says the rest.
    named = {(window.label, window.colour): window for window in reversed(line.windows)}
    for window in sorted(named.values(), key=lambda window: window.start_s):
        half_s = size.text_width(window.label) / 2 / unit_px
        centre_s = min(max((window.start_s + window.end_s) / 2, half_s), max(line.end_s - half_s, line.end_s / 2))
        row = next((row for row, end_s in enumerate(taken) if end_s <= centre_s - half_s), len(taken))
        if row < _FAULT_ROWS_MAX:
            taken[row : row + 1] = [centre_s + half_s]
            placed.append((window.label, centre_s, row))
    return placed


def plain_axes(size: Size, height: float) -> tuple[Figure, Axes]:
    """A figure with axes that have nothing to do with the time of the run."""
    return _figure(size, height, 10, 2.6 * size.font)


def _figure(size: Size, height: float, top: float, bottom: float) -> tuple[Figure, Axes]:
    total = height + top + bottom
    figure = Figure(figsize=(size.width / 72, total / 72), dpi=72)
    figure.patch.set_alpha(0)
    box = (size.left / size.width, bottom / total, size.axes_width / size.width, height / total)
    axes = figure.add_axes(box)
    axes.patch.set_alpha(0)
    for side in ("top", "right", "left"):
        axes.spines[side].set_visible(False)
    axes.spines["bottom"].set_color(FAINT)
    axes.tick_params(colors=INK, labelsize=size.font, length=3, color=FAINT, pad=3)
    axes.tick_params(axis="y", length=0)
    axes.set_axisbelow(True)
    return figure, axes


def grid(axes: Axes) -> None:
    """Faint horizontal lines at the ticks of the y axis."""
    axes.grid(axis="y", color=FAINT, alpha=0.35, linewidth=0.6)


def legible(axes: Axes, size: Size, text: str, at: tuple[float, float], colour: str, **options: object) -> None:
    """A label inside the plot, kept readable by a rim in the colour of the page."""
    label = axes.text(*at, text, fontsize=size.font, color=colour, **options)  # type: ignore[arg-type]
    label.set_path_effects([Stroke(linewidth=3, foreground=PAGE), Normal()])


def blank(size: Size, text: str, alternative: str) -> str:
    """The SVG of a plot that has nothing to show, and says so."""
    figure, axes = _figure(size, 40, 4, 4)
    axes.set_axis_off()
    axes.text(0.5, 0.5, text, ha="center", va="center", fontsize=size.font, color=FAINT, transform=axes.transAxes)
    return svg(figure, f"blank-{size.name}", alternative)


def is_blank(drawn: str) -> bool:
    """Whether a drawn plot only says that it has nothing to show."""
    return 'class="plot blank-' in drawn


def svg(figure: Figure, name: str, alternative: str) -> str:
    """The figure as one `<svg>` element for a page: same bytes for same figure, ids that start with the name."""
    written = StringIO()
    nothing = dict.fromkeys(("Date", "Creator", "Format", "Type"))
    # Text is laid out by the browser: a letter that the measuring font lacks does no harm.
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Glyph|Matplotlib currently does not support")
        FigureCanvasSVG(figure).print_svg(written, metadata=nothing)  # type: ignore[no-untyped-call]
    text = written.getvalue()
    text = text[text.index("<svg") :]
    text = re.sub(r"<metadata>.*?</metadata>|<style[^>]*>.*?</style>|<!--.*?-->", "", text, flags=re.DOTALL)
    text = _tags(text, lambda tag: _rewritten(tag, name))
    head = text.index(">")
    view = re.search(r'viewBox="[^"]*"', text[:head])
    opening = (
        f'<svg xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink" class="plot {name}" '
        f'{view.group(0) if view else ""} role="img" aria-label="{escape(clean(alternative))}" '
        'style="stroke-linejoin: round" font-family="system-ui, sans-serif">'
    )
    return re.sub(r"\n\s*\n+", "\n", opening + text[head + 1 :]).strip()


def _tags(text: str, change: Callable[[str], str]) -> str:
    """Apply a change to tags only: what stands between them are labels, to be left as they are."""
    return re.sub(r"<[^>]*>", lambda match: change(match.group(0)), text)


def _rewritten(tag: str, name: str) -> str:
    if tag.startswith("<g id="):
        return "<g/>" if tag.endswith("/>") else "<g>"
    tag = re.sub(r'\bid="', f'id="{name}-', tag)
    tag = tag.replace("url(#", f"url(#{name}-").replace('href="#', f'href="#{name}-')
    tag = re.sub(r"#[0-9a-f]{6}", lambda match: CSS_COLOURS.get(match.group(0), match.group(0)), tag)
    tag = re.sub(r"(\d+\.\d{2})\d+", r"\1", tag)
    return re.sub(r"(font: (?:bold )?[\d.]+px) [^;\"]+", r"\1 system-ui, sans-serif", tag)


def nice_bins(end_s: float, count_max: int = 150) -> Floats:
    """Edges of equal bins over the run: one second wide, or the next round number when there would be too many."""
    width = next((step for step in _steps() if end_s / step <= count_max), end_s)
    return np.arange(0, np.ceil(end_s / width) + 1, dtype=np.float64) * width


def _steps() -> Iterable[float]:
    return (factor * 10.0**power for power in range(6) for factor in (1, 2, 5))


def natural(name: str) -> list[tuple[int, str]]:
    """A sort key that puts worker-2 before worker-10."""
    return [(int(part), "") if part.isdecimal() else (-1, part) for part in re.split(r"(\d+)", name)]


def short(name: str, size: Size) -> str:
    """A node's name as it fits into the left margin."""
    return clean(name, max(4, int((size.left - 6) / (0.5 * size.font))))
