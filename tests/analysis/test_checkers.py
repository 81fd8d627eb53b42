"""Each checker rejects the history that breaks its invariant, and the others leave it alone."""

import math
from collections.abc import Callable
from typing import Any

import msgspec
import pandas as pd
import pytest

from analysis import checkers
from analysis.checkers import CHECKERS, run_checkers
from analysis.facts import CannotJudge
from analysis.history import History
from analysis.schema import EventRow, FaultRow, Gauges, Segment
from analysis.verdict import InvariantResult, Outcome
from tests.analysis.histories import (
    EXPERIMENT,
    HEALED_S,
    INJECTED_S,
    MAX_TOKENS,
    READY_AGAIN_S,
    RUN_END_S,
    WORKERS,
    Run,
    clean_run,
    sample,
)

CLEAN = clean_run()


def fresh() -> Run:
    """A copy of the clean run: rows are frozen, so lists are all that is copied."""
    run = Run()
    run.rows = {table: list(rows) for table, rows in CLEAN.rows.items()}
    run.schedule = list(CLEAN.schedule)
    run.references = list(CLEAN.references or [])
    return run


def rejected(run: Run) -> dict[int, InvariantResult]:
    """The invariants that do not pass, by number."""
    return {each.number: each for each in run_checkers(run.history()) if each.verdict is not Outcome.PASS}


def request(run: Run, request_id: str = "r30") -> Any:
    return run.find("requests", request_id=request_id)[0]


def worker_row(run: Run, request_id: str = "r30") -> Any:
    return run.find("attempts", request_id=request_id, side="worker")[0]


def test_a_clean_run_passes_all() -> None:
    assert rejected(fresh()) == {}
    assert [each.number for each in run_checkers(fresh().history())] == list(range(1, 10))


def lost_token(run: Run) -> None:
    row = request(run)
    first, second = row.segments
    tokens = row.tokens[:6] + row.tokens[7:]
    run.change(row, tokens=tokens, segments=[first, msgspec.structs.replace(second, index=7, count=5)])


def lost_token_unnoticed(run: Run) -> None:
    """The client's own index check failed too: it closed the gap."""
    row = request(run)
    first, second = row.segments
    run.change(row, tokens=row.tokens[:6] + row.tokens[7:], segments=[first, msgspec.structs.replace(second, count=5)])


def duplicated_token(run: Run) -> None:
    row = request(run)
    first, second = row.segments
    again = msgspec.structs.replace(second, index=5)
    run.change(row, tokens=[*row.tokens[:6], *row.tokens[5:11]], segments=[first, again])


def swapped_stream(run: Run) -> None:
    one, other = request(run, "r30"), request(run, "r31")
    run.change(one, tokens=other.tokens)
    run.change(other, tokens=one.tokens)


def hung_request(run: Run) -> None:
    run.drop(request(run))


def ended_twice(run: Run) -> None:
    run.add("client-0", request(run))


def ended_late(run: Run) -> None:
    row = request(run)
    run.change(row, ended_s=row.deadline_s + 1.5)


def ended_as_nothing(run: Run) -> None:
    run.change(request(run), finish="")


def token_after_end(run: Run) -> None:
    row = request(run)
    last = row.segments[-1]
    run.change(row, segments=[row.segments[0], msgspec.structs.replace(last, received_s=row.ended_s + 0.01)])


def invented_attempt(run: Run) -> None:
    run.add("worker-1", msgspec.structs.replace(worker_row(run), request_id="somebody-elses"))


def too_many_tokens(run: Run) -> None:
    row = request(run)
    longer = msgspec.structs.replace(row.segments[-1], count=7)
    tokens = [*row.tokens, 99]
    run.change(row, tokens=tokens, segments=[row.segments[0], longer], max_tokens=MAX_TOKENS + 1)
    run.change(worker_row(run), tokens=MAX_TOKENS + 1)


def false_stop(run: Run) -> None:
    row = request(run)
    run.change(row, finish="stop", tokens=row.tokens[:6], segments=row.segments[:1])


def tokens_from_nowhere(run: Run) -> None:
    run.change(worker_row(run), tokens=MAX_TOKENS - 1)


def executed_twice(run: Run) -> None:
    row = worker_row(run)
    run.add("worker-2", row)
    run.event(
        "worker-2", row.started_s, "attempt_started", request_id=row.request_id, submission=1, attempt=row.attempt
    )


def executed_twice_killed(run: Run) -> None:
    """The worker that ran it first was killed: only its start event is left."""
    row = worker_row(run)
    run.event(
        "worker-2", row.started_s, "attempt_started", request_id=row.request_id, submission=1, attempt=row.attempt
    )


def started_late(run: Run) -> None:
    row = worker_row(run)
    run.change(row, started_s=row.deadline_s + 0.001)


def started_late_killed(run: Run) -> None:
    """The worker believed a wrong deadline and died before it could write the attempt's row."""
    row = worker_row(run)
    run.drop(row)
    deadline_s = request(run).deadline_s
    (started,) = run.find("events", kind="attempt_started", request_id="r30")
    run.change(started, time_s=deadline_s + 0.3)
    run.drop(run.find("events", kind="node_stopped", subject=row.worker)[0])


def superseded_token(run: Run) -> None:
    row = request(run)
    first, second = row.segments
    run.change(row, segments=[msgspec.structs.replace(first, attempt=2), second])


def overtaken_token(run: Run) -> None:
    """The controller had begun attempt 2, and the client still took the rest of attempt 1."""
    row = run.find("attempts", request_id="r30", side="controller")[0]
    second_s = request(run).segments[1].received_s
    run.add("controller", msgspec.structs.replace(row, attempt=2, begun_s=second_s - 0.3))


def unrecorded_dispatch(run: Run) -> None:
    run.drop(run.find("attempts", request_id="r30", side="controller")[0])


def tokens_of_another_worker(run: Run) -> None:
    row = request(run)
    run.change(row, segments=[msgspec.structs.replace(part, worker="worker-2") for part in row.segments])


def retry_storm(run: Run) -> None:
    for _ in range(400):
        run.event("controller", 20.0, "retry", request_id="r30", submission=1, attempt=2)


def dispatch_to_dead(run: Run) -> None:
    row = run.find("attempts", request_id="r167", side="controller")[0]
    assert 13.0 < row.begun_s < HEALED_S
    run.change(row, worker="worker-0")


def dispatch_to_stranger(run: Run) -> None:
    row = run.find("attempts", request_id="r30", side="controller")[0]
    run.change(row, worker="worker-9")


def healthy_declared_dead(run: Run) -> None:
    run.event("controller", 4.0, "worker_suspected", "worker-1")
    run.event("controller", 4.001, "worker_dead", "worker-1")
    run.event("controller", 4.002, "worker_ready", "worker-1")


def declared_dead_beside_a_faulty_controller(run: Run) -> None:
    """The fault of another controller is no excuse for this one."""
    run.change(run.find("faults")[0], targets=["controller-1", "worker-0"], injected_s=3.0)
    healthy_declared_dead(run)


def one_controller_of_two_distrusts(run: Run) -> None:
    run.add("controller-1", EventRow(-3.0, "node_started", "controller-1"))
    for worker in ("worker-0", "worker-1", "worker-2"):
        run.add("controller-1", EventRow(-2.0, "worker_ready", worker))
    run.add("controller-1", EventRow(14.0, "worker_suspected", "worker-2"))
    run.event("controller", 14.1, "worker_ready", "worker-2")


def never_recovered(run: Run) -> None:
    run.rows["attempts"] = [
        entry
        for entry in run.rows["attempts"]
        if entry[2].worker != "worker-0" or entry[2].begun_s < READY_AGAIN_S  # type: ignore[union-attr]
    ]
    for row in run.find("requests"):
        if row.ended_s > READY_AGAIN_S and row.segments[0].worker == "worker-0":
            run.change(row, segments=[msgspec.structs.replace(part, worker="worker-3") for part in row.segments])
    run.rows["events"] = [
        entry
        for entry in run.rows["events"]
        if entry[0] != "controller" or entry[2].time_s < READY_AGAIN_S  # type: ignore[union-attr]
    ]


def breaker_stays_open(run: Run) -> None:
    run.drop(run.find("events", kind="breaker_closed")[0])


def relapse(run: Run) -> None:
    run.event("controller", 26.0, "breaker_opened", "worker-2")


def backlog(run: Run) -> None:
    for time_s in (24.1, 24.2, 24.3):
        run.add("worker-1", sample("worker-1", time_s, queue_depth=9))


def worker_never_came(run: Run) -> None:
    run.experiment = run.experiment | {"cluster": {"workers": 4}}


def bound_exceeded(run: Run) -> None:
    run.add("worker-1", sample("worker-1", 5.1, active=9))


def subscribed_twice(run: Run) -> None:
    run.add("worker-1", sample("worker-1", 5.1, subscriptions=2))


def controller_subscribed_twice(run: Run) -> None:
    run.add("controller", sample("controller", 5.0, subscriptions=3))
    run.add("controller", sample("controller", 5.1, subscriptions=4))


def reservation_left_over(run: Run) -> None:
    run.add("worker-1", sample("worker-1", RUN_END_S + 0.6, kv_bytes=4096))


def left_over(run: Run) -> None:
    run.add("controller", sample("controller", RUN_END_S + 0.6, open_requests=1))


def fail(run: Run, request_id: str, code: str, outcome: str = "failed") -> None:
    run.change(request(run, request_id), outcome=outcome, code=code, finish="", tokens=[], segments=[])


def unexplained_error(run: Run) -> None:
    fail(run, "r150", "ENGINE_ERROR")


def error_before_fault(run: Run) -> None:
    fail(run, "r50", "FIRST_TOKEN_TIMEOUT")


def hopeless_retry(run: Run) -> None:
    row = run.find("attempts", request_id="r30", side="controller")[0]
    run.change(row, code="MODEL_NOT_FOUND")
    run.event("controller", row.ended_s, "retry", request_id="r30", submission=1, attempt=2)


BROKEN: list[tuple[Callable[[Run], None], set[int], str]] = [
    (lost_token, {2, 3}, "token 6 is not|tokens 6 to 6 are missing"),
    (lost_token_unnoticed, {2, 3}, "token 6 is not|stopped for its length after 11 of 12"),
    (duplicated_token, {2, 3}, "token 6 is not|token 5 was delivered again"),
    (swapped_stream, {3}, "token 0 is not the model's own"),
    (hung_request, {1, 4}, "r30 never ended|1 never ended"),
    (ended_twice, {1, 4}, "r30 ended twice|344 requests were offered, 345 ended"),
    (ended_late, {1}, "ended 1.50 s after its deadline"),
    (ended_as_nothing, {1}, "ended as completed with code none and finish none"),
    (token_after_end, {2}, "token 6 came after the end"),
    (invented_attempt, {2, 4}, "worked for somebody-elses|worker-0 ran attempt 1.1, which no controller gave it"),
    (unrecorded_dispatch, {4}, "came from worker-0, the controller has no row of it"),
    (tokens_of_another_worker, {4}, "came from worker-2, the controller had given it to another worker"),
    (too_many_tokens, {3}, "token 12 is not"),
    (false_stop, {3}, "it stopped after 6 tokens"),
    (tokens_from_nowhere, {4}, "12 tokens delivered of attempt 1.1, of which worker-0 made 11"),
    (executed_twice, {5}, "attempt 1.1 was executed 2 times"),
    (executed_twice_killed, {5}, "attempt 1.1 was executed 2 times"),
    (started_late, {5}, "0.001 s after its deadline"),
    (started_late_killed, {5}, "0.300 s after its deadline"),
    (overtaken_token, {5}, "token 6 came from attempt 1.1, which had been superseded"),
    (superseded_token, {4, 5}, "token 6 came from attempt 1.1, which had been superseded"),
    (retry_storm, {5}, "more than the budget of 169"),
    (dispatch_to_dead, {4, 6}, "had given it to another worker|r167 was sent to worker-0, which was suspected"),
    (dispatch_to_stranger, {4, 6}, "had given it to another worker|r30 was sent to worker-9, which was not yet ready"),
    (healthy_declared_dead, {6}, "worker-1 was declared dead while no fault touched it"),
    (declared_dead_beside_a_faulty_controller, {6}, "worker-1 was declared dead while no fault touched it"),
    (one_controller_of_two_distrusts, {7}, "worker worker-2 is suspected 6.0 s after the heal"),
    (never_recovered, {7}, "worker worker-0 is dead 6.0 s after the heal"),
    (breaker_stays_open, {7}, "breaker of worker-0 is half_open"),
    (relapse, {7}, "breaker of worker-2 is open 12.0 s after the heal"),
    (backlog, {7}, "9 requests wait on worker-1 10.2 s after the heal, at most 0 did before"),
    (worker_never_came, {7}, "only 3 of 4 workers ever joined"),
    (bound_exceeded, {8}, "active of worker-1 is 9, its bound is 8"),
    (subscribed_twice, {8}, "worker-1 has 2 subscriptions, its bound is 1"),
    (controller_subscribed_twice, {8}, "controller has 4 subscriptions, its bound is 3"),
    (left_over, {8}, "open_requests of controller is still 1"),
    (reservation_left_over, {8}, "kv_bytes of worker-1 is still 4096"),
    (unexplained_error, {9}, "r150 ended with ENGINE_ERROR, which no fault explains"),
    (error_before_fault, {9}, "r50 ended with FIRST_TOKEN_TIMEOUT"),
    (hopeless_retry, {9}, "r30 was retried and can never succeed"),
]


@pytest.mark.parametrize(("breaks", "numbers", "text"), BROKEN, ids=[case[0].__name__ for case in BROKEN])
def test_a_broken_history_is_rejected(breaks: Callable[[Run], None], numbers: set[int], text: str) -> None:
    run = fresh()
    breaks(run)
    results = rejected(run)
    assert set(results) == numbers
    for result in results.values():
        assert result.verdict is Outcome.FAIL
        assert 1 <= len(result.examples) <= min(5, result.violations)
    explained = " / ".join(result.explanation for result in results.values())
    for part in text.split("|"):
        assert part in explained


GAUGES = ["queue", "active", "open_requests", "kv_bytes", "cache_bytes", "memory_bytes", "sessions"]


@pytest.mark.parametrize("gauge", GAUGES)
def test_every_level_with_a_bound_is_held_to_it(gauge: str) -> None:
    level, bound = "queue_depth" if gauge == "queue" else gauge, f"{gauge}_max"
    run = fresh()
    run.add("worker-1", sample("worker-1", 5.1, **{level: 9, bound: 9}))
    run.add("worker-2", sample("worker-2", 5.1, **{level: 9, bound: -1}))
    assert not rejected(run)
    run.add("worker-1", sample("worker-1", 5.2, **{level: 10, bound: 9}))
    results = rejected(run)
    assert set(results) == {8}
    assert f"{level} of worker-1 is 10, its bound is 9" in results[8].explanation


def test_every_gauge_with_a_bound_is_among_them() -> None:
    fields = set(Gauges.__struct_fields__)
    assert {name for name in fields if name.endswith("_max")} == {f"{gauge}_max" for gauge in GAUGES}


def test_kept_caches_weights_and_remembered_sessions_may_stay_after_the_load() -> None:
    run = fresh()
    run.add("worker-1", sample("worker-1", RUN_END_S + 0.6, cache_bytes=7, memory_bytes=9, sessions=3))
    assert not rejected(run)


def test_errors_are_explained_until_the_recovery_limit_after_the_heal() -> None:
    run = fresh()
    fail(run, "r150", "FIRST_TOKEN_TIMEOUT")
    fail(run, "r245", "FIRST_TOKEN_TIMEOUT")
    assert HEALED_S < request(run, "r245").intended_s < HEALED_S + 6
    run.change(request(run, "r10"), outcome="cancelled", code="CANCELLED", finish="")
    assert rejected(run) == {}


def hit(run: Run, *targets: str, injected_s: float, healed_s: float, **fields: Any) -> None:
    """One fault more, which explains what a lost worker does and not that nobody is left."""
    row = run.find("faults")[0]
    times = {"injected_s": injected_s, "healed_s": healed_s}
    new = {
        "name": f"f{len(run.find('faults'))}",
        "targets": list(targets),
        "explains": ["WORKER_LOST"],
        **times,
        **fields,
    }
    run.add("director", msgspec.structs.replace(row, **new))


def left_alone(run: Run) -> InvariantResult | None:
    """What invariant 9 says of a request that met nobody: r150, from 12.0 to 12.2 s, while worker-0 is cut off."""
    fail(run, "r150", "NO_WORKERS_AVAILABLE", "refused")
    assert INJECTED_S < request(run, "r150").intended_s < request(run, "r150").ended_s < HEALED_S - 0.5
    return rejected(run).get(9)


def test_faults_that_together_hit_every_worker_explain_that_nobody_is_left() -> None:
    run = fresh()
    hit(run, "worker-1", injected_s=10.5, healed_s=13.0)
    hit(run, "worker-2", injected_s=11.0, healed_s=12.6, kind="kill")
    assert left_alone(run) is None


SUSPECTED, READY = "worker_suspected", "worker_ready"
OPENED, CLOSED = "breaker_opened", "breaker_closed"
PATIENT = {"timeout": {"first_token_s": 2.0, "between_tokens_s": 1.5}}


@pytest.mark.parametrize(
    ("why", "healed_s", "events", "timeouts", "excused"),
    [
        # r150 begins at 12.0 s; the recovery limit is 6 s. worker-2 is on with it all the time.
        ("within the limit of one another, and nobody was distrusted", 7.0, [], {}, False),
        ("its own return was seen long before", 7.0, [(6.5, SUSPECTED), (7.5, READY)], PATIENT, False),
        ("its own return was seen only after the request", 7.0, [(6.5, SUSPECTED), (12.5, READY)], {}, True),
        ("its breaker closed only after the request", 7.0, [(6.5, OPENED), (12.5, CLOSED)], {}, True),
        ("it was ready, its breaker not closed", 7.0, [(6.5, SUSPECTED), (7.5, READY), (6.6, OPENED)], {}, True),
        ("it had not returned, and had had the limit for it", 5.5, [(5.0, SUSPECTED), (12.5, READY)], {}, False),
        ("what the fault spoilt was known soon after", 7.0, [(8.5, OPENED), (12.5, CLOSED)], PATIENT, True),
        ("distrusted for another reason, long after", 7.0, [(11.0, OPENED), (12.5, CLOSED)], PATIENT, False),
        ("distrusted again at once", 7.0, [(6.5, OPENED), (8.0, CLOSED), (9.0, OPENED), (12.5, CLOSED)], PATIENT, True),
        ("nobody saw it, and attempts may still be under way", 10.5, [], PATIENT, True),
        ("nobody saw it, and no attempt can be under way", 9.5, [], PATIENT, False),
    ],
)
def test_a_fault_that_is_healed_excuses_until_its_own_target_is_back(
    why: str, healed_s: float, events: list[tuple[float, str]], timeouts: dict[str, Any], excused: bool
) -> None:
    run = fresh()
    run.experiment = EXPERIMENT | {"policy": EXPERIMENT["policy"] | timeouts}
    hit(run, "worker-1", injected_s=4.0, healed_s=healed_s)
    hit(run, "worker-2", injected_s=5.0, healed_s=13.0)
    for time_s, kind in events:
        run.event("controller", time_s, kind, "worker-1")
    result = left_alone(run)
    assert (result is None) is excused, why
    if result is not None:
        assert "r150 ended with NO_WORKERS_AVAILABLE, which no fault explains" in result.explanation


def test_one_fault_after_the_other_never_left_nobody() -> None:
    """Each within the recovery limit of the next, and each worker back before the next one was hurt."""
    run = fresh()
    run.change(run.find("faults")[0], injected_s=7.0, healed_s=7.5)
    hit(run, "worker-1", injected_s=9.0, healed_s=9.5)
    hit(run, "worker-2", injected_s=11.5, healed_s=12.5)
    for name, start_s in (("worker-0", 7.1), ("worker-1", 9.1)):
        run.event("controller", start_s, SUSPECTED, name)
        run.event("controller", start_s + 0.9, READY, name)
    for row in run.find("events", subject="worker-0"):
        if row.time_s > 10.0:
            run.drop(row)
    result = left_alone(run)
    assert result is not None
    assert result.verdict is Outcome.FAIL


def test_faults_that_spare_one_worker_do_not_explain_that_nobody_is_left() -> None:
    run = fresh()
    hit(run, "worker-1", "controller", injected_s=10.5, healed_s=13.0)
    hit(run, "worker-1", "client-0", injected_s=11.0, healed_s=12.6, kind="kill")
    result = left_alone(run)
    assert result is not None
    assert result.verdict is Outcome.FAIL


def test_faults_on_every_worker_that_were_never_on_together_do_not_explain_it_either() -> None:
    run = fresh()
    run.change(run.find("faults")[0], injected_s=1.0, healed_s=2.0)
    hit(run, "worker-1", injected_s=12.0, healed_s=13.0)
    hit(run, "worker-2", injected_s=12.1, healed_s=13.0)
    assert left_alone(run) is not None


def test_a_fault_that_is_no_excuse_for_anything_is_none_for_a_lack_of_workers() -> None:
    run = fresh()
    hit(run, "worker-1", injected_s=10.5, healed_s=13.0)
    hit(run, "worker-2", injected_s=11.0, healed_s=12.6, kind="wrong_token", explains=[])
    assert left_alone(run) is not None


def test_a_fault_that_goes_from_one_worker_to_the_next_takes_one_away_at_a_time() -> None:
    rolling = {"kind": "restart", "parameters": '{"at_once": 1}'}
    run = fresh()
    hit(run, *WORKERS, injected_s=10.5, healed_s=13.0, **rolling)
    assert left_alone(run) is not None, "it leaves two, and the cut takes one of them"
    run = fresh()
    hit(run, "worker-1", injected_s=10.5, healed_s=13.0)
    hit(run, *WORKERS, injected_s=10.5, healed_s=13.0, **rolling)
    assert left_alone(run) is None


@pytest.mark.parametrize("parameters", ["", "[]", "{", '{"at_once": "all"}', '{"at_once": -1}'])
def test_parameters_that_say_nothing_of_it_mean_all_targets_at_once(parameters: str) -> None:
    run = fresh()
    hit(run, *WORKERS[1:], injected_s=10.5, healed_s=13.0, parameters=parameters)
    assert left_alone(run) is None


def test_a_death_in_reach_of_a_fault_is_explained() -> None:
    run = fresh()
    healthy_declared_dead(run)
    run.change(run.find("faults")[0], targets=["controller"], injected_s=3.0)
    assert 6 not in rejected(run)


def test_a_stall_of_the_host_makes_a_death_invalid() -> None:
    run = fresh()
    healthy_declared_dead(run)
    run.event("controller", 3.9, "host_stall", "controller", detail="1.0 s")
    assert rejected(run)[6].verdict is Outcome.FAIL
    run.event("worker-1", 3.9, "host_stall", "worker-1", detail="1.0 s")
    assert rejected(run)[6].verdict is Outcome.INVALID


def test_a_worker_that_stopped_on_request_may_die() -> None:
    run = fresh()
    run.event("worker-1", 3.0, "node_stopped", "worker-1")
    healthy_declared_dead(run)
    assert 6 not in rejected(run)


def test_what_a_controller_believed_dies_with_it() -> None:
    run = fresh()
    run.add("controller", EventRow(17.0, "node_started", "controller"), incarnation=2)
    for worker in ("worker-1", "worker-2"):
        run.add("controller", EventRow(17.5, "worker_joined", worker), incarnation=2)
        run.add("controller", EventRow(17.5, "worker_ready", worker), incarnation=2)
    assert "worker worker-0 is unknown" in rejected(run)[7].explanation
    run.add("controller", EventRow(17.6, "worker_ready", "worker-0"), incarnation=2)
    assert 7 not in rejected(run)


def test_one_chance_arrival_is_no_backlog() -> None:
    run = fresh()
    run.add("worker-1", sample("worker-1", 24.2, queue_depth=9))
    assert rejected(run) == {}


def test_a_fault_that_follows_another_ends_the_wait_for_recovery() -> None:
    run = fresh()
    row = run.find("faults")[0]
    run.add("director", msgspec.structs.replace(row, name="again", injected_s=HEALED_S + 0.5, healed_s=15.2))
    assert rejected(run) == {}
    run.change(row, healed_s=None)
    assert rejected(run)[7].verdict is Outcome.INCONCLUSIVE


def test_without_a_fault_there_is_nothing_to_recover_from() -> None:
    run = fresh()
    run.rows["faults"] = []
    assert rejected(run)[7].verdict is Outcome.NOT_APPLICABLE


def test_a_run_that_ends_too_soon_shows_no_recovery() -> None:
    run = fresh()
    run.change(run.find("events", kind="run_ended")[0], time_s=HEALED_S + 0.5)
    assert rejected(run)[7].verdict is Outcome.INCONCLUSIVE


def test_the_load_of_the_capacity_probe_is_not_judged() -> None:
    run = fresh()
    row = worker_row(run)
    early = {"begun_s": -2.0, "started_s": -1.9, "ended_s": -1.0, "deadline_s": 8.0}
    run.add("worker-1", msgspec.structs.replace(row, request_id="probe-1", **early))
    times = {"intended_s": -2.0, "sent_s": -2.0, "ended_s": -1.0, "deadline_s": 8.0}
    run.add("client-0", msgspec.structs.replace(request(run), request_id="probe-1", **times, segments=[], tokens=[]))
    assert rejected(run) == {}


def cut(run: Run, at_s: float) -> None:
    """As a run looks that was killed: nothing was written after that time, and nobody stopped cleanly."""
    run.info = msgspec.structs.replace(run.info, complete=False, ended_by="it was interrupted")
    for table, rows in run.rows.items():
        last = {"requests": "ended_s", "attempts": "ended_s", "faults": "healed_s"}.get(table, "time_s")
        run.rows[table] = [entry for entry in rows if (getattr(entry[2], last) or math.inf) <= at_s]


@pytest.mark.parametrize("at_s", [0.5, 5.0, 11.0, 14.5, 20.0])
def test_a_missing_tail_is_unknown_and_no_breach(at_s: float) -> None:
    run = fresh()
    cut(run, at_s)
    assert Outcome.FAIL not in {each.verdict for each in run_checkers(run.history())}


@pytest.mark.parametrize("worker", ["worker-1", "worker-2"])
def test_rows_of_a_killed_worker_may_be_missing(worker: str) -> None:
    run = fresh()
    for row in run.find("attempts", side="worker", worker=worker)[-20:]:
        run.drop(row)
    assert set(rejected(run)) == {4}
    run.drop(run.find("events", kind="node_stopped", subject=worker)[0])
    assert rejected(run) == {}


def test_a_whole_run_that_looked_at_no_node_after_its_load_has_not_shown_that_levels_come_back() -> None:
    run = fresh()
    last_end_s = max(row.ended_s for row in run.find("requests"))
    late = [row for row in run.find("nodes") if row.time_s >= last_end_s]
    for row in late:
        run.drop(row)
    assert late
    results = rejected(run)
    assert set(results) == {8}
    assert "no node was sampled after the last request had ended" in results[8].explanation


def test_an_empty_history_that_claims_to_be_whole_is_not_passed() -> None:
    run = Run()
    results = {each.number: each for each in run_checkers(run.history())}
    assert results[8].verdict is Outcome.FAIL
    assert "could not run" in results[8].explanation


def test_prefixes_of_failed_requests_are_compared_too() -> None:
    run = fresh()
    row = request(run, "r150")
    run.change(row, outcome="failed", code="FIRST_TOKEN_TIMEOUT", finish="", tokens=[7] * 6, segments=row.segments[:1])
    assert set(rejected(run)) == {3}


def test_a_stop_where_the_model_stopped_is_right() -> None:
    run = fresh()
    row = request(run)
    run.change(row, finish="stop", tokens=row.tokens[:6], segments=row.segments[:1])
    assert run.references is not None
    run.references[30] = {"prompt_id": row.prompt_id, "tokens": row.tokens[:6]}
    assert rejected(run) == {}


def test_inexact_tokens_are_judged_by_their_gap() -> None:
    run = fresh()
    run.info = msgspec.structs.replace(run.info, exact_tokens=False, log_probability_gap_max=0.1)
    row = request(run)
    run.change(row, tokens=[*row.tokens[:-1], 5])
    assert rejected(run)[3].verdict is Outcome.INCONCLUSIVE
    for gap, verdict in ((0.05, Outcome.PASS), (0.2, Outcome.FAIL)):
        gaps = pd.DataFrame({"request_id": ["r30"], "index": [MAX_TOKENS - 1], "gap": [gap]})
        assert CHECKERS[3].check(msgspec.structs.replace(run.history(), token_gaps=gaps)).verdict is verdict


@pytest.mark.parametrize("references", [None, []])
def test_a_check_without_its_evidence_fails_a_complete_run(references: list[dict[str, Any]] | None) -> None:
    run = fresh()
    run.references = references
    result = rejected(run)[3]
    assert result.verdict is Outcome.FAIL
    assert "could not run" in result.explanation
    run.info = msgspec.structs.replace(run.info, complete=False)
    assert rejected(run)[3].verdict is Outcome.INCONCLUSIVE


def test_only_declared_invariants_are_judged() -> None:
    run = fresh()
    lost_token(run)
    run.info = msgspec.structs.replace(run.info, invariants=[1, 12], world="staging")
    results = {each.number: each for each in run_checkers(run.history())}
    assert results[1].verdict is Outcome.PASS
    assert results[2].verdict is Outcome.NOT_APPLICABLE
    assert "staging" in results[2].explanation
    assert results[12].verdict is Outcome.FAIL


def test_a_check_that_breaks_fails_the_run(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(history: History) -> InvariantResult:
        raise KeyError("no such column")

    def shy(history: History) -> InvariantResult:
        raise CannotJudge("nothing to see")

    monkeypatch.setitem(checkers.CHECKERS, 1, CHECKERS[1]._replace(check=broken))
    monkeypatch.setitem(checkers.CHECKERS, 2, CHECKERS[2]._replace(check=shy))
    results = rejected(fresh())
    assert results[1].verdict is results[2].verdict is Outcome.FAIL
    assert "KeyError" in results[1].explanation


def test_a_segment_says_where_it_came_from() -> None:
    run = fresh()
    run.change(request(run), segments=[Segment(0, 0, 1, 1, "worker-0", 1, 0.0), *request(run).segments])
    assert "an empty segment at token 0" in rejected(run)[2].explanation


def test_a_token_that_crosses_the_next_dispatch_is_no_superseded_one() -> None:
    run = fresh()
    row = run.find("attempts", request_id="r30", side="controller")[0]
    run.add("controller", msgspec.structs.replace(row, attempt=2, begun_s=request(run).segments[1].received_s - 0.2))
    assert rejected(run) == {}


@pytest.mark.parametrize(
    ("target", "healed_s", "breaks"),
    [
        ("controller", HEALED_S, False),
        ("client-0", HEALED_S, False),
        ("worker-0", HEALED_S, True),
        ("controller", 1.5, False),
        # r30 is received at about 2.6 s: more than the recovery limit after this heal.
        ("controller", -4.0, True),
    ],
)
def test_bytes_that_a_link_held_may_come_late(target: str, healed_s: float, breaks: bool) -> None:
    run = fresh()
    overtaken_token(run)
    run.change(run.find("faults")[0], targets=[target], injected_s=-5.0 if healed_s < 0 else 1.0, healed_s=healed_s)
    assert (5 in rejected(run)) is breaks


@pytest.mark.parametrize("asked", [False, True])
def test_a_breaker_of_a_controller_that_nobody_asks_may_stay_open(asked: bool) -> None:
    run = fresh()
    for worker in WORKERS:
        run.event("controller-1", 0.5, "worker_joined", worker)
        run.event("controller-1", 0.5, "worker_ready", worker)
    run.event("controller-1", 11.0, "breaker_opened", "worker-0")
    if asked:
        row = run.find("attempts", side="controller", worker="worker-1")[-1]
        run.add("controller-1", msgspec.structs.replace(row, request_id="elsewhere", begun_s=HEALED_S + 1.0))
    results = rejected(run)
    assert (7 in results) is asked
    assert not asked or "breaker of worker-0 is open" in results[7].explanation


def test_tokens_without_any_dispatch_are_not_passed() -> None:
    run = fresh()
    for row in run.find("attempts", side="controller"):
        run.drop(row)
    run.drop(run.find("events", kind="node_stopped", subject="controller")[0])
    results = rejected(run)
    assert set(results) == {6}
    assert "no controller row of any dispatch" in results[6].explanation
    run.info = msgspec.structs.replace(run.info, complete=False)
    assert rejected(run)[6].verdict is Outcome.INCONCLUSIVE


def test_tokens_without_a_trace_of_any_worker_are_not_passed() -> None:
    run = fresh()
    for worker in WORKERS:
        run.drop(run.find("events", kind="node_stopped", subject=worker)[0])
    for row in run.find("attempts", side="worker"):
        run.drop(row)
    assert rejected(run) == {}
    for started in run.find("events", kind="attempt_started"):
        run.drop(started)
    results = rejected(run)
    assert set(results) == {4, 5}
    assert all("no worker left a row" in result.explanation for result in results.values())
    run.info = msgspec.structs.replace(run.info, complete=False)
    assert {rejected(run)[number].verdict for number in (4, 5)} == {Outcome.INCONCLUSIVE}


def test_rows_of_a_killed_controller_may_be_missing() -> None:
    run = fresh()
    unrecorded_dispatch(run)
    assert set(rejected(run)) == {4}
    run.add("controller", EventRow(-9.0, "node_started", "controller"), incarnation=0)
    assert rejected(run) == {}


def test_what_happens_in_the_moment_of_the_next_injection_is_no_relapse() -> None:
    run = fresh()
    again = {"name": "again", "injected_s": 26.0, "healed_s": 28.0}
    run.add("director", FaultRow(**{**msgspec.structs.asdict(run.find("faults")[0]), **again}))
    relapse(run)
    assert rejected(run)[7].violations == 0
    run.event("controller", 25.999, "breaker_opened", "worker-1")
    assert rejected(run)[7].violations == 1
