"""RequestQueue and ContinuousBatcher: first in first out, bounded, and slots that come free in mid-decode."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cluster.protocol import AttemptId, Dispatch
from cluster.worker.scheduler import ContinuousBatcher, RequestQueue, Work
from tests.cluster import QUICK


def work(number: int, delivered: tuple[int, ...] = ()) -> Work:
    return Work(Dispatch(AttemptId(f"r{number}", 1, 1), "c", 1, "m", (1, 2), delivered, 9, 10.0), 0.0)


@QUICK
@given(st.lists(st.one_of(st.just("push"), st.just("pop"), st.integers(0, 20)), max_size=60), st.integers(1, 5))
def test_the_queue_agrees_with_a_list(steps: list[str | int], most: int) -> None:
    queue, model, number = RequestQueue(most), list[Work](), 0
    for step in steps:
        if step == "push":
            assert queue.full == (len(model) >= most)
            if not queue.full:
                number += 1
                model.append(work(number))
                queue.push(model[-1])
        elif step == "pop":
            if model:
                assert queue.pop() is model.pop(0)
        else:
            wanted = next((item for item in model if item.dispatch.attempt.request_id == f"r{step}"), None)
            assert queue.take(AttemptId(f"r{step}", 1, 1)) is wanted
            model = [item for item in model if item is not wanted]
        assert queue.works() == model
        assert len(queue) == len(model)


def test_nothing_is_pushed_onto_a_full_queue() -> None:
    queue = RequestQueue(1)
    queue.push(work(1))
    with pytest.raises(AssertionError):
        queue.push(work(2))


def test_a_slot_is_free_as_soon_as_one_leaves_and_no_sequence_number_comes_twice() -> None:
    batch = ContinuousBatcher(2)
    seen: list[int] = []
    present = [work(0), work(1)]
    for item in present:
        seen.append(batch.start(item, 1.0))
    assert batch.full
    for number in range(2, 20):
        leaver = present.pop(number % 2)
        batch.leave(leaver)
        assert batch.find(leaver.dispatch.attempt) is None
        assert not batch.full
        present.append(work(number))
        seen.append(batch.start(present[-1], float(number)))
        assert present[-1].started_s == number
        assert batch.get(seen[-1]) is present[-1]
        assert batch.find(present[-1].dispatch.attempt) is present[-1]
        assert len(batch) == 2
    assert len(set(seen)) == len(seen)
    assert batch.get(seen[0]) is None


@QUICK
@given(st.integers(0, 4), st.lists(st.integers(0, 3), max_size=8))
def test_chunks_are_numbered_without_a_gap_from_what_was_delivered_before(delivered: int, lengths: list[int]) -> None:
    item, position = work(1, tuple(range(delivered))), delivered
    for length in lengths:
        chunk = item.chunk((7,) * length, (0.0,) * length)
        assert chunk.index == position
        assert chunk.attempt == item.dispatch.attempt
        position += length
    assert item.tokens_made == position - delivered
