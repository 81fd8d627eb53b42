"""The real engine makes the rounds and chats that a calibration asks for."""

from collections.abc import Iterator

import pytest

from cluster.calibrating.bench import Bench
from cluster.calibrating.rounds import Chats, Order, Round

pytestmark = pytest.mark.live


@pytest.fixture(scope="module")
def bench() -> Iterator[Bench]:
    bench = Bench("tiny")
    loaded = bench.load()
    assert loaded.error == ""
    assert min(loaded.load_s, loaded.kv_bytes_per_token, loaded.weights_bytes) > 0
    yield bench
    bench.close()


def test_a_round_has_a_gap_for_each_step_in_which_all_ran(bench: Bench) -> None:
    (taken,) = bench.obey(Order((Round(2, 16, 6),))).taken
    assert taken.round == Round(2, 16, 6)
    assert taken.first_s > 0
    # Both are read in one chunk, so they run side by side from their first token to their last.
    assert len(taken.gaps_s) == 5
    assert min(taken.gaps_s) > 0


@pytest.mark.parametrize("cached_tokens", [0, 20])
def test_every_turn_of_every_chat_is_asked(bench: Bench, cached_tokens: int) -> None:
    chats = Chats(2, 3, cached_tokens, 10, 4)
    (chatted,) = bench.obey(Order((Round(1, 4, 1),), chats=(chats,))).chatted
    assert (chatted.chats, chatted.turns) == (chats, 6)
    assert 0 < chatted.first_s < chatted.whole_s


def test_rounds_go_on_for_as_long_as_was_asked(bench: Bench) -> None:
    taken = bench.obey(Order((Round(1, 8, 2), Round(2, 8, 2)), seconds=0.2)).taken
    assert len(taken) >= 4
    assert [each.round.prompts for each in taken] == [1, 2] * (len(taken) // 2)


def test_a_model_that_is_not_there_is_told_in_a_line() -> None:
    missing = Bench("no-such-model-anywhere")
    loaded = missing.load()
    missing.close()
    assert "no-such-model-anywhere" in loaded.error
    assert "\n" not in loaded.error
