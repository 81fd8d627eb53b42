"""What was promised against what was measured: one page about many runs, as HTML, Markdown and text."""

from collections import Counter

import msgspec
from rich.console import Console
from rich.table import Table

from analysis import page
from analysis.canvas import clean
from analysis.rendering import html_template, markdown_template
from analysis.verdict import CriterionResult, Outcome

AIM = 0.95
"""The share of promises within their range that is aimed at."""
_JUDGED = (Outcome.PASS, Outcome.FAIL)
_TEXT_COLUMNS = 150


class Kept(msgspec.Struct, frozen=True):
    """A promise under one model. verdict: of the criterion, invalid when its run is. report: where to read on."""

    promise: str
    experiment: str
    model: str
    world: str
    verdict: Outcome
    criterion: CriterionResult
    report: str


class Baseline(msgspec.Struct, frozen=True):
    """A figure of one phase of an undisturbed or disturbed run, with its two-sided 95 % interval, in the unit."""

    phase: str
    metric: str
    unit: str
    value: float
    interval: tuple[float, float] | None
    samples: int


class Finding(msgspec.Struct, frozen=True):
    """A bottleneck that a run showed, and what to do. setting: a `--set` line to try, empty when there is none."""

    finding: str
    evidence: str
    remedy: str
    setting: str


class Run(msgspec.Struct, frozen=True):
    """One run of the suite. verdict: its outcome, or why there is none. results: its folder."""

    experiment: str
    model: str
    world: str
    verdict: str
    reason: str
    results: str
    baselines: list[Baseline] = []
    advice: list[Finding] = []


class PromisesReport(msgspec.Struct, frozen=True):
    """All of them."""

    kept: list[Kept]
    runs: list[Run]

    def share_kept(self) -> tuple[int, int]:
        """How many promises are within their range, of those about which the runs say something."""
        judged = [each for each in self.kept if each.verdict in _JUDGED]
        return sum(each.verdict is Outcome.PASS for each in judged), len(judged)

    def statement(self) -> str:
        """One sentence for the head of the page."""
        kept, judged = self.share_kept()
        if not judged:
            return "Nothing can be said yet: no run has measured a promise."
        share = kept / judged
        counts = Counter(each.verdict for each in self.kept if each.verdict not in _JUDGED)
        rest = ", ".join(f"{number} {outcome.value.replace('_', ' ')}" for outcome, number in counts.items())
        reached = "which reaches" if share >= AIM else "which misses"
        rest = f"; beside them {rest}" if rest else ""
        return f"{kept} of {judged} judged promises are kept, {share:.0%}, {reached} the aim of {AIM:.0%}{rest}."


def html(report: PromisesReport) -> str:
    """The page: one file that needs nothing else; it links to the reports of the runs beside it."""
    return html_template("promises.html.j2").render(report=report)


def markdown(report: PromisesReport) -> str:
    """The same in Markdown."""
    return markdown_template("promises.md.j2").render(report=report)


def text(report: PromisesReport) -> str:
    """The table of promises for a terminal."""
    table = Table(show_edge=False)
    for title in ("promise", "model", "measured", "interval", "limit", "verdict"):
        table.add_column(title, overflow="fold")
    for each in report.kept:
        found = each.criterion
        cells = (each.promise, each.model, page.quantity(found.measured, found.unit), page.interval(found))
        table.add_row(*(clean(cell) for cell in (*cells, page.limit(found), each.verdict.value)))
    console = Console(width=_TEXT_COLUMNS, color_system=None, markup=False)
    with console.capture() as captured:
        console.print(table)
    return f"{captured.get()}\n{report.statement()}\n"
