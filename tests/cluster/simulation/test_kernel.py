"""Virtual time: order, sleeping, results, errors, cancelling and deadlock."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cluster.simulation.kernel import CancelledTask, DeadlockError, Kernel, Task
from tests.cluster import QUICK


@QUICK
@given(st.lists(st.integers(-2, 5).map(float), max_size=30))
def test_callbacks_run_in_order_of_time_and_then_of_scheduling_and_never_in_the_past(times: list[float]) -> None:
    kernel, ran = Kernel(), list[tuple[float, int]]()
    for number, time_s in enumerate(times):
        kernel.at(time_s, lambda number=number: ran.append((kernel.now, number)))  # type: ignore[misc]
    kernel.run_until(10.0)
    assert ran == sorted((max(0.0, time_s), number) for number, time_s in enumerate(times))
    assert kernel.now == 10.0


def test_run_until_includes_its_end_and_leaves_the_rest() -> None:
    kernel, ran = Kernel(), list[str]()
    kernel.at(1.0, lambda: ran.append("end"))
    kernel.at(1.1, lambda: ran.append("rest"))
    kernel.run_until(1.0)
    assert ran == ["end"]
    kernel.run_until(2.0)
    assert ran == ["end", "rest"]


def test_coroutines_sleep_on_the_heap_and_hand_back_their_result() -> None:
    kernel = Kernel()

    async def nap(seconds: float) -> float:
        await kernel.sleep(seconds)
        return kernel.now

    async def both() -> list[float]:
        long, short = kernel.spawn(nap(5.0)), kernel.spawn(nap(2.0))
        return [await short, await long, await long]

    assert kernel.run(both()) == [2.0, 5.0, 5.0]
    assert kernel.now == 5.0


def test_an_error_is_raised_where_the_task_is_awaited() -> None:
    kernel = Kernel()

    async def fail() -> None:
        await kernel.sleep(1.0)
        raise KeyError("x")

    async def watch() -> str:
        task = kernel.spawn(fail())
        try:
            await task
        except KeyError:
            return "seen"
        return "missed"

    assert kernel.run(watch()) == "seen"
    with pytest.raises(KeyError):
        kernel.run(fail())


def test_waiting_for_what_never_comes_is_a_deadlock_and_not_a_hang() -> None:
    kernel = Kernel()

    async def circle() -> None:
        await tasks[0]

    tasks: list[Task[None]] = []
    tasks.append(kernel.spawn(circle()))
    with pytest.raises(DeadlockError):
        kernel.run(circle())


def test_a_cancelled_task_ends_at_its_await_and_runs_its_last_words_in_full() -> None:
    """Among them sleeps: they last as long as they say, although the sleep that was cut short is still on the heap."""
    kernel, said = Kernel(), list[tuple[str, float]]()

    async def careful() -> None:
        try:
            await kernel.sleep(10.0)
            said.append(("finished", kernel.now))
        finally:
            await kernel.sleep(20.0)
            said.append(("cleaned", kernel.now))

    async def main() -> None:
        task = kernel.spawn(careful())
        await kernel.sleep(5.0)
        task.cancel()
        task.cancel()
        try:
            await task
        except CancelledTask:
            said.append(("cancelled", kernel.now))

    kernel.run(main())
    assert said == [("cleaned", 25.0), ("cancelled", 25.0)]


def test_cancelling_an_ended_or_unstarted_task_is_harmless() -> None:
    kernel, ran = Kernel(), list[str]()

    async def work() -> None:
        ran.append("ran")

    async def main() -> None:
        unstarted = kernel.spawn(work())
        unstarted.cancel()
        await kernel.sleep(1.0)
        unstarted.cancel()
        assert unstarted.done

    kernel.run(main())
    assert ran == ["ran"]
