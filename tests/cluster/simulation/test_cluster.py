"""The simulated cluster: the real nodes on virtual time are exact, survive cuts, and repeat themselves."""

from random import Random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from analysis.schema import AttemptRow, EventRow, NodeRow, RequestRow, Row
from cluster.engine.timed import completion
from cluster.errors import Code
from cluster.node import Ask, Deliver
from cluster.policy import ClientPolicy, Policy
from cluster.simulation.cluster import RowList, SimulatedCluster
from cluster.simulation.network import Condition
from tests.cluster import QUICK
from tests.cluster.simulation.stage import CUTS
from workloads.load import ClosedLoop, OpenLoop
from workloads.schedule import ScheduledRequest

POLICY = Policy(client=ClientPolicy(deadline_s=8.0))


class Ends:
    """An observer that keeps what it is told."""

    def __init__(self) -> None:
        self.asked_for: dict[str, Ask] = {}
        self.ends: list[tuple[str, Deliver, float]] = []

    def asked(self, ask: Ask) -> None:
        assert ask.request_id not in self.asked_for
        self.asked_for[ask.request_id] = ask

    def ended(self, ask: Ask, end: Deliver, now: float) -> None:
        assert self.asked_for[ask.request_id] is ask
        self.ends.append((ask.request_id, end, now))


class Scene:
    def __init__(self, workers: int = 3, clients: int = 2, seed: int = 1) -> None:
        self.rows: list[tuple[str, Row]] = []
        self.cluster = SimulatedCluster(
            POLICY, workers, clients, seed, lambda node, incarnation: RowList(self.rows, node)
        )
        self.cluster.start()
        self.cluster.kernel.run_until(2.0)
        self.ends = [Ends() for _ in range(clients)]

    def offer(self, count: int, every_s: float, seed: int = 0) -> None:
        for number, ends in enumerate(self.ends):
            random = Random(seed * 100 + number)
            plan = [
                ScheduledRequest(
                    request_id=f"c{number}-{turn}",
                    intended_s=turn * every_s,
                    session_id=f"s{turn % 5}",
                    turn=turn,
                    prompt=tuple(random.randrange(200) for _ in range(random.randrange(1, 60))),
                    max_tokens=random.randrange(1, 30),
                    prompt_id=f"p{number}-{turn}",
                )
                for turn in range(count)
            ]
            loop = OpenLoop(plan, self.cluster.kernel.now, "timed", 8.0)
            self.cluster.nodes[f"client-{number}"].drive(loop, ends)

    def cut(self, node: str, condition: Condition) -> None:
        self.cluster.nodes[node].link.set_condition(condition)

    def wait(self, seconds: float) -> None:
        self.cluster.kernel.run_until(self.cluster.kernel.now + seconds)

    def requests(self) -> list[RequestRow]:
        return [row for _, row in self.rows if isinstance(row, RequestRow)]

    def attempts(self, side: str) -> list[AttemptRow]:
        return [row for _, row in self.rows if isinstance(row, AttemptRow) and row.side == side]

    def events(self, kind: str) -> list[EventRow]:
        return [row for _, row in self.rows if isinstance(row, EventRow) and row.kind == kind]

    def assert_exact(self) -> None:
        """Every request that was asked has one end, and every token that was delivered is the reference's."""
        asked = {name: ask for ends in self.ends for name, ask in ends.asked_for.items()}
        rows = {row.request_id: row for row in self.requests()}
        assert len(rows) == len(self.requests())
        assert set(rows) == set(asked)
        assert sorted(name for ends in self.ends for name, _, _ in ends.ends) == sorted(asked)
        for name, row in rows.items():
            whole = completion(asked[name].prompt, asked[name].max_tokens, self.cluster.costs.vocabulary)
            assert row.tokens == whole[: len(row.tokens)]
            assert row.outcome != "completed" or row.tokens == whole
            assert row.ended_s <= row.deadline_s + 1e-9
        started = [row for row in self.attempts("worker") if row.started_s is not None]
        assert len({(row.request_id, row.submission, row.attempt) for row in started}) == len(started)
        assert all(row.started_s is not None and row.started_s < row.deadline_s for row in started)

    def assert_empty(self) -> None:
        for name, node in self.cluster.nodes.items():
            gauges = node.node.gauges()
            assert (gauges.queue_depth, gauges.active, gauges.open_requests) == (0, 0, 0), name


def test_without_faults_everything_completes_at_the_first_attempt() -> None:
    scene = Scene()
    scene.offer(60, 0.05)
    scene.wait(12.0)
    scene.assert_exact()
    scene.assert_empty()
    assert all(row.outcome == "completed" for row in scene.requests())
    assert len(scene.attempts("controller")) == len(scene.attempts("worker")) == 120
    assert len({row.worker for row in scene.attempts("worker")}) > 1, "the load is spread"


@pytest.mark.parametrize("cut", CUTS)
@pytest.mark.parametrize("node", ["worker-1", "controller", "client-0"])
@pytest.mark.parametrize("outage_s", [1.0, 4.0, 9.0])
def test_after_every_cut_of_every_node_everything_has_ended_exactly_and_the_cluster_is_whole(
    cut: str, node: str, outage_s: float
) -> None:
    scene = Scene()
    scene.offer(80, 0.1)
    scene.wait(1.03)
    scene.cut(node, CUTS[cut])
    scene.wait(outage_s)
    scene.cut(node, Condition())
    scene.wait(22.0)
    scene.assert_exact()
    scene.assert_empty()
    for liveness, breaker in scene.cluster.controller.workers().values():
        assert liveness == "ready"
        # After the longest outage the load is over, and nobody comes by to probe.
        assert breaker == "closed" or (breaker == "half_open" and outage_s == 9.0)
    assert scene.cluster.controller.warm_workers("timed") == 3
    if node == "worker-1":
        assert all(row.outcome == "completed" for row in scene.requests())


def test_a_cluster_without_workers_says_so_quickly() -> None:
    scene = Scene(workers=0)
    scene.offer(3, 0.01)
    scene.wait(9.0)
    assert {row.code for row in scene.requests()} == {Code.NO_WORKERS_AVAILABLE}
    assert max(row.ended_s - row.intended_s for row in scene.requests()) < 3.0


@QUICK
@given(
    st.integers(0, 10_000),
    st.lists(
        st.tuples(
            st.sampled_from(["worker-0", "worker-1", "worker-2", "controller", "client-0", "client-1"]),
            st.sampled_from([*CUTS.values(), Condition()]),
            st.floats(0.0, 3.0),
        ),
        max_size=8,
    ),
)
def test_whatever_is_cut_and_healed_no_stream_is_ever_wrong_and_nothing_is_left(
    seed: int, faults: list[tuple[str, Condition, float]]
) -> None:
    scene = Scene(seed=seed)
    scene.offer(25, 0.15, seed)
    for node, condition, wait_s in faults:
        scene.cut(node, condition)
        scene.wait(wait_s)
    for node in scene.cluster.nodes:
        scene.cut(node, Condition())
    scene.wait(25.0)
    scene.assert_exact()
    scene.assert_empty()


def test_a_seed_repeats_itself_row_by_row_and_another_does_not() -> None:
    def history(seed: int) -> list[tuple[str, Row]]:
        scene = Scene(seed=seed)
        scene.offer(30, 0.1)
        scene.wait(0.5)
        scene.cut("worker-0", CUTS["stall"])
        scene.wait(4.0)
        scene.cut("worker-0", Condition())
        scene.wait(12.0)
        return scene.rows

    assert history(5) == history(5)
    assert history(5) != history(6)


def test_a_closed_loop_keeps_its_concurrency_and_stops() -> None:
    scene = Scene(clients=1)
    now = scene.cluster.kernel.now
    loop = ClosedLoop([((1, 2, 3), 5), ((4,), 8)], 4, now, now + 3.0, "timed", 8.0, "x")
    scene.cluster.nodes["client-0"].drive(loop, scene.ends[0])
    scene.wait(1.5)
    assert scene.cluster.nodes["client-0"].node.gauges().open_requests == 4
    scene.wait(10.0)
    assert loop.finished
    scene.assert_exact()
    scene.assert_empty()
    assert len(scene.requests()) > 50


def test_samples_come_at_their_interval_and_a_stopped_node_is_silent() -> None:
    scene = Scene()
    scene.wait(5.0)
    times = [row.time_s for node, row in scene.rows if node == "worker-0" and isinstance(row, NodeRow)]
    assert len(times) == pytest.approx(14, abs=1)
    scene.cluster.nodes["worker-0"].stop()
    before = len([node for node, _ in scene.rows if node == "worker-0"])
    scene.wait(8.0)
    assert len([node for node, _ in scene.rows if node == "worker-0"]) == before
    assert scene.cluster.controller.workers()["worker-0"][0] == "dead"
    assert scene.events("node_stopped")[0].subject == "worker-0"
