"""What the six suites share: each experiment is run once, live, and its verdict and headline are looked at apart."""

from functools import cache
from pathlib import Path

from analysis.verdict import CriterionResult, Outcome
from chaos.benchmark import BenchmarkResult, BenchmarkRunner

RESULTS = Path("results") / "performance"
LIMIT_S = 1_500.0
HEADLINES = {
    "sticky_sessions": ("sticky_latency", "sticky_first_token", "hit_rate", "nothing_to_find", "placement_alone"),
    "pre_warming": ("warm_first_token", "prewarmed"),
    "continuous_batching": ("batch_of_8", "full_batches"),
    "high_concurrency": (
        *("success_of_100", "success_of_200", "success_of_500"),
        *("success_sustained", "latency_sustained"),
    ),
    "load_spike": ("success_in_spike", "queue_back", "batches_grow", "goodput_after", "latency_after"),
    "sustained_load": ("latency_drift", "throughput_drift", "memory_drift", "queue", "success"),
}
"""Criteria of each experiment that the suites look at; `make test` sees that they are there."""


@cache
def played(experiment: str, *settings: str) -> BenchmarkResult:
    """The experiment, run live; once for all tests of a session."""
    RESULTS.mkdir(parents=True, exist_ok=True)
    return BenchmarkRunner(experiment, settings=settings, out=RESULTS, limit_s=LIMIT_S).run()


def assert_shown(result: BenchmarkResult, criterion: str) -> CriterionResult:
    """That the run has shown it: neither refuted nor left open."""
    assert criterion in HEADLINES[result.judgement.experiment], criterion
    found = result.criterion(criterion)
    assert found.verdict is Outcome.PASS, f"{found.explanation}\n{result.explanation}"
    return found


def assert_kept(result: BenchmarkResult) -> None:
    """That the run is whole and broke no invariant, and that no self-check doubts its numbers."""
    assert result.judgement.complete, result.explanation
    broken = [each.name for each in result.judgement.invariants if each.verdict is Outcome.FAIL]
    assert broken == [], result.explanation
    assert result.verdict is not Outcome.INVALID, result.explanation
