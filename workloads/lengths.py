"""How long something is: fixed, uniform, lognormal, or one of given values; always between limits."""

import math
from statistics import NormalDist
from typing import Annotated

import msgspec
import numpy as np

Positive = Annotated[int, msgspec.Meta(ge=1, le=10_000)]
TOKENS_MAX = 10_000
SECONDS_MAX = 3_600.0
VALUES_MAX = 1_000
MASS_MIN = 0.01
"""At least so much of a lognormal distribution must lie between its limits."""


class _Distribution(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True, tag_field="kind"):
    pass


class Lognormal(_Distribution, frozen=True, tag="lognormal"):
    """A lognormal distribution cut off at its limits, which raises its chance between them and moves its mean.

    mean: of the whole distribution. cv: its coefficient of variation, standard deviation over mean. least, most: the
    limits, inclusive. Raises ValueError naming the field.
    """

    mean: Annotated[float, msgspec.Meta(gt=0, le=1e6)]
    cv: Annotated[float, msgspec.Meta(gt=0, le=20)]
    most: Annotated[float, msgspec.Meta(gt=0, le=1e6)]
    least: Annotated[float, msgspec.Meta(ge=0)] = 0.0

    def __post_init__(self) -> None:
        if self.least > self.most:
            raise ValueError(f"least: {self.least:g} is more than most, {self.most:g}")
        low, high = self._chances()
        if high - low < MASS_MIN:
            share = f"{high - low:.2g} of the distribution"
            raise ValueError(f"most: only {share} lies between {self.least:g} and {self.most:g}; move mean or limits")

    def draw(self, random: np.random.Generator) -> float:
        """One value, by the inverse of the distribution: one draw of `random`, whatever the parameters."""
        low, high = self._chances()
        # The inverse is not defined at 0 and 1, which the limits may well be.
        chance = min(max(low + float(random.uniform()) * (high - low), 1e-12), 1 - 1e-12)
        return min(max(math.exp(self._normal().inv_cdf(chance)), self.least), self.most)

    def _normal(self) -> NormalDist:
        # Aitchison and Brown, The Lognormal Distribution, 2.2: cv^2 = exp(sigma^2) - 1, mean = exp(mu + sigma^2 / 2).
        variance = math.log1p(self.cv**2)
        return NormalDist(math.log(self.mean) - variance / 2, math.sqrt(variance))

    def _chances(self) -> tuple[float, float]:
        normal = self._normal()
        return normal.cdf(math.log(self.least)) if self.least else 0.0, normal.cdf(math.log(self.most))


class Choices(_Distribution, frozen=True, tag="choices"):
    """One of `values`, as often as its weight says; without weights all alike. Raises ValueError naming the field."""

    values: Annotated[tuple[Positive, ...], msgspec.Meta(min_length=1, max_length=VALUES_MAX)]
    weights: tuple[Annotated[float, msgspec.Meta(ge=0, le=1e9)], ...] = ()

    def __post_init__(self) -> None:
        if self.weights and len(self.weights) != len(self.values):
            raise ValueError(f"weights: expected one for each of {len(self.values)} values, got {len(self.weights)}")
        if self.weights and not sum(self.weights) > 0:
            raise ValueError("weights: expected at least one above 0")

    def draw(self, random: np.random.Generator) -> int:
        """One value: one draw of `random`."""
        chances = np.cumsum(self.weights or np.ones(len(self.values)))
        place = np.searchsorted(chances, random.uniform() * chances[-1], side="right")
        return self.values[min(int(place), len(self.values) - 1)]


# A constrained int beside a tuple of two crashes msgspec 0.22, so `check_lengths` holds the bounds of the number.
Lengths = int | tuple[Positive, Positive] | Lognormal | Choices
"""A number of tokens: fixed, uniform over an inclusive [least, most], or `{kind: lognormal | choices, ...}`."""

Times = float | tuple[float, float] | Lognormal
"""A time in seconds: fixed, uniform over [least, most], or `{kind: lognormal, ...}`."""


def check_lengths(lengths: Lengths) -> None:
    """Raise ValueError (a line without the field) when no length satisfies it."""
    if isinstance(lengths, tuple) and lengths[0] > lengths[1]:
        raise ValueError(f"expected [least, most], got [{lengths[0]}, {lengths[1]}]")
    least, most = length_limits(lengths)
    if not 1 <= least <= most <= TOKENS_MAX:
        raise ValueError(f"expected whole numbers of tokens between 1 and {TOKENS_MAX}, got {least} to {most}")


def check_times(times: Times) -> None:
    """Raise ValueError (a line without the field) when no time satisfies it."""
    least, most = time_limits(times)
    if not 0 <= least <= most <= SECONDS_MAX:
        raise ValueError(f"expected least <= most between 0 and {SECONDS_MAX:.0f} s, got {least:g} to {most:g}")


def time_limits(times: Times) -> tuple[float, float]:
    """The shortest and the longest time that can be drawn, in seconds."""
    match times:
        case Lognormal():
            return times.least, times.most
        case tuple():
            return times
        case _:
            return times, times


def draw_times(times: Times, random: np.random.Generator, count: int) -> list[float]:
    """So many times in seconds, one draw of `random` for each, and none when they are fixed."""
    match times:
        case Lognormal():
            return [times.draw(random) for _ in range(count)]
        case tuple():
            return [float(random.uniform(*times)) for _ in range(count)]
        case _:
            return [times] * count


def length_limits(lengths: Lengths) -> tuple[int, int]:
    """The least and the greatest number of tokens that can be drawn."""
    match lengths:
        case int():
            return lengths, lengths
        case Choices():
            return min(lengths.values), max(lengths.values)
        case Lognormal():
            return max(1, math.ceil(lengths.least)), math.floor(lengths.most)
        case _:
            return lengths


def draw_length(lengths: Lengths, random: np.random.Generator) -> int:
    """One length in tokens. Takes one draw of `random`, and none when it is fixed."""
    match lengths:
        case int():
            return lengths
        case Choices():
            return lengths.draw(random)
        case Lognormal():
            least, most = length_limits(lengths)
            return min(max(round(lengths.draw(random)), least), most)
        case least, most:
            return int(random.integers(least, most, endpoint=True))
