"""A fit finds again the costs by which its measurements were made."""

from random import Random

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import replace

from cluster.calibrating import fitting
from cluster.calibrating.measuring import SMALL, Measured
from cluster.calibrating.rounds import Chatted, Loaded, Round, Taken
from cluster.engine.costs import StepCosts
from cluster.policy import Policy
from tests.cluster import QUICK

TRUE = StepCosts(
    load_s=0.5,
    kv_bytes_per_token=2_048,
    weights_bytes=2**20,
    step_s=0.0015,
    decode_each_s=0.0001,
    context_each_s=0.0000006,
    prefill_step_s=0.004,
    prefill_prompt_s=0.0002,
    prefill_each_s=0.00004,
    prefill_context_each_s=0.0000002,
    resume_s=0.002,
    finish_s=0.004,
    finish_each_s=0.0005,
    keep_s=0.006,
    contention=(1.0, 1.2, 1.8),
)


def first_s(one: Round) -> float:
    """As the real engine reads prompts: each takes an equal part of a step's budget."""
    most, read, whole_s = max(1, Policy().worker.prefill_step_tokens // one.prompts), 0, 0.0
    while read < one.prompt_tokens:
        count = min(most, one.prompt_tokens - read)
        whole_s += TRUE.prefill_s([count] * one.prompts, read, 0, alone=True)
        read += count
    return whole_s + TRUE.decode_s(one.prompts, one.prompt_tokens)


def taken(one: Round, random: Random, slow: float = 1.0) -> Taken:
    """A round with a few percent of noise."""

    def noisy(seconds: float) -> float:
        return seconds * slow * random.uniform(0.97, 1.03)

    gaps_s = [noisy(TRUE.decode_s(one.prompts, one.prompt_tokens + step)) for step in range(1, one.new_tokens)]
    return Taken(one, noisy(first_s(one)), tuple(gaps_s))


def measured() -> Measured:
    random, budget = Random(3), SMALL
    rounds = [Round(b, p, 40) for b in budget.decode_batches for p in budget.decode_prompts]
    rounds += [Round(b, p, 2) for b in budget.prefill_batches for p in budget.prefill_prompts]
    mixed = [Round(1, 48, 20), Round(2, 64, 20)] * 40
    chatted = []
    for chats in budget.chats:
        whole_s, mean_s = fitting.play(TRUE, chats)
        chatted += [Chatted(chats, whole_s, mean_s, chats.chats * chats.turns)]
    return Measured(
        [Loaded(0.5, 2_048, 2**20), Loaded(0.5, 2_048, 2**20)],
        [taken(one, random) for one in rounds for _ in range(3)],
        chatted,
        {count: [taken(one, random, TRUE.contention[count - 1]) for one in mixed] for count in (1, 2, 3)},
        {0: [0.0004] * 50 + [0.0010], 1: [0.0006] * 50, 2: [0.0008] * 50, 3: [0.0100] * 50},
    )


def test_a_fit_finds_the_costs_again() -> None:
    costs, bus, fits = fitting.fit(measured())
    for name in ("step_s", "decode_each_s", "context_each_s", "prefill_step_s", "prefill_each_s"):
        assert getattr(costs, name) == pytest.approx(getattr(TRUE, name), rel=0.1), name
    assert costs.prefill_context_each_s == pytest.approx(TRUE.prefill_context_each_s, rel=0.1)
    assert costs.resume_s == pytest.approx(TRUE.resume_s, rel=0.2)
    assert costs.finish_s == pytest.approx(TRUE.finish_s, rel=0.2)
    assert costs.keep_s == pytest.approx(TRUE.keep_s, rel=0.2)
    assert costs.contention == pytest.approx(TRUE.contention, rel=0.03)
    assert (costs.load_s, costs.kv_bytes_per_token, costs.weights_bytes) == (0.5, 2_048, 2**20)
    # While three computed there were too few cores, and such round trips are no property of the bus.
    assert bus.latency_s + bus.jitter_s / 2 + bus.tail_s == pytest.approx(0.0003, rel=0.05)
    assert set(fits) == {"decode", "prefill", "turn"}
    for name in ("decode", "prefill"):
        assert all(fits[name].covariance[place][place] > 0 for place in range(2))


def test_chats_played_with_the_fitted_costs_take_as_long_as_they_did() -> None:
    found = measured()
    costs, _, _ = fitting.fit(found)
    bare = replace(costs, noise=(), contention=())
    for each in found.chatted:
        assert fitting.play(bare, each.chats)[0] == pytest.approx(each.whole_s, rel=0.05)


@QUICK
@given(st.lists(st.floats(0.0001, 0.1), min_size=3, max_size=3), st.integers(0, 2**16))
def test_no_coefficient_is_negative_and_an_exact_law_is_found(true: list[float], seed: int) -> None:
    random = Random(seed)
    rows = [[1.0, float(batch), float(batch * random.randint(1, 400))] for batch in (1, 2, 3, 4, 6, 8, 12, 16)]
    found = fitting.least_squares(("a", "b", "c"), rows, [float(np.dot(true, row)) for row in rows])
    assert min(found.estimates) >= 0
    made = [float(np.dot(found.estimates, row)) for row in rows]
    assert made == pytest.approx([float(np.dot(true, row)) for row in rows], rel=1e-6)


def test_noise_keeps_mean_and_correlation() -> None:
    random = np.random.default_rng(5)
    blocks = random.choice([0.9, 1.0, 1.4], size=(40, 30))
    factors, steps = fitting.noise_of([list(np.repeat(row, 8)) for row in blocks])
    assert np.mean(factors) == pytest.approx(blocks.mean(), rel=0.01)
    assert 5 <= steps <= 11
    independent = fitting.noise_of([list(row) for row in blocks])[1]
    assert independent == 1


def test_the_mean_of_a_bus_with_a_tail_is_kept() -> None:
    random = np.random.default_rng(6)
    round_trips_s = 0.0004 + random.exponential(0.0003, 4_000)
    bus = fitting.bus_of(list(round_trips_s))
    assert 2 * (bus.latency_s + bus.jitter_s / 2 + bus.tail_s) == pytest.approx(round_trips_s.mean(), rel=0.01)
    assert bus.latency_s >= 0.0002
