"""Reports of a run: a self-contained HTML page, Markdown, and JUnit XML for CI.

    python -m analysis.report DIR

judges the history in DIR anew, rewrites `verdict.json` and the three reports, and exits with the verdict's own code.
"""

import json
import sys
import xml.etree.ElementTree as ElementTree
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path

from markupsafe import Markup

from analysis import arms_view, canvas, page, plots, usage, whisker
from analysis.advice import Advice, advise
from analysis.episodes import episodes
from analysis.history import History, UnreadableError, read_info
from analysis.judge import SUFFERED_MAX, judge, write_verdict
from analysis.reader import load_history
from analysis.recovery_view import recovery_view
from analysis.rendering import TEXT_MAX, html_template, markdown_template
from analysis.salvage import salvage
from analysis.time_shares import PARTS
from analysis.verdict import EXIT_CODES, Outcome, Verdict
from analysis.whole_file import write_whole
from analysis.workers_view import worker_rows

_USAGE = 2


class PerformanceReporter:
    """Writes the reports of one run."""

    def __init__(self, history: History, verdict: Verdict, environment: dict[str, object]) -> None:
        self._history = history
        self._verdict = verdict
        self._environment = environment

    def html(self) -> str:
        """The page: one file that needs nothing else."""
        drawn = plots.draw(self._history)
        gained = arms_view.gain_plot(self._history)
        inline = {
            f"{plot.name}_{size}": Markup(getattr(plot, size))
            for plot in [*drawn, *gained]
            for size in ("wide", "narrow")
        }
        template = html_template("report.html.j2")
        return template.render(
            self._content, plots=drawn, gained=gained, svg=inline, css=canvas.CSS_COLOURS,
            whiskers=[whisker.draw(criterion) for criterion in self._verdict.criteria],
        )  # fmt: skip

    def markdown(self) -> str:
        """The same in Markdown, without the plots."""
        return markdown_template("report.md.j2").render(self._content)

    def junit(self) -> str:
        """The verdict as test cases, see `junit`."""
        return junit(self._verdict, self._advice)

    def write(self, directory: Path) -> None:
        """Write `report.html`, `report.md` and `junit.xml` into a results directory."""
        for name, text in (("report.html", self.html()), ("report.md", self.markdown()), ("junit.xml", self.junit())):
            write_whole(directory / name, text)

    @cached_property
    def _advice(self) -> list[Advice]:
        return advise(self._history)

    @cached_property
    def _content(self) -> dict[str, object]:
        history, verdict = self._history, self._verdict
        phases = page.phase_rows(history)
        recovery = recovery_view(history, verdict.episodes or episodes(history))
        shares, ratios = page.share_bars(history), arms_view.ratio_rows(history, verdict)
        more = arms_view.ratio_figures(ratios)
        if not more and not verdict.faults:
            more = page.calm_figures(phases)
        return {
            "history": history,
            "info": history.info,
            "verdict": verdict,
            "title": page.title(history, verdict),
            "advice": self._advice,
            "shares": shares,
            "parts": PARTS,
            "shown_parts": {part for bar in shares for part, share, _ in bar.parts if share > page.SHARE_MIN},
            "part_colours": page.PART_COLOURS,
            "workers": worker_rows(history),
            "unmeasured": usage.unmeasured(history),
            "arms": arms_view.arm_rows(history),
            "arm_columns": list(arms_view.COLUMNS.values()),
            "ratios": ratios,
            "gain": arms_view.gain(history),
            "question": str(history.experiment.get("question") or "").strip(),
            "headline": page.HEADLINES[verdict.verdict],
            "figures": [*page.figures(verdict.counts, phases), *(recovery.figures() if recovery else []), *more],
            "phases": phases,
            "recovery": recovery,
            "suffered_max": SUFFERED_MAX,
            "suffered": page.suffered(history, verdict),
            "slowest": page.slowest(history),
            "environment": page.flattened(self._environment),
            "rerun": page.rerun(history),
        }


def write_report(directory: Path, history: History, verdict: Verdict, environment: dict[str, object]) -> None:
    """Write `report.html`, `report.md` and `junit.xml` of a judged run into its results directory."""
    PerformanceReporter(history, verdict, environment).write(directory)


def junit(verdict: Verdict, advice: Sequence[Advice] = ()) -> str:
    """The verdict as JUnit XML: a test case for each criterion and each invariant, and one for the whole.

    advice: printed as the output of the suite, where it changes no outcome.

    fail is a failure, invalid an error; an inconclusive or not applicable part is skipped, with its reason. The case
    of the whole is an error when it is inconclusive: a CI that reads only this file must not take that for a pass.
    """
    cases = [("criterion", item.name, item.verdict, item.explanation) for item in verdict.criteria]
    for invariant in verdict.invariants:
        lines = [f"{example.request_id} {example.node} {example.text}".strip() for example in invariant.examples]
        text = "\n".join([invariant.explanation, *lines])
        cases.append(("invariant", f"{invariant.number} {invariant.name}", invariant.verdict, text))
    where = verdict.setting().replace(" world", "")
    suite = ElementTree.Element("testsuite", name=canvas.clean(f"{verdict.experiment} ({where})"))
    _case(suite, verdict, "verdict", "whole run", _whole(verdict.verdict), "\n".join(verdict.reasons))
    for kind, name, outcome, text in cases:
        tag = {Outcome.PASS: "", Outcome.FAIL: "failure", Outcome.INVALID: "error"}.get(outcome, "skipped")
        _case(suite, verdict, kind, name, tag, text, outcome)
    suite.set("tests", str(len(cases) + 1))
    for tag, attribute in (("failure", "failures"), ("error", "errors"), ("skipped", "skipped")):
        suite.set(attribute, str(len(suite.findall(f"testcase/{tag}"))))
    if advice:
        told = ElementTree.SubElement(suite, "system-out")
        told.text = "\n".join(canvas.clean(_advised(each), TEXT_MAX) for each in advice)
    root = ElementTree.Element("testsuites")
    root.append(suite)
    ElementTree.indent(root)
    return ElementTree.tostring(root, encoding="unicode", xml_declaration=False) + "\n"


def _advised(advice: Advice) -> str:
    text = f"advice: {advice.finding}: {advice.evidence}. {advice.remedy}"
    return f"{text}: {advice.setting}" if advice.setting else text


def _whole(outcome: Outcome) -> str:
    return {Outcome.PASS: "", Outcome.FAIL: "failure"}.get(outcome, "error")


def _case(
    suite: ElementTree.Element, verdict: Verdict, kind: str, name: str, tag: str, text: str, outcome: str | None = None
) -> None:
    place = canvas.clean(f"{verdict.experiment}.{kind}")
    case = ElementTree.SubElement(suite, "testcase", classname=place, name=canvas.clean(name), time="0")
    if tag:
        lines = [canvas.clean(line, TEXT_MAX) for line in text.splitlines() or [""]]
        mark = ElementTree.SubElement(case, tag, message=lines[0])
        if tag != "skipped":
            mark.set("type", outcome or verdict.verdict)
        mark.text = "\n".join(lines)


def _read_environment(directory: Path) -> dict[str, object]:
    """`environment.json`, or a remark in its place: a report is worth having without it."""
    try:
        read = json.loads((directory / "environment.json").read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        return {"environment.json": f"not readable: {type(error).__name__}"}
    return read if isinstance(read, dict) else {"environment.json": "not a mapping"}


def main(arguments: list[str]) -> int:
    """Remake the verdict and the reports of a results directory. Returns the exit code."""
    if len(arguments) != 1 or arguments[0].startswith("-"):
        print("usage: python -m analysis.report DIR", file=sys.stderr)
        return _USAGE
    directory = Path(arguments[0])
    try:
        # Asked first: it tells best that a directory is not one of results.
        read_info(directory)
        for note in salvage(directory):
            print(canvas.clean(note), file=sys.stderr)
        history = load_history(directory)
        verdict = judge(history)
        write_verdict(directory, verdict)
        write_report(directory, history, verdict, _read_environment(directory))
    except (UnreadableError, OSError) as error:
        print(f"analysis.report: {canvas.clean(error)}", file=sys.stderr)
        return _USAGE
    reason = f": {canvas.clean(verdict.reasons[0])}" if verdict.reasons else ""
    print(f"{verdict.verdict.value}{reason}\n{directory / 'report.html'}")
    return EXIT_CODES[verdict.verdict]


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
