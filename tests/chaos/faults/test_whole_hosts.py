"""Faults of whole hosts that leave them running: all nodes of a host are hit at once, and only those."""

import json
from pathlib import Path
from typing import Any

import pytest

from analysis.verdict import Outcome
from chaos import faults
from chaos.experiment import ExperimentError, FaultSpec, find
from chaos.prediction import predict
from chaos.resolve import load
from chaos.worlds.simulated_links import SimulatedLink
from cluster.errors import Code
from tests.chaos.simulated_runs import conduct

NODES = ("controller", "worker-0", "worker-1", "worker-2", "worker-3", "client-0")
SPREAD = (
    *("cluster.workers=4", "cluster.hosts=2", "workload.rate=20/s"),
    *("phases.baseline.duration_s=4", "phases.fault.duration_s=13", "phases.recovery.duration_s=16"),
)
CUT = "{kind: host_cut, mode: black_hole, targets: [host-1], phase: fault, start_s: 1, duration_s: 11, ttl_s: 60}"
FREEZE = "{kind: host_freeze, targets: [host-1], phase: fault, start_s: 1, duration_s: 11, ttl_s: 60}"


def spec(kind: str, **fields: Any) -> FaultSpec:
    whole: dict[str, Any] = {"kind": kind, "phase": "fault", "targets": ("host-1",), "duration_s": 5.0, "ttl_s": 9.0}
    return FaultSpec(**(whole | fields))


@pytest.mark.simulated
@pytest.mark.parametrize("fault", [CUT, FREEZE])
def test_all_nodes_of_a_host_are_hit_and_come_back(fault: str, tmp_path: Path) -> None:
    done = conduct(tmp_path, *SPREAD, f"faults.cut={fault}")
    told = done.history.faults.iloc[0]
    evidence = json.loads(told["evidence"])
    assert bool(told["verified"]), evidence
    assert bool(told["heal_verified"]), evidence
    assert list(told["targets"]) == ["worker-1", "worker-3"]
    assert set(evidence["bite"]) == {"worker-1", "worker-3"}
    assert set(evidence["heal"]) == {"worker-1", "worker-3"}
    assert [each for each in done.verdict.invariants if each.verdict is Outcome.FAIL] == []
    assert done.verdict.counts.in_flight == 0


@pytest.mark.simulated
def test_a_host_that_nobody_cuts_is_no_evidence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async def nothing(link: SimulatedLink, *arguments: object) -> None:
        """In place of SimulatedLink.cut."""

    monkeypatch.setattr(SimulatedLink, "cut", nothing)
    done = conduct(tmp_path, *SPREAD, f"faults.cut={CUT}")
    assert done.verdict.verdict is Outcome.INVALID
    assert [each.verified for each in done.verdict.faults] == [False]


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        (("faults.cut.targets=[worker-1]",), "faults.cut.targets: host_cut is for host, got worker-1"),
        (("faults.cut.targets=[host-0]",), "faults.cut.targets: host-0 is no target"),
        (("faults.cut.mode=hard",), "faults.cut.mode: expected one of refuse, reset"),
        (("faults.cut.duration_s=2",), "faults.cut.duration_s: expected at least 2.5 s"),
        (("faults.cut.kind=host_freeze",), "faults.cut.mode: host_freeze has no modes"),
    ],
)
def test_a_wrong_one_costs_one_line(settings: tuple[str, ...], said: str) -> None:
    with pytest.raises(ExperimentError) as refused:
        load(find("network_partition"), [*SPREAD, f"faults.cut={CUT}", *settings])
    assert said in str(refused.value)


@pytest.mark.parametrize(("kind", "more"), [("host_cut", {"mode": "black_hole"}), ("host_freeze", {})])
def test_before_it_strikes_it_explains_what_any_worker_can_cause(kind: str, more: dict[str, str]) -> None:
    explains = faults.make(spec(kind, **more), NODES).explains
    assert Code.WORKER_LOST in explains
    assert not {Code.NO_WORKERS_AVAILABLE, Code.CONTROLLER_UNREACHABLE} & set(explains)


def test_it_has_to_be_noticed_as_if_every_node_were_hit_by_itself() -> None:
    policy = load(find("network_partition"), []).policy
    alone = predict(spec("partition", mode="black_hole", targets=("worker-1",)), policy)
    assert predict(spec("host_cut", mode="black_hole"), policy) == alone
    assert predict(spec("host_freeze"), policy) == predict(spec("freeze", targets=("worker-1",)), policy)
