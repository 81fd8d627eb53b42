"""Arms of a comparison through the real director in the simulated world: who gets what, and when blocks begin."""

import asyncio
import json
from collections.abc import Coroutine
from pathlib import Path
from typing import Any

import pytest

from analysis.arms import arm_blocks
from analysis.history import History
from analysis.judge import judge
from analysis.metrics import measure
from analysis.prefix_gain import prefix_gain
from analysis.reader import load_history
from analysis.schema import EventRow
from analysis.verdict import Outcome, Verdict
from chaos import run
from chaos.arms import Blocks
from chaos.experiment import find
from chaos.resolve import load
from chaos.results import ResultsDirectory
from chaos.worlds.world import HandleError
from tests.chaos.simulated_runs import Quiet
from workloads.arms import Block

pytestmark = pytest.mark.simulated


def conduct(out: Path, name: str, *settings: str, seed: int = 1) -> tuple[History, Verdict]:
    experiment = load(find(name), ["phases.warm_up.duration_s=1", *settings])
    results = ResultsDirectory(out, experiment, "simulated", seed)
    run._execute(experiment, "simulated", seed, results, Quiet(), None)  # type: ignore[arg-type]
    history = load_history(results.path)
    return history, judge(history)


def outcomes(verdict: Verdict) -> dict[str, Outcome]:
    return {criterion.name: criterion.verdict for criterion in verdict.criteria}


@pytest.fixture(scope="module")
def sticky(tmp_path_factory: pytest.TempPathFactory) -> tuple[History, Verdict]:
    faster = ("phases.measure.duration_s=60", "workload.rate=8/s", "workload.rate_max=8/s",
              "cluster.costs.prefill_each_s=0.00002")  # fmt: skip
    return conduct(tmp_path_factory.mktemp("sticky"), "sticky_sessions", *faster)


def test_a_session_finds_its_cache_where_routing_sends_it_and_nowhere_else(sticky: tuple[History, Verdict]) -> None:
    history, verdict = sticky
    hits = {arm: measure(history, "prefix_hit_rate", "measure", arm=arm) for arm in ("sticky", "moved", "fresh")}
    assert {arm: hit.value for arm, hit in hits.items()} == {"sticky": 1.0, "moved": 0.0, "fresh": 0.0}
    assert hits["sticky"].samples > 40
    assert outcomes(verdict)["hit_rate"] is Outcome.PASS
    assert outcomes(verdict)["placement_alone"] is Outcome.PASS
    assert not [result for result in verdict.invariants if result.verdict is Outcome.FAIL]


def test_who_wishes_for_a_worker_gets_it(sticky: tuple[History, Verdict]) -> None:
    history, _ = sticky
    given = history.attempts[history.attempts["side"] == "controller"].set_index("request_id")["worker"]
    wished = history.schedule[history.schedule["worker"] != ""]
    assert len(wished) > 200
    assert (wished["request_id"].map(given) == wished["worker"]).all()


def test_the_gain_grows_with_the_prefix(sticky: tuple[History, Verdict]) -> None:
    history, _ = sticky
    found = prefix_gain(history, "ttft_p50_s")
    assert found is not None
    assert found.points[0].gain < found.points[-1].gain
    assert all(point.cached_tokens == point.tokens for point in found.points)


def test_each_batch_limit_has_its_own_worker_and_full_batches(tmp_path: Path) -> None:
    history, verdict = conduct(
        tmp_path,
        "continuous_batching",
        "phases.measure.duration_s=75",
        "comparison.block_s=2",
        "comparison.settle_s=0.5",
    )
    assert outcomes(verdict)["batch_of_8"] is Outcome.PASS
    assert outcomes(verdict)["comparison (self-check)"] is Outcome.PASS
    for limit in (1, 2, 4, 8, 16):
        arm = f"limit_{limit}"
        batch = measure(history, "request_batch_mean", "measure", arm=arm).value
        assert batch == pytest.approx(limit, rel=0.02)
        asked = history.schedule[history.schedule["arm"] == arm]
        rows = history.attempts[history.attempts["request_id"].isin(asked["request_id"])]
        assert set(rows["worker"]) == {f"worker-{(1, 2, 4, 8, 16).index(limit)}"}


def test_a_cold_worker_loads_for_its_request_and_a_warm_one_does_not(tmp_path: Path) -> None:
    history, verdict = conduct(tmp_path, "pre_warming", "phases.measure.duration_s=128")
    told = history.events[history.events["kind"] == "worker_action"]
    actions = [json.loads(detail) for detail in told["detail"]]
    assert all(action["done"] for action in actions)
    assert [action["action"] for action in actions if action["arm"] == "cold"] == ["restart"] * 5
    blocks = arm_blocks(history)
    assert sorted((block.arm, block.number) for block in blocks) == sorted(
        (arm, number) for arm in ("cold", "warm", "evicted") for number in range(5)
    )
    loads = history.events[history.events["kind"] == "model_timing"]
    for block in blocks:
        within = loads["time_s"].between(block.counts_s, block.stop_s).sum()
        assert within == (0 if block.arm == "warm" else 1), block
    assert outcomes(verdict)["warm_first_token"] is Outcome.PASS
    # Twenty loads are too few to show 95 %.
    assert outcomes(verdict)["prewarmed"] is Outcome.INCONCLUSIVE


def test_a_model_that_is_not_warm_in_time_is_told_of(tmp_path: Path) -> None:
    """A load takes a second here, and there is only half of one for it."""
    history, verdict = conduct(
        tmp_path, "pre_warming", "phases.measure.duration_s=60", "comparison.pause_s=0.5",
        "comparison.block_s=3.5", "arms.cold.before=[evict]", "arms.warm.before=[evict, prewarm]",
    )  # fmt: skip
    assert measure(history, "prewarm_success_rate", "measure").value == 0.0
    assert outcomes(verdict)["prewarmed"] is Outcome.FAIL


SHORTER = ("phases.fault.duration_s=26", "comparison.block_s=1.5", "policy.retry.budget_burst=10")
FLAKY = (*SHORTER, "faults.flaky.duration_s=25", "faults.flaky.options.share=0.15")
SICK = (*SHORTER, "faults.sick.duration_s=25")


@pytest.mark.parametrize(
    ("name", "settings", "on", "off"),
    [("retry_value", FLAKY, "retried", "once"), ("breaker_value", SICK, "guarded", "unguarded")],
)
def test_arms_that_differ_in_policy_have_controllers_of_their_own(
    tmp_path: Path, name: str, settings: tuple[str, ...], on: str, off: str
) -> None:
    history, verdict = conduct(tmp_path, name, *settings)
    assert not [result for result in verdict.invariants if result.verdict is Outcome.FAIL]
    given = history.attempts[history.attempts["side"] == "controller"].groupby("request_id")["node"].agg(set)
    for number, arm in enumerate((on, off)):
        asked = history.schedule.loc[history.schedule["arm"] == arm, "request_id"]
        assert len(asked) > 200
        assert set().union(*given[given.index.isin(asked)]) == {f"controller-{number}"}
    # What a policy is worth shows, and each arm has attempts of its own only.
    assert outcomes(verdict)["value" if name == "retry_value" else "wasted_ratio"] is Outcome.PASS
    tried = {arm: measure(history, "retry_amplification", "fault", arm=arm).value for arm in (on, off)}
    wasted = {arm: measure(history, "wasted_attempts", "fault", arm=arm).value or 0.0 for arm in (on, off)}
    if name == "retry_value":
        assert tried["once"] == 1.0
        assert tried["retried"] == pytest.approx(1.17, abs=0.06)
    else:
        assert 3 <= wasted["guarded"] < wasted["unguarded"] / 5


def test_a_policy_that_changes_nothing_is_worth_nothing(tmp_path: Path) -> None:
    _, verdict = conduct(tmp_path, "retry_value", *FLAKY, "arms.once.policy={}")
    assert outcomes(verdict)["value"] is not Outcome.PASS
    assert outcomes(verdict)["without_retries"] is Outcome.FAIL


def test_the_same_seed_gives_the_same_comparison(tmp_path: Path) -> None:
    settings = ("phases.measure.duration_s=20",)
    one, other = (conduct(tmp_path / name, "sticky_sessions", *settings, seed=5)[0] for name in ("one", "other"))
    assert one.schedule.equals(other.schedule)
    assert one.requests["ended_s"].equals(other.requests["ended_s"])


class Stub:
    """A world whose time passes only in `sleep`, with an engine that is gone."""

    def __init__(self) -> None:
        self.at_s = 0.0
        self.rows: list[EventRow] = []

    def now(self) -> float:
        return self.at_s

    def clock(self) -> float:
        return self.at_s + 1_000.0

    async def sleep(self, seconds: float) -> None:
        self.at_s += max(0.0, seconds)

    def spawn(self, coroutine: Coroutine[Any, Any, None]) -> Any:
        return asyncio.ensure_future(coroutine)

    def record(self, row: EventRow) -> None:
        self.rows.append(row)

    def engine(self, node: str) -> "Stub":
        return self

    async def evict(self, model: str, limit_s: float) -> bool:
        self.at_s += 0.3
        return True

    async def prewarm(self, model: str, limit_s: float) -> bool:
        raise HandleError("worker-0: its process is gone")


def test_what_a_worker_could_not_be_told_is_told_and_blocks_begin_by_the_plan() -> None:
    async def walk(world: Stub) -> None:
        experiment = load(find("pre_warming"), ["arms.warm.before=[evict, prewarm]"])
        blocks = Blocks(world, experiment, (Block(3, "warm", 1.0, 2.0, 2.5, 4.0),))  # type: ignore[arg-type]
        blocks.begin()
        await blocks.finish()

    world = Stub()
    asyncio.run(walk(world))
    told = [json.loads(row.detail) for row in world.rows if row.kind == "worker_action"]
    assert [(action["action"], action["done"], action.get("because")) for action in told] == [
        ("evict", True, None),
        ("prewarm", False, "worker-0: its process is gone"),
    ]
    assert told[0]["took_s"] == pytest.approx(0.3)
    assert [(row.kind, row.subject, row.detail, row.time_s) for row in world.rows[2:]] == [
        ("block_started", "warm", "3", pytest.approx(1_002.5, abs=0.01)),
        ("block_ended", "warm", "3", pytest.approx(1_004.0)),
    ]
