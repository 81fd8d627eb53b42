"""What was promised against what is measured: every promise is a criterion, and the page counts those kept."""

from pathlib import Path

import msgspec
import pytest
import yaml

from analysis.page import quantity
from analysis.promises_page import AIM, Kept, PromisesReport, Run, html, markdown, text
from analysis.verdict import CriterionResult, Outcome
from chaos.experiment import catalogue
from chaos.playing import profile_of
from chaos.promises import PROMISES
from chaos.suite import main
from tests.chaos.simulated_runs import SHORT

HOSTILE = "<script>alert(1)</script>"


def kept(outcome: Outcome, promise: str = "It holds") -> Kept:
    found = CriterionResult("latency", outcome, 0.25, "<= 0.6", "ratio", 40, (0.2, 0.3), "seen in 40 pairs")
    return Kept(promise, "sticky_sessions", "tiny", "simulated", outcome, found, "where/report.html")


@pytest.mark.parametrize("promise", PROMISES, ids=lambda promise: f"{promise.experiment}-{promise.criterion}")
def test_a_promise_is_an_expectation_of_its_experiment(promise: object) -> None:
    assert promise.criterion in yaml.safe_load(catalogue()[promise.experiment].read_text())["expectations"]  # type: ignore[attr-defined]


def test_what_says_nothing_does_not_count_as_kept_or_broken() -> None:
    outcomes = [Outcome.PASS] * 19 + [Outcome.FAIL, Outcome.INCONCLUSIVE, Outcome.INVALID, Outcome.NOT_APPLICABLE]
    report = PromisesReport([kept(outcome) for outcome in outcomes], [])
    assert report.share_kept() == (19, 20)
    assert report.share_kept()[0] / report.share_kept()[1] == AIM
    assert "19 of 20 judged promises are kept, 95%, which reaches the aim" in report.statement()
    assert "1 inconclusive, 1 invalid, 1 not applicable" in report.statement()
    worse = PromisesReport(report.kept[1:], [])
    assert "which misses the aim" in worse.statement()
    assert "Nothing can be said" in PromisesReport([], []).statement()


def test_every_form_shows_promise_measurement_and_verdict() -> None:
    run = Run("sticky_sessions", "tiny", "simulated", "pass", "all met", "where")
    report = PromisesReport([kept(Outcome.PASS)], [run])
    for shown in (html(report), markdown(report), text(report)):
        assert "It holds" in shown
        assert quantity(0.25, "ratio") in shown
        assert "pass" in shown


def test_what_a_run_wrote_stays_text() -> None:
    run = Run(HOSTILE, HOSTILE, HOSTILE, "pass", HOSTILE, HOSTILE)
    page = html(PromisesReport([kept(Outcome.PASS, HOSTILE)], [run]))
    assert "<script" not in page
    assert "alert(1)" in page


def test_the_suite_writes_its_report_as_far_as_it_has_come(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    settings = [part for setting in SHORT for part in ("--set", setting)]
    asked = ["prd", "--world", "simulated", "--only", "network_partition", "--model", "tiny", "--out", str(tmp_path)]
    assert main([*asked, *settings]) == 0
    report = msgspec.json.decode((tmp_path / "prd.json").read_bytes(), type=PromisesReport)
    assert [each.experiment for each in report.kept] == ["network_partition"] * 2
    assert {each.verdict for each in report.kept} <= {Outcome.PASS, Outcome.INCONCLUSIVE}
    assert (tmp_path / report.kept[0].report).is_file()
    assert {each.phase for each in report.runs[0].baselines} >= {"baseline", "recovery"}
    assert "is cut off" in capfd.readouterr().out
    assert "network partition" in (tmp_path / "prd.html").read_text()


def test_a_model_is_run_with_the_experiments_own_profile_for_it() -> None:
    assert profile_of("sticky_sessions", "smollm2-135m") == "smollm2"
    assert profile_of("sticky_sessions", "tiny") == ""
    assert profile_of("network_partition", "smollm2-135m") == ""
