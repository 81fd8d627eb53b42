"""Each sign of a known failure is seen in a history that has it, and in none that has not."""

from typing import Any

import pytest
from msgspec.structs import replace

from analysis.schema import FaultRow
from chaos.searching import symptoms
from chaos.searching.breach import Breach
from chaos.searching.classes import SHORT, SIGNS, class_of
from tests.analysis.histories import HEALED_S, INJECTED_S, RUN_END_S, Run, clean_run, sample


def found(run: Run) -> list[Breach]:
    return symptoms.symptoms(run.history())


def fault(run: Run, **fields: Any) -> FaultRow:
    (old,) = run.find("faults")
    run.change(old, **fields)
    (new,) = run.find("faults")
    assert isinstance(new, FaultRow)
    return new


def silent_attempt(run: Run, begun_s: float, lasts_s: float, more: int) -> None:
    """Attempts on worker-0, of which nothing is ever heard; all others there are taken out meanwhile."""
    (pattern,) = run.find("attempts", side="controller", request_id="r1")
    for row in run.find("attempts", side="controller", worker="worker-0"):
        if row.ended_s > begun_s:
            run.drop(row)
    times_s = [begun_s, *(begun_s + symptoms.SILENCE_S + 0.1 * (1 + number) for number in range(more))]
    for number, time_s in enumerate(times_s):
        row = replace(
            pattern, request_id=f"x{number}", worker="worker-0", begun_s=time_s, ended_s=begun_s + lasts_s,
            tokens=0, outcome="failed", code="DEADLINE_EXCEEDED",
        )  # fmt: skip
        run.add("controller", row)


def test_a_clean_run_shows_none() -> None:
    assert found(clean_run()) == []


def test_nothing_is_said_of_a_run_that_was_cut() -> None:
    run = clean_run()
    silent_attempt(run, INJECTED_S, 10.0, 0)
    assert found(run)
    run.info = replace(run.info, complete=False)
    assert found(run) == []


@pytest.mark.parametrize(
    ("kind", "number"), [("partition", 1), ("kill", 5), ("engine_dies", 21), ("freeze", 22), ("drop_messages", None)]
)
@pytest.mark.parametrize("more", [0, symptoms.PILE_MIN])
def test_an_attempt_without_news(kind: str, number: int | None, more: int) -> None:
    run = clean_run()
    fault(run, kind=kind)
    silent_attempt(run, INJECTED_S + 0.5, 10.0, more)
    breach = found(run)[0]
    assert breach.by == ("fed" if more else "hung")
    assert breach.kinds == (kind,)
    assert class_of(breach) == number


def test_an_attempt_without_news_is_no_sign_while_its_controller_is_at_fault() -> None:
    run = clean_run()
    silent_attempt(run, INJECTED_S + 0.5, 10.0, 0)
    fault(run, targets=["worker-0", "controller"])
    assert found(run) == []


def test_a_silent_link_that_nobody_notices() -> None:
    run = clean_run()
    fault(run, parameters='{"mode": "black_hole"}', healed_s=INJECTED_S + symptoms.UNNOTICED_S + 1)
    assert found(run) == []
    for row in run.find("events", kind="worker_suspected") + run.find("events", kind="worker_dead"):
        run.drop(row)
    (breach,) = found(run)
    assert (breach.by, class_of(breach)) == ("unnoticed", 4)
    fault(run, parameters='{"mode": "refuse"}')
    assert found(run) == []


def test_a_node_that_never_gets_its_link_back() -> None:
    run = clean_run()
    for time_s in (HEALED_S, RUN_END_S):
        run.add("worker-1", sample("worker-1", time_s, link_up=False))
        assert bool(found(run)) == (time_s > HEALED_S)
    (breach,) = found(run)
    assert (breach.by, class_of(breach)) == ("off_the_bus", 3)


def refused(run: Run, *workers: str) -> None:
    (row,) = run.find("requests", request_id="r130")
    run.change(row, outcome="refused", code="RESOURCE_LIMIT_EXCEEDED", finish="", tokens=[], segments=[])
    (row,) = run.find("attempts", side="controller", request_id="r130")
    run.drop(row)
    for number, worker in enumerate(workers, 1):
        begun_s = row.begun_s + 0.1 * number
        run.add(
            "controller",
            replace(
                row, worker=worker, attempt=number, begun_s=begun_s, ended_s=begun_s + 0.01,
                outcome="refused", code="RESOURCE_LIMIT_EXCEEDED", tokens=0,
            ),
        )  # fmt: skip


def test_a_refused_request_that_is_never_brought_to_the_peer() -> None:
    run = clean_run()
    fault(run, kind="memory_pressure")
    refused(run, "worker-0", "worker-0")
    (breach,) = found(run)
    assert (breach.by, class_of(breach)) == ("peer_not_asked", 9)
    run = clean_run()
    fault(run, kind="memory_pressure")
    refused(run, "worker-0", "worker-1")
    assert found(run) == []


def test_a_request_that_a_worker_does_three_times() -> None:
    run = clean_run()
    (row,) = run.find("attempts", side="worker", request_id="r130")
    run.add(row.worker, replace(row, attempt=2))
    assert found(run) == []
    run.add(row.worker, replace(row, attempt=3))
    (breach,) = found(run)
    assert (breach.by, class_of(breach)) == ("executed_again", 2)
    fault(run, targets=["client-0"])
    assert found(run) == []


def test_a_storm_of_retries() -> None:
    run = clean_run()
    for number in range(100):
        run.event("controller", 10.0, "retry", "worker-1", request_id=f"r{number}", submission=1, attempt=2)
    assert found(run) == []
    for number in range(100):
        run.event("controller", 11.0, "retry", "worker-1", request_id=f"r{number}", submission=1, attempt=3)
    (breach,) = found(run)
    assert (breach.by, class_of(breach)) == ("storm", 15)


@pytest.mark.parametrize("spread_s", [0.0, 0.01])
def test_retries_in_step(spread_s: float) -> None:
    run = clean_run()
    (row,) = run.find("attempts", side="controller", request_id="r1")
    for number in range(symptoms.LOCKSTEP_MIN):
        begun_s = 9.5 + 0.3 * number
        failed = replace(
            row, request_id=f"x{number}", begun_s=begun_s, ended_s=begun_s + 0.1, outcome="failed", code="ENGINE_ERROR"
        )
        again_s = begun_s + 0.2 + spread_s * number
        run.add("controller", failed)
        run.add("controller", replace(failed, attempt=2, worker="worker-2", begun_s=again_s, ended_s=again_s + 0.1))
    signs = [breach for breach in found(run) if breach.by == "lockstep"]
    assert [class_of(breach) for breach in signs] == ([] if spread_s else [15])


def test_a_queue_that_takes_all() -> None:
    run = clean_run()
    run.add("worker-1", sample("worker-1", 10.1, queue_depth=symptoms.QUEUE_MAX))
    assert found(run) == []
    run.add("worker-1", sample("worker-1", 10.2, queue_depth=symptoms.QUEUE_MAX + 1))
    (breach,) = found(run)
    assert (breach.by, class_of(breach)) == ("piled", 14)


@pytest.mark.parametrize("open_there", [symptoms.LOPSIDED_BY - 6, symptoms.LOPSIDED_BY + 2])
def test_work_goes_on_to_a_slow_worker_while_another_has_little_to_do(open_there: int) -> None:
    run = clean_run()
    fault(run, kind="slow_down", targets=["worker-1"])
    (row,) = run.find("attempts", side="controller", request_id="r1")
    for number in range(open_there + symptoms.LOPSIDED_MIN):
        slow = replace(row, request_id=f"x{number}", worker="worker-1", begun_s=9.5 + 0.01 * number, ended_s=12.0)
        run.add("controller", slow)
    signs = [breach for breach in found(run) if breach.by == "lopsided"]
    assert [class_of(breach) for breach in signs] == ([19] if open_there > symptoms.LOPSIDED_BY else [])


def test_signs_name_checks_that_there_are_and_classes_that_have_a_name() -> None:
    own = {*symptoms.CHECKS, "fed"}
    assert all(sign.by in own or sign.by.startswith("invariant ") for sign in SIGNS)
    assert {sign.by for sign in SIGNS} >= own
    assert {sign.number for sign in SIGNS} == SHORT.keys()


@pytest.mark.parametrize(
    ("breach", "number"),
    [
        (Breach("invariant 7", "a healed cluster: breaker of worker-0 is open 12.0 s after the heal"), 8),
        (Breach("invariant 7", "a healed cluster: worker worker-0 is dead 12.0 s after the heal"), None),
        (Breach("invariant 5", "late: worker-0 started 1.1 0.2 s after its deadline", ("freeze",)), 22),
        (Breach("invariant 6", "work only: worker-0 was declared dead while no fault touched it", ("clock_skew",)), 10),
        (Breach("invariant 9", "every error: request r1 was retried and can never succeed"), 20),
        (Breach("invariant 3", "tokens: the check could not run: there are no reference completions"), None),
    ],
)  # fmt: skip
def test_what_breaks_an_invariant_has_a_class_where_a_sign_says_so(breach: Breach, number: int | None) -> None:
    assert class_of(breach) == number
