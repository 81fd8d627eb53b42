"""Runs at somebody else's cluster: what callers can see is judged, and nothing else is claimed."""

import pytest
from msgspec.structs import replace

from analysis.checkers import run_checkers
from analysis.history import History
from analysis.judge import judge
from analysis.metrics import METRICS
from analysis.outside import SEEN
from analysis.recovery import fault_times
from analysis.recovery_view import recovery_view
from analysis.verdict import InvariantResult, Outcome, Verdict
from tests.analysis.histories import HEALED_S, INJECTED_S, Run, clean_run

JUDGED = (1, 2, 4, 7, 9)


def outside_run() -> Run:
    """The clean run as its callers saw it: no row of any node but theirs and the director's."""
    run = clean_run()
    run.info = replace(run.info, world="staging", invariants=list(JUDGED), outside=True)
    run.references = None
    kept = ("client-0", "director")
    for table, rows in run.rows.items():
        run.rows[table] = [entry for entry in rows if entry[0] in kept]
    run.rows["attempts"] = []
    return run


def verdict_of(run: Run) -> Verdict:
    return judge(run.history())


def invariant(history: History, number: int) -> InvariantResult:
    return next(each for each in run_checkers(history) if each.number == number)


def test_a_clean_run_passes_by_what_is_seen() -> None:
    verdict = verdict_of(outside_run())
    assert verdict.verdict is Outcome.PASS, verdict.reasons
    told = {each.number: each.verdict for each in verdict.invariants}
    assert all(told[number] is Outcome.PASS for number in JUDGED)
    assert all(told[number] is Outcome.NOT_APPLICABLE for number in (3, 5, 6, 8))
    criteria = {each.name: each for each in verdict.criteria}
    assert criteria["detection"].verdict is Outcome.NOT_APPLICABLE
    assert criteria["detection"].explanation == "detection_s cannot be seen from outside of the cluster"
    assert criteria["return_to_steady"].verdict is Outcome.PASS
    assert criteria["success_during_fault"].verdict is Outcome.PASS


def test_the_same_run_of_our_own_cluster_would_not() -> None:
    run = outside_run()
    run.info = replace(run.info, outside=False)
    assert verdict_of(run).verdict is not Outcome.PASS


def test_names_are_those_of_metrics() -> None:
    assert set(METRICS) >= SEEN
    assert not SEEN & {"detection_s", "mitigation_s", "lost_requests", "retry_amplification", "queue_depth_max"}


def test_nothing_is_said_of_who_noticed() -> None:
    history = outside_run().history()
    (times,) = fault_times(history)
    assert (times.noticed_how, times.detection_s, times.detection_known) == ("unseen", None, False)
    assert "who noticed it cannot be seen from outside" in times.explanation()
    view = recovery_view(history, [])
    assert view is not None
    assert [step.label for step in view.steps] == ["Return to steady state"]
    assert (view.faults[0].noticed, view.faults[0].mitigation) == ("–", "–")


def test_callers_who_go_on_suffering_break_the_return() -> None:
    run = outside_run()
    for row in run.find("requests"):
        if row.intended_s > HEALED_S:
            run.change(row, outcome="failed", code="HTTP_500", finish="", tokens=[], segments=[])
    found = invariant(run.history(), 7)
    assert found.verdict is Outcome.FAIL
    assert "the steady state never came back" in found.explanation
    # An hour in which nobody looked is no return either.
    cut = outside_run()
    for row in cut.find("requests"):
        if row.intended_s > HEALED_S + 2:
            cut.drop(row)
    cut.schedule = [line for line in cut.schedule if line["intended_s"] <= HEALED_S + 2]
    for event in cut.find("events", kind="run_ended"):
        cut.change(event, time_s=HEALED_S + 3)
    assert invariant(cut.history(), 7).verdict is Outcome.INCONCLUSIVE


@pytest.mark.parametrize(
    ("code", "at_s", "verdict"),
    [
        ("HTTP_502", INJECTED_S + 1, Outcome.PASS),
        ("CONNECTION_BROKEN", INJECTED_S + 1, Outcome.PASS),
        ("HTTP_502", 4.0, Outcome.FAIL),
        ("HTTP_400", INJECTED_S + 1, Outcome.FAIL),
        ("CONNECT_FAILED", INJECTED_S + 1, Outcome.FAIL),
    ],
)
def test_codes_of_strangers_are_explained_by_a_fault_that_is_on(code: str, at_s: float, verdict: Outcome) -> None:
    run = outside_run()
    row = min(run.find("requests"), key=lambda each: abs(each.intended_s - at_s))
    run.change(row, outcome="failed", code=code, finish="", tokens=[], segments=[])
    assert invariant(run.history(), 9).verdict is verdict


def test_text_after_the_end_breaks_a_stream() -> None:
    run = outside_run()
    run.change(run.find("requests")[5], strays=2)
    found = invariant(run.history(), 2)
    assert found.verdict is Outcome.FAIL
    assert "2 pieces of text came after the stream's end" in found.explanation


@pytest.mark.parametrize(
    ("by", "verdict"),
    [("stop_condition", Outcome.FAIL), ("target", Outcome.INVALID), ("stop_file", Outcome.INCONCLUSIVE)],
)
def test_who_stopped_a_run_decides_what_it_shows(by: str, verdict: Outcome) -> None:
    run = outside_run()
    run.info = replace(run.info, complete=False)
    run.event("director", 27.0, "guard", by, detail="somebody said so")
    found = verdict_of(run)
    assert found.verdict is verdict
    assert "the run was stopped: somebody said so" in found.reasons


def test_a_probe_that_does_not_hold_at_the_end_fails_the_run() -> None:
    run = outside_run()
    run.event("director", 28.5, "probe_refuted", detail="probe queue: 7, expected at most 5")
    found = verdict_of(run)
    assert found.verdict is Outcome.FAIL
    assert "at the end probe queue: 7, expected at most 5" in found.reasons
