"""What a kill, a freeze, a drain and a restart do to a simulated process, seen from outside."""

import pytest

from analysis.schema import NodeRow, RequestRow, Row
from cluster.profiles import load_policy
from cluster.simulation.cluster import SimulatedCluster
from cluster.simulation.shell import EngineClock
from tests.cluster.simulation.stage import CUTS, DEADLINE_S, Stage

pytestmark = pytest.mark.simulated


def rows_of(stage: Stage, node: str) -> list[Row]:
    return [row for table in stage.run.rows.values() for name, _, row in table if name == node]


def request(stage: Stage, name: str) -> RequestRow:
    return next(row for row in stage.requests() if row.request_id == name)


def reconnects(stage: Stage, node: str) -> int:
    return stage.cluster.nodes[node].link.counters().reconnects


def warm(stage: Stage) -> int:
    return stage.cluster.controller.warm_workers(stage.cluster.model)


def test_a_killed_worker_is_silent_and_missed_as_soon_as_somebody_writes_to_it() -> None:
    stage = Stage(workers=1)
    stage.do("crash", "worker-0")
    before = len(rows_of(stage, "worker-0"))
    stage.offer(1, 1.0)
    stage.wait(0.01)
    assert stage.cluster.controller.workers()["worker-0"][0] == "suspected"
    stage.wait(DEADLINE_S)
    assert len(rows_of(stage, "worker-0")) == before
    assert not stage.events("node_stopped")
    for action in ("crash", "freeze", "thaw", "stop"):
        stage.do(action, "worker-0")
    assert not stage.cluster.running("worker-0")
    assert len(rows_of(stage, "worker-0")) == before


def test_a_restarted_worker_has_a_higher_number_and_must_load_again() -> None:
    stage = Stage()
    stage.do("restart", "worker-0")
    stage.wait(0.6)
    assert stage.cluster.nodes["worker-0"].node.incarnation == 2
    assert warm(stage) == 2
    stage.wait(stage.cluster.costs.load_s)
    assert warm(stage) == 3
    assert [row.subject for _, row in stage.events("node_stopped")] == ["worker-0"]
    assert {incarnation for node, incarnation, _ in stage.run.rows["nodes"] if node == "worker-0"} == {1, 2}


@pytest.mark.parametrize("cut", CUTS)
def test_a_cut_stands_in_the_way_of_the_next_incarnation_too(cut: str) -> None:
    stage = Stage()
    stage.do(cut, "worker-0")
    stage.do("restart", "worker-0")
    stage.wait(7.0)
    assert not stage.cluster.nodes["worker-0"].link.counters().connected
    assert stage.cluster.controller.workers()["worker-0"][0] == "dead"
    stage.do("mend", "worker-0")
    stage.wait(3.0)
    stage.assert_whole()


def test_a_stream_goes_on_after_a_short_freeze_where_it_stood() -> None:
    def ended_s(frozen_for_s: float) -> float:
        stage = Stage(workers=1, clients=1)
        stage.offer(1, 1.0, tokens_max=100)
        stage.wait(0.03)
        stage.do("freeze", "worker-0")
        stage.wait(frozen_for_s)
        stage.do("thaw", "worker-0")
        stage.wait(DEADLINE_S)
        row = request(stage, "load-0-0")
        assert row.outcome == "completed"
        assert row.max_tokens > 15
        assert len(stage.attempts("worker")) == 1
        assert reconnects(stage, "worker-0") == 0
        return row.ended_s

    assert ended_s(1.0) == pytest.approx(ended_s(0.0) + 1.0, abs=0.002)


@pytest.mark.parametrize(("frozen_for_s", "lost"), [(3.0, 0), (9.0, 1)])
def test_the_broker_drops_a_frozen_node_at_its_ping_limit(frozen_for_s: float, lost: int) -> None:
    stage = Stage()
    stage.do("freeze", "worker-1")
    heard = stage.cluster.nodes["worker-1"].link.counters().node_in
    samples = len([row for row in rows_of(stage, "worker-1") if isinstance(row, NodeRow)])
    stage.wait(frozen_for_s)
    assert stage.cluster.nodes["worker-1"].link.counters().node_in == heard
    assert len([row for row in rows_of(stage, "worker-1") if isinstance(row, NodeRow)]) == samples
    stage.do("thaw", "worker-1")
    stage.wait(2.0)
    assert reconnects(stage, "worker-1") == lost
    assert [name for name, _ in stage.events("link_down")] == ["worker-1"] * lost
    stage.assert_whole()


def test_a_thawed_node_reads_what_came_before_it_sees_the_end_of_its_connection() -> None:
    stage = Stage(workers=1, clients=1)
    stage.do("freeze", "worker-0")
    stage.offer(1, 1.0)
    stage.wait(9.0)
    thawed_s = stage.now
    stage.do("thaw", "worker-0")
    late = [row for row in stage.attempts("worker") if row.ended_s == thawed_s]
    assert [row.begun_s for row in late] == [thawed_s]
    assert [row.time_s for _, row in stage.events("link_down")] == [thawed_s]


def test_a_frozen_worker_hears_of_its_drain_when_it_has_thawed() -> None:
    stage = Stage()
    stage.do("freeze", "worker-0")
    stage.do("drain", "worker-0")
    stage.wait(1.0)
    assert warm(stage) == 3
    stage.do("thaw", "worker-0")
    stage.wait(0.1)
    assert warm(stage) == 2


def test_a_frozen_client_asks_late_and_misses_its_deadlines_only_by_the_freeze() -> None:
    stage = Stage(clients=1)
    stage.offer(20, 0.1)
    stage.wait(0.55)
    stage.do("freeze", "client-0")
    before = len(stage.requests())
    stage.wait(2.0)
    assert len(stage.requests()) == before
    thawed_s = stage.now
    stage.do("thaw", "client-0")
    stage.wait(DEADLINE_S)
    rows = stage.requests()
    assert len(rows) == 20
    assert {row.outcome for row in rows} == {"completed"}
    assert all(row.sent_s >= thawed_s for row in rows if row.intended_s > thawed_s - 2.0)


def test_what_a_killed_client_had_asked_for_is_forgotten_by_its_deadline() -> None:
    stage = Stage()
    stage.offer(10, 0.01)
    stage.wait(0.1)
    stage.do("crash", "client-0")
    stage.wait(DEADLINE_S + 1.0)
    for name in ("controller", *stage.workers):
        assert stage.cluster.nodes[name].node.gauges().open_requests == 0
    assert len([row for row in stage.requests() if row.request_id.startswith("load-1")]) == 10
    stage.do("restart", "client-0")
    stage.offer(5, 0.01, "again")
    stage.wait(2.0)
    assert len([row for row in stage.requests() if row.request_id.startswith("again")]) == 10


def test_controllers_are_numbered_where_there_are_several() -> None:
    one, three = Stage().cluster, Stage(controllers=3).cluster
    assert one.controllers == [one.controller]
    assert one.controller.name == "controller"
    assert [controller.name for controller in three.controllers] == ["controller-0", "controller-1", "controller-2"]
    assert all(controller.warm_workers(three.model) == 3 for controller in three.controllers)
    first = three.controller
    three.restart("controller-0")
    assert three.controller is not first


def test_a_bad_day_repeats_itself_row_by_row() -> None:
    def history(seed: int) -> dict[str, list[tuple[str, int, Row]]]:
        stage = Stage(seed, controllers=2)
        stage.offer(30, 0.1)
        for action, node in [("freeze", "worker-0"), ("crash", "controller-1"), ("stall", "worker-2")]:
            stage.wait(0.4)
            stage.do(action, node)
        stage.wait(5.0)
        stage.heal()
        stage.wait(DEADLINE_S)
        return stage.run.rows

    assert history(3) == history(3)
    assert history(3) != history(4)


def test_the_engines_clock_leaves_out_what_the_process_stood_still() -> None:
    clock = EngineClock()
    assert (clock.engines(5.0), clock.nodes(5.0)) == (5.0, 5.0)
    clock.stopped(10.0, 13.0)
    clock.stopped(15.0, 16.0)
    assert [clock.nodes(time_s) for time_s in (9.0, 10.0, 10.5, 12.0, 12.5)] == [9.0, 10.0, 13.5, 15.0, 16.5]
    assert clock.engines(17.0) == 13.0
    assert clock.nodes(clock.engines(17.0)) == 17.0


def test_the_cluster_says_who_runs() -> None:
    cluster: SimulatedCluster = Stage().cluster
    cluster.freeze("worker-0")
    cluster.crash("worker-1")
    cluster.stop("worker-2")
    assert [name for name in cluster.nodes if not cluster.running(name)] == ["worker-0", "worker-1", "worker-2"]
    cluster.thaw("worker-0")
    assert cluster.running("worker-0")


@pytest.mark.parametrize("action", ["freeze", "black_hole"])
def test_the_streams_of_a_dead_worker_move_although_nobody_is_impatient(action: str) -> None:
    """Under a policy without token time-outs that are short, liveness alone must move them."""
    patient = load_policy("serving")
    stage = Stage(workers=2, clients=1, policy=patient)
    stage.offer(6, 0.01, tokens_max=100)
    stage.wait(0.1)
    hurt_s = stage.now
    stage.do(action, "worker-0")
    stage.wait(patient.membership.dead_after_s + 1.0)
    lost = [row for row in stage.attempts("controller") if row.code == "WORKER_LOST"]
    assert lost
    assert all(row.ended_s <= hurt_s + patient.membership.dead_after_s + 0.1 for row in lost)
    assert {row.outcome for row in stage.requests()} == {"completed"}
    assert len(stage.requests()) == 6
