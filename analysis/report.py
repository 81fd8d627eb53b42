"""Reports of a run: a self-contained HTML page, Markdown, and JUnit XML for CI.

    python -m analysis.report DIR

judges the history in DIR anew, rewrites `verdict.json` and the three reports, and exits with the verdict's own code.
"""

import json
import os
import sys
import xml.etree.ElementTree as ElementTree
from collections.abc import Callable
from pathlib import Path

import jinja2
from markupsafe import Markup, escape

from analysis import canvas, page, plots
from analysis.history import History, UnreadableError, read_info
from analysis.judge import SUFFERED_MAX, judge, write_verdict
from analysis.reader import load_history
from analysis.salvage import salvage
from analysis.verdict import EXIT_CODES, Outcome, Verdict

TEMPLATES = Path(__file__).parent / "templates"
_TEXT_MAX = 600
# What Markdown would take for structure; HTML is escaped besides.
_MARKDOWN = {ord(character): f"&#{ord(character)};" for character in "|\\`*[]"}
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
        inline = {f"{plot.name}_{size}": Markup(getattr(plot, size)) for plot in drawn for size in ("wide", "narrow")}
        template = _environment(_for_html).get_template("report.html.j2")
        return template.render(self._content(), plots=drawn, svg=inline, css=canvas.CSS_COLOURS)

    def markdown(self) -> str:
        """The same in Markdown, without the plots."""
        return _environment(_for_markdown).get_template("report.md.j2").render(self._content())

    def junit(self) -> str:
        """The verdict as test cases, see `junit`."""
        return junit(self._verdict)

    def write(self, directory: Path) -> None:
        """Write `report.html`, `report.md` and `junit.xml` into a results directory."""
        for name, text in (("report.html", self.html()), ("report.md", self.markdown()), ("junit.xml", self.junit())):
            _replace(directory / name, text)

    def _content(self) -> dict[str, object]:
        history, verdict = self._history, self._verdict
        phases, recoveries = page.phase_rows(history), page.recoveries(history)
        return {
            "history": history,
            "info": history.info,
            "verdict": verdict,
            "title": page.title(history, verdict),
            "question": str(history.experiment.get("question") or "").strip(),
            "headline": page.HEADLINES[verdict.verdict],
            "figures": page.figures(verdict.counts, phases, recoveries[0] if recoveries else None),
            "phases": phases,
            "recoveries": recoveries,
            "suffered_max": SUFFERED_MAX,
            "suffered": page.suffered(history, verdict),
            "slowest": page.slowest(history),
            "environment": page.flattened(self._environment),
            "rerun": page.rerun(history),
        }


def write_report(directory: Path, history: History, verdict: Verdict, environment: dict[str, object]) -> None:
    """Write `report.html`, `report.md` and `junit.xml` of a judged run into its results directory."""
    PerformanceReporter(history, verdict, environment).write(directory)


def junit(verdict: Verdict) -> str:
    """The verdict as JUnit XML: a test case for each criterion and each invariant, and one for the whole.

    fail is a failure, invalid an error; an inconclusive or not applicable part is skipped, with its reason. The case
    of the whole is an error when it is inconclusive: a CI that reads only this file must not take that for a pass.
    """
    cases = [("criterion", item.name, item.verdict, item.explanation) for item in verdict.criteria]
    for invariant in verdict.invariants:
        lines = [f"{example.request_id} {example.node} {example.text}".strip() for example in invariant.examples]
        text = "\n".join([invariant.explanation, *lines])
        cases.append(("invariant", f"{invariant.number} {invariant.name}", invariant.verdict, text))
    suite = ElementTree.Element("testsuite", name=canvas.clean(f"{verdict.experiment} ({verdict.world})"))
    _case(suite, verdict, "verdict", "whole run", _whole(verdict.verdict), "\n".join(verdict.reasons))
    for kind, name, outcome, text in cases:
        tag = {Outcome.PASS: "", Outcome.FAIL: "failure", Outcome.INVALID: "error"}.get(outcome, "skipped")
        _case(suite, verdict, kind, name, tag, text, outcome)
    suite.set("tests", str(len(cases) + 1))
    for tag, attribute in (("failure", "failures"), ("error", "errors"), ("skipped", "skipped")):
        suite.set(attribute, str(len(suite.findall(f"testcase/{tag}"))))
    root = ElementTree.Element("testsuites")
    root.append(suite)
    ElementTree.indent(root)
    return ElementTree.tostring(root, encoding="unicode", xml_declaration=False) + "\n"


def _whole(outcome: Outcome) -> str:
    return {Outcome.PASS: "", Outcome.FAIL: "failure"}.get(outcome, "error")


def _case(
    suite: ElementTree.Element, verdict: Verdict, kind: str, name: str, tag: str, text: str, outcome: str | None = None
) -> None:
    place = canvas.clean(f"{verdict.experiment}.{kind}")
    case = ElementTree.SubElement(suite, "testcase", classname=place, name=canvas.clean(name), time="0")
    if tag:
        lines = [canvas.clean(line, _TEXT_MAX) for line in text.splitlines() or [""]]
        mark = ElementTree.SubElement(case, tag, message=lines[0])
        if tag != "skipped":
            mark.set("type", outcome or verdict.verdict)
        mark.text = "\n".join(lines)


def _environment(shown: Callable[[object], object]) -> jinja2.Environment:
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(TEMPLATES), autoescape=True, finalize=shown, trim_blocks=True,
        lstrip_blocks=True, undefined=jinja2.StrictUndefined, keep_trailing_newline=True,
    )  # fmt: skip
    environment.filters.update(
        seconds=page.seconds, clock=page.clock, percent=page.percent, interval=page.interval, limit=page.limit,
        measured=lambda criterion: page.quantity(criterion.measured, criterion.unit), flattened=page.flattened,
        sentence=page.sentence, words=lambda text: str(text).replace("_", " "),
        # Nothing is structure in an indented block, and entities would show as such.
        verbatim=lambda text: Markup(canvas.clean(text, _TEXT_MAX)),
    )  # fmt: skip
    return environment


def _for_html(value: object) -> object:
    return value if isinstance(value, Markup) else canvas.clean(value, _TEXT_MAX)


def _for_markdown(value: object) -> Markup:
    return Markup(str(escape(canvas.clean(value, _TEXT_MAX))).replace("&#39;", "'").translate(_MARKDOWN))


def _replace(path: Path, text: str) -> None:
    """Write the whole file or leave the old one: a full disk must not leave half a report."""
    half = path.with_name(f".{path.name}.part")
    half.write_text(text, encoding="utf-8")
    os.replace(half, path)


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
            print(note, file=sys.stderr)
        history = load_history(directory)
        verdict = judge(history)
        write_verdict(directory, verdict)
        write_report(directory, history, verdict, _read_environment(directory))
    except (UnreadableError, OSError) as error:
        print(f"analysis.report: {error}", file=sys.stderr)
        return _USAGE
    reason = f": {canvas.clean(verdict.reasons[0])}" if verdict.reasons else ""
    print(f"{verdict.verdict.value}{reason}\n{directory / 'report.html'}")
    return EXIT_CODES[verdict.verdict]


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
