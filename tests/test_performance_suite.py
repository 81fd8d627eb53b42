"""The shell of the PRD's suites: a promise not kept is a measured miss, what was measured wrongly is a failure."""

from functools import partial
from pathlib import Path

import msgspec
import pytest

from analysis.verdict import Counts, CriterionResult, InvariantResult, Outcome, Verdict
from chaos.benchmark import BenchmarkResult
from tests.performance import suite

NAME = "pre_warming"
SHOWN = CriterionResult("warm_first_token", Outcome.PASS, 0.04, "<= 0.1", "", 90, (0.03, 0.05), "it is")
PREWARMED = CriterionResult("prewarmed", Outcome.PASS, 1.0, ">= 0.95", "share", 60, None, "all were")
REFUTED = msgspec.structs.replace(SHOWN, verdict=Outcome.FAIL, measured=0.3)
OPEN = msgspec.structs.replace(PREWARMED, verdict=Outcome.INCONCLUSIVE, samples=20)
BROKEN = InvariantResult(1, "each request ends once", Outcome.FAIL, 1, "one did not")


@pytest.fixture(autouse=True)
def found(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    lines: list[str] = []
    monkeypatch.setattr(suite, "FOUND", lines)
    monkeypatch.setattr(suite, "_judged_again", lambda directory: judged(BenchmarkResult(directory).judgement))
    return lines


def judged(verdict: Verdict) -> tuple[Outcome, dict[str, Outcome]]:
    return verdict.verdict, {each.name: each.verdict for each in verdict.criteria}


def result(folder: Path, verdict: Outcome, *criteria: CriterionResult, **more: object) -> BenchmarkResult:
    """A run that came to this verdict."""
    said = Verdict(verdict, NAME, "live", 1, True, [], Counts(), list(criteria), [], [])
    said = msgspec.structs.replace(said, **more)
    (folder / "verdict.json").write_bytes(msgspec.json.encode(said))
    return BenchmarkResult(folder)


def test_what_is_shown_passes_and_is_told(tmp_path: Path, found: list[str]) -> None:
    run = result(tmp_path, Outcome.PASS, SHOWN, PREWARMED)
    assert suite.assert_shown(run, "warm_first_token", "prewarmed") == [SHOWN, PREWARMED]
    suite.assert_passes(run)
    assert found == [
        "pre_warming.warm_first_token: 0.04 (0.03 to 0.05), promised <= 0.1, n = 90, shown",
        "pre_warming.prewarmed: 1 share, promised >= 0.95, n = 60, shown",
    ]


@pytest.mark.parametrize(("miss", "word"), [(REFUTED, "MISSED"), (OPEN, "NOT SHOWN")])
def test_a_promise_that_was_not_kept_is_a_measured_miss(
    miss: CriterionResult, word: str, tmp_path: Path, found: list[str]
) -> None:
    others = [each for each in (SHOWN, PREWARMED) if each.name != miss.name]
    run = result(tmp_path, miss.verdict, *others, miss)
    for look in (partial(suite.assert_shown, run, "warm_first_token", "prewarmed"), partial(suite.assert_passes, run)):
        with pytest.raises(pytest.xfail.Exception, match=f"measured miss: {miss.name}.*{word}"):
            look()
    assert sum(word in line for line in found) == 1
    assert len(found) == 2


def test_what_is_left_open_may_be_fine_and_what_is_refuted_never_is(tmp_path: Path) -> None:
    suite.assert_shown(result(tmp_path, Outcome.INCONCLUSIVE, SHOWN, OPEN), "prewarmed", open_is_fine=True)
    run = result(tmp_path, Outcome.FAIL, REFUTED, PREWARMED)
    with pytest.raises(pytest.xfail.Exception):
        suite.assert_shown(run, "warm_first_token", open_is_fine=True)


@pytest.mark.parametrize(
    ("verdict", "more"),
    [
        (Outcome.INVALID, {}),
        (Outcome.INCONCLUSIVE, {"complete": False}),
        (Outcome.FAIL, {"invariants": [BROKEN]}),
        (Outcome.FAIL, {}),
    ],
)
def test_what_was_measured_wrongly_fails_and_is_no_miss(
    verdict: Outcome, more: dict[str, object], tmp_path: Path
) -> None:
    with pytest.raises(AssertionError):
        suite.assert_passes(result(tmp_path, verdict, SHOWN, PREWARMED, **more))


def test_a_verdict_that_does_not_follow_from_its_rows_fails(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(suite, "_judged_again", lambda directory: (Outcome.FAIL, {"warm_first_token": Outcome.FAIL}))
    with pytest.raises(AssertionError):
        suite.assert_shown(result(tmp_path, Outcome.PASS, SHOWN, PREWARMED), "warm_first_token")


def test_a_suite_asks_only_for_what_make_test_has_seen(tmp_path: Path) -> None:
    with pytest.raises(AssertionError):
        suite.assert_shown(result(tmp_path, Outcome.PASS, SHOWN, PREWARMED), "beauty")
