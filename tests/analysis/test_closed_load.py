"""A closed load in a history: what of it was offered, what must be accounted for, and what makes a run invalid."""

import re
from collections.abc import Callable

import msgspec
import pytest

from analysis import closed_load
from analysis.checkers import conservation, ending
from analysis.criterion import Criterion
from analysis.facts import counts, due, offered
from analysis.judge import evaluate, judge
from analysis.verdict import Outcome
from tests.analysis.histories import EXPERIMENT, PHASES, RUN_END_S, Run, clean_run

START_S, STOP_S = PHASES["baseline"]
NEVER_ASKED = 7


def closed_run() -> Run:
    """The baseline is a closed load: each of its requests was asked when it says, and some planned ones never were."""
    run = clean_run()
    phases = {**EXPERIMENT["phases"], "baseline": {"duration_s": STOP_S - START_S, "load": {"closed": 2}}}
    run.experiment = {**EXPERIMENT, "phases": phases}
    for line in run.schedule:
        if START_S <= line["intended_s"] < STOP_S:
            run.event("client-0", line["intended_s"], "request_asked", "client-0", request_id=line["request_id"])
            line |= {"segment": "baseline", "intended_s": START_S}
    planned = [
        {**run.schedule[-1], "request_id": f"q{n}", "segment": "baseline", "intended_s": START_S}
        for n in range(NEVER_ASKED)
    ]
    run.schedule += planned
    return run


def asked(run: Run) -> list[str]:
    return [row.request_id for row in run.find("events", kind="request_asked")]


def test_what_was_never_asked_was_never_offered() -> None:
    run = closed_run()
    history, clean = run.history(), clean_run().history()
    assert counts(history) == counts(clean)
    assert len(due(history)) == len(run.schedule) - NEVER_ASKED
    lines = offered(history).set_index("request_id")
    rows = history.requests.set_index("request_id")
    assert (lines.loc[asked(run), "intended_s"] == rows.loc[asked(run), "intended_s"]).all(), (
        "when each was really sent"
    )
    assert conservation.check(history).verdict is Outcome.PASS
    assert ending.check(history).verdict is Outcome.PASS


def _hung(run: Run) -> None:
    run.drop(run.find("requests", request_id=asked(run)[3])[0])


def _made_up(run: Run) -> None:
    run.drop(run.find("events", kind="request_asked")[3])


def _of_no_plan(run: Run) -> None:
    run.event("client-0", 4.0, "request_asked", "client-0", request_id="nobody")


@pytest.mark.parametrize(
    ("spoil", "said"),
    [
        (_hung, "requests were offered, 3[0-9]+ ended and 1 never ended"),
        (_made_up, "of a closed load ended and was never asked"),
        (_of_no_plan, "request nobody was asked and is in no closed load"),
    ],
)
def test_conservation_rejects_a_closed_load_that_does_not_add_up(spoil: Callable[[Run], None], said: str) -> None:
    run = closed_run()
    spoil(run)
    result = conservation.check(run.history())
    assert result.verdict is Outcome.FAIL
    assert any(re.search(said, breach.text) for breach in result.examples)


def test_a_request_that_hung_is_counted_as_such_and_belongs_to_its_phase() -> None:
    run = closed_run()
    name = asked(run)[3]
    run.drop(run.find("requests", request_id=name)[0])
    history = run.history()
    assert counts(history).in_flight == 1
    assert ending.check(history).verdict is Outcome.FAIL
    result = evaluate(history, "success", Criterion(metric="success_rate", phase="baseline", at_least=1.0))
    assert result.verdict is Outcome.FAIL
    assert result.samples == len(asked(run))


def test_in_a_run_that_was_cut_what_was_asked_is_in_flight() -> None:
    run = closed_run()
    run.drop(run.find("requests", request_id=asked(run)[3])[0])
    run.info = msgspec.structs.replace(run.info, complete=False, ended_by="interrupted")
    assert counts(run.history()).in_flight == 1
    assert conservation.check(run.history()).verdict is Outcome.PASS


def test_a_criterion_over_a_closed_load_says_so() -> None:
    history = closed_run().history()
    result = evaluate(history, "latency", Criterion(metric="latency_p50_s", phase="baseline", at_most=1.0))
    assert "in phase baseline (closed loop, 2 in flight)" in result.explanation
    assert closed_load.kind(history, "fault") == closed_load.kind(history, None) == ""


def test_a_closed_load_that_lasted_passes() -> None:
    run = closed_run()
    result = closed_load.check(run.history())
    assert result.verdict is Outcome.PASS
    assert result.explanation.startswith(f"{len(asked(run))} of {len(asked(run)) + NEVER_ASKED} requests planned")
    assert closed_load.check(clean_run().history()).verdict is Outcome.NOT_APPLICABLE


def test_a_closed_load_that_ran_dry_makes_the_run_invalid_and_says_how_many_it_needs() -> None:
    run = closed_run()
    run.event("client-0", START_S + 3.0, "load_ran_dry", "baseline")
    verdict = judge(run.history())
    assert verdict.verdict is Outcome.INVALID
    planned = len(asked(run)) + NEVER_ASKED
    said = f"the {planned} requests planned for phase baseline lasted 3.0 s, about {2 * planned} would be needed"
    assert verdict.reasons[0].startswith(said)


def test_a_closed_load_has_no_dispatch_lag() -> None:
    run = closed_run()
    for name in asked(run):
        row = run.find("requests", request_id=name)[0]
        run.change(row, sent_s=row.intended_s + 5.0)
    lag = next(each for each in judge(run.history()).criteria if each.name == "dispatch lag (self-check)")
    assert lag.verdict is Outcome.PASS
    assert lag.samples == len(clean_run().schedule) - len(asked(run))
    assert RUN_END_S > STOP_S
