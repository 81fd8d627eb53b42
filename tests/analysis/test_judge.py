"""The judge: four verdicts, and the sentence that decides each."""

import json
from pathlib import Path
from typing import Any

import msgspec
import pytest

from analysis.history import UnreadableError
from analysis.judge import judge, read_verdict, write_verdict
from analysis.schema import EventRow, FaultRow
from analysis.verdict import CriterionResult, Outcome, Verdict
from tests.analysis.histories import EXPERIMENT, HEALED_S, Run, clean_run
from tests.analysis.test_checkers import cut, executed_twice, fail, fresh, never_recovered, unexplained_error


def verdict_of(run: Run) -> Verdict:
    return judge(run.history())


def criterion(verdict: Verdict, name: str) -> CriterionResult:
    return next(each for each in verdict.criteria if each.name == name)


def expecting(run: Run, **criteria: dict[str, Any]) -> Run:
    run.experiment = EXPERIMENT | {"expectations": criteria}
    return run


def test_a_clean_run_passes() -> None:
    verdict = verdict_of(fresh())
    assert verdict.verdict is Outcome.PASS
    assert verdict.reasons == ["all 10 criteria that apply are met and all 9 invariants that apply are kept"]
    assert verdict.suffered == []
    assert verdict.counts.offered == verdict.counts.completed == len(fresh().schedule)
    assert verdict.faults[0].evidence == {"pings_lost": 3}
    assert criterion(verdict, "told_in_time").verdict is Outcome.NOT_APPLICABLE


def test_a_verdict_is_written_and_read_back(tmp_path: Path) -> None:
    verdict = verdict_of(fresh())
    write_verdict(tmp_path, verdict)
    assert read_verdict(tmp_path) == verdict
    loaded = json.loads((tmp_path / "verdict.json").read_text())
    assert loaded["verdict"] == "pass"
    assert set(loaded["faults"][0]) == {
        *("kind", "target", "injected_s", "verified", "healed_s", "evidence", "states"),
        *("name", "predicted_s", "measured_s", "tolerance_s", "late"),
    }
    assert list(tmp_path.iterdir()) == [tmp_path / "verdict.json"]
    (tmp_path / "verdict.json").write_text("{}")
    with pytest.raises(UnreadableError, match="not a verdict"):
        read_verdict(tmp_path)
    with pytest.raises(UnreadableError, match="missing"):
        read_verdict(tmp_path / "gone")


def test_a_rate_below_its_limit_fails_and_names_who_suffered() -> None:
    run = fresh()
    for number in range(130, 140):
        fail(run, f"r{number}", "FIRST_TOKEN_TIMEOUT")
    verdict = verdict_of(run)
    assert verdict.verdict is Outcome.FAIL
    assert verdict.reasons[0] == "success rate in phase fault is 90 % (limit >= 95 %, n = 100)"
    assert verdict.suffered == [f"r{number}" for number in range(130, 140)]
    assert verdict.counts.failed == 10


def test_a_rate_that_the_sample_cannot_show_is_inconclusive() -> None:
    strict = {"metric": "success_rate", "phase": "fault", "at_least": 0.99}
    result = criterion(verdict_of(expecting(fresh(), strict=strict)), "strict")
    assert result.verdict is Outcome.INCONCLUSIVE
    assert "all that can be said with 99% confidence is at least 95.499 %" in result.explanation
    many = {"metric": "success_rate", "phase": "fault", "at_least": 0.9, "samples_min": 460}
    result = criterion(verdict_of(expecting(fresh(), many=many)), "many")
    assert result.verdict is Outcome.INCONCLUSIVE
    assert "fewer samples than the 460 asked for" in result.explanation


@pytest.mark.parametrize(
    ("metric", "at_most", "outcome", "text"),
    [
        ("latency_p50_s", 0.3, Outcome.PASS, "0.2"),
        ("latency_p50_s", 0.1, Outcome.FAIL, "limit <= 0.1"),
        ("latency_p95_s", 1.3, Outcome.PASS, "1.2"),
        ("latency_p99_s", 1.3, Outcome.INCONCLUSIVE, "too few samples for a bound with 99% confidence"),
        ("latency_p99_s", 1.0, Outcome.FAIL, "limit <= 1"),
        ("refused_rate", 0.05, Outcome.PASS, "0"),
        ("speed", 1.0, Outcome.INVALID, "no such metric"),
    ],
)
def test_upper_limits(metric: str, at_most: float, outcome: Outcome, text: str) -> None:
    run = expecting(fresh(), limit={"metric": metric, "phase": "fault", "at_most": at_most})
    result = criterion(verdict_of(run), "limit")
    assert result.verdict is outcome
    assert text in result.explanation


def test_what_never_happened_fails_and_says_so() -> None:
    run = fresh()
    never_recovered(run)
    verdict = verdict_of(run)
    assert verdict.verdict is Outcome.FAIL
    result = criterion(verdict, "return_to_steady")
    assert result.measured is None
    assert "it never happened before the run ended" in result.explanation


def test_criteria_know_the_role_of_the_target() -> None:
    run = clean_run(target="controller")
    verdict = verdict_of(run)
    assert criterion(verdict, "mitigation").verdict is Outcome.NOT_APPLICABLE
    assert criterion(verdict, "told_in_time").verdict is Outcome.PASS


def test_a_fault_without_evidence_makes_the_run_invalid() -> None:
    run = fresh()
    unexplained_error(run)
    run.change(run.find("faults")[0], verified=False)
    verdict = verdict_of(run)
    assert verdict.verdict is Outcome.INVALID
    assert verdict.reasons[0] == "the fault cut (partition of worker-0) did not prove that it took effect"


def test_a_fault_that_was_never_injected_makes_the_run_invalid() -> None:
    run = fresh()
    run.rows["faults"] = []
    verdict = verdict_of(run)
    assert verdict.verdict is Outcome.INVALID
    assert verdict.reasons[0] == "the fault cut was never injected"


def test_a_heal_without_evidence_fails() -> None:
    run = fresh()
    run.change(run.find("faults")[0], heal_verified=False, evidence="no JSON")
    verdict = verdict_of(run)
    assert verdict.verdict is Outcome.FAIL
    assert verdict.reasons == ["the heal of the fault cut (partition of worker-0) is not proven"]
    assert verdict.faults[0].evidence == {"text": "no JSON"}


def test_an_unsteady_baseline_makes_the_run_invalid() -> None:
    run = fresh()
    for number in range(40, 60):
        fail(run, f"r{number}", "ENGINE_ERROR")
    verdict = verdict_of(run)
    assert verdict.verdict is Outcome.INVALID
    assert verdict.reasons[0].startswith("the cluster was not in its steady state before the fault: success rate")


def test_an_unsteady_recovery_fails() -> None:
    run = fresh()
    for number in range(205, 220):
        fail(run, f"r{number}", "FIRST_TOKEN_TIMEOUT")
    verdict = verdict_of(run)
    assert verdict.verdict is Outcome.FAIL
    assert criterion(verdict, "success (recovery)").verdict is Outcome.FAIL


def test_a_stall_of_the_host_makes_the_run_invalid() -> None:
    run = fresh()
    run.event("controller", 5.0, "host_stall", "controller", detail="1.2 s")
    assert verdict_of(run).verdict is Outcome.PASS
    run.event("worker-1", 5.0, "host_stall", "worker-1", detail="2.5 s without a turn")
    verdict = verdict_of(run)
    assert verdict.verdict is Outcome.INVALID
    assert "the host stood still for 2.50 s" in verdict.reasons[0]


def test_a_stall_that_the_fault_made_is_no_stall_of_the_host() -> None:
    run = fresh()
    run.event("worker-0", 14.1, "host_stall", "worker-0", detail="5.0")
    assert verdict_of(run).verdict is Outcome.PASS


def test_a_load_that_came_late_makes_the_run_invalid() -> None:
    run = fresh()
    for row in run.find("requests")[20:30]:
        run.change(row, sent_s=row.intended_s + 0.5)
    verdict = verdict_of(run)
    assert verdict.verdict is Outcome.INVALID
    assert "the generators were too slow" in verdict.reasons[0]


def test_requests_held_back_for_want_of_a_controller_are_no_lag_of_ours() -> None:
    run = clean_run(target="controller")
    for row in run.find("requests"):
        if 10 < row.intended_s < 13:
            run.change(row, sent_s=row.intended_s + 2)
    assert criterion(verdict_of(run), "dispatch lag (self-check)").verdict is Outcome.PASS


def test_corrupt_answers_come_before_missed_expectations() -> None:
    run = fresh()
    executed_twice(run)
    for number in range(130, 140):
        fail(run, f"r{number}", "FIRST_TOKEN_TIMEOUT")
    reasons = verdict_of(run).reasons
    assert reasons[0].startswith("invariant 5")
    assert reasons[1].startswith("success rate in phase fault")


NOBODY_LEFT = "; the faults hit every worker of the cluster, so nobody was left to take over"


def test_a_cluster_with_nobody_left_says_what_was_found_and_why_in_one_sentence() -> None:
    run = fresh()
    run.experiment = run.experiment | {"cluster": {"workers": 1}}
    for number in range(130, 140):
        fail(run, f"r{number}", "FIRST_TOKEN_TIMEOUT")
    unexplained_error(run)
    reasons = verdict_of(run).reasons
    assert reasons[0].startswith("success rate in phase fault is 89 % (limit >= 95 %")
    assert reasons[0].endswith(NOBODY_LEFT)
    assert not any("nobody was left" in reason for reason in reasons[1:])
    assert any("ENGINE_ERROR" in reason for reason in reasons[1:])


def test_workers_that_are_hit_one_after_the_other_leave_somebody() -> None:
    run = fresh()
    first = run.find("faults")[0]
    for number, worker in enumerate(("worker-1", "worker-2"), 1):
        at_s = HEALED_S + number
        moved = {"name": worker, "targets": [worker], "injected_s": at_s, "healed_s": at_s + 0.5}
        run.add("director", FaultRow(**{**msgspec.structs.asdict(first), **moved}))
    unexplained_error(run)
    assert not any("hit every worker" in reason for reason in verdict_of(run).reasons)


@pytest.mark.parametrize("at_s", [0.5, 5.0, 11.0, 20.0, 27.0])
def test_a_cut_run_is_inconclusive_at_best(at_s: float) -> None:
    run = fresh()
    cut(run, at_s)
    verdict = verdict_of(run)
    assert verdict.verdict is Outcome.INCONCLUSIVE
    assert verdict.reasons[0] == "the run did not finish: it was interrupted"
    assert not verdict.complete


def test_a_breach_in_a_cut_run_still_fails() -> None:
    run = fresh()
    executed_twice(run)
    cut(run, 20.0)
    assert verdict_of(run).verdict is Outcome.FAIL


def test_a_cut_run_without_a_breach_passes_all_but_the_end() -> None:
    run = fresh()
    run.info = msgspec.structs.replace(run.info, complete=False, ended_by="it was interrupted")
    assert verdict_of(run).verdict is Outcome.INCONCLUSIVE


def test_malformed_criteria_are_one_line() -> None:
    run = expecting(fresh(), wrong={"metric": "success_rate", "at_leest": 1})
    with pytest.raises(UnreadableError, match=r"experiment\.yaml: expectations: .*at_leest"):
        verdict_of(run)


def faulted(run: Run, **limits: Any) -> CriterionResult:
    limits = {"metric": "success_rate", "at_least": 0.9, "while_faulted": True} | limits
    return criterion(verdict_of(expecting(run, met=limits)), "met")


def test_requests_that_met_no_fault_do_not_count() -> None:
    run = fresh()
    assert criterion(verdict_of(expecting(run, all={"metric": "success_rate", "phase": "fault"})), "all").samples == 100
    met = faulted(run, phase="fault")
    assert met.verdict is Outcome.PASS
    assert met.explanation.startswith("success rate of requests met by a fault in phase fault is 100 %")
    # Of the fault phase 8..16 s the fault was on from 9 s to 14 s, and a request takes 0.2 s.
    assert met.samples == sum(r.intended_s > 8 and r.ended_s >= 9 and r.intended_s <= 14 for r in run.find("requests"))
    for row in run.find("requests"):
        if row.ended_s >= 9 and row.intended_s <= 10:
            fail(run, row.request_id, "FIRST_TOKEN_TIMEOUT")
    everybody = expecting(run, all={"metric": "success_rate", "at_least": 0.9})
    assert criterion(verdict_of(everybody), "all").verdict is Outcome.PASS
    assert faulted(run).verdict is Outcome.FAIL


def test_a_request_that_hung_before_the_fault_met_it() -> None:
    run = fresh()
    counted = faulted(run).samples
    run.drop(run.find("requests", request_id="r50")[0])
    run.drop(run.find("requests", request_id="r250")[0])
    assert faulted(run).samples == counted + 1


def test_without_a_fault_nothing_is_met_by_one() -> None:
    run = fresh()
    run.change(run.find("faults")[0], injected_s=None, verified=False, healed_s=None)
    result = faulted(run)
    assert result.verdict is Outcome.INCONCLUSIVE
    assert "no fault was injected" in result.explanation


@pytest.mark.parametrize(
    ("targets", "role"),
    [
        (["client-0", "client-1"], "client"),
        (["client-0", "worker-0"], "worker"),
        (["client-0", "controller"], "controller"),
        (["worker-0"], "worker"),
    ],
)
def test_roles_of_targets(targets: list[str], role: str) -> None:
    run = fresh()
    names = ("client", "controller", "worker")
    run = expecting(run, **{name: {"metric": "success_rate", "when_target": name} for name in names})
    run.experiment = run.experiment | {"faults": {"cut": {"kind": "partition", "targets": targets}}}
    run.change(run.find("faults")[0], targets=targets)
    verdict = verdict_of(run)
    judged = [name for name in names if criterion(verdict, name).verdict is not Outcome.NOT_APPLICABLE]
    assert judged == [role]


@pytest.mark.parametrize(
    ("criteria", "text"),
    [
        ({}, "the experiment has no expectations, so it shows nothing"),
        (
            {"away": {"metric": "success_rate", "when_target": "controller"}},
            "none of the expectations applies to this run, so it shows nothing",
        ),
    ],
)
def test_a_run_of_which_nothing_was_expected_is_not_passed(criteria: dict[str, Any], text: str) -> None:
    verdict = verdict_of(expecting(fresh(), **criteria))
    assert verdict.verdict is Outcome.INCONCLUSIVE
    assert verdict.reasons == [text]


@pytest.mark.parametrize(
    ("bites", "end", "text"),
    [
        (True, {"worker-0": {"bites": False, "because": "it answered"}}, "was not in force until its end"),
        (True, {"error": "the proxy is gone"}, "was not in force until its end"),
        (True, {"worker-0": {"bites": True, "because": "silent"}}, "did not prove that it took effect"),
        (False, {"worker-0": {"bites": False, "because": "it answered"}}, "did not prove that it took effect"),
    ],
)
def test_a_fault_that_was_gone_before_its_end_says_so(bites: bool, end: dict[str, Any], text: str) -> None:
    run = fresh()
    evidence = {"bite": {"worker-0": {"bites": bites, "because": ""}}, "end": end, "heal": {}}
    run.change(run.find("faults")[0], verified=False, evidence=json.dumps(evidence))
    verdict = verdict_of(run)
    assert verdict.verdict is Outcome.INVALID
    assert verdict.reasons[0].startswith(f"the fault cut (partition of worker-0) {text}")
    assert ("it answered" in verdict.reasons[0]) is (bites and end.get("worker-0", {}).get("because") == "it answered")


def test_a_fault_that_was_held_back_says_why() -> None:
    run = fresh()
    evidence = {"bite": {"not_injected": "prefill of worker-0 at least 1 was not reached within 3 s"}, "heal": {}}
    run.change(run.find("faults")[0], injected_s=None, healed_s=None, verified=False, evidence=json.dumps(evidence))
    verdict = verdict_of(run)
    assert verdict.verdict is Outcome.INVALID
    assert "was not injected: prefill of worker-0" in verdict.reasons[0]


@pytest.mark.parametrize(("by", "outcome"), [("stop_condition", Outcome.FAIL), ("stop_file", Outcome.INCONCLUSIVE)])
def test_a_run_that_its_guard_stopped(by: str, outcome: Outcome) -> None:
    run = fresh()
    run.add("director", EventRow(20.0, "guard", by, detail="because"))
    run.info = msgspec.structs.replace(run.info, complete=False, ended_by="the guard: because")
    verdict = verdict_of(run)
    assert verdict.verdict is outcome
    assert "the run was stopped: because" in verdict.reasons


@pytest.mark.parametrize(("verified_s", "outcome"), [(None, Outcome.INCONCLUSIVE), (9.5, Outcome.INVALID)])
def test_a_stop_may_leave_a_fault_no_time_for_its_proof(verified_s: float | None, outcome: Outcome) -> None:
    """Nobody knows then whether it took effect; where it was looked at before, and had none, that still counts."""
    run = fresh()
    run.change(run.find("faults")[0], verified=False, verified_s=verified_s, healed_s=9.6, evidence='{"bite": {}}')
    run.add("director", EventRow(9.6, "guard", "stop_file", detail="because"))
    run.info = msgspec.structs.replace(run.info, complete=False, ended_by="the guard: because")
    assert verdict_of(run).verdict is outcome


def test_the_verdict_says_what_a_fault_struck_in_the_midst_of() -> None:
    run = fresh()
    run.change(run.find("faults")[0], states=["prefill at worker-0: 2"])
    assert verdict_of(run).faults[0].states == ["prefill at worker-0: 2"]


def test_a_run_that_leaves_something_behind_fails() -> None:
    run = fresh()
    run.info = msgspec.structs.replace(run.info, left_behind=[])
    assert criterion(verdict_of(run), "clean slate (self-check)").verdict is Outcome.PASS
    run.info = msgspec.structs.replace(run.info, left_behind=["process ray (pid 7) still runs"])
    verdict = verdict_of(run)
    assert verdict.verdict is Outcome.FAIL
    assert "left behind: process ray (pid 7) still runs" in criterion(verdict, "clean slate (self-check)").explanation
