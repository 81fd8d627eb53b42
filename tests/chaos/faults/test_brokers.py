"""What proves that the broker is hurt, and what does not."""

from typing import Any

import pytest
from msgspec.structs import replace

from chaos import faults
from chaos.experiment import FaultSpec
from chaos.faults.broker_freeze import BrokerFreeze
from chaos.faults.broker_kill import BrokerKill
from chaos.faults.broker_restart import BrokerRestart
from chaos.faults.lame_duck import LameDuck
from chaos.worlds.world import BrokerState, Life

NODES = ("controller", "worker-0", "client-0")
BEFORE = BrokerState(Life.RUNS, 100, "A", True, 3, 0)
GONE = BrokerState(Life.IS_GONE, 100, "", False, None, None)
FROZEN = BrokerState(Life.STANDS_STILL, 100, "", False, None, None)
ANOTHER = BrokerState(Life.RUNS, 101, "B", True, 3, 0)
LEAVING = replace(BEFORE, greets=False)
KINDS = ("broker_kill", "broker_restart", "broker_freeze", "lame_duck")


def spec(kind: str, **fields: Any) -> FaultSpec:
    whole: dict[str, Any] = {"kind": kind, "phase": "fault", "targets": ("broker",), "duration_s": 5.0, "ttl_s": 9.0}
    return FaultSpec(**(whole | fields))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"targets": ("worker-0",)}, r"^targets: \w+ is for broker, got worker-0"),
        ({"mode": "hard"}, r"^mode: \w+ has no modes, got 'hard'"),
        ({"options": {"speed": 1}}, r"^options: \w+ has no speed; it has none"),
        ({"duration_s": 2.0}, r"^duration_s: expected at least 2.5 s"),
    ],
)
def test_what_a_kind_does_not_allow_is_refused_by_field(kind: str, fields: dict[str, Any], said: str) -> None:
    fault = faults.make(spec(kind), NODES)
    assert kind == fault.KIND
    with pytest.raises(ValueError, match=said):
        faults.make(spec(kind, **fields), NODES)


@pytest.mark.parametrize("before", [None, GONE, replace(BEFORE, greets=False), replace(BEFORE, identity="")])
def test_a_broker_that_did_not_work_before_proves_nothing(before: BrokerState | None) -> None:
    kill, freeze, restart, duck = _all(before)
    assert not kill._judge(GONE)[0]
    assert not freeze._judge(FROZEN)[0]
    assert not restart._judge(ANOTHER)[0]
    assert not duck._judge(LEAVING)[0]


def test_each_kind_is_proved_by_what_it_does_and_by_nothing_else() -> None:
    kill, freeze, restart, duck = _all(BEFORE)
    assert kill._judge(GONE)[0]
    assert freeze._judge(FROZEN)[0]
    assert restart._judge(ANOTHER)[0]
    assert duck._judge(LEAVING)[0]
    assert duck._judge(GONE)[0], "it has left"
    for state in (BEFORE, FROZEN, ANOTHER, replace(GONE, greets=True), replace(GONE, identity="B")):
        assert not kill._judge(state)[0]
    for state in (BEFORE, GONE, ANOTHER, replace(FROZEN, identity="A"), replace(FROZEN, greets=True)):
        assert not freeze._judge(state)[0]
    for state in (BEFORE, GONE, FROZEN, replace(ANOTHER, identity="A"), replace(ANOTHER, greets=False)):
        assert not restart._judge(state)[0]
    for state in (BEFORE, FROZEN, ANOTHER, replace(LEAVING, identity="")):
        assert not duck._judge(state)[0]


def _all(before: BrokerState | None) -> tuple[BrokerKill, BrokerFreeze, BrokerRestart, LameDuck]:
    made = (
        BrokerKill(spec("broker_kill"), NODES),
        BrokerFreeze(spec("broker_freeze"), NODES),
        BrokerRestart(spec("broker_restart"), NODES),
        LameDuck(spec("lame_duck"), NODES),
    )
    for fault in made:
        fault._before = before
    return made
