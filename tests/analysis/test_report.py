"""Reports say what the verdict says, stand alone, and let no stranger's text become markup."""

import json
import xml.etree.ElementTree as ElementTree
from html.parser import HTMLParser
from pathlib import Path

import msgspec
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml

from analysis import page, report
from analysis.tables import SCHEDULE_SCHEMA, SCHEMAS
from analysis.verdict import EXIT_CODES, CriterionResult, FaultResult, InvariantResult, Outcome, Violation
from tests.analysis.report_fixture import ENVIRONMENT, empty_history, history, verdict
from tests.analysis.timed_run import timed_run

VOID = {"meta", "link", "br", "img", "hr", "input"}
HOSTILE = "<script>alert(1)</script>\"'><img src=x onerror=y> | `a` [b](javascript:c) \u202e\x07\n# h " + "x" * 3000


class Balance(HTMLParser):
    """Checks that tags nest, and remembers tags, ids and what an address could be in."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[str] = []
        self.ids: list[str] = []
        self.addresses: list[str] = []
        self.feed(text)
        self.close()
        assert not self.open, self.open

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        if tag not in VOID:
            self.open.append(tag)
        self._note(attrs)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self._note(attrs)

    def handle_endtag(self, tag: str) -> None:
        assert self.open, tag
        assert self.open.pop() == tag

    def _note(self, attrs: list[tuple[str, str | None]]) -> None:
        assert not [name for name, _ in attrs if name.startswith("on")]
        self.ids += [value for name, value in attrs if name == "id" and value]
        self.addresses += [value or "" for name, value in attrs if name in {"href", "src", "xlink:href", "action"}]


def _reporter(outcome: Outcome = Outcome.PASS, *, complete: bool = True) -> report.PerformanceReporter:
    run = history(complete=complete)
    return report.PerformanceReporter(run, verdict(run, outcome), ENVIRONMENT)


@pytest.fixture(scope="module")
def html() -> str:
    return _reporter().html()


def test_the_page_is_well_formed_and_needs_nothing_else(html: str) -> None:
    read = Balance(html)
    assert len(read.ids) == len(set(read.ids))
    assert "script" not in read.tags
    assert all(address.startswith("#") or address == "data:," for address in read.addresses)
    assert set(read.addresses) - {"data:,"} <= {f"#{name}" for name in read.ids}
    bare = html.replace('xmlns="http://www.w3.org/2000/svg"', "").replace(
        'xmlns:xlink="http://www.w3.org/1999/xlink"', ""
    )
    assert "http://" not in bare
    assert "https://" not in bare
    assert "@import" not in bare


def test_the_first_screen_says_what_was_found(html: str) -> None:
    first = html[: html.index("<main>")]
    for text in ("A node is cut off from NATS", "is the loss detected", "pass</p>", "requests offered during the fault",
                 "Offered", "Success in fault", "Median latency", "Detection", "Mitigation", "1.20 s"):  # fmt: skip
        assert text in first
    assert html.index('id="plots"') < html.index('id="criteria"') < html.index('id="invariants"')


def test_evidence_examples_and_who_suffered_are_shown(html: str) -> None:
    for text in ("pings lost", "attempt 1 was executed twice", "DEADLINE_EXCEEDED", "3.11.9", "packages.mlx",
                 "capacity probe", "python -m analysis.report results/20260101-120000-network_partition"):  # fmt: skip
        assert text in html


def test_reports_are_the_same_each_time(html: str) -> None:
    again = _reporter()
    assert again.html() == html
    assert again.markdown() == _reporter().markdown()


def test_an_incomplete_run_says_so_before_the_verdict() -> None:
    reporter = _reporter(Outcome.INVALID, complete=False)
    page_text = reporter.html()
    Balance(page_text)
    assert page_text.index("This run is incomplete") < page_text.index('class="badge"')
    assert "signal SIGINT" in page_text
    assert "This run is incomplete" in reporter.markdown()
    assert 'class="verdict invalid"' in page_text


def test_a_run_in_which_nothing_happened_has_a_report() -> None:
    run = empty_history()
    bare = msgspec.structs.replace(
        verdict(run, Outcome.INCONCLUSIVE), reasons=[], criteria=[], invariants=[], faults=[]
    )
    reporter = report.PerformanceReporter(run, bare, {})
    Balance(reporter.html())
    assert "No request was recorded." in reporter.html()
    assert "No fault was injected." in reporter.html()
    assert reporter.markdown().startswith("# INCONCLUSIVE")
    ElementTree.fromstring(reporter.junit())


def test_hostile_text_stays_text_everywhere() -> None:
    run = history(workers=(HOSTILE, "worker-1"))
    completed = run.requests["outcome"] == "completed"
    ids = run.requests["request_id"].where(completed, HOSTILE)
    run = msgspec.structs.replace(
        run,
        experiment={"title": HOSTILE, "question": HOSTILE},
        requests=run.requests.assign(request_id=ids, code=HOSTILE),
        info=msgspec.structs.replace(run.info, run_id=HOSTILE, ended_by=HOSTILE, notes=[HOSTILE], complete=False),
    )
    bad = msgspec.structs.replace(
        verdict(run),
        experiment=HOSTILE,
        reasons=[HOSTILE],
        criteria=[CriterionResult(HOSTILE, Outcome.FAIL, 1.0, HOSTILE, HOSTILE, 1, None, HOSTILE)],
        invariants=[InvariantResult(1, HOSTILE, Outcome.FAIL, 1, HOSTILE, [Violation(1.0, HOSTILE, HOSTILE, HOSTILE)])],
        faults=[FaultResult(HOSTILE, HOSTILE, 1.0, True, 2.0, {HOSTILE: [HOSTILE, {HOSTILE: HOSTILE}]})],
        suffered=[HOSTILE, "unknown"],
    )
    reporter = report.PerformanceReporter(run, bad, {HOSTILE: {HOSTILE: HOSTILE}})
    html = reporter.html()
    read = Balance(html)
    assert "script" not in read.tags
    assert "img" not in read.tags
    assert "\u202e" not in html
    assert "\x07" not in html
    assert "x" * 2000 not in html
    _check_markdown(reporter.markdown())
    assert "alert(1)" in str(ElementTree.fromstring(reporter.junit())[0].get("name"))


def _check_markdown(markdown: str) -> None:
    prose = [line for line in markdown.splitlines() if not line.startswith("    ")]
    assert not [line for line in prose if "<script" in line or "<img" in line or "[b](" in line]
    width = 0
    for line in prose:
        if not line.startswith("|"):
            width = 0
            continue
        width = width or line.count("|")
        assert line.count("|") == width, line[:80]
    assert not [line for line in prose if line.startswith("# h")]


def test_junit_counts_what_ci_must_see() -> None:
    suite = ElementTree.fromstring(_reporter(Outcome.FAIL).junit())[0]
    assert suite.get("tests") == "9"
    assert suite.get("failures") == "3"
    assert suite.get("skipped") == "2"
    assert suite.get("errors") == "0"
    cases = {case.get("name"): case for case in suite}
    assert cases["whole run"].find("failure") is not None
    assert cases["baseline.latency"].find("skipped") is not None
    assert "executed twice" in str(cases["5 nothing superseded is delivered"].findtext("failure"))


@pytest.mark.parametrize("outcome", [Outcome.INVALID, Outcome.INCONCLUSIVE])
def test_junit_takes_nothing_unshown_for_a_pass(outcome: Outcome) -> None:
    suite = ElementTree.fromstring(_reporter(outcome).junit())[0]
    assert suite.find("testcase/error") is not None


def test_files_are_written_whole(tmp_path: Path) -> None:
    run = history()
    report.write_report(tmp_path, run, verdict(run), ENVIRONMENT)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["junit.xml", "report.html", "report.md"]
    assert (tmp_path / "report.html").stat().st_size < 1_000_000


@pytest.mark.parametrize("arguments", [[], ["--help"], ["a", "b"]])
def test_wrong_usage_is_one_line_and_exit_code_2(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert report.main(arguments) == 2
    assert capsys.readouterr().err.count("\n") == 1


def test_a_directory_without_a_run_is_one_line_and_exit_code_2(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert report.main([str(tmp_path / "nowhere")]) == 2
    written = capsys.readouterr()
    assert written.out == ""
    assert written.err.count("\n") == 1


def test_the_command_judges_anew_and_ends_with_the_code_of_the_verdict(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = history()
    for name, schema in {**SCHEMAS, "schedule": SCHEDULE_SCHEMA}.items():
        table = pa.Table.from_pandas(getattr(run, name), schema=schema, preserve_index=False)
        pq.write_table(table, tmp_path / f"{name}.parquet")
    (tmp_path / "run.json").write_bytes(msgspec.json.encode(run.info))
    (tmp_path / "experiment.yaml").write_text(yaml.safe_dump(run.experiment))
    code = report.main([str(tmp_path)])
    judged = json.loads((tmp_path / "verdict.json").read_text())
    assert code == EXIT_CODES[Outcome(judged["verdict"])]
    written = capsys.readouterr().out
    assert written.startswith(judged["verdict"])
    assert str(tmp_path / "report.html") in written
    Balance((tmp_path / "report.html").read_text())


def test_an_unreadable_environment_does_not_cost_the_report(tmp_path: Path) -> None:
    assert "not readable" in str(report._read_environment(tmp_path))
    (tmp_path / "environment.json").write_text(json.dumps(["a"]))
    assert report._read_environment(tmp_path) == {"environment.json": "not a mapping"}


@pytest.mark.parametrize(
    ("value", "shown"),
    [(1.0, "100 %"), (0.99999, "99.999 %"), (0.9903, "99.03 %"), (0.5, "50.0 %"), (0.0, "0 %"), (None, "–")],
)
def test_a_share_is_never_rounded_up_to_all(value: float | None, shown: str) -> None:
    assert page.percent(value) == shown


@pytest.mark.parametrize(
    ("value", "shown"), [(0.0123, "12 ms"), (0.9996, "1.00 s"), (12.34, "12.3 s"), (float("nan"), "–"), (None, "–")]
)
def test_durations_have_few_digits(value: float | None, shown: str) -> None:
    assert page.seconds(value) == shown


def test_what_to_do_is_in_every_report() -> None:
    run = timed_run(queue=0.2, batch=7.5).history()
    reporter = report.PerformanceReporter(run, verdict(run), {})
    html, markdown = reporter.html(), reporter.markdown()
    Balance(html)
    assert html.index("<main>") < html.index('id="advice"') < html.index('id="plots"')
    for text in (html, markdown.replace("&#95;", "_"), reporter.junit()):
        assert "waiting for their turn" in text
        assert "--set policy.worker.batch_max=16" in text
    suite = ElementTree.fromstring(reporter.junit())[0]
    assert suite.find("system-out") is not None
    assert suite.get("tests") == str(len(suite.findall("testcase")))


def test_nothing_to_do_is_said(html: str) -> None:
    assert "Nothing stands out." in report.PerformanceReporter(empty_history(), verdict(empty_history()), {}).html()
    assert "Not measured in this run: <bdi>GPU (no counter here)</bdi>." in html


def test_arms_are_shown_side_by_side_with_their_ratios_to_one_scale() -> None:
    made = timed_run(requests=60, arms=("before", "after"))
    made.experiment |= {
        "comparison": {"phase": "measure", "by": "sessions"},
        "expectations": {"faster": {"metric": "latency_p50_s", "arm": "after", "versus": "before", "at_most": 0.9}},
    }
    run = made.history()
    ratio = CriterionResult("faster", Outcome.PASS, 0.5, "<= 0.9", "", 30, (0.4, 0.6), "")
    judged = msgspec.structs.replace(verdict(run), criteria=[ratio], faults=[])
    reporter = report.PerformanceReporter(run, judged, {})
    html = reporter.html()
    Balance(html)
    assert html.index('id="criteria"') < html.index('id="arms"') < html.index('id="invariants"')
    assert "× 0.5" in html[: html.index("<main>")]
    assert "Latency by arm" in html
    _check_markdown(reporter.markdown())
    assert "## Arms, side by side" in reporter.markdown()


def test_the_commands_that_repeat_a_run_are_lines_of_their_own(html: str) -> None:
    shown = html.partition("<pre><code>")[2].partition("</code></pre>")[0].splitlines()
    assert [line.split()[:3] for line in shown] == [["python", "-m", "chaos.run"], ["python", "-m", "analysis.report"]]
