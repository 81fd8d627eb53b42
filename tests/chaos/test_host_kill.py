"""Hosts as targets: who is where, what is refused, and that all nodes of a host fall and rise together."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any, cast

import psutil
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from analysis.judge import judge
from analysis.reader import load_history
from analysis.verdict import Outcome
from chaos import faults, run
from chaos.experiment import Experiment, ExperimentError, FaultSpec, find
from chaos.faults.host_kill import is_empty
from chaos.resolve import load
from chaos.results import ResultsDirectory
from chaos.worlds.simulated_hosts import SimulatedHost
from chaos.worlds.world import HostState, Life
from cluster.errors import Code
from tests import host_cases
from tests.chaos.simulated_runs import Quiet, Run, conduct

NODES = ("controller", "worker-0", "worker-1", "client-0")
HOST = "{kind: host_kill, targets: [host-1], phase: fault, start_s: 1, duration_s: 11, ttl_s: 60}"
SPREAD = (
    *("cluster.workers=4", "cluster.hosts=2", "workload.rate=20/s"),
    *("phases.baseline.duration_s=4", "phases.fault.duration_s=13", "phases.recovery.duration_s=16"),
)


def spread(*settings: str) -> Experiment:
    return load(find("network_partition"), ["cluster.workers=4", "cluster.hosts=2", *settings])


def spec(**fields: Any) -> FaultSpec:
    whole: dict[str, Any] = {"kind": "host_kill", "phase": "fault", "targets": ("host-1",)}
    return FaultSpec(**(whole | {"duration_s": 5.0, "ttl_s": 9.0} | fields))


def hurt(out: Path, *settings: str) -> Run:
    return conduct(out, *SPREAD, f"faults.cut={HOST}", *settings)


@settings(max_examples=40, deadline=None)
@given(workers=st.integers(1, 40), hosts=st.integers(1, 8), controllers=st.integers(1, 3))
def test_every_node_is_on_one_host_and_no_host_is_empty(workers: int, hosts: int, controllers: int) -> None:
    hosts = min(hosts, workers)
    changes = [f"cluster.workers={workers}", f"cluster.hosts={hosts}", f"cluster.controllers={controllers}"]
    if controllers > 1:
        changes.append("faults.cut.targets=[worker-0]")
    whole = load(find("network_partition"), [*changes, "guard.last_worker=true"])
    parts = [whole.nodes_on(host) for host in whole.host_names()]
    assert sorted(node for part in parts for node in part) == sorted(whole.node_names())
    sizes = [sum(node.startswith("worker-") for node in part) for part in parts]
    assert min(sizes) >= 1
    assert max(sizes) - min(sizes) <= 1
    assert all(node.startswith("worker-") for part in parts[1:] for node in part), "only the runner's own has others"
    assert set(whole.hurt_with(whole.host_names()[1:])) == {node for part in parts[1:] for node in part}


def test_a_host_stands_for_its_nodes_once() -> None:
    whole = spread()
    assert whole.hurt_with(("host-1",)) == ("worker-1", "worker-3")
    assert whole.hurt_with(("worker-3", "host-1", "broker")) == ("worker-3", "worker-1", "broker")


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        (("cluster.hosts=1",), "faults.cut.targets: no host named 'host-1'; cluster.hosts is 1: there is no other"),
        (("faults.cut.targets=[host-2]",), "faults.cut.targets: no host named 'host-2'; cluster.hosts is 2: there is"),
        (("faults.cut.targets=[host-0]",), "faults.cut.targets: host-0 is no target: the clients, which judge"),
        (("faults.cut.targets=[host-one]",), "faults.cut.targets: no host named 'host-one'"),
        (("faults.cut.targets=[worker-1]",), "faults.cut.targets: host_kill is for host, got worker-1"),
        (("faults.cut.targets=[host-1, host-1]",), "faults.cut.targets: a node is named twice"),
        (("faults.cut.kind=kill",), "faults.cut.targets: kill is for worker and controller, got host-1"),
        (("faults.cut.mode=hard",), "faults.cut.mode: host_kill has no modes, got 'hard'"),
        (("faults.cut.options={after_s: 1}",), "faults.cut.options: host_kill has no after_s; it has none"),
        (("faults.cut.duration_s=2",), "faults.cut.duration_s: expected at least 2.5 s"),
        (("cluster.hosts=5",), "cluster.hosts: expected at most cluster.workers = 4, got 5: a host would have no node"),
        (("cluster.hosts=9",), "cluster.hosts: expected `int` <= 8".replace("`", "")),
        (("cluster.hosts=0",), "cluster.hosts: expected `int` >= 1".replace("`", "")),
        (("guard.targets_max=1",), "2 nodes would be under a fault at once, guard.targets_max is 1"),
        (
            (
                "cluster.hosts=4",
                "faults.cut.targets=[host-1, host-2, host-3]",
                "faults.more={kind: kill, targets: [worker-0], phase: fault, start_s: 2, duration_s: 5, ttl_s: 60}",
            ),
            "no healthy worker would be left",
        ),
    ],
)
def test_a_wrong_host_costs_one_line(settings: tuple[str, ...], said: str) -> None:
    with pytest.raises(ExperimentError) as refused:
        spread(f"faults.cut={HOST}", *settings)
    assert said in str(refused.value)
    assert "\n" not in str(refused.value)


def test_a_trigger_watches_the_first_node_of_the_host() -> None:
    when = "{state: stream_token, within_s: 2}"
    spread(f"faults.cut={HOST}", f"faults.cut.when={when}", "phases.fault.duration_s=20")


def test_before_it_strikes_it_explains_what_any_worker_can_cause() -> None:
    fault = faults.make(spec(), NODES)
    assert Code.WORKER_LOST in fault.explains
    assert not {Code.NO_WORKERS_AVAILABLE, Code.CONTROLLER_UNREACHABLE} & set(fault.explains)


@pytest.mark.parametrize(
    ("state", "empty"),
    [
        (HostState(Life.IS_GONE, 7, 0, "alive"), True),
        (HostState(Life.IS_GONE, 7, 0, "dead"), True),
        (HostState(Life.IS_GONE, 7, 1, "dead"), False),
        (HostState(Life.RUNS, 7, 0, "dead"), False),
        (HostState(Life.STANDS_STILL, 7, 3, "dead"), False),
    ],
)
def test_a_host_is_gone_by_the_process_table_whatever_the_scheduler_says(state: HostState, empty: bool) -> None:
    assert is_empty(state)[0] is empty
    assert is_empty(state)[1]


def test_ray_puts_every_actor_on_its_host_and_a_cluster_on_one_host_asks_for_nothing() -> None:
    from chaos.worlds.hosts import RayHosts, head_resources

    whole, servers, processes = spread(), cast(Any, None), cast(Any, None)
    hosts = RayHosts(whole, servers, processes, cast(Any, None))
    places = {node: hosts.place(node).resources for node in whole.node_names()}
    assert set(places["worker-1"]) == set(places["worker-3"])
    assert not set(places["worker-1"]) & set(places["worker-0"])
    assert places["controller"] == places["client-0"] == places["worker-0"] == head_resources(whole) != {}
    alone = load(find("network_partition"))
    hosts = RayHosts(alone, servers, processes, cast(Any, None))
    assert all(hosts.place(node).resources == {} for node in alone.node_names())


def test_a_tree_of_processes_dies_to_the_last_leaf() -> None:
    from chaos.worlds.trees import kill_tree

    leaf = "import time; time.sleep(60)"
    branch = f"import subprocess, sys, time; subprocess.Popen([sys.executable, '-c', {leaf!r}]); time.sleep(60)"
    tree = f"import subprocess, sys, time; [subprocess.Popen([sys.executable, '-c', {branch!r}]) for _ in range(2)]"
    root = subprocess.Popen([sys.executable, "-c", f"{tree}; print('grown', flush=True); time.sleep(60)"])
    try:
        watched = psutil.Process(root.pid)
        while len(watched.children(recursive=True)) < 4:
            assert root.poll() is None
        killed = kill_tree(watched)
        assert len(killed) == 5
        assert root.wait(10) == -9
        _, left = psutil.wait_procs(killed[1:], 10)
        assert [each for each in left if each.is_running() and each.status() != psutil.STATUS_ZOMBIE] == []
    finally:
        root.kill()
    assert kill_tree(watched) == [], "who is dead is not killed again"


@pytest.mark.simulated
def test_all_nodes_of_a_host_fall_at_the_same_instant_and_come_back(tmp_path: Path) -> None:
    done = hurt(tmp_path)
    told = done.history.faults.iloc[0]
    evidence = json.loads(told["evidence"])
    assert bool(told["verified"]), evidence
    assert bool(told["heal_verified"]), evidence
    assert list(told["targets"]) == ["worker-1", "worker-3"]
    assert json.loads(told["parameters"])["hosts"] == ["host-1"]
    assert set(evidence["bite"]) == {"worker-1", "worker-3", "host-1"}
    assert evidence["bite"]["host-1"]["state"]["processes"] == 0
    assert evidence["heal"]["host-1"]["state"]["processes"] == 2
    assert [each for each in done.verdict.invariants if each.verdict is Outcome.FAIL] == []
    assert done.verdict.counts.in_flight == 0
    measured = {each.name: each for each in done.verdict.criteria}
    for name in ("detection", "mitigation", "return_to_steady"):
        assert measured[name].measured is not None
        assert measured[name].verdict is Outcome.PASS, measured[name]


@pytest.mark.simulated
def test_a_host_that_nobody_kills_is_no_evidence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async def nothing(host: SimulatedHost) -> None:
        """In place of SimulatedHost.kill."""

    monkeypatch.setattr(SimulatedHost, "kill", nothing)
    done = hurt(tmp_path)
    assert done.verdict.verdict is Outcome.INVALID
    assert [each.verified for each in done.verdict.faults] == [False]
    assert any("NOT PROVED" in note for note in done.watcher.notes)


@pytest.mark.simulated
def test_a_host_of_which_one_node_survives_is_no_evidence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async def half(host: SimulatedHost) -> None:
        """In place of SimulatedHost.kill: a worker is killed, and not the host."""
        host._cluster.crash(host.nodes[0])

    monkeypatch.setattr(SimulatedHost, "kill", half)
    assert hurt(tmp_path).verdict.verdict is Outcome.INVALID


@pytest.mark.simulated
def test_a_host_that_does_not_come_back_is_not_healed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async def nothing(host: SimulatedHost) -> None:
        """In place of SimulatedHost.restart."""

    monkeypatch.setattr(SimulatedHost, "restart", nothing)
    done = hurt(tmp_path)
    assert done.verdict.verdict is Outcome.FAIL
    assert not bool(done.history.faults.iloc[0]["heal_verified"])


@pytest.mark.simulated
def test_the_experiment_passes(tmp_path: Path) -> None:
    whole = load(find("host_failure"))
    results, watcher = ResultsDirectory(tmp_path, whole, "simulated", 1), Quiet()
    run._execute(whole, "simulated", 1, results, watcher, None)  # type: ignore[arg-type]
    verdict = judge(load_history(results.path))
    assert verdict.verdict is Outcome.PASS, verdict.reasons


def test_the_live_cases_are_about_valid_experiments() -> None:
    whole = load(find(host_cases.EXPERIMENT), host_cases.SHORT)
    assert whole.faults["host"].targets == ("host-1",)
    assert set(host_cases.KILLED_AT) > {host_cases.WHOLE_AT}
