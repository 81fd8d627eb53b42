"""The law of a step, its noise, and engines that share cores."""

from random import Random

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cluster.engine.costs import Noise, SharedHost, StepCosts
from cluster.engine.timed import TimedEngine
from cluster.node import EngineReport, Event, Insert
from cluster.policy import WorkerPolicy
from tests.cluster import QUICK

UNEVEN = StepCosts(
    load_s=0.25,
    step_s=0.002,
    decode_each_s=0.0003,
    context_each_s=0.000001,
    prefill_step_s=0.003,
    prefill_prompt_s=0.0002,
    prefill_each_s=0.00004,
    prefill_context_each_s=0.0000001,
    resume_s=0.001,
    finish_s=0.002,
    finish_each_s=0.0005,
    noise=(0.8, 0.9, 1.0, 1.1, 3.0),
    noise_steps=3,
)


def played(costs: StepCosts, inserts: list[tuple[float, int, int]], cuts: list[float]) -> dict[int, list[float]]:
    """Token times by sequence, where the engine is made to plan anew at some times; insert: time, prompt, tokens."""
    engine = TimedEngine(costs, WorkerPolicy(), 0.05, random=Random("worker-0"))
    engine.load("m", 0.0)
    acts = sorted([(time_s, "insert", number) for number, (time_s, _, _) in enumerate(inserts)] +
                  [(time_s, "cut", 0) for time_s in cuts])  # fmt: skip
    times_s: dict[int, list[float]] = {number: [] for number in range(len(inserts))}

    def take(events: list[Event]) -> None:
        for event in events:
            for part in event.progress if isinstance(event, EngineReport) else ():
                times_s[part.sequence] += part.times_s

    for time_s, what, number in acts:
        while (due_s := engine.next_time()) is not None and due_s <= time_s:
            take(engine.advance(due_s))
        if what == "cut":
            engine.repace(time_s)
        else:
            engine.insert(Insert(number, "m", tuple(range(inserts[number][1])), inserts[number][2]), time_s)
    while (due_s := engine.next_time()) is not None:
        take(engine.advance(due_s))
    return times_s


@QUICK
@given(
    st.lists(st.tuples(st.floats(0.3, 0.6), st.integers(1, 60), st.integers(1, 40)), min_size=1, max_size=5),
    st.lists(st.floats(0.3, 1.2), max_size=30),
)
def test_planning_anew_changes_no_time_of_a_token(inserts: list[tuple[float, int, int]], cuts: list[float]) -> None:
    whole, cut = played(UNEVEN, inserts, []), played(UNEVEN, inserts, cuts)
    assert {number: len(times_s) for number, times_s in whole.items()} == {
        number: most for number, (_, _, most) in enumerate(inserts)
    }
    for number, times_s in whole.items():
        assert cut[number] == pytest.approx(times_s, abs=1e-12)


def test_a_lone_request_takes_what_the_law_says() -> None:
    costs = msgspec.structs.replace(UNEVEN, noise=())
    times_s = played(costs, [(0.5, 20, 3)], [])[0]
    prefill_s = 0.003 + 0.0002 + 20 * 0.00004 + 20 * 20 * 0.0000001
    first_s = 0.5 + prefill_s + costs.decode_s(1, 20)
    second_s = first_s + costs.decode_s(1, 21)
    assert times_s == pytest.approx([first_s, second_s, second_s + costs.decode_s(1, 22) + 0.002 + 0.0005])


def test_padding_makes_a_short_prompt_cost_as_much_as_the_long_one_beside_it() -> None:
    costs = StepCosts(prefill_step_s=0.0, prefill_each_s=0.001)
    assert costs.prefill_s([10, 100], 0, 0, alone=True) == pytest.approx(0.2)
    assert StepCosts(step_s=0.0, prefill_each_s=0.001).prefill_s([10, 100], 0, 0, alone=True) == pytest.approx(0.11)


def test_noise_is_drawn_once_for_each_stretch_of_steps_and_repeats_itself_by_seed() -> None:
    def drawn(looks: list[int]) -> list[float]:
        noise = Noise(UNEVEN, Random(7))
        factors = []
        for look in looks:
            _ = noise[look]
            factors.append(noise[0])
            noise.passed(1)
        return factors

    plain = drawn([0] * 30)
    assert drawn([5, 0, 17] * 10) == plain
    assert all(len(set(plain[start : start + 3])) == 1 for start in range(0, 30, 3))
    assert len(set(plain)) > 1


def test_more_engines_than_were_measured_share_the_cores_out() -> None:
    costs = StepCosts(contention=(1.0, 1.2, 1.8))
    assert [costs.contended(engines) for engines in (0, 1, 2, 3, 6)] == pytest.approx([1.0, 1.0, 1.2, 1.8, 3.6])
    assert StepCosts().contended(50) == 1.0


def test_a_host_tells_those_that_compute_when_another_one_begins_or_ends() -> None:
    host, told = SharedHost(StepCosts(contention=(1.0, 1.0, 2.0))), list[str]()
    for name in ("a", "b", "c"):
        host.join(name, lambda name=name: told.append(name))  # type: ignore[misc]
    host.computes("a", True)
    host.computes("b", True)
    host.computes("b", True)
    assert told == []
    assert host.factor("c") == 2.0
    host.computes("c", True)
    assert told == ["a", "b"]
    assert host.factor("c") == 2.0
    host.computes("a", False)
    assert told == ["a", "b", "b", "c"]


def test_a_new_process_of_a_node_takes_the_place_of_the_old_one() -> None:
    host = SharedHost(StepCosts(contention=(1.0, 2.0)))
    host.join("a", lambda: None)
    host.computes("a", True)
    host.join("a", lambda: None)
    assert host.factor("b") == 1.0


@pytest.mark.parametrize(
    ("field", "value"),
    [("context_each_s", -1.0), ("finish_s", float("inf")), ("noise", (0.0,)), ("contention", (0.5,)),
     ("noise_steps", 0), ("resume_s", float("nan"))],
)  # fmt: skip
def test_costs_that_no_engine_has_are_refused_by_name(field: str, value: object) -> None:
    with pytest.raises(msgspec.ValidationError, match=field):
        msgspec.convert({field: value}, StepCosts)
