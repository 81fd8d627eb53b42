"""When requests come: the rate's integral, the spread of the kinds, and what profiles do to each other."""

import math
from itertools import islice, pairwise
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from workloads.arrivals import (
    Profile,
    Stretch,
    arrival_times,
    constant_units,
    expected_requests,
    gamma_units,
    overlay,
    poisson_units,
    workload_profile,
)
from workloads.schedule import build_schedule
from workloads.spec import WorkloadSpec
from workloads.vocabulary import ByteVocabulary

quick = settings(max_examples=60, deadline=None)
factors = st.one_of(st.just(0.0), st.floats(0.05, 10))
lengths = st.floats(0.1, 20)


@st.composite
def profiles(draw: st.DrawFn) -> Profile:
    found, now_s = [], 0.0
    for gap_s, length_s, factor, end in draw(
        st.lists(st.tuples(st.sampled_from([0.0, 0.0, 1.5]), lengths, factors, st.none() | factors), max_size=5)
    ):
        start_s = now_s + gap_s
        now_s = start_s + length_s
        found.append(Stretch(start_s, now_s, factor, end))
    return tuple(found)


def mass(profile: Profile, start_s: float, end_s: float) -> float:
    """By summing up small steps, which is not how the code does it."""
    edges = np.linspace(start_s, end_s, 20_001)
    middles, step_s = (edges[:-1] + edges[1:]) / 2, (end_s - start_s) / 20_000
    total = 0.0
    for stretch in profile:
        inside = middles[(middles >= stretch.start_s) & (middles < stretch.end_s)]
        slope = (stretch.last - stretch.factor) / (stretch.end_s - stretch.start_s)
        total += float((stretch.factor + slope * (inside - stretch.start_s)).sum()) * step_s
    return total


@quick
@given(profiles(), st.floats(0.5, 40))
def test_even_arrivals_number_the_integral_of_the_rate(profile: Profile, rate_per_s: float) -> None:
    times = arrival_times(constant_units(), rate_per_s, profile)
    assert times == sorted(times)
    expected = expected_requests(profile, rate_per_s)
    assert abs(len(times) - expected) <= 1
    assert all(any(part.start_s <= time_s < part.end_s for part in profile) for time_s in times)
    for part in profile:
        count = sum(part.start_s <= time_s < part.end_s for time_s in times)
        assert abs(count - rate_per_s * part.mass) <= 1 + 1e-6
        assert part.mass == pytest.approx(mass([part], part.start_s, part.end_s), rel=1e-6, abs=1e-9)


@quick
@given(st.floats(0.05, 5), st.floats(0, 5), st.floats(2, 40))
def test_within_a_ramp_the_count_follows_the_rate(start: float, end: float, length_s: float) -> None:
    ramp = (Stretch(0, length_s, start, end),)
    times = np.array(arrival_times(constant_units(), 50, ramp))
    for share in (0.25, 0.5, 0.75):
        until_s = share * length_s
        assert abs((times < until_s).sum() - 50 * mass(ramp, 0, until_s)) <= 1.1


@quick
@given(profiles(), profiles())
def test_an_overlay_replaces_its_own_time_and_no_other(base: Profile, over: Profile) -> None:
    end_s = max([part.end_s for part in (*base, *over)], default=1.0)
    laid = overlay(base, over)
    assert all(one.end_s <= other.start_s + 1e-9 for one, other in pairwise(laid))
    alone = mass(base, 0, end_s) - sum(mass(base, part.start_s, part.end_s) for part in over)
    assert mass(laid, 0, end_s) == pytest.approx(alone + mass(over, 0, end_s), abs=0.05, rel=0.01)


@pytest.mark.parametrize(
    "wrong",
    [
        (Stretch(5, 5),),
        (Stretch(0, 4), Stretch(3, 5)),
        (Stretch(4, 5), Stretch(0, 1)),
        (Stretch(0, 1, -1),),
        (Stretch(0, 1, 1, math.nan),),
        (Stretch(0, math.inf),),
        (Stretch(-1, 1),),
    ],
)
def test_an_impossible_profile_is_refused(wrong: Profile) -> None:
    with pytest.raises(ValueError, match=r"out of order|factors"):
        overlay((), wrong)


@pytest.mark.parametrize("burstiness", [0.3, 1.0, 2.5])
def test_gamma_gaps_have_the_asked_spread(burstiness: float) -> None:
    times = arrival_times(gamma_units(np.random.default_rng(3), burstiness), 100, (Stretch(0, 600),))
    gaps = np.diff(times)
    assert gaps.mean() == pytest.approx(0.01, rel=0.05)
    assert gaps.std() / gaps.mean() == pytest.approx(burstiness, rel=0.05)


def test_bursty_arrivals_are_not_too_many_in_a_short_load() -> None:
    """An ordinary renewal process of this spread would make 10 + (9 - 1) / 2 of 10; the mean's error here is 0.3."""
    counts = [
        len(arrival_times(gamma_units(np.random.default_rng(seed), 3.0), 1, (Stretch(0, 10),))) for seed in range(1500)
    ]
    assert np.mean(counts) == pytest.approx(10, abs=1)


def test_a_gamma_process_of_spread_one_is_poisson() -> None:
    times = arrival_times(gamma_units(np.random.default_rng(5), 1.0), 50, (Stretch(0, 400),))
    counts = np.bincount(np.floor(times).astype(int), minlength=400)
    assert counts.var() / counts.mean() == pytest.approx(1, abs=0.25)


@quick
@given(profiles(), st.integers(0, 2**32))
def test_the_same_units_come_under_any_rate(profile: Profile, seed: int) -> None:
    def count(rate_per_s: float) -> int:
        return len(arrival_times(poisson_units(np.random.default_rng(seed)), rate_per_s, profile))

    units = np.concatenate(list(islice(poisson_units(np.random.default_rng(seed)), 20)))
    for rate_per_s in (1.0, 3.0):
        total = expected_requests(profile, rate_per_s)
        assert abs(count(rate_per_s) - int((units < total).sum())) <= 1


def test_a_workload_says_how_its_rate_goes() -> None:
    assert workload_profile(WorkloadSpec(), 10) == (Stretch(0, 10),)
    assert workload_profile(WorkloadSpec(ramp=(0.5, 2)), 10) == (Stretch(0, 10, 0.5, 2),)
    spike = WorkloadSpec(steps=((0, 2), (4, 10), (6, 0), (40, 3)))
    assert workload_profile(spike, 10) == (Stretch(0, 4, 2), Stretch(4, 6, 10), Stretch(6, 10, 0))
    assert workload_profile(WorkloadSpec(steps=((4, 10),)), 10) == (Stretch(0, 4), Stretch(4, 10, 10))


@pytest.mark.parametrize("kind", [{"arrivals": "constant"}, {}, {"arrivals": "gamma", "burstiness": 2.0}])
def test_phases_replace_the_workloads_own_rate(kind: dict[str, Any]) -> None:
    spec = WorkloadSpec(**kind, ramp=(1, 3))
    phases = (Stretch(20, 30, 10.0), Stretch(30, 40, 0.0), Stretch(50, 90, 0.5))
    plain = build_schedule(spec, 40, 60, 1, ByteVocabulary())
    spiked = build_schedule(spec, 40, 60, 1, ByteVocabulary(), profile=phases)
    times = np.array([request.intended_s for request in spiked])

    def count(start_s: float, end_s: float) -> int:
        return int(((times >= start_s) & (times < end_s)).sum())

    assert count(30, 40) == 0
    assert count(20, 30) == pytest.approx(4000, rel=0.1)
    assert count(50, 60) == pytest.approx(200, rel=0.4)
    assert times.max() < 60
    before = count(0, 20)
    assert before > 800
    assert times[:before] == pytest.approx([request.intended_s for request in plain[:before]])
    assert all(one.prompt == other.prompt for one, other in zip(plain, spiked, strict=False))


def test_a_spike_that_makes_too_many_requests_is_refused() -> None:
    with pytest.raises(ValueError, match="more than 1000000"):
        build_schedule(WorkloadSpec(), 1000, 10, 1, ByteVocabulary(), profile=(Stretch(2, 4, 1000.0),))
