"""What the six suites share: each experiment is run once, live, and its verdict and headline are looked at apart.

A suite has two things to say, and does not mix them up. A test *fails* when the measuring is wrong: the run is not
whole, an invariant is broken, a self-check doubts its numbers, or its verdict does not follow from its rows. It is an
expected failure (`xfail`, exit code 0) when all of that is in order and a promise was not kept on this machine: a
measured miss, with what was measured.
"""

from functools import cache
from pathlib import Path
from typing import NoReturn

import pytest

from analysis.judge import judge
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
WORDS = {Outcome.PASS: "shown", Outcome.FAIL: "MISSED", Outcome.INCONCLUSIVE: "NOT SHOWN"}
FOUND: list[str] = []
"""One line for each promise that was looked at in this session, for the end of pytest's output."""


@cache
def played(experiment: str, *settings: str) -> BenchmarkResult:
    """The experiment, run live; once for all tests of a session."""
    RESULTS.mkdir(parents=True, exist_ok=True)
    return BenchmarkRunner(experiment, settings=settings, out=RESULTS, limit_s=LIMIT_S).run()


def assert_shown(result: BenchmarkResult, *criteria: str, open_is_fine: bool = False) -> list[CriterionResult]:
    """That the run has shown them. A measured miss where one is refuted, or left open for want of samples.

    open_is_fine: what is left open is none.
    """
    assert_kept(result)
    assert set(criteria) <= set(HEADLINES[result.judgement.experiment])
    found = [result.criterion(name) for name in criteria]
    for each in found:
        assert each.verdict in (Outcome.PASS, Outcome.FAIL, Outcome.INCONCLUSIVE), f"{each.name}: {each.explanation}"
    FOUND.extend(f"{result.judgement.experiment}.{each.name}: {figure(each)}" for each in found)
    fine = (Outcome.PASS, Outcome.INCONCLUSIVE) if open_is_fine else (Outcome.PASS,)
    if short := [each for each in found if each.verdict not in fine]:
        missed("; ".join(f"{each.name}: {figure(each)}: {each.explanation}" for each in short))
    return found


def assert_passes(result: BenchmarkResult) -> None:
    """That the run as a whole passes. A measured miss where what it missed are promises and nothing else."""
    assert_kept(result)
    short = [each for each in result.judgement.criteria if each.verdict in (Outcome.FAIL, Outcome.INCONCLUSIVE)]
    if short:
        missed("; ".join(f"{each.name}: {figure(each)}" for each in short))
    assert result.verdict is Outcome.PASS, result.explanation


def assert_kept(result: BenchmarkResult) -> None:
    """That the run is whole and broke no invariant, that every fault was real, and that its verdict can be believed."""
    judgement = result.judgement
    assert judgement.complete, result.explanation
    broken = [each.name for each in judgement.invariants if each.verdict is Outcome.FAIL]
    assert broken == [], result.explanation
    assert result.verdict is not Outcome.INVALID, result.explanation
    assert all(fault.verified and fault.healed_s is not None for fault in judgement.faults), result.explanation
    assert _judged_again(result.directory) == (result.verdict, {each.name: each.verdict for each in judgement.criteria})


def missed(text: str) -> NoReturn:
    """End the test as a measured miss."""
    pytest.xfail(f"measured miss: {' '.join(text.split())}")


def figure(found: CriterionResult) -> str:
    """What was measured against what was promised, in one line."""
    unit = f" {found.unit}" if found.unit else ""
    value = "nothing that can be printed" if found.measured is None else f"{found.measured:.4g}{unit}"
    between = "" if found.interval is None else f" ({found.interval[0]:.4g} to {found.interval[1]:.4g})"
    return f"{value}{between}, promised {found.limit}, n = {found.samples}, {WORDS[found.verdict]}"


@cache
def _judged_again(directory: Path) -> tuple[Outcome, dict[str, Outcome]]:
    """The verdict and its criteria's, from the rows in a results directory and nothing else."""
    again = judge(BenchmarkResult(directory).history)
    return again.verdict, {each.name: each.verdict for each in again.criteria}
