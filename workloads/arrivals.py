"""When requests come: arrivals of mean rate 1, stretched by a rate that changes over time.

Each kind of arrivals is a sequence of units: ascending numbers, on average one per unit. A profile says how the rate
goes: a list of stretches, each with the factor of the base rate from its start to its end, constant or linear between
two factors. The n-th request comes when the integral of the rate has reached the n-th unit (time rescaling: Daley and
Vere-Jones, An Introduction to the Theory of Point Processes, 7.4). So the n-th request is the same one whatever the
rate, and a profile holds for every kind.

For phases with rates of their own give `workloads.schedule.build_schedule` a `profile` of just these phases, say
`(Stretch(30.0, 60.0, 10.0),)` for ten times the rate from second 30 to second 60, `Stretch(60.0, 80.0, 0.0)` for
nothing: it replaces what the workload says of that time (see `overlay`).
"""

from collections.abc import Iterator, Sequence
from typing import Any

import msgspec
import numpy as np

from workloads.spec import WorkloadSpec

_BLOCK = 1024
Units = Iterator[Any]
"""Arrays of ascending units, each beginning where the one before ended; without end unless a trace is over."""


class Stretch(msgspec.Struct, frozen=True):
    """From `start_s` (inclusive) to `end_s` seconds the rate is `factor` of the base rate, or goes linearly to `end`.

    end: the factor at end_s; None: the same as at the start.
    """

    start_s: float
    end_s: float
    factor: float = 1.0
    end: float | None = None

    @property
    def last(self) -> float:
        """The factor at the end."""
        return self.factor if self.end is None else self.end

    @property
    def mass(self) -> float:
        """How many requests come at a base rate of 1/s: the integral of the factor over time, in seconds."""
        return (self.end_s - self.start_s) * (self.factor + self.last) / 2

    def between(self, start_s: float, end_s: float) -> "Stretch":
        """The part of the stretch between two times, which must lie within it."""
        slope = (self.last - self.factor) / (self.end_s - self.start_s)
        if not slope:
            return Stretch(start_s, end_s, self.factor)
        return Stretch(
            start_s,
            end_s,
            self.factor + slope * (start_s - self.start_s),
            self.factor + slope * (end_s - self.start_s),
        )


Profile = Sequence[Stretch]
"""Stretches in order of time that do not overlap. Where there is none, nothing comes."""


def check_profile(profile: Profile) -> None:
    """Raise ValueError unless the stretches are finite, in order, and their factors not negative."""
    before_s = 0.0
    for stretch in profile:
        if not (before_s <= stretch.start_s < stretch.end_s < float("inf")):
            raise ValueError(f"a stretch from {stretch.start_s:g} s to {stretch.end_s:g} s is out of order")
        if not all(0 <= factor < float("inf") for factor in (stretch.factor, stretch.last)):
            raise ValueError(f"expected factors from 0 on, got {stretch.factor:g} to {stretch.last:g}")
        before_s = stretch.end_s


def workload_profile(spec: WorkloadSpec, duration_s: float) -> Profile:
    """What a workload itself says of its rate, from 0 to `duration_s` seconds: level unless it has a ramp or steps."""
    if spec.ramp is not None:
        return (Stretch(0.0, duration_s, *spec.ramp),)
    steps = [(0.0, 1.0), *(step for step in spec.steps if step[0] < duration_s)]
    ends = [offset_s for offset_s, _ in steps[1:]] + [duration_s]
    found = (Stretch(start_s, end_s, factor) for (start_s, factor), end_s in zip(steps, ends, strict=True))
    return tuple(stretch for stretch in found if stretch.start_s < stretch.end_s)


def overlay(base: Profile, over: Profile) -> Profile:
    """`base`, with `over` in its place for the time that `over` names. Raises ValueError, see check_profile."""
    check_profile(over)
    left = list(base)
    for stretch in over:
        left = [part for whole in left for part in _outside(whole, stretch)]
    return tuple(sorted((*left, *over), key=lambda stretch: stretch.start_s))


def _outside(whole: Stretch, hole: Stretch) -> Iterator[Stretch]:
    if hole.end_s <= whole.start_s or whole.end_s <= hole.start_s:
        yield whole
        return
    if whole.start_s < hole.start_s:
        yield whole.between(whole.start_s, hole.start_s)
    if hole.end_s < whole.end_s:
        yield whole.between(hole.end_s, whole.end_s)


def expected_requests(profile: Profile, rate_per_s: float) -> float:
    """The integral of the rate over the profile."""
    return rate_per_s * sum(stretch.mass for stretch in profile)


def constant_units() -> Units:
    """0, 1, 2, ..."""
    first = 0
    while True:
        yield np.arange(first, first + _BLOCK, dtype=np.float64)
        first += _BLOCK


def poisson_units(random: np.random.Generator) -> Units:
    """Gaps of an exponential distribution."""
    last = 0.0
    while True:
        block = last + np.cumsum(random.standard_exponential(_BLOCK))
        last = float(block[-1])
        yield block


def gamma_units(random: np.random.Generator, burstiness: float) -> Units:
    """Gaps of a gamma distribution with mean 1 and coefficient of variation `burstiness`; 1 is Poisson.

    The first gap is what is left of a gap that began before (an equilibrium renewal process: Cox, Renewal Theory,
    chapter 5): otherwise bursty arrivals would on average be (burstiness^2 - 1) / 2 too many.
    """
    shape = burstiness**-2
    last = float(random.uniform() * random.gamma(shape + 1) / shape)
    yield np.array([last])
    while True:
        block = last + np.cumsum(random.gamma(shape, 1 / shape, _BLOCK))
        last = float(block[-1])
        yield block


def arrival_times(units: Units, rate_per_s: float, profile: Profile) -> list[float]:
    """When the units come under a rate of `rate_per_s` times the profile: ascending, in seconds."""
    total = expected_requests(profile, rate_per_s)
    blocks = []
    for block in units:
        blocks.append(block)
        if block.size and block[-1] >= total:
            break
    drawn = np.concatenate(blocks) if blocks else np.empty(0)
    times: list[float] = []
    reached = 0.0
    for stretch in profile:
        until = reached + rate_per_s * stretch.mass
        inside = drawn[(drawn >= reached) & (drawn < until)]
        times += _within(stretch, (inside - reached) / rate_per_s).tolist()
        reached = until
    return times


def _within(stretch: Stretch, mass: Any) -> Any:
    """When a stretch has reached these parts of its mass."""
    slope = (stretch.last - stretch.factor) / (stretch.end_s - stretch.start_s)
    if slope:
        # The root of slope/2 x^2 + factor x = mass that does not subtract numbers of the same size.
        root = np.sqrt(np.maximum(0.0, stretch.factor**2 + 2 * slope * mass))
        with np.errstate(invalid="ignore"):
            offsets = np.where(mass > 0, 2 * mass / (stretch.factor + root), 0.0)
    else:
        offsets = mass / stretch.factor
    return np.minimum(stretch.start_s + offsets, np.nextafter(stretch.end_s, stretch.start_s))
