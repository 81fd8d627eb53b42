"""PRD, throughput suite: one saturated worker makes at least twice the tokens with batches of up to eight."""

import pytest

from tests.performance.suite import assert_passes, assert_shown, played

pytestmark = [pytest.mark.verify, pytest.mark.timeout(1_600)]
EXPERIMENT = "continuous_batching"


def test_batches_make_at_least_twice_the_tokens() -> None:
    (found,) = assert_shown(played(EXPERIMENT), "batch_of_8")
    assert found.measured is not None
    assert found.measured >= 2.0


def test_batches_are_really_full() -> None:
    (found,) = assert_shown(played(EXPERIMENT), "full_batches")
    assert found.measured is not None
    assert found.measured >= 3.0


def test_what_batching_costs_in_latency_is_measured() -> None:
    result = played(EXPERIMENT)
    cost = result.metric("inter_token_p50_s", phase="measure", arm="limit_8", versus="limit_1")
    assert cost.value is not None, result.explanation
    assert cost.interval is not None


def test_the_run_as_a_whole_passes() -> None:
    assert_passes(played(EXPERIMENT))
