"""What a report shows of a comparison: arms side by side, their ratios, and the gain over the length of prefixes."""

import msgspec
import numpy as np
from markupsafe import Markup
from matplotlib.ticker import FixedLocator, FuncFormatter, NullLocator

from analysis import canvas, page, whisker
from analysis.arms import arm_names, measure_arm
from analysis.canvas import BLUE, FAINT, INK, VERMILLION, Size
from analysis.facts import CannotJudge, offered
from analysis.history import History
from analysis.metrics import METRICS
from analysis.page import Figure
from analysis.plots import Plot
from analysis.prefix_gain import PrefixGain, prefix_gain
from analysis.time_shares import arm_of
from analysis.verdict import CriterionResult, Verdict

CONFIDENCE = 0.95
FIGURES_MAX = 6
COLUMNS = {
    "success_rate": "Success",
    "latency_p50_s": "Median",
    "latency_p95_s": "p95",
    "ttft_p50_s": "First token, median",
    "inter_token_p50_s": "Between tokens, median",
    "throughput_tokens_per_s": "Tokens/s",
    "request_batch_mean": "Mean batch",
    "prefix_hit_rate": "Prefix found",
}


class ArmRow(msgspec.Struct, frozen=True):
    """One arm: how many requests it was offered, and the metrics of COLUMNS with their units.

    A value is None where the data do not support one.
    """

    name: str
    requests: int
    values: list[tuple[float | None, str]]


class Ratio(msgspec.Struct, frozen=True):
    """A criterion that is the ratio of two arms. drawing: all ratios of a report are drawn to one scale."""

    criterion: CriterionResult
    metric: str
    arm: str
    versus: str
    drawing: Markup = Markup("")


def arm_rows(history: History) -> list[ArmRow]:
    """The arms of a comparison over its phase, in the order of the experiment; none without one."""
    comparison = history.experiment.get("comparison")
    phase = str(comparison["phase"]) if isinstance(comparison, dict) and "phase" in comparison else None
    counted = offered(history)["request_id"].map(arm_of(history)).value_counts()
    rows = []
    for name in arm_names(history):
        values = []
        for metric in COLUMNS:
            try:
                value = measure_arm(history, METRICS[metric], name, phase, CONFIDENCE).value
            except CannotJudge:
                value = None
            values.append((value, METRICS[metric].unit))
        rows.append(ArmRow(name, int(counted.get(name, 0)), values))
    return rows


def ratio_rows(history: History, verdict: Verdict) -> list[Ratio]:
    """The criteria that compare two arms and have a value, in the order of the verdict."""
    expectations = history.experiment.get("expectations")
    asked = expectations if isinstance(expectations, dict) else {}
    found = []
    for criterion in verdict.criteria:
        told = asked.get(criterion.name)
        if isinstance(told, dict) and told.get("versus") and criterion.measured is not None:
            metric = str(told.get("metric", "")).replace("_per_s", "/s").removesuffix("_s").replace("_", " ")
            found.append(Ratio(criterion, metric, str(told.get("arm", "")), str(told["versus"])))
    scale = whisker.scale_of([ratio.criterion for ratio in found], ratios=True)
    return [msgspec.structs.replace(ratio, drawing=whisker.draw(ratio.criterion, scale)) for ratio in found]


def ratio_figures(ratios: list[Ratio]) -> list[Figure]:
    """The first ratios as key figures."""
    return [
        Figure(
            f"{ratio.metric}, {ratio.arm.replace('_', ' ')} / {ratio.versus.replace('_', ' ')}",
            f"× {ratio.criterion.measured:.3g}",
            f"limit {page.limit(ratio.criterion)}",
        )
        for ratio in ratios[:FIGURES_MAX]
    ]


def gain(history: History) -> PrefixGain | None:
    """The gain over the prefix length; None where the run compares no such arms or recorded too little."""
    try:
        return prefix_gain(history)
    except CannotJudge:
        return None


def gain_plot(history: History) -> list[Plot]:
    """The gain as a plot, in a list of one; of none where nothing was measured."""
    if gain(history) is None:
        return []
    title = "Gain by length of the shared prefix"
    caption = "How much lower the median latency is where the session's cache is found; lines are 95 % intervals."
    wide, narrow = draw_gain(history, canvas.WIDE), draw_gain(history, canvas.NARROW)
    return [Plot("gain", "arms", title, caption, f"{title}. {caption}", [], wide, narrow)]


@canvas.drawing
def draw_gain(history: History, size: Size) -> str:
    """Gain in latency by the length of the shared prefix, with intervals, and the gain that was promised."""
    alternative = "Gain in median latency by length of the shared prefix"
    found = gain(history)
    if found is None:
        return canvas.blank(size, "No gain over prefix length was measured.", alternative)
    figure, axes = canvas.plain_axes(size, 210)
    tokens = np.array([point.tokens for point in found.points])
    gains = np.array([point.gain for point in found.points])
    low, high = (np.array([point.interval[side] for point in found.points]) for side in (0, 1))
    axes.set_xscale("log")
    axes.set_xlim(tokens.min() / 1.15, tokens.max() * 1.15)
    axes.axhline(0, color=FAINT, linewidth=0.8)
    axes.axhline(found.enough, color=VERMILLION, linewidth=1.4, linestyle=(0, (5, 2)))
    axes.vlines(tokens, low, high, color=BLUE, linewidth=2)
    axes.plot(tokens, gains, color=BLUE, linewidth=1.2, marker="o", markersize=6)
    canvas.legible(
        axes, size, f"{found.enough:.0%} promised", (tokens.min() / 1.13, found.enough + 0.01), INK, va="bottom"
    )
    axes.set_ylim(min(-0.05, float(low.min()) - 0.03), max(1.0, float(high.max()) + 0.03))
    axes.xaxis.set_major_locator(FixedLocator([float(2**power) for power in range(3, 18)]))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.0f}"))
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:.0%}"))
    axes.set_xlabel("tokens of the shared prefix", fontsize=size.font, color=FAINT, labelpad=2)
    canvas.grid(axes)
    return canvas.svg(figure, f"gain-{size.name}", alternative)
