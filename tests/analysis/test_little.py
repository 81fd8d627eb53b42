"""Little's law as a self-check: what agrees passes, and a history whose rows and counters disagree is rejected."""

from collections.abc import Callable

import msgspec
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from analysis import little
from analysis.judge import judge
from analysis.schema import RequestRow
from analysis.verdict import Outcome
from tests.analysis.histories import RUN_END_S, Run, clean_run, sample

CLIENTS = ("client-0", "client-1")


def watched_run(offset_s: float = 0.1) -> Run:
    """The clean run, shared out to two clients whose counters of open requests tell the truth."""
    run = clean_run()
    entries = run.rows["requests"]
    run.rows["requests"] = [(CLIENTS[n % 2], 1, row) for n, (_, _, row) in enumerate(entries)]
    for client in CLIENTS:
        mine = [row for node, _, row in run.rows["requests"] if node == client and isinstance(row, RequestRow)]
        for time_s in np.arange(offset_s, RUN_END_S, 0.5).tolist():
            alive = sum(row.intended_s <= time_s < row.ended_s for row in mine)
            run.add(client, sample(client, time_s, open_requests=alive))
    return run


def test_the_law_holds_where_rows_and_counters_tell_the_same() -> None:
    result = little.check(watched_run().history())
    assert result.verdict is Outcome.PASS, result.explanation
    assert result.samples >= little.SAMPLES_MIN


@settings(max_examples=15, deadline=None)
@given(st.floats(0.0, 0.49))
def test_when_the_clients_are_sampled_makes_no_difference(offset_s: float) -> None:
    assert little.check(watched_run(offset_s).history()).verdict is Outcome.PASS


def _ended_early(run: Run) -> None:
    """Latencies that look better than they were."""
    for _, _, row in list(run.rows["requests"]):
        if isinstance(row, RequestRow):
            run.change(row, ended_s=row.intended_s + (row.ended_s - row.intended_s) / 4)


def _rows_lost(run: Run) -> None:
    """Two of three requests, and the plan that names them, are gone."""
    kept = {
        row.request_id
        for n, (_, _, row) in enumerate(run.rows["requests"])
        if n % 3 == 0
        if isinstance(row, RequestRow)
    }
    run.rows["requests"] = [entry for entry in run.rows["requests"] if entry[2].request_id in kept]  # type: ignore[union-attr]
    run.schedule = [line for line in run.schedule if line["request_id"] in kept]


def _counted_twice(run: Run) -> None:
    run.rows["nodes"] = [
        (node, life, msgspec.structs.replace(row, open_requests=row.open_requests + 4) if node in CLIENTS else row)  # type: ignore[call-arg, union-attr]
        for node, life, row in run.rows["nodes"]
    ]


@pytest.mark.parametrize("spoil", [_ended_early, _rows_lost, _counted_twice])
def test_a_history_that_breaks_the_law_is_rejected(spoil: Callable[[Run], None]) -> None:
    run = watched_run()
    spoil(run)
    result = little.check(run.history())
    assert result.verdict is Outcome.INVALID
    assert "rows are missing or their times are wrong" in result.explanation
    assert judge(run.history()).verdict is Outcome.INVALID


def test_requests_that_hang_are_in_flight_for_the_law_too() -> None:
    run = watched_run()
    lost = run.find("requests")[100]
    (client,) = [node for node, _, row in run.rows["requests"] if row is lost]
    run.drop(lost)
    run.rows["nodes"] = [
        (node, life, msgspec.structs.replace(row, open_requests=row.open_requests + 1))  # type: ignore[call-arg, union-attr]
        if node == client and row.time_s >= lost.ended_s  # type: ignore[union-attr]
        else (node, life, row)
        for node, life, row in run.rows["nodes"]
    ]
    assert little.check(run.history()).verdict is Outcome.PASS


def test_nothing_is_said_without_enough_samples_or_of_a_run_that_was_cut() -> None:
    assert little.check(clean_run().history()).verdict is Outcome.NOT_APPLICABLE
    run = watched_run()
    run.info = msgspec.structs.replace(run.info, complete=False)
    result = little.check(run.history())
    assert (result.verdict, result.explanation) == (
        Outcome.NOT_APPLICABLE, "the run was cut, so requests in flight left no row",
    )  # fmt: skip
