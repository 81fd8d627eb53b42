"""What happens to everybody when the broker's process is killed, restarted, frozen, or leaves."""

import pytest

from cluster.simulation.broker import LAME_DUCK_GRACE_S, LAME_DUCK_STEP_S
from tests.cluster.simulation.stage import DEADLINE_S, Stage

pytestmark = pytest.mark.simulated


def connected(stage: Stage) -> int:
    return sum(node.link.counters().connected for node in stage.cluster.nodes.values())


def assert_whole_and_sound(stage: Stage) -> None:
    stage.wait_for(lambda: connected(stage) == len(stage.cluster.nodes), 4.0)
    stage.wait(3.0)
    stage.assert_whole()
    stage.wait(DEADLINE_S)
    stage._hurt.add("broker")
    stage.assert_sound()


@pytest.mark.parametrize("away_s", [0.5, 31.0])
def test_a_killed_broker_is_noticed_at_once_and_everybody_returns_however_long_it_was_away(away_s: float) -> None:
    stage = Stage()
    stage.offer(30, 0.05)
    stage.wait(0.5)
    broker = stage.cluster.network.broker
    broker.kill()
    assert connected(stage) == 0
    assert len(stage.events("link_down")) == len(stage.cluster.nodes)
    assert stage.cluster.network.listed == {}
    stage.wait(away_s)
    assert connected(stage) == 0
    broker.restart()
    assert broker.life == 2
    assert_whole_and_sound(stage)


def test_a_restart_breaks_every_connection_once() -> None:
    stage = Stage()
    stage.cluster.network.broker.restart()
    stage.wait(1.0)
    assert {node.link.counters().reconnects for node in stage.cluster.nodes.values()} == {1}
    assert_whole_and_sound(stage)


def test_a_short_freeze_delivers_everything_late_and_nobody_loses_its_connection() -> None:
    stage = Stage()
    broker = stage.cluster.network.broker
    broker.freeze()
    stage.offer(4, 0.05)
    heard = {name: node.link.counters().node_in for name, node in stage.cluster.nodes.items()}
    stage.wait(1.0)
    assert {name: node.link.counters().node_in for name, node in stage.cluster.nodes.items()} == heard
    assert not any(node.link.echo() for node in stage.cluster.nodes.values())
    broker.thaw()
    stage.wait(0.1)
    assert all(stage.cluster.nodes[name].link.counters().node_in > count for name, count in heard.items())
    assert not stage.events("link_down")
    assert_whole_and_sound(stage)


def test_a_long_freeze_is_noticed_by_the_nodes_pings_and_nobody_gets_in_until_it_ends() -> None:
    stage = Stage()
    stage.offer(10, 0.05)
    broker = stage.cluster.network.broker
    broker.freeze()
    stage.wait(3.1)
    assert len(stage.events("link_down")) == len(stage.cluster.nodes)
    listed = len(stage.cluster.network.listed)
    stage.wait(9.0)
    assert connected(stage) == 0
    assert len(stage.cluster.network.listed) == listed, "it cannot drop what it does not look at"
    broker.thaw()
    assert stage.cluster.network.listed == {}, "it reads that they have closed"
    assert_whole_and_sound(stage)


def test_a_freeze_of_the_broker_under_a_frozen_node_and_a_cut_one_ends_with_all_of_them_back() -> None:
    stage = Stage()
    stage.do("freeze", "worker-0")
    stage.do("black_hole", "worker-1")
    stage.cluster.network.broker.freeze()
    stage.wait(8.0)
    stage.cluster.network.broker.thaw()
    stage.wait(8.0)
    assert stage.cluster.network.connections("worker-0") == {}, "it has not answered the broker's pings"
    assert stage.cluster.network.connections("worker-1") == {}
    stage.do("thaw", "worker-0")
    stage.do("mend", "worker-1")
    assert_whole_and_sound(stage)


def test_a_lame_duck_closes_one_connection_after_the_other_and_ends() -> None:
    stage = Stage()
    network, nodes = stage.cluster.network, len(stage.cluster.nodes)
    network.broker.lame_duck()
    stage.wait(LAME_DUCK_GRACE_S - 0.1)
    assert connected(stage) == nodes
    for left in reversed(range(nodes)):
        stage.wait(LAME_DUCK_STEP_S)
        assert connected(stage) == left
    stage.wait(LAME_DUCK_STEP_S)
    assert not network.broker.running
    network.broker.restart()
    assert_whole_and_sound(stage)


def test_a_restart_before_its_end_saves_the_new_one_from_the_lame_ducks_plans() -> None:
    stage = Stage()
    stage.cluster.network.broker.lame_duck()
    stage.wait(0.5)
    stage.cluster.network.broker.restart()
    stage.wait(LAME_DUCK_GRACE_S + 10.0)
    assert stage.cluster.network.broker.running
    assert_whole_and_sound(stage)


def test_a_node_that_is_cut_off_hears_of_a_dead_broker_only_by_its_pings() -> None:
    stage = Stage()
    stage.do("black_hole", "worker-0")
    stage.cluster.network.broker.kill()
    assert stage.cluster.nodes["worker-0"].link.counters().connected
    stage.wait(3.1)
    assert not stage.cluster.nodes["worker-0"].link.counters().connected
    stage.do("mend", "worker-0")
    stage.cluster.network.broker.restart()
    assert_whole_and_sound(stage)
