"""How long things are: within the limits, with the asked mean and shares."""

from typing import Any

import msgspec
import numpy as np
import pytest
from hypothesis import given, reject, settings
from hypothesis import strategies as st

from workloads.lengths import (
    Choices,
    Lengths,
    Lognormal,
    check_lengths,
    draw_length,
    draw_times,
    length_limits,
    time_limits,
)
from workloads.schedule import build_schedule
from workloads.spec import WorkloadSpec
from workloads.vocabulary import ByteVocabulary

quick = settings(max_examples=100, deadline=None)
counts = st.integers(1, 300)


@st.composite
def lengths(draw: st.DrawFn) -> Lengths:
    kind = draw(st.sampled_from(["fixed", "uniform", "lognormal", "choices"]))
    if kind == "fixed":
        return draw(counts)
    least = draw(counts)
    if kind == "uniform":
        return (least, least + draw(counts))
    if kind == "choices":
        values = draw(st.lists(counts, min_size=1, max_size=5))
        weights = draw(st.just([]) | st.lists(st.floats(0.1, 9), min_size=len(values), max_size=len(values)))
        return Choices(values=tuple(values), weights=tuple(weights))
    mean, cv, most = draw(st.floats(1, 300)), draw(st.floats(0.05, 3)), least + draw(counts)
    try:
        return Lognormal(mean=mean, cv=cv, least=least, most=most)
    except ValueError:
        # The limits hold too little of the distribution.
        reject()


@quick
@given(lengths(), st.integers(0, 2**32))
def test_lengths_are_whole_numbers_within_their_limits(given_lengths: Lengths, seed: int) -> None:
    check_lengths(given_lengths)
    least, most = length_limits(given_lengths)
    random, again = np.random.default_rng(seed), np.random.default_rng(seed)
    drawn = [draw_length(given_lengths, random) for _ in range(40)]
    assert all(type(length) is int and least <= length <= most for length in drawn)
    assert drawn == [draw_length(given_lengths, again) for _ in range(40)]


@settings(max_examples=25, deadline=None)
@given(lengths(), lengths(), st.integers(0, 2**32))
def test_a_load_keeps_the_lengths_it_is_given(prompts: Lengths, outputs: Lengths, seed: int) -> None:
    spec = WorkloadSpec(turns_max=1, prompt_tokens=prompts, output_tokens=outputs)
    markers = len(ByteVocabulary.markers.before_first) + len(ByteVocabulary.markers.before_reply)
    for request in build_schedule(spec, 20, 2, seed, ByteVocabulary()):
        assert length_limits(prompts)[0] <= len(request.prompt) - markers <= length_limits(prompts)[1]
        assert length_limits(outputs)[0] <= request.max_tokens <= length_limits(outputs)[1]


def test_a_lognormal_has_its_mean_and_spread_when_the_limits_are_far() -> None:
    given_lengths = Lognormal(mean=200, cv=0.5, most=10_000)
    random = np.random.default_rng(1)
    drawn = np.array([draw_length(given_lengths, random) for _ in range(8000)])
    assert drawn.mean() == pytest.approx(200, rel=0.03)
    assert drawn.std() / drawn.mean() == pytest.approx(0.5, rel=0.05)


def test_limits_cut_the_tail_off_and_do_not_pile_it_up() -> None:
    random = np.random.default_rng(2)
    drawn = np.array([draw_length(Lognormal(mean=200, cv=2, most=150), random) for _ in range(4000)])
    assert (drawn == 150).mean() < 0.02


def test_choices_come_as_often_as_they_weigh() -> None:
    random = np.random.default_rng(3)
    choices = Choices(values=(10, 20, 30), weights=(6, 0, 2))
    drawn = [draw_length(choices, random) for _ in range(4000)]
    assert drawn.count(10) / 4000 == pytest.approx(0.75, abs=0.03)
    assert drawn.count(20) == 0


@given(st.sampled_from([2.0, (1.0, 3.0), Lognormal(mean=2, cv=1, least=1, most=3)]), st.integers(0, 2**32))
def test_times_are_within_their_limits(times: Any, seed: int) -> None:
    least, most = time_limits(times)
    drawn = draw_times(times, np.random.default_rng(seed), 30)
    assert len(drawn) == 30
    assert all(least <= time_s <= most for time_s in drawn)


@pytest.mark.parametrize(
    ("wrong", "complaint"),
    [
        (0, "between 1 and 10000, got 0 to 0"),
        (20_000, "got 20000 to 20000"),
        ([9, 3], "expected [least, most], got [9, 3]"),
        ({"kind": "lognormal", "mean": 0.6, "cv": 1, "least": 0.5, "most": 0.7}, "got 1 to 0"),
        ({"kind": "lognormal", "mean": 30, "cv": 1, "least": 50, "most": 9}, "least: 50 is more than most, 9"),
        ({"kind": "lognormal", "mean": 30, "cv": 0.1, "least": 300, "most": 900}, "most: only 0 of the distribution"),
        ({"kind": "lognormal", "mean": 30, "cv": 1}, "missing required field `most`"),
        ({"kind": "choices", "values": []}, "length >= 1"),
        ({"kind": "choices", "values": [0]}, "Expected `int` >= 1"),
        ({"kind": "choices", "values": [1, 2], "weights": [1]}, "weights: expected one for each of 2 values"),
        ({"kind": "choices", "values": [1], "weights": [0]}, "weights: expected at least one above 0"),
        ({"kind": "zipf"}, "Invalid value 'zipf'"),
        ({"mean": 3}, "missing required field `kind`"),
        ("long", "got `str`"),
    ],
)
def test_wrong_lengths_name_their_field(wrong: Any, complaint: str) -> None:
    with pytest.raises(msgspec.ValidationError) as refused:
        msgspec.convert({"prompt_tokens": wrong}, WorkloadSpec)
    assert complaint in str(refused.value)
    assert "prompt_tokens" in str(refused.value)
