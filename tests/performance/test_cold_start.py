"""PRD, cold start suite: a pre-warmed model answers at least 90 % sooner, and pre-warming can be relied on."""

import pytest

from tests.performance.suite import assert_passes, assert_shown, played

pytestmark = [pytest.mark.verify, pytest.mark.timeout(1_600)]
EXPERIMENT = "pre_warming"


def test_the_first_token_comes_at_least_90_percent_sooner() -> None:
    (found,) = assert_shown(played(EXPERIMENT), "warm_first_token")
    assert found.measured is not None
    assert found.measured <= 0.10


def test_pre_warming_succeeds_in_more_than_95_of_100_loads() -> None:
    (found,) = assert_shown(played(EXPERIMENT), "prewarmed")
    assert found.samples >= 59


def test_the_run_as_a_whole_passes() -> None:
    assert_passes(played(EXPERIMENT))
