"""Processes die, freeze, drain and come back under load: nothing hangs, no stream is wrong, nothing is left over."""

import os

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from cluster.simulation.cluster import SimulatedCluster
from tests.cluster.simulation.stage import CUTS, DEADLINE_S, POLICY, Stage

pytestmark = pytest.mark.simulated

DAYS = settings(
    max_examples=int(os.environ.get("BAD_DAYS", "120")),
    deadline=None,
    derandomize=bool(os.environ.get("CI")),
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
)
"""BAD_DAYS asks for more of them."""

ACTIONS = ["crash", "freeze", "thaw", "drain", "restart", "stop", "mend", *CUTS]


def schedules(nodes: list[str]) -> st.SearchStrategy[list[tuple[str, str, float]]]:
    """What is done to which node, and for how many seconds the cluster goes on after it."""
    step = st.tuples(st.sampled_from(ACTIONS), st.sampled_from(nodes), st.floats(0.0, 3.0))
    return st.lists(step, min_size=1, max_size=8)


def live_through(stage: Stage, faults: list[tuple[str, str, float]]) -> None:
    """A load, the faults, the heal, and a second load that nobody may fail."""
    stage.offer(30, 0.12)
    stage.wait(0.5)
    for action, node, wait_s in faults:
        stage.do(action, node)
        stage.wait(wait_s)
    stage.heal()
    stage.wait(30 * 0.12 + DEADLINE_S + 1.0)
    stage.assert_whole()
    stage.offer(5, 0.1, "after")
    stage.wait(DEADLINE_S + 1.0)
    stage.assert_sound()
    after = [row for row in stage.requests() if row.request_id.startswith("after")]
    assert {row.outcome for row in after} == {"completed"}, [(row.code, row.request_id) for row in after]


@DAYS
@given(st.integers(0, 10_000), schedules(["worker-0", "worker-1", "worker-2", "controller"]))
def test_after_any_bad_day_all_is_well_with_one_controller(seed: int, faults: list[tuple[str, str, float]]) -> None:
    live_through(Stage(seed), faults)


@DAYS
@given(st.integers(0, 10_000), schedules(["worker-0", "worker-1", "worker-2", "controller-0", "controller-1"]))
def test_after_any_bad_day_all_is_well_with_two_controllers(seed: int, faults: list[tuple[str, str, float]]) -> None:
    live_through(Stage(seed, controllers=2), faults)


@pytest.mark.parametrize("victim", ["controller-0", "controller-1"])
@pytest.mark.parametrize("seed", range(4))
def test_the_death_of_one_of_two_controllers_loses_no_request_and_no_stream(victim: str, seed: int) -> None:
    stage = Stage(seed, controllers=2, clients=4)
    stage.offer(40, 0.1)
    stage.wait(2.0)
    died_s = stage.now
    stage.do("crash", victim)
    stage.wait(4.0 + DEADLINE_S)
    stage.heal()
    stage.wait(2.0)
    stage.assert_sound()
    stage.assert_whole()
    assert {row.outcome for row in stage.requests()} == {"completed"}
    survivor = next(name for name in ("controller-0", "controller-1") if name != victim)
    assert all(name == survivor for name, row in stage.events("request_accepted") if row.time_s > died_s)


def test_streams_that_run_when_their_controller_dies_go_on_at_the_other_where_they_were() -> None:
    stage = Stage(3, controllers=2, clients=4)
    stage.offer(40, 0.1)
    stage.wait(2.0)
    served = [name for name, _ in stage.events("request_accepted")]
    victim = max(("controller-0", "controller-1"), key=served.count)
    died_s = stage.now
    stage.do("crash", victim)
    stage.wait(4.0 + DEADLINE_S)
    stage.assert_sound()
    broken = [row for row in stage.requests() if row.submissions > 1 and row.segments[0].received_s < died_s]
    assert broken
    assert all(row.outcome == "completed" for row in broken)


@pytest.mark.parametrize("frozen_for_s", [3.0, 5.0, 9.0])
@pytest.mark.parametrize("seed", range(3))
def test_the_clients_of_a_frozen_controller_move_to_the_other(frozen_for_s: float, seed: int) -> None:
    stage = Stage(seed, controllers=2, clients=4)
    stage.offer(100, 0.1, tokens_max=30)
    stage.wait(2.0)
    served = [name for name, _ in stage.events("request_accepted")]
    victim = max(("controller-0", "controller-1"), key=served.count)
    frozen_s = stage.now
    stage.do("freeze", victim)
    stage.wait(frozen_for_s)
    thawed_s = stage.now
    stage.do("thaw", victim)
    stage.wait(10.0 + DEADLINE_S - frozen_for_s)
    stage.assert_sound()
    stage.assert_whole()
    assert {row.outcome for row in stage.requests()} == {"completed"}
    # The broker may hand the first search for a controller to the frozen one; the second goes to all.
    client = POLICY.client
    moved_s = frozen_s + client.contact_lost_s + 3 * client.ping_s + 0.1
    later = [row for row in stage.requests() if moved_s < row.intended_s < thawed_s]
    assert max((row.ended_s - row.intended_s for row in later), default=0.0) < 1.0
    assert all(row.submissions == 1 for row in later)


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("controllers", [1, 2])
def test_a_rolling_restart_with_drain_fails_no_request(seed: int, controllers: int) -> None:
    stage = Stage(seed, controllers=controllers)
    stage.offer(150, 0.08)
    stage.wait(1.0)
    for worker in stage.workers:
        stage.do("drain", worker)
        node = stage.cluster.nodes[worker].node
        stage.wait_for(lambda node=node: not node.gauges().open_requests, 3.0)  # type: ignore[misc]
        stage.do("restart", worker)
        stage.wait_for(lambda: warm(stage.cluster), 3.0)
    stage.wait(12.0 + DEADLINE_S)
    stage.assert_sound()
    assert {row.outcome for row in stage.requests()} == {"completed"}
    assert {row.outcome for row in stage.attempts("controller")} <= {"completed", "refused"}
    assert all(row.submissions == 1 for row in stage.requests())
    assert all(stage.cluster.nodes[worker].node.incarnation == 2 for worker in stage.workers)


def warm(cluster: SimulatedCluster) -> bool:
    """Whether every controller would give work to all three workers."""
    return all(controller.warm_workers(cluster.model) == 3 for controller in cluster.controllers)


@pytest.mark.parametrize("seed", range(3))
def test_the_streams_of_a_killed_worker_go_on_as_soon_as_its_next_incarnation_is_heard(seed: int) -> None:
    stage = Stage(seed)
    stage.offer(60, 0.08)
    stage.wait(2.02)
    died_s = stage.now
    stage.do("crash", "worker-1")
    stage.do("restart", "worker-1")
    stage.wait(5.0 + DEADLINE_S)
    stage.assert_sound()
    stage.assert_whole()
    assert {row.outcome for row in stage.requests()} == {"completed"}
    lost = [row for row in stage.attempts("controller") if row.code == "WORKER_LOST"]
    assert lost
    assert all(row.worker == "worker-1" and row.ended_s < died_s + 0.01 for row in lost)


@pytest.mark.parametrize("down_s", [0.0, 1.0, 7.0])
@pytest.mark.parametrize("seed", range(3))
def test_a_restarted_controller_knows_all_workers_within_one_heartbeat(down_s: float, seed: int) -> None:
    stage = Stage(seed)
    stage.offer(60, 0.1)
    stage.wait(1.0)
    stage.do("crash", "controller")
    stage.wait(down_s)
    stage.do("restart", "controller")
    assert stage.cluster.controller.workers() == {}
    # The link to the broker comes first, then what the workers say next.
    stage.wait(POLICY.membership.heartbeat_s + 0.003)
    assert stage.cluster.controller.workers() == dict.fromkeys(stage.workers, ("ready", "closed"))
    stage.assert_whole()
    stage.wait(6.0 + DEADLINE_S)
    stage.assert_sound()
    if down_s < 5.0:
        assert {row.outcome for row in stage.requests()} == {"completed"}


@pytest.mark.parametrize("frozen_for_s", [3.0, 5.0, 7.0])
@pytest.mark.parametrize("seed", range(4))
def test_a_frozen_worker_that_thaws_serves_nothing_stale(frozen_for_s: float, seed: int) -> None:
    stage = Stage(seed)
    stage.offer(120, 0.08)
    stage.wait(2.02)
    frozen_s = stage.now
    stage.do("freeze", "worker-1")
    rows = len(stage.attempts("worker", "worker-1"))
    stage.wait(frozen_for_s)
    assert len(stage.attempts("worker", "worker-1")) == rows
    thawed_s = stage.now
    stage.do("thaw", "worker-1")
    stage.wait(8.0 + DEADLINE_S)
    stage.assert_sound()
    stage.assert_whole()
    assert {row.outcome for row in stage.requests()} == {"completed"}
    # What was given up meanwhile: what is left of it ends at once and reaches nobody.
    given_up = [row for row in stage.attempts("controller") if row.worker == "worker-1" and row.outcome != "completed"]
    held = {(row.request_id, row.submission, row.attempt) for row in given_up if frozen_s < row.ended_s < thawed_s}
    assert held
    worked = [row for row in stage.attempts("worker", "worker-1") if row.ended_s >= thawed_s]
    ended = [row for row in worked if (row.request_id, row.submission, row.attempt) in held]
    assert all(row.ended_s < thawed_s + 0.1 and row.outcome != "completed" for row in ended)
    segments = [(row.request_id, part) for row in stage.requests() for part in row.segments]
    late = [(name, part) for name, part in segments if part.received_s >= thawed_s and part.worker == "worker-1"]
    assert late, "it serves again"
    assert not any((name, part.submission, part.attempt) in held for name, part in late)
