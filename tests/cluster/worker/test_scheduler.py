"""RequestQueue and ContinuousBatcher: priorities that age, a bound, and slots that come free in mid-decode."""

import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from cluster.protocol import PRIORITIES, AttemptId, Dispatch
from cluster.worker.scheduler import ContinuousBatcher, RequestQueue, Work
from tests.cluster import QUICK, WALK

AGEING_S = 5.0


def work(
    number: int, delivered: tuple[int, ...] = (), *, priority: int = 0, model: str = "m", now: float = 0.0
) -> Work:
    dispatch = Dispatch(AttemptId(f"r{number}", 1, 1), "c", 1, model, (1, 2), delivered, 9, 10.0, priority=priority)
    return Work(dispatch, now)


def always(model: str) -> bool:
    return True


class QueueWalk(RuleBasedStateMachine):
    """Against a list that is searched anew for whoever has the highest priority, aged by now."""

    MOST = 6

    def __init__(self) -> None:
        super().__init__()
        self.queue = RequestQueue(self.MOST, AGEING_S)
        self.waiting: list[Work] = []
        self.number = 0
        self.now = 0.0

    def rank(self, item: Work) -> float:
        """Its priority now. The longer it waits the higher."""
        return item.dispatch.priority + (self.now - item.received_s) / AGEING_S

    @rule(seconds=st.sampled_from([0.0, 0.5, 1.0, 5.0, 12.0]))
    def time_passes(self, seconds: float) -> None:
        self.now += seconds

    @precondition(lambda self: len(self.waiting) < self.MOST)
    @rule(priority=st.sampled_from(PRIORITIES), model=st.sampled_from(["m", "n"]))
    def push(self, priority: int, model: str) -> None:
        self.number += 1
        item = work(self.number, priority=priority, model=model, now=self.now)
        self.queue.push(item)
        self.waiting.append(item)

    @rule(ready=st.sampled_from(["m", "n", "mn"]))
    def pop(self, ready: str) -> None:
        item = self.queue.pop(lambda model: model in ready)
        candidates = [other for other in self.waiting if other.dispatch.model in ready]
        if item is None:
            assert not candidates
            return
        assert item in candidates
        best = max(self.rank(other) for other in candidates)
        assert self.rank(item) == pytest.approx(best)
        same = [other for other in candidates if other.dispatch.priority == item.dispatch.priority]
        assert item is same[0], "first in, first out among equals"
        self.waiting.remove(item)
        for other in candidates:
            if other is not item:
                assert item.received_s <= other.received_s + 2 * AGEING_S, "overtaken by somebody who came much later"

    @precondition(lambda self: self.number)
    @rule(data=st.data())
    def take(self, data: st.DataObject) -> None:
        number = data.draw(st.integers(1, self.number))
        wanted = next((item for item in self.waiting if item.dispatch.attempt.request_id == f"r{number}"), None)
        assert self.queue.take(AttemptId(f"r{number}", 1, 1)) is wanted
        self.waiting = [item for item in self.waiting if item is not wanted]

    @invariant()
    def it_holds_what_it_was_given_the_next_one_first(self) -> None:
        assert len(self.queue) == len(self.waiting)
        assert self.queue.full == (len(self.waiting) >= self.MOST)
        ranks = [self.rank(item) for item in self.queue.works()]
        assert ranks == sorted(ranks, reverse=True) or ranks == pytest.approx(sorted(ranks, reverse=True))
        assert sorted(item.dispatch.attempt for item in self.queue.works()) == sorted(
            item.dispatch.attempt for item in self.waiting
        )
        assert self.queue.models() == list(dict.fromkeys(item.dispatch.model for item in self.queue.works()))


TestQueueWalk = QueueWalk.TestCase
TestQueueWalk.settings = WALK


def test_higher_priority_goes_first_and_equals_in_order_of_arrival() -> None:
    queue = RequestQueue(9, AGEING_S)
    for number, priority in enumerate([0, -1, 1, 0, 1, -1]):
        queue.push(work(number, priority=priority))
    names = [item.dispatch.attempt.request_id for item in queue.works()]
    assert names == ["r2", "r4", "r0", "r3", "r1", "r5"]
    popped = [queue.pop(always) for _ in range(6)]
    assert [item.dispatch.attempt.request_id for item in popped if item is not None] == names
    assert queue.pop(always) is None


@pytest.mark.parametrize(("waited_s", "first"), [(4.9, "r2"), (5.1, "r1")])
def test_one_that_has_waited_rises_by_one_priority_each_time(waited_s: float, first: str) -> None:
    queue = RequestQueue(9, AGEING_S)
    queue.push(work(1, priority=0, now=0.0))
    queue.push(work(2, priority=1, now=waited_s))
    item = queue.pop(always)
    assert item is not None
    assert item.dispatch.attempt.request_id == first


def test_a_flood_of_high_priority_does_not_starve_the_lowest() -> None:
    queue, now, number = RequestQueue(64, AGEING_S), 0.0, 0
    low = work(0, priority=-1)
    queue.push(low)
    while True:
        number += 1
        now += 0.1
        queue.push(work(number, priority=1, now=now))
        if queue.pop(always) is low:
            break
        assert now < 2 * AGEING_S + 0.2
    assert now >= 2 * AGEING_S, "and it does wait for those of higher priority"


def test_nothing_is_pushed_onto_a_full_queue() -> None:
    queue = RequestQueue(1, AGEING_S)
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
        assert leaver.sequence is not None
        assert batch.get(leaver.sequence) is None
        assert not batch.full
        present.append(work(number))
        seen.append(batch.start(present[-1], float(number)))
        assert present[-1].started_s == number
        assert batch.get(seen[-1]) is present[-1]
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
    assert len(item.made) == position - delivered


def test_the_batch_of_an_attempt_is_averaged_over_its_own_tokens() -> None:
    item = work(1)
    assert item.batch_mean == 0.0
    item.chunk((1, 2, 3), (0.0, 0.1, 0.2))
    item.batch_sum = 1 + 4 + 4
    assert item.batch_mean == 3.0
