"""The ledger: bounded, and able to say any part of a completion again with its origin."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cluster.controller.ledger import Entry, Ledger
from cluster.protocol import AttemptId, Chunk, Submit
from tests.cluster import QUICK


def entry(name: str = "r", delivered: tuple[int, ...] = ()) -> Entry:
    return Entry(Submit("c", 1, name, 1, "m", (1,), delivered, 100, 10.0), 0.0)


def test_it_is_full_at_its_limit_and_has_room_again_when_one_ends() -> None:
    ledger = Ledger(2)
    first, second = entry("a"), entry("b")
    ledger.add(first)
    assert not ledger.full
    ledger.add(second)
    assert ledger.full
    assert ledger.entries() == [first, second]
    ledger.remove(first)
    assert not ledger.full
    assert ledger.get("a") is None
    assert ledger.get("b") is second


def test_a_request_is_entered_once() -> None:
    ledger = Ledger(2)
    ledger.add(entry("a"))
    with pytest.raises(AssertionError):
        ledger.add(entry("a"))


@QUICK
@given(st.lists(st.integers(1, 4), max_size=8), st.integers(0, 3), st.integers(0, 40))
def test_what_is_said_again_from_an_index_is_the_rest_of_the_completion_and_names_its_attempts(
    lengths: list[int], began: int, index: int
) -> None:
    """A ledger that took the request over at `began` can say again only what came after that."""
    held = entry(delivered=tuple(range(began)))
    for number, length in enumerate(lengths, 1):
        at = len(held.tokens)
        tokens = tuple(range(at, at + length))
        held.tokens += tokens
        held.chunks.append(Chunk(AttemptId("r", 1, number), at, tokens, worker=f"w{number}", worker_incarnation=number))
    index = max(index, began)
    parts = held.after(index)
    position = index
    for part in parts:
        assert part.index == position
        assert part.tokens == tuple(range(position, position + len(part.tokens)))
        assert part.worker == f"w{part.attempt.attempt}"
        assert part.tokens
        position += len(part.tokens)
    assert position == max(index, len(held.tokens))
