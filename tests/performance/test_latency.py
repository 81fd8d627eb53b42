"""PRD, latency suite: a session that goes back to its worker is answered sooner, and what is asked is answered."""

import pytest

from tests.performance.suite import assert_passes, assert_shown, played

pytestmark = [pytest.mark.verify, pytest.mark.timeout(1_600)]
EXPERIMENT = "sticky_sessions"


def test_sticky_sessions_are_at_least_40_percent_quicker() -> None:
    found, _ = assert_shown(played(EXPERIMENT), "sticky_latency", "sticky_first_token")
    assert found.measured is not None
    assert found.measured <= 0.60


def test_nine_of_ten_find_their_prefix_and_others_find_nothing() -> None:
    assert_shown(played(EXPERIMENT), "hit_rate", "nothing_to_find")


def test_the_gain_is_the_cache_and_not_the_place() -> None:
    assert_shown(played(EXPERIMENT), "placement_alone")


def test_the_run_as_a_whole_passes() -> None:
    assert_passes(played(EXPERIMENT))
