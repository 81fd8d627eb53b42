"""Engines of one host share its cores, and whoever is gone or stands still leaves them to the others."""

from cluster.engine.costs import StepCosts
from cluster.policy import Policy
from cluster.simulation.cluster import RowList, SimulatedCluster

COSTS = StepCosts(load_s=4.0, contention=(1.0, 2.0, 3.0))


def warm_s(hosts: dict[str, str]) -> float:
    """When all three workers have their model, which they begin to load at once."""
    cluster = SimulatedCluster(
        Policy(), 3, 0, 1, lambda name, incarnation: RowList(), costs=COSTS, host_of=lambda node: hosts.get(node, "")
    )
    cluster.start()
    while cluster.controller.warm_workers("timed") < 3 and cluster.kernel.now < 60:
        cluster.kernel.run_until(cluster.kernel.now + 0.05)
    return cluster.kernel.now


def factor(hosts: dict[str, str], hurt: str = "") -> float:
    """Of the steps of a worker that begins to compute on the first host while the others load."""
    cluster = SimulatedCluster(
        Policy(), 3, 0, 1, lambda name, incarnation: RowList(), costs=COSTS, host_of=lambda node: hosts.get(node, "")
    )
    cluster.start()
    cluster.kernel.run_until(1.0)
    if hurt:
        for name in ("worker-0", "worker-1"):
            getattr(cluster, hurt)(name)
    host = cluster._shared_host("worker-2")
    assert host is not None
    return host.factor("worker-2")


def test_three_that_load_on_one_host_take_longer_than_on_three() -> None:
    apart = {f"worker-{number}": f"host-{number}" for number in range(3)}
    assert warm_s({}) > warm_s(apart) + 1
    assert (factor({}), factor(apart)) == (3.0, 1.0)


def test_who_crashes_stops_or_freezes_leaves_the_cores_to_the_others() -> None:
    assert [factor({}, hurt) for hurt in ("crash", "stop", "freeze")] == [1.0, 1.0, 1.0]


def test_who_thaws_or_is_restarted_takes_its_share_again() -> None:
    cluster = SimulatedCluster(Policy(), 3, 0, 1, lambda name, incarnation: RowList(), costs=COSTS)
    cluster.start()
    cluster.kernel.run_until(1.0)
    host = cluster._shared_host("worker-2")
    assert host is not None
    cluster.freeze("worker-0")
    assert host.factor("worker-2") == 2.0
    cluster.thaw("worker-0")
    assert host.factor("worker-2") == 3.0
    cluster.restart("worker-1")
    cluster.kernel.run_until(1.5)
    assert host.factor("worker-2") == 3.0


def test_nobody_shares_anything_where_that_costs_nothing() -> None:
    cluster = SimulatedCluster(Policy(), 2, 0, 1, lambda name, incarnation: RowList(), costs=StepCosts())
    assert cluster._shared_host("worker-0") is None
