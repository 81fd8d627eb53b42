"""What proves that a process is hurt or back, and what does not."""

from typing import Any

import pytest
from msgspec.structs import replace

from chaos import faults
from chaos.experiment import FaultSpec
from chaos.faults.freeze import stands_still
from chaos.faults.processes import Return, is_gone, is_renewed
from chaos.worlds.world import Life, Member, ProcessState
from cluster.errors import Code

NODES = ("controller", "worker-0", "worker-1", "client-0")
BEFORE = ProcessState(Life.RUNS, 100, 1, True, {7: 50})
GONE = ProcessState(Life.IS_GONE, 100, None, False, {})
FROZEN = ProcessState(Life.STANDS_STILL, 100, None, False, {7: 51})
RENEWED = ProcessState(Life.RUNS, 101, 2, True, {9: 3})
HEARD = {"controller": {"worker-0": Member("ready", 2)}}
KINDS = ("kill", "freeze", "stop", "restart")


def spec(kind: str, **fields: Any) -> FaultSpec:
    whole: dict[str, Any] = {"kind": kind, "phase": "fault", "targets": ("worker-0",), "duration_s": 5.0, "ttl_s": 9.0}
    return FaultSpec(**(whole | fields))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("target", ["worker-0", "controller"])
def test_workers_and_controllers_may_be_hurt(kind: str, target: str) -> None:
    fault = faults.make(spec(kind, targets=(target,)), NODES)
    assert kind == fault.KIND


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"targets": ("client-0",)}, r"^targets: \w+ is for worker and controller, got client-0"),
        ({"targets": ("broker",)}, r"^targets: \w+ is for worker and controller, got broker"),
        ({"mode": "hard"}, r"^mode: \w+ has no modes, got 'hard'"),
        ({"options": {"speed": 1}}, r"^options: \w+ has no speed; "),
        ({"duration_s": 2.0}, r"^duration_s: expected at least 2.5 s"),
    ],
)
def test_what_a_kind_does_not_allow_is_refused_by_field(kind: str, fields: dict[str, Any], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        faults.make(spec(kind, **fields), NODES)


@pytest.mark.parametrize(
    ("kind", "option", "values"),
    [
        ("kill", "restart_after_s", (1.0, 5.1, "soon", True)),
        ("stop", "drain_limit_s", (0, -1, 601, "long")),
        ("restart", "drain_limit_s", (-1, 601, "long")),
        ("restart", "between_s", (-0.1, 3_601, False)),
    ],
)
def test_options_have_limits(kind: str, option: str, values: tuple[Any, ...]) -> None:
    for value in values:
        with pytest.raises(ValueError, match=f"^options.{option}: expected a number from "):
            faults.make(spec(kind, options={option: value}), NODES)


@pytest.mark.parametrize(
    ("targets", "controller", "nobody"),
    [
        (("worker-0",), False, False),
        (("worker-0", "worker-1"), False, True),
        (("controller",), True, False),
        (("controller", "worker-1"), True, False),
    ],
)
def test_it_explains_no_more_errors_than_its_targets_can_cause(
    targets: tuple[str, ...], controller: bool, nobody: bool
) -> None:
    codes = faults.make(spec("kill", targets=targets), NODES).explains
    assert (Code.CONTROLLER_UNREACHABLE in codes) == controller
    assert (Code.NO_WORKERS_AVAILABLE in codes) == nobody
    assert not {Code.MODEL_NOT_FOUND, Code.INVALID_REQUEST, Code.ENGINE_ERROR, Code.CANCELLED} & set(codes)


def test_a_rolling_restart_of_several_workers_never_leaves_nobody() -> None:
    rolling = faults.make(spec("restart", targets=("worker-0", "worker-1")), NODES)
    assert Code.NO_WORKERS_AVAILABLE not in rolling.explains
    alone = faults.make(spec("restart"), ("controller", "worker-0", "client-0"))
    assert Code.NO_WORKERS_AVAILABLE in alone.explains


def test_a_process_is_gone_when_system_and_broker_say_so() -> None:
    assert is_gone(BEFORE, GONE, replaced=False)[0]
    assert is_gone(BEFORE, RENEWED, replaced=True)[0]


@pytest.mark.parametrize(
    ("before", "now", "replaced"),
    [
        (None, GONE, False),
        (replace(BEFORE, answers=False), GONE, False),
        (replace(BEFORE, life=Life.STANDS_STILL), GONE, False),
        (replace(BEFORE, connections={}), GONE, False),
        (replace(BEFORE, connections=None), GONE, False),
        (BEFORE, BEFORE, False),
        (BEFORE, BEFORE, True),
        (BEFORE, FROZEN, True),
        (BEFORE, RENEWED, False),
        (BEFORE, replace(GONE, connections={7: 50}), False),
        (BEFORE, replace(GONE, connections=None), False),
    ],
)
def test_anything_else_does_not_prove_that_it_is_gone(
    before: ProcessState | None, now: ProcessState, replaced: bool
) -> None:
    gone, why = is_gone(before, now, replaced=replaced)
    assert not gone
    assert why


def test_a_process_stands_still_when_it_is_stopped_and_silent_on_an_open_connection() -> None:
    assert stands_still(BEFORE, FROZEN, FROZEN)[0]
    assert stands_still(BEFORE, FROZEN, replace(FROZEN, connections={}))[0], "the broker may have dropped it meanwhile"


@pytest.mark.parametrize(
    ("before", "early", "late"),
    [
        (None, FROZEN, FROZEN),
        (replace(BEFORE, answers=False), FROZEN, FROZEN),
        (BEFORE, BEFORE, BEFORE),
        (BEFORE, GONE, GONE),
        (BEFORE, FROZEN, RENEWED),
        (BEFORE, replace(FROZEN, answers=True), FROZEN),
        (BEFORE, FROZEN, replace(FROZEN, incarnation=1)),
        (BEFORE, FROZEN, replace(FROZEN, connections={7: 52})),
        (BEFORE, replace(FROZEN, connections={}), FROZEN),
        (BEFORE, replace(FROZEN, connections=None), FROZEN),
    ],
)
def test_anything_else_does_not_prove_that_it_stands_still(
    before: ProcessState | None, early: ProcessState, late: ProcessState
) -> None:
    still, why = stands_still(before, early, late)
    assert not still
    assert why


def test_a_node_is_renewed_when_everybody_has_noticed() -> None:
    assert is_renewed("worker-0", BEFORE, RENEWED, HEARD)[0]
    assert is_renewed("controller", BEFORE, RENEWED, {})[0]


@pytest.mark.parametrize(
    ("now", "members"),
    [
        (BEFORE, HEARD),
        (GONE, HEARD),
        (replace(RENEWED, answers=False), HEARD),
        (replace(RENEWED, incarnation=1), HEARD),
        (replace(RENEWED, incarnation=None), HEARD),
        (replace(RENEWED, connections={7: 50, 9: 1}), HEARD),
        (RENEWED, {}),
        (RENEWED, {"controller": {}}),
        (RENEWED, {"controller": {"worker-0": Member("ready", 1)}}),
        (RENEWED, HEARD | {"controller-1": {"worker-0": Member("ready", 1)}}),
    ],
)
def test_anything_else_does_not_prove_that_it_is_renewed(now: ProcessState, members: Any) -> None:
    renewed, why = is_renewed("worker-0", BEFORE, now, members)
    assert not renewed
    assert why


@pytest.mark.parametrize(
    ("target", "now", "members", "renewed", "back"),
    [
        ("worker-0", RENEWED, HEARD, True, True),
        ("worker-0", RENEWED, HEARD, False, False),
        ("worker-0", BEFORE, {"controller": {"worker-0": Member("ready", 1)}}, False, True),
        ("worker-0", RENEWED, {"controller": {"worker-0": Member("suspected", 2)}}, True, False),
        ("worker-0", RENEWED, {}, True, False),
        ("worker-0", FROZEN, HEARD, False, False),
        ("controller", RENEWED, HEARD, True, True),
        ("controller", RENEWED, {"controller": {}}, True, False),
        ("controller", RENEWED, {"controller": {"worker-0": Member("dead", 2)}}, True, False),
    ],
)
def test_a_node_is_back_when_it_answers_and_the_controllers_count_on_it(
    target: str, now: ProcessState, members: Any, renewed: bool, back: bool
) -> None:
    known = {"controller": {"worker-0": Member("ready", 1), "worker-1": Member("dead", 1)}}
    proof = Return({target: BEFORE}, known, (target,) if renewed else ())
    assert proof._is_back(target, now, members)[0] is back
