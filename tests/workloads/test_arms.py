"""Who gets which of the same requests: by sessions with one cache to go back to or to be sent from, or by blocks."""

from collections import Counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from workloads.arms import AWAY, ArmSpec, ArmsPlan, ArmsTask, ComparisonSpec, Offer, arm_of_generator, plan_arms
from workloads.schedule import ScheduledRequest, split
from workloads.spec import WorkloadSpec
from workloads.vocabulary import ByteVocabulary

quick = settings(max_examples=30, deadline=None)
seeds = st.integers(min_value=0, max_value=2**32)
WORKERS = ("worker-0", "worker-1", "worker-2")
SPEC = WorkloadSpec(prompt_tokens=(4, 9), output_tokens=(3, 6))
FOUR = {
    "sticky": ArmSpec(),
    "moved": ArmSpec(worker=AWAY),
    "fresh": ArmSpec(prefix="fresh"),
    "fresh_moved": ArmSpec(worker=AWAY, prefix="fresh"),
}
SESSIONS = ComparisonSpec(by="sessions", think_s=1.0, prefix_tokens=(20, 200))
TWO = {"cold": ArmSpec(worker="worker-0", before=("evict",)), "warm": ArmSpec(worker="worker-0")}


def plan(
    arms: dict[str, ArmSpec], comparison: ComparisonSpec, seed: int = 1, *, stop_s: float = 70.0, per_s: float = 8.0
) -> ArmsPlan:
    offer = Offer(10.0, stop_s, per_s, 20.0, 512, WORKERS)
    return plan_arms(ArmsTask(arms, comparison, SPEC, offer, seed, ByteVocabulary()))


def measured(planned: ArmsPlan) -> dict[tuple[str, int], ScheduledRequest]:
    return {(request.arm, request.block): request for request in planned.load.requests if request.arm}


def primed(planned: ArmsPlan) -> dict[str, ScheduledRequest]:
    return {request.session_id: request for request in planned.load.requests if not request.arm}


@quick
@given(seeds)
def test_by_sessions_every_arm_asks_the_same_and_only_where_and_what_is_cached_differs(seed: int) -> None:
    planned = plan(FOUR, SESSIONS, seed)
    asked, before = measured(planned), primed(planned)
    rounds = {number for _, number in asked}
    assert len(asked) == 4 * len(rounds) == len(before)
    for number in rounds:
        sticky, moved, fresh, fresh_moved = (asked[arm, number] for arm in FOUR)
        assert sticky.prompt == moved.prompt
        assert fresh.prompt == fresh_moved.prompt
        assert len({(len(one.prompt), one.max_tokens) for one in (sticky, moved, fresh, fresh_moved)}) == 1
        homes = {before[one.session_id].worker for one in (sticky, moved, fresh, fresh_moved)}
        assert len(homes) == 1, "all arms of a round have one home"
        assert (sticky.worker, fresh.worker) == ("", ""), "routing decides"
        assert {moved.worker, fresh_moved.worker} <= set(WORKERS) - homes
        shared = before[sticky.session_id].prompt
        assert sticky.prompt[: len(shared)] == shared
        assert 20 <= len(shared) <= 200
        assert fresh.prompt[: len(shared)] != shared
        assert fresh.prompt[len(shared) :] == sticky.prompt[len(shared) :]


@quick
@given(seeds)
def test_a_session_is_primed_before_it_is_measured_and_all_of_it_lies_in_the_phase(seed: int) -> None:
    planned = plan(FOUR, SESSIONS, seed)
    before = primed(planned)
    times = [request.intended_s for request in planned.load.requests]
    assert times == sorted(times)
    assert all(10.0 <= time_s < 70.0 for time_s in times)
    for request in measured(planned).values():
        assert request.intended_s - before[request.session_id].intended_s == pytest.approx(SESSIONS.think_s)
        assert (before[request.session_id].turn, request.turn) == (0, 1)
    assert len({request.request_id for request in planned.load.requests}) == len(times)


def test_the_sweep_goes_over_the_whole_range_in_equal_steps_of_the_logarithm() -> None:
    planned = plan(FOUR, SESSIONS, stop_s=400.0)
    lengths = sorted(len(request.prompt) for request in primed(planned).values())
    assert lengths[0] < 24
    assert lengths[-1] > 180
    assert lengths[len(lengths) // 2] == pytest.approx((20 * 200) ** 0.5, rel=0.1)


def test_the_places_of_a_round_are_balanced() -> None:
    planned = plan(FOUR, SESSIONS, stop_s=400.0)
    first: Counter[str] = Counter()
    for number in {number for _, number in measured(planned)}:
        first[min(FOUR, key=lambda arm: measured(planned)[arm, number].intended_s)] += 1
    assert set(first) == set(FOUR)


def test_the_same_seed_plans_the_same_and_another_one_something_else() -> None:
    assert plan(FOUR, SESSIONS, 3) == plan(FOUR, SESSIONS, 3)
    assert plan(FOUR, SESSIONS, 3) != plan(FOUR, SESSIONS, 4)


@quick
@given(seeds, st.integers(1, 4))
def test_blocks_follow_each_other_in_abba_order_and_ask_the_same(seed: int, requests: int) -> None:
    comparison = ComparisonSpec(by="blocks", block_s=2.0, pause_s=1.0, settle_s=0.5, requests=requests)
    planned = plan(TWO, comparison, seed)
    order = [block.arm for block in planned.blocks]
    assert len(order) == 20
    for place in range(0, len(order), 4):
        assert order[place : place + 2] == order[place + 2 : place + 4][::-1]
    end_s = 10.0
    for block in planned.blocks:
        assert block.prepare_s == pytest.approx(end_s)
        assert (block.start_s, block.counts_s) == pytest.approx((block.prepare_s + 1.0, block.prepare_s + 1.5))
        end_s = block.stop_s
        own = [one for one in planned.load.requests if (one.arm, one.block) == (block.arm, block.number)]
        assert [one.intended_s for one in own] == pytest.approx(
            [block.start_s + place * 2.0 / requests for place in range(requests)]
        )
    assert end_s == pytest.approx(70.0)
    for number in range(10):
        cold, warm = (
            [one.prompt for one in planned.load.requests if (one.arm, one.block) == (arm, number)] for arm in TWO
        )
        assert cold == warm


def test_a_closed_arm_keeps_its_number_in_flight_and_has_more_than_it_can_ask() -> None:
    arms = {f"limit_{n}": ArmSpec(worker=f"worker-{n}", closed=2 * n) for n in (1, 2)}
    planned = plan(arms, ComparisonSpec(by="blocks", block_s=4.0, pause_s=1.0))
    assert planned.load.requests == ()
    assert [segment.concurrency for segment in planned.load.closed if segment.name.startswith("limit_2-")] == [4] * 6
    for segment, block in zip(planned.load.closed, planned.blocks, strict=True):
        assert (segment.start_s, segment.stop_s) == (block.start_s, block.stop_s)
        assert len(segment.requests) >= 20.0 * 4.0 + segment.concurrency
        assert {one.worker for one in segment.requests} == {arms[block.arm].worker}
    assert len({one.prompt_id for segment in planned.load.closed for one in segment.requests}) == 6 * 64


def test_an_arm_with_a_controller_has_generators_of_its_own() -> None:
    arms = {"on": ArmSpec(controller="controller-0"), "off": ArmSpec(controller="controller-1")}
    offer = Offer(10.0, 70.0, 8.0, 20.0, 512, WORKERS, generators=4)
    task = ArmsTask(arms, ComparisonSpec(by="blocks", block_s=4.0), SPEC, offer, 1, ByteVocabulary())
    planned = plan_arms(task)
    asked = Counter((request.arm, request.generator) for request in planned.load.requests)
    assert asked.keys() == {("on", 0), ("on", 2), ("off", 1), ("off", 3)}
    assert len(set(asked.values())) == 1, "the generators of an arm share its load evenly"
    assert [arm_of_generator(arms, number) for number in range(4)] == ["on", "off", "on", "off"]
    parts = [split(planned.load.requests, 4)[number] for number in range(4)]
    assert [{request.arm for request in part} for part in parts] == [{"on"}, {"off"}, {"on"}, {"off"}]
    assert arm_of_generator(TWO, 1) == ""
    assert {request.generator for request in plan(TWO, ComparisonSpec(by="blocks")).load.requests} == {None}


@pytest.mark.parametrize(
    ("arms", "comparison", "why"),
    [
        (TWO, ComparisonSpec(by="blocks", block_s=40.0), "too short for one block"),
        (FOUR, ComparisonSpec(by="sessions", think_s=59.9, prefix_tokens=(9, 9)), "too short for one session"),
        (FOUR, ComparisonSpec(by="sessions", prefix_tokens=(20, 500)), "of 512"),
    ],
)
def test_what_cannot_be_planned_says_why(arms: dict[str, ArmSpec], comparison: ComparisonSpec, why: str) -> None:
    with pytest.raises(ValueError, match=why):
        plan(arms, comparison)
