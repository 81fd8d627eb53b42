import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from chaos.toxiproxy.embedded.held_messages import BYTES_MAX, MESSAGES_MAX, HeldMessages
from chaos.toxiproxy.embedded.message_choice import Delay, Hold

quick = settings(max_examples=150, deadline=None, derandomize=True)


@given(st.lists(st.tuples(st.integers(0, 20), st.integers(0, 20)), max_size=60))
@quick
def test_delayed_messages_go_on_when_they_are_due_and_equal_ones_in_order(plan: list[tuple[int, int]]) -> None:
    """plan: for each message the time since the one before, and its delay."""
    held: HeldMessages[int] = HeldMessages()
    now, arrived, passed = 0, [], []
    for number, (wait, delay) in enumerate(plan):
        now += wait
        passed += held.release(now)
        assert held.hold(number, 1, Delay(delay), now) == []
        arrived.append((now + delay, number))
        due_s = held.due_s()
        assert due_s is not None
        assert due_s >= now
    while (due_s := held.due_s()) is not None:
        assert held.release(due_s - 0.5) == []
        passed += held.release(due_s)
    assert passed == [number for _, number in sorted(arrived)]
    assert (len(held), held.size_bytes, held.overflowed) == (0, 0, 0)


@given(st.integers(2, 8), st.lists(st.tuples(st.integers(0, 5), st.integers(0, 99)), max_size=60))
@quick
def test_a_window_goes_on_by_rank_when_full_or_old(window: int, plan: list[tuple[int, int]]) -> None:
    """plan: for each message the time since the one before, and its rank."""
    held: HeldMessages[tuple[int, int]] = HeldMessages()
    waiting: list[tuple[int, int]] = []
    now = began = 0
    for number, (wait, rank) in enumerate(plan):
        now += wait
        released = held.release(now)
        assert released == (sorted(waiting) if waiting and now >= began + 10 else [])
        waiting = [] if released else waiting
        began = began if waiting else now
        waiting.append((rank, number))
        gone = held.hold((rank, number), 1, Hold(rank, window, 10), now)
        assert gone == (sorted(waiting) if len(waiting) == window else [])
        waiting = [] if gone else waiting
        assert held.due_s() == (began + 10 if waiting else None)
    assert held.flush() == sorted(waiting, key=lambda entry: entry[1])
    assert (len(held), held.size_bytes, held.due_s(), held.overflowed) == (0, 0, None, 0)


def test_no_more_than_so_many_messages() -> None:
    held: HeldMessages[int] = HeldMessages()
    for number in range(MESSAGES_MAX):
        # The oldest is the last that is due.
        assert held.hold(number, 1, Delay(1e6 - number), 0) == []
    assert held.hold(MESSAGES_MAX, 1, Delay(5), 0) == [0]
    assert held.hold(MESSAGES_MAX + 1, 1, Delay(5), 0) == [1]
    assert (len(held), held.size_bytes, held.overflowed) == (MESSAGES_MAX, MESSAGES_MAX, 2)
    assert held.release(5) == [MESSAGES_MAX, MESSAGES_MAX + 1]
    assert held.flush() == list(range(2, MESSAGES_MAX))


@pytest.mark.parametrize("verdict", [Delay(1), Hold(0, 64, 1)])
def test_no_more_than_so_many_bytes(verdict: Delay | Hold) -> None:
    held: HeldMessages[str] = HeldMessages()
    assert held.hold("half", BYTES_MAX // 2, verdict, 0) == []
    assert held.hold("other half", BYTES_MAX // 2, verdict, 0) == []
    assert held.hold("one byte", 1, verdict, 0) == ["half"]
    assert held.hold("too large", BYTES_MAX + 1, verdict, 0) == ["other half", "one byte", "too large"]
    assert (len(held), held.size_bytes, held.due_s(), held.overflowed) == (0, 0, None, 4)


def test_flush_gives_the_order_of_arrival() -> None:
    held: HeldMessages[str] = HeldMessages()
    held.hold("late", 1, Delay(9), 0)
    held.hold("early", 1, Delay(1), 0)
    assert held.flush() == ["late", "early"]
    assert held.flush() == []
    assert held.release(100) == []
