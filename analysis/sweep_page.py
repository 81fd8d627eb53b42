"""The report of a sweep: one page about many runs, as HTML, Markdown and text."""

from markupsafe import Markup

from analysis import canvas, page
from analysis.rendering import html_template, markdown_template
from analysis.scaling import Interval
from analysis.sweep_plots import draw
from analysis.sweep_view import Series, SweepReport

TIMED = (
    "Timed engine: no model was computed. Processes, links, broker and controller were real; the workers only took the "
    "time that a cost model says. This is no measurement of MLX."
)
_WORST_FIRST = ("invalid", "fail", "inconclusive", "pass")


def html(report: SweepReport) -> str:
    """The page: one file that needs nothing else; it links to the reports of the runs beside it."""
    plots = draw(report)
    inline = {f"{plot.name}_{size}": Markup(getattr(plot, size)) for plot in plots for size in ("wide", "narrow")}
    return html_template("sweep.html.j2").render(_content(report), plots=plots, svg=inline, css=canvas.CSS_COLOURS)


def markdown(report: SweepReport) -> str:
    """The same in Markdown, without the plots."""
    return markdown_template("sweep.md.j2").render(_content(report))


def text(report: SweepReport) -> str:
    """What a terminal is told at the end."""
    lines = [TIMED] if report.is_timed else []
    lines += [*report.statements, *(law(each) for each in report.series), *report.limits, *report.notes]
    lines += [f"missing: {each.name}: {each.why}" for each in report.missing[:20]]
    return "".join(f"{canvas.clean(line)}\n" for line in lines)


def law(series: Series) -> str:
    """The fitted law of a series in one line, or why there is none."""
    found = series.law
    if found is None:
        return f"{series.label}: no scaling law is fitted, for there are {series.no_law}."
    said = (
        f"{series.label}: fitted universal scalability law: {_number(found.each)} requests/s from one worker, "
        f"contention {_number(found.contention)} ({between(found.contention_interval)}), "
        f"coherence {_number(found.coherence)} ({between(found.coherence_interval)})"
    )
    if found.peak is None or found.peak > 1e4:
        said += ", no peak"
    else:
        told = between(found.peak_interval) if found.peak_interval is not None else "with no upper limit"
        said += f", highest at {found.peak:.1f} workers ({told})"
    return f"{said}; off by {found.error:.1%} (root mean square)."


def between(interval: Interval | None) -> str:
    """An interval as a phrase, `–` where there is none."""
    return "–" if interval is None else f"{_number(interval[0])} to {_number(interval[1])}"


def share_between(interval: Interval | None) -> str:
    """An interval of shares as a phrase."""
    return "–" if interval is None else f"{interval[0]:.0%} to {interval[1]:.0%}"


def worst(verdicts: dict[str, int]) -> str:
    """The worst verdict of a point's runs."""
    return next((name for name in _WORST_FIRST if name in verdicts), "inconclusive")


def _number(value: float) -> str:
    return f"{value:.3g}" if abs(value) >= 1e-6 else "0"


def _content(report: SweepReport) -> dict[str, object]:
    return {
        "report": report,
        "timed": TIMED,
        "law": law,
        "between": between,
        "share_between": share_between,
        "worst": worst,
        "seconds": page.seconds,
        "where": f"{report.world} world, {report.engine} engine",
    }
