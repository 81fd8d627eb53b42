"""What an experiment expects: a metric over a phase, with a limit on one side or both."""

from typing import Annotated

import msgspec


class Criterion(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """One expectation. `metric` is a name from analysis.metrics; `phase` None means the whole run.

    at_least, at_most: one-sided limits in the metric's unit. confidence: of the claim that the limit holds, for
    metrics that are estimated from samples. samples_min: fewer samples make the criterion inconclusive.
    when_target: judge only when a fault is aimed at this role (`worker`, `controller` or `client`); None always.
    while_faulted: count only requests whose life [intended_s, ended_s] overlaps a fault's [injected_s, healed_s].
    arm: count only requests of this arm of the comparison. versus: the value is the metric of `arm` divided by that of
    this arm, and the limits are limits of the ratio.
    """

    metric: str
    phase: str | None = None
    at_least: float | None = None
    at_most: float | None = None
    confidence: Annotated[float, msgspec.Meta(gt=0.5, lt=1)] = 0.99
    samples_min: Annotated[int, msgspec.Meta(ge=1)] = 1
    when_target: str | None = None
    while_faulted: bool = False
    arm: str | None = None
    versus: str | None = None
