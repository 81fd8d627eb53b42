"""The verdict of a run: four outcomes, their merge, and the shape of `verdict.json`."""

from enum import StrEnum

import msgspec


class Outcome(StrEnum):
    """pass: shown. fail: refuted. inconclusive: too few samples to say. invalid: the run did not do what it claims."""

    PASS = "pass"
    FAIL = "fail"
    INCONCLUSIVE = "inconclusive"
    INVALID = "invalid"
    NOT_APPLICABLE = "not_applicable"


EXIT_CODES: dict[Outcome, int] = {Outcome.PASS: 0, Outcome.FAIL: 1, Outcome.INCONCLUSIVE: 3, Outcome.INVALID: 4}
_WORST_FIRST = (Outcome.INVALID, Outcome.FAIL, Outcome.INCONCLUSIVE, Outcome.PASS)


def merge(outcomes: list[Outcome]) -> Outcome:
    """The verdict of a whole: the worst part, invalid before fail before inconclusive before pass.

    Parts that are not applicable do not count. A whole without any part that counts proves nothing: inconclusive.
    """
    for outcome in _WORST_FIRST:
        if outcome in outcomes:
            return outcome
    return Outcome.INCONCLUSIVE


class CriterionResult(msgspec.Struct, frozen=True):
    """One expectation, measured. interval: two-sided bounds of `measured` in `unit`, or None where there is none.

    limit: for people, such as `>= 0.99`. explanation: one sentence that a reader needs to agree with the verdict.
    """

    name: str
    verdict: Outcome
    measured: float | None
    limit: str
    unit: str
    samples: int
    interval: tuple[float, float] | None
    explanation: str


class Violation(msgspec.Struct, frozen=True):
    """One breach of an invariant. request_id is empty when it is not about one request."""

    time_s: float | None
    request_id: str
    node: str
    text: str


class InvariantResult(msgspec.Struct, frozen=True):
    """One invariant, judged over the whole history. violations: how many; examples: the first few."""

    number: int
    name: str
    verdict: Outcome
    violations: int
    explanation: str
    examples: list[Violation] = []


class FaultResult(msgspec.Struct, frozen=True):
    """One fault as it really happened, seconds since the run began. evidence: what proved it, and its heal.

    states: what its targets and the controllers were in the midst of when it struck. measured_s: from its injection to
    the first sign that anybody had of it, predicted_s: when that was due at the latest by what the policy says, and
    late: whether it was exceeded by more than tolerance_s; None where it never came, nothing was due, or both.
    """

    kind: str
    target: str
    injected_s: float | None
    verified: bool
    healed_s: float | None
    evidence: dict[str, object]
    states: list[str] = []
    name: str = ""
    predicted_s: float | None = None
    measured_s: float | None = None
    tolerance_s: float | None = None
    late: bool | None = None


class EpisodeResult(msgspec.Struct, frozen=True, kw_only=True):
    """Faults that were on together, from the first injection (began_s) to the last heal (healed_s, None without one),
    and the time after it that belongs to them, which ends at until_s: with the load, or as the next fault strikes. All
    three are seconds since the run began; labels: kind and targets of the faults.

    steady, goodput: back, never, not_judged (the next fault struck too soon) or cannot_say, each with a phrase that
    says so. The steady state is that of workers, breakers, failures and latency; goodput is the share of the requests
    that completed in time. before: in the baseline phase, last: in the last part of the time until until_s; never means
    that goodput stayed below the interval of the baseline's although no more was offered than there: metastable.
    goodput_back_s: None also where it was never away, or nobody can tell since when it is back.

    amplification_*: attempts begun per request begun; after: from the heal until the steady state was back. at_risk:
    see FaultTimes; lost: of those, how many did not complete. wasted_*: of attempts begun from began_s until the steady
    state was back: those that did not complete, and the tokens that nobody got.
    """

    faults: list[str]
    labels: list[str]
    began_s: float
    healed_s: float | None
    until_s: float
    steady: str
    return_to_steady_s: float | None
    steady_text: str
    goodput: str
    goodput_back_s: float | None
    goodput_text: str
    goodput_before: float | None
    goodput_before_interval: tuple[float, float] | None
    goodput_during: float | None
    goodput_last: float | None
    load_before_per_s: float | None
    load_during_per_s: float | None
    load_last_per_s: float | None
    amplification_before: float | None
    amplification_during: float | None
    amplification_after: float | None
    amplification_last: float | None
    at_risk: int
    lost: int
    wasted_attempts: int
    wasted_tokens: int


class Counts(msgspec.Struct, frozen=True):
    """How the offered requests ended. offered is the sum of the others."""

    offered: int = 0
    completed: int = 0
    failed: int = 0
    refused: int = 0
    cancelled: int = 0
    in_flight: int = 0


class Verdict(msgspec.Struct, frozen=True):
    """What `verdict.json` holds. reasons: the sentences that decide, most important first. suffered: request ids.

    engine: see RunInfo. With `timed` in a live world nothing that it says is a measurement of a model.
    """

    verdict: Outcome
    experiment: str
    world: str
    seed: int
    complete: bool
    reasons: list[str]
    counts: Counts
    criteria: list[CriterionResult]
    invariants: list[InvariantResult]
    faults: list[FaultResult]
    suffered: list[str] = []
    episodes: list[EpisodeResult] = []
    engine: str = ""

    def setting(self) -> str:
        """Where it was measured, as a phrase: the world, and in a live one the timed engine."""
        return f"{self.world} world, timed engine" if self.is_timed() else f"{self.world} world"

    def is_timed(self) -> bool:
        """Whether the cluster was live and its engine was not: somebody might take it for a measurement of MLX."""
        return self.world == "live" and self.engine == "timed"
