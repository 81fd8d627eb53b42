"""From which prefix on a kept cache is worth what was promised."""

from collections.abc import Callable

import pytest

from analysis.prefix_gain import POINTS_MAX, gain_arms, prefix_gain
from tests.analysis.comparisons import by_blocks, by_sessions, history


def sweep(gain: Callable[[int], float], pairs: int = 96) -> list[tuple[int, float, float]]:
    """Prefixes from 100 tokens on; moved takes 1 s, sticky less by `gain` of its prefix, give or take."""
    lengths = [100 + 20 * number for number in range(pairs)]
    noise = [1 + 0.02 * (number % 5 - 2) for number in range(pairs)]
    return [(tokens, (1 - gain(tokens)) * off, off) for tokens, off in zip(lengths, noise, strict=True)]


def test_the_gain_grows_with_the_prefix_and_is_enough_from_somewhere_on() -> None:
    found = prefix_gain(history(by_sessions(sweep(lambda tokens: tokens / 2000))))
    assert found is not None
    assert (found.arm, found.versus, len(found.points)) == ("sticky", "moved", POINTS_MAX)
    gains = [point.gain for point in found.points]
    assert gains == sorted(gains)
    assert found.reached_tokens is not None
    # 40 % of a gain of tokens / 2000 are 800 tokens; a point holds 12 pairs, 240 tokens.
    assert 560 <= found.reached_tokens <= 1040
    assert found.shown_tokens is not None
    assert found.shown_tokens >= found.reached_tokens
    for point in found.points:
        assert point.interval[0] <= point.gain <= point.interval[1]
        assert point.lower >= point.interval[0]
        assert point.least_tokens <= point.tokens <= point.most_tokens
        assert point.cached_tokens == point.tokens
    assert str(found.reached_tokens) in found.sentence()


def test_a_gain_that_is_never_enough_says_so() -> None:
    found = prefix_gain(history(by_sessions(sweep(lambda tokens: 0.1))))
    assert found is not None
    assert (found.reached_tokens, found.shown_tokens) == (None, None)
    assert "not reached" in found.sentence()


def test_one_good_length_in_the_middle_is_not_from_there_on() -> None:
    found = prefix_gain(history(by_sessions(sweep(lambda tokens: 0.6 if 800 < tokens < 1200 else 0.2))))
    assert found is not None
    assert found.reached_tokens is None


def test_an_always_sufficient_gain_begins_with_the_shortest_prefix() -> None:
    found = prefix_gain(history(by_sessions(sweep(lambda tokens: 0.5))))
    assert found is not None
    assert found.reached_tokens == found.shown_tokens == 100


@pytest.mark.parametrize("pairs", [0, 5, 15])
def test_too_few_pairs_make_no_curve(pairs: int) -> None:
    assert prefix_gain(history(by_sessions(sweep(lambda tokens: 0.5, pairs)))) is None


def test_only_arms_with_a_cache_to_lose_have_a_curve() -> None:
    run = by_blocks({"new": [[0.1]] * 6, "old": [[0.2]] * 6})
    assert gain_arms(history(run)) is None
    assert prefix_gain(history(run)) is None
