"""Which failure of the field a verdict shows: by what was on and what was refuted, and by nothing else."""

import pytest

from analysis.verdict import Counts, CriterionResult, FaultResult, InvariantResult, Outcome, Verdict
from chaos.robustness import CLASSES, SIGNS, classes, shown_by

LOST = "lost requests in phase fault is 22 requests (limit <= 0 requests, n = 26)"
SUCCESS = "success rate of requests met by a fault in phase fault is 98.423 % (limit >= 99 %, n = 1395)"
LATE = "detection is 14.898 s (limit <= 3 s, n = 1)"
FULL = "request r002130 ended with QUEUE_FULL, which no fault explains (and 34 more)"
STEADY = "return to steady is 10.239 s (limit <= 6 s, n = 1)"


@pytest.mark.parametrize(
    ("kind", "target", "refuted", "shown"),
    [
        ("partition", "worker-0", [SUCCESS, LOST, LATE], (1, 4)),
        ("partition", "worker-0", [LATE], (4,)),
        ("flap", "worker-0", ["detection: it never happened before the run ended"], (4,)),
        ("freeze", "worker-0", [LATE], (22,)),
        ("engine_dies", "worker-0", [SUCCESS], (21,)),
        ("kill", "worker-0", [LOST], (5,)),
        ("restart", "controller", [SUCCESS, STEADY], (5, 7)),
        ("restart", "worker-0", [STEADY], ()),
        ("broker_kill", "broker", ["success rate in phase recovery is 97.53 %", FULL], (27,)),
        ("slow_down", "worker-0", ["session moves in phase fault is 0 moves"], (19,)),
        ("slow_down", "worker-0", [SUCCESS], ()),
        ("fail_attempts", "worker-0", ["wasted attempts of guarded in phase fault is 5040 attempts"], (15,)),
        ("drop_messages", "client-0", [SUCCESS], (5,)),
        ("latency", "worker-0", [SUCCESS], ()),
        ("partition", "worker-0", [], ()),
    ],
)
def test_a_failure_is_known_by_the_fault_and_by_what_was_refuted(
    kind: str, target: str, refuted: list[str], shown: tuple[int, ...]
) -> None:
    assert classes([(kind, target)], refuted) == shown


def test_what_was_met_shows_nothing() -> None:
    def criterion(outcome: Outcome) -> CriterionResult:
        return CriterionResult("detection", outcome, 14.9, "<= 3", "s", 1, None, LATE)

    def verdict(outcome: Outcome) -> Verdict:
        fault = FaultResult("partition", "worker-0", 9.0, True, 14.0, {})
        kept = InvariantResult(9, "every error is explained by a fault", Outcome.PASS, 0, FULL)
        return Verdict(outcome, "x", "simulated", 1, True, [LATE], Counts(), [criterion(outcome)], [kept], [fault])

    assert shown_by(verdict(Outcome.FAIL)) == (4,)
    assert shown_by(verdict(Outcome.PASS)) == ()


def test_signs_are_of_known_failures() -> None:
    assert {sign.number for sign in SIGNS} <= set(CLASSES)
