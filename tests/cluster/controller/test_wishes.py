"""Requests that wish for a worker: they get it while it may take them, wait for it while it is full, and else go on."""

from typing import Any

import pytest

from cluster.errors import Code
from cluster.node import Command
from cluster.policy import BreakerPolicy, Policy, RoutingPolicy
from cluster.protocol import AttemptId, Chunk
from tests.cluster.controller.test_controller import Desk, dispatches, part, told

NARROW = Policy(routing=RoutingPolicy(outstanding_max=1, hold_s=0.5))


def went(commands: list[Command]) -> list[str]:
    return [f"{sent.attempt.request_id} to {worker}" for worker, sent in dispatches(commands)]


def whole(desk: Desk, worker: str, name: str, now: float) -> list[Command]:
    """The first attempt of a request completes."""
    return desk.report(worker, Chunk(AttemptId(name, 1, 1), 0, part(name, 0, 6), finish="length"), now)


def test_the_wished_worker_is_asked_although_another_is_idle_and_holds_the_session() -> None:
    desk = Desk()
    assert went(desk.submit("r1", 0.0, session="s", wish="w1")) == ["r1 to w1"]
    assert went(desk.submit("r2", 0.0, session="s", wish="w0")) == ["r2 to w0"]
    assert went(desk.submit("r3", 0.0, wish="w0")) == ["r3 to w0"]
    assert went(desk.submit("r4", 0.0)) == ["r4 to w1"]


def test_a_cold_worker_is_asked_where_it_is_wished_for() -> None:
    desk = Desk()
    desk.beat("w1", 0.0, state="cold")
    assert went(desk.submit("r1", 0.1, wish="w1")) == ["r1 to w1"]


def test_a_full_one_is_waited_for_and_whoever_wishes_for_nobody_is_not_held_up() -> None:
    desk = Desk(NARROW)
    assert went(desk.submit("r1", 0.0, wish="w0")) == ["r1 to w0"]
    assert went(desk.submit("r2", 0.1, wish="w0")) == []
    assert went(desk.submit("r3", 0.2, wish="w0")) == []
    assert went(desk.submit("r4", 0.3)) == ["r4 to w1"], "there is room for those who do not mind"
    assert went(desk.submit("r5", 0.4)) == []
    assert went(desk.until(0.9)) == []
    assert went(whole(desk, "w1", "r4", 0.9)) == ["r5 to w1"], "and none for those who do"
    assert went(whole(desk, "w0", "r1", 1.0)) == ["r2 to w0"]
    assert went(whole(desk, "w0", "r2", 1.1)) == ["r3 to w0"]
    assert desk.node.gauges().queue_depth == 0


def test_a_free_place_goes_to_who_has_waited_longest_wish_or_not() -> None:
    desk = Desk(NARROW, workers=("w0",))
    desk.submit("r1", 0.0)
    for name, wish in (("r2", ""), ("r3", "w0"), ("r4", "")):
        assert went(desk.submit(name, float(name[1]) / 10, wish=wish)) == []
    order = []
    for name in ("r1", "r2", "r3"):
        order += went(whole(desk, "w0", name, 0.9))
    assert order == ["r2 to w0", "r3 to w0", "r4 to w0"]


@pytest.mark.parametrize(
    "beat",
    [{"state": "failed"}, {"draining": True}, {"engine_silent_s": 60.0}, {"pressure": 2}, None],
    ids=str,
)
def test_one_that_may_not_take_it_is_not_waited_for(beat: dict[str, Any] | None) -> None:
    desk = Desk()
    if beat is not None:
        desk.beat("w0", 0.1, **beat)
    assert went(desk.submit("r1", 0.2, wish="nobody" if beat is None else "w0"))[0].startswith("r1 to ")
    assert went(desk.submit("r2", 0.2, wish="w0" if beat else "w9"))[0].endswith("w1")


def test_those_who_wait_for_a_worker_that_is_gone_go_elsewhere() -> None:
    desk = Desk(NARROW)
    desk.submit("r1", 0.0, wish="w0")
    desk.submit("r2", 0.1, wish="w0")
    assert went(desk.beat("w0", 0.2, state="failed")) == ["r2 to w1"]


def test_a_retry_goes_elsewhere() -> None:
    desk = Desk()
    desk.submit("r1", 0.0, wish="w0")
    desk.report("w0", Chunk(AttemptId("r1", 1, 1), 0, code=str(Code.ENGINE_ERROR)), 0.1)
    assert went(desk.until(1.0)) == ["r1 to w1"]


def test_behind_an_open_breaker_it_is_not_asked_and_half_open_it_is() -> None:
    desk = Desk(Policy(breaker=BreakerPolicy(failures_to_open=1, open_s=1.0)))
    desk.submit("r1", 0.0, wish="w0")
    failed = desk.report("w0", Chunk(AttemptId("r1", 1, 1), 0, code=str(Code.ENGINE_ERROR)), 0.1)
    assert told(failed) == []
    assert desk.node.workers()["w0"][1] == "open"
    assert went(desk.submit("r2", 0.2, wish="w0")) == ["r2 to w1"]
    desk.until(1.1)
    for worker in ("w0", "w1"):
        desk.beat(worker, 1.2)
    assert went(desk.submit("r3", 1.2, wish="w0")) == ["r3 to w0"]
    assert went(desk.submit("r4", 1.2, wish="w0")) == ["r4 to w1"], "one probe, not two"


def test_low_priority_does_not_insist_on_a_worker_under_pressure() -> None:
    desk = Desk()
    desk.beat("w0", 0.1, pressure=1)
    assert went(desk.submit("r1", 0.2, wish="w0", priority=-1)) == ["r1 to w1"]
    assert went(desk.submit("r2", 0.2, wish="w0")) == ["r2 to w0"]
