"""Dot and whisker: a measured value with its interval against its limit, as a small drawing for a table of them."""

import math
import re
from collections.abc import Sequence

import msgspec
from markupsafe import Markup

from analysis.verdict import CriterionResult

_WIDTH, _HEIGHT, _MARGIN = 200.0, 22.0, 7.0
_LIMIT = re.compile(r"(>=|<=) (-?[\d.]+(?:e[+-]?\d+)?)")


class Scale(msgspec.Struct, frozen=True):
    """What the two ends of a drawing stand for. logarithmic: for ratios, where a half is as far away as twice."""

    least: float
    most: float
    logarithmic: bool = False

    def place(self, value: float) -> float:
        """Where a value lies in the drawing, in its units; at the end for what lies beyond."""
        if self.logarithmic:
            value, least, most = (math.log(max(each, 1e-12)) for each in (value, self.least, self.most))
        else:
            least, most = self.least, self.most
        share = (value - least) / (most - least) if most > least else 0.5
        return _MARGIN + min(1.0, max(0.0, share)) * (_WIDTH - 2 * _MARGIN)


def limits(criterion: CriterionResult) -> tuple[float | None, float | None]:
    """The least and the most that a criterion allows, read from its limit."""
    found = {side: float(number) for side, number in _LIMIT.findall(criterion.limit)}
    return found.get(">="), found.get("<=")


def scale_of(criteria: Sequence[CriterionResult], *, ratios: bool = False) -> Scale | None:
    """A scale that holds all values, intervals and limits of some criteria, with 1 in it for ratios; None: no value."""
    known = [value for each in criteria for value in _points(each)]
    if not any(each.measured is not None for each in criteria):
        return None
    if ratios:
        known = [value for value in [*known, 1.0] if value > 0]
        room = (max(known) / min(known)) ** 0.08
        return Scale(min(known) / max(room, 1.02), max(known) * max(room, 1.02), True)
    least, most = min(known), max(known)
    room = 0.08 * (most - least) or 0.08 * abs(most) or 1.0
    # Nothing that is measured here can be below zero, unless it was.
    return Scale(max(least - room, 0.0) if least >= 0 else least - room, most + room)


def _points(criterion: CriterionResult) -> list[float]:
    points = [criterion.measured, *limits(criterion), *(criterion.interval or ())]
    return [point for point in points if point is not None and math.isfinite(point)]


def draw(criterion: CriterionResult, scale: Scale | None = None) -> Markup:
    """The drawing, empty where there is no value. Nothing in it is text of others; the table beside it says it all.

    The band is what the limit allows, the mark at its edge the limit, the dot the value, the line its interval.
    """
    scale = scale or scale_of([criterion])
    if criterion.measured is None or not math.isfinite(criterion.measured) or scale is None:
        return Markup("")
    least, most = limits(criterion)
    middle = _HEIGHT / 2
    parts = [f'<path class="axis" d="M{_MARGIN:g} {middle:g}H{_WIDTH - _MARGIN:g}"/>']
    if least is not None or most is not None:
        left = _MARGIN if least is None else scale.place(least)
        right = _WIDTH - _MARGIN if most is None else scale.place(most)
        parts.append(f'<path class="allowed" d="M{left:.1f} 4H{right:.1f}V{_HEIGHT - 4:g}H{left:.1f}z"/>')
    if scale.logarithmic:
        parts.append(f'<path class="one" d="M{scale.place(1):.1f} 1V{_HEIGHT - 1:g}"/>')
    for limit in (least, most):
        if limit is not None:
            parts.append(f'<path class="limit" d="M{scale.place(limit):.1f} 1V{_HEIGHT - 1:g}"/>')
    if criterion.interval is not None:
        low, high = (scale.place(bound) for bound in criterion.interval)
        parts.append(f'<path class="interval" d="M{low:.1f} {middle:g}H{high:.1f}M{low:.1f} 7V15M{high:.1f} 7V15"/>')
    parts.append(f'<circle class="value" cx="{scale.place(criterion.measured):.1f}" cy="{middle:g}" r="4.5"/>')
    return Markup(
        f'<svg class="whisker" viewBox="0 0 {_WIDTH:g} {_HEIGHT:g}" aria-hidden="true">{"".join(parts)}</svg>'
    )
