"""A drawing of a value against its limit puts everything where it belongs, and nothing outside."""

import re
import xml.etree.ElementTree as ElementTree

import pytest
from hypothesis import given
from hypothesis import strategies as st

from analysis.verdict import CriterionResult, Outcome
from analysis.whisker import Scale, draw, limits, scale_of


def _criterion(measured: float | None, limit: str, interval: tuple[float, float] | None = None) -> CriterionResult:
    return CriterionResult("c", Outcome.PASS, measured, limit, "", 9, interval, "")


@pytest.mark.parametrize(
    ("limit", "sides"),
    [(">= 0.99", (0.99, None)), ("<= 4", (None, 4)), (">= 1 and <= 2.5", (1, 2.5)), ("none", (None, None)),
     ("<= 1e+06", (None, 1e6)), ("within 4.6 of 2.6", (None, None))],
)  # fmt: skip
def test_the_limit_is_read_from_its_words(limit: str, sides: tuple[float | None, float | None]) -> None:
    assert limits(_criterion(1.0, limit)) == sides


@given(
    st.floats(0, 1e9), st.tuples(st.floats(0, 1e9), st.floats(0, 1e9)), st.sampled_from(["", "<= 3", ">= 0.9"]),
    st.booleans(),
)  # fmt: skip
def test_nothing_is_drawn_outside(measured: float, bounds: tuple[float, float], limit: str, ratios: bool) -> None:
    criterion = _criterion(measured, limit, (min(bounds), max(bounds)))
    drawn = str(draw(criterion, scale_of([criterion], ratios=ratios)))
    ElementTree.fromstring(drawn)
    places = [float(number) for number in re.findall(r"(?:M|H|cx=\")(-?[\d.]+)", drawn)]
    assert len(places) >= 4
    assert all(0 <= place <= 200 for place in places)


def test_without_a_value_nothing_is_drawn() -> None:
    assert draw(_criterion(None, "<= 3")) == ""
    assert draw(_criterion(float("nan"), "<= 3")) == ""


def test_of_ratios_a_half_is_as_far_away_as_twice() -> None:
    scale = Scale(0.25, 4, True)
    assert scale.place(1) - scale.place(0.5) == pytest.approx(scale.place(2) - scale.place(1))
    assert scale_of([_criterion(0.5, "<= 0.9")], ratios=True).place(1) < 200  # type: ignore[union-attr]


def test_what_keeps_the_limit_lies_in_the_band() -> None:
    kept, broken = _criterion(2.0, "<= 3"), _criterion(4.0, "<= 3")
    for criterion, inside in ((kept, True), (broken, False)):
        drawn = str(draw(criterion))
        dot = float(re.findall(r'cx="([\d.]+)"', drawn)[0])
        edge = float(re.findall(r'class="allowed" d="M[\d.]+ 4H([\d.]+)', drawn)[0])
        assert (dot <= edge) == inside
