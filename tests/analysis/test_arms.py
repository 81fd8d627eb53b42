"""Arms of a comparison: whose requests count for whom, and when a ratio is shown, refuted, or neither."""

import numpy as np
import pytest

from analysis.arms import arm_blocks, check, of_arm
from analysis.criterion import Criterion
from analysis.facts import CannotJudge
from analysis.judge import evaluate
from analysis.metrics import METRICS, measure
from analysis.verdict import Outcome
from tests.analysis.comparisons import BLOCK_S, action, add, by_blocks, by_sessions, history

RANDOM = np.random.default_rng(5)


def blocks(mean_s: float, count: int = 8, spread: float = 0.1, of: int = 6) -> list[list[float]]:
    return [[float(mean_s * (1 + spread * RANDOM.uniform(-1, 1))) for _ in range(of)] for _ in range(count)]


def ratio(metric: str = "latency_p50_s", **limits: float) -> Criterion:
    return Criterion(metric=metric, arm="new", versus="old", confidence=0.95, **limits)


def test_a_ratio_within_its_limit_is_shown() -> None:
    seen = evaluate(history(by_blocks({"new": blocks(0.1), "old": blocks(0.2)})), "r", ratio(at_most=0.6))
    assert seen.verdict is Outcome.PASS, seen.explanation
    assert seen.measured == pytest.approx(0.5, abs=0.05)
    assert (seen.samples, seen.unit) == (8, "")
    assert "latency p50 of new / that of old" in seen.explanation


def test_a_ratio_of_latencies_says_what_the_answers_are_made_of() -> None:
    run = by_blocks({"new": blocks(0.1), "old": blocks(0.2)})
    note = measure(history(run), "latency_p50_s", "measure", 0.95, arm="new", versus="old").note
    assert "the mean answer of new takes" in note
    assert "the mean answer of old takes" in note
    assert (
        "mean answer" not in measure(history(run), "throughput_tokens_per_s", None, 0.95, arm="new", versus="old").note
    )


def test_a_ratio_of_first_tokens_says_what_those_are_made_of_and_what_is_left() -> None:
    run = by_blocks({"new": blocks(0.1), "old": blocks(0.2)})
    note = measure(history(run), "ttft_p50_s", "measure", 0.95, arm="new", versus="old").note
    assert "the mean first token of new takes" in note
    assert "making tokens" not in note
    assert "what new has left of it is mostly" in note


def test_a_ratio_beyond_its_limit_fails() -> None:
    seen = evaluate(history(by_blocks({"new": blocks(0.18), "old": blocks(0.2)})), "r", ratio(at_most=0.6))
    assert seen.verdict is Outcome.FAIL, seen.explanation


@pytest.mark.parametrize("mean_s", [0.115, 0.125])
def test_a_ratio_whose_interval_straddles_the_limit_is_inconclusive_on_either_side_of_it(mean_s: float) -> None:
    new = [[mean_s * (0.6 + 0.8 * (number % 2))] * 5 for number in range(8)]
    seen = evaluate(history(by_blocks({"new": new, "old": blocks(0.2)})), "r", ratio(at_most=0.6))
    assert seen.verdict is Outcome.INCONCLUSIVE, seen.explanation
    assert seen.interval is not None
    assert seen.interval[0] < 0.6 < seen.interval[1]


def test_too_few_blocks_say_nothing() -> None:
    seen = evaluate(history(by_blocks({"new": blocks(0.1, 4), "old": blocks(0.2, 4)})), "r", ratio(at_most=0.6))
    assert (seen.verdict, seen.measured, seen.samples) == (Outcome.INCONCLUSIVE, None, 4)


def test_a_block_without_its_pair_is_left_out() -> None:
    seen = evaluate(history(by_blocks({"new": blocks(0.1, 9), "old": blocks(0.2, 6)})), "r", ratio(at_most=0.6))
    assert (seen.verdict, seen.samples) == (Outcome.PASS, 6)


def test_a_rate_counts_by_the_length_of_its_own_blocks_and_not_of_the_phase() -> None:
    run = by_blocks({"new": blocks(0.1, 6), "old": blocks(0.1, 6)}, tokens=20)
    seen = measure(history(run), "throughput_tokens_per_s", "measure", 0.95, arm="new")
    assert seen.value == pytest.approx(6 * 20 / BLOCK_S, rel=0.01)
    both = measure(history(run), "throughput_tokens_per_s", None, 0.95, arm="new", versus="old")
    assert both.value == pytest.approx(1.0)


def test_what_comes_before_a_block_counts_is_not_counted() -> None:
    slow_at_first = [[3.0, *[0.1] * 5] for _ in range(6)]
    run = by_blocks({"new": slow_at_first, "old": blocks(0.1, 6, 0)}, settle_s=0.4)
    seen = measure(history(run), "latency_p95_s", "measure", 0.95, arm="new")
    assert (seen.value, seen.samples) == (pytest.approx(0.1), 30)
    assert measure(history(run), "latency_p95_s", None, 0.95, arm="new", versus="old").value == pytest.approx(1.0)


def test_an_arm_has_only_its_own_requests() -> None:
    run = by_blocks({"new": blocks(0.1, 6), "old": blocks(0.2, 6)})
    own = of_arm(history(run), "new")
    assert set(own.schedule["arm"]) == {"new"}
    assert set(own.requests["request_id"]) == set(own.attempts["request_id"]) == set(own.schedule["request_id"])
    assert len(arm_blocks(history(run))) == 12
    for name, metric in METRICS.items():
        if metric.by_arm and name not in ("prefix_hit_rate", "wasted_attempts", "lost_requests"):
            assert measure(history(run), name, "measure", 0.9, arm="new").samples > 0, name


def test_sessions_are_compared_in_pairs_and_their_priming_turns_are_not_counted() -> None:
    pairs = [(100 + number, 0.1 + number * 0.01, 0.2 + number * 0.02) for number in range(20)]
    run = by_sessions(pairs, missed=1)
    criterion = Criterion(metric="latency_p50_s", phase="measure", arm="sticky", versus="moved", at_most=0.6)
    seen = evaluate(history(run), "r", criterion)
    assert (seen.verdict, seen.measured, seen.samples) == (Outcome.PASS, pytest.approx(0.5), 20)
    assert measure(history(run), "latency_p50_s", "measure", 0.9, arm="sticky").samples == 20


def test_what_a_sweep_makes_sessions_differ_by_is_no_uncertainty() -> None:
    """Without any noise, in the order of another run's seed: only neighbours in length stand for each other."""
    lengths = [int(tokens) for tokens in np.random.default_rng(6).permutation(np.geomspace(128, 2048, 60))]
    run = by_sessions([(tokens, 0.2, 0.2 + 0.0006 * tokens) for tokens in lengths])
    seen = measure(history(run), "latency_p50_s", "measure", 0.95, arm="sticky", versus="moved")
    assert seen.interval is not None
    assert seen.value == pytest.approx(0.4, rel=0.03)
    assert seen.interval[1] / seen.interval[0] < 1.2


def test_a_hit_is_nearly_the_whole_earlier_turn_and_not_the_beginning_of_every_prompt() -> None:
    run = by_sessions([(100 + number, 0.1, 0.2) for number in range(20)], missed=2)
    hits = measure(history(run), "prefix_hit_rate", "measure", 0.95, arm="sticky")
    assert (hits.value, hits.samples) == (pytest.approx(0.9), 20)
    assert measure(history(run), "prefix_hit_rate", "measure", 0.95, arm="moved").value == 0.0


def test_a_rate_of_sessions_is_no_number() -> None:
    run = by_sessions([(100, 0.1, 0.2)] * 6)
    with pytest.raises(CannotJudge, match="by blocks"):
        measure(history(run), "throughput_tokens_per_s", "measure", 0.9, arm="sticky", versus="moved")


def test_the_mean_batch_is_that_of_steps_and_not_of_requests() -> None:
    """30 tokens in steps of three are ten steps, ten alone are ten more: two to a step on average."""
    run = by_sessions([])
    for place in range(3):
        add(run, "sticky", 0, f"together-{place}", 2.1, 0.1, 10, batch=3.0)
    add(run, "sticky", 0, "alone", 2.1, 0.1, 10, batch=1.0)
    assert measure(history(run), "request_batch_mean", "measure", arm="sticky").value == pytest.approx(2.0)


def test_a_model_that_was_not_warm_in_time_is_no_success_of_pre_warming() -> None:
    run = by_blocks({"new": blocks(0.1, 6), "old": blocks(0.2, 6)})
    for place in range(59):
        action(run, 3.0 + place / 10, True)
    for place in range(3):
        action(run, 3.0 + place / 10, False, "evict")
    action(run, 1.0, False)
    seen = measure(history(run), "prewarm_success_rate", "measure", 0.95)
    assert (seen.value, seen.samples) == (1.0, 59)
    assert seen.lower is not None
    assert seen.lower >= 0.95
    action(run, 9.0, False)
    seen = measure(history(run), "prewarm_success_rate", "measure", 0.95)
    assert (seen.samples, seen.value) == (60, pytest.approx(59 / 60))


def test_blocks_that_run_into_each_other_make_the_run_invalid() -> None:
    clean = by_blocks({"new": blocks(0.1, 6), "old": blocks(0.2, 6)})
    assert check(history(clean)).verdict is Outcome.PASS
    late = by_blocks({"new": [[0.1] * 5 + [3.0], *blocks(0.1, 5)], "old": blocks(0.2, 6)})
    assert check(history(late)).verdict is Outcome.INVALID
    assert "pause_s" in check(history(late)).explanation


def test_a_block_that_ran_dry_makes_the_run_invalid() -> None:
    run = by_blocks({"new": blocks(0.1, 6), "old": blocks(0.2, 6)})
    for line in run.schedule:
        if line["arm"]:
            line["segment"] = f"{line['arm']}-{line['block']}"
            run.event("client-0", line["intended_s"], "request_asked", "client-0", request_id=line["request_id"])
    assert check(history(run)).verdict is Outcome.PASS
    run.event("client-0", 4.0, "load_ran_dry", "new-0")
    assert check(history(run)).verdict is Outcome.INVALID


def test_a_run_without_arms_has_nothing_to_check() -> None:
    run = by_sessions([(100, 0.1, 0.2)])
    run.experiment = {}
    assert check(history(run)).verdict is Outcome.NOT_APPLICABLE
