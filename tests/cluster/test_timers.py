"""Many deadlines, one next wake-up: against a dictionary that is sorted anew each time."""

from hypothesis import given
from hypothesis import strategies as st

from cluster.timers import Timers
from tests.cluster import QUICK

KEYS = st.integers(0, 5)
TIMES = st.integers(0, 8).map(float)
STEPS = st.lists(
    st.one_of(
        st.tuples(st.just("set"), KEYS, TIMES),
        st.tuples(st.just("clear"), KEYS, st.just(0.0)),
        st.tuples(st.just("due"), st.just(0), TIMES),
    ),
    max_size=60,
)


@QUICK
@given(STEPS)
def test_timers_agree_with_a_dictionary_sorted_by_time_and_age(steps: list[tuple[str, int, float]]) -> None:
    timers: Timers[int] = Timers()
    model: dict[int, tuple[float, int]] = {}
    for age, (what, key, time_s) in enumerate(steps):
        if what == "set":
            timers.set(key, time_s)
            if key not in model or model[key][0] != time_s:
                model[key] = (time_s, age)
        elif what == "clear":
            timers.clear(key)
            model.pop(key, None)
        else:
            ripe = sorted((at, set_at, name) for name, (at, set_at) in model.items() if at <= time_s)
            assert timers.due(time_s) == [name for _, _, name in ripe]
            for _, _, name in ripe:
                del model[name]
        assert len(timers) == len(model)
        assert timers.next() == min((at for at, _ in model.values()), default=None)


def test_replaced_times_do_not_pile_up() -> None:
    timers: Timers[str] = Timers()
    timers.set("other", 1e9)
    for step in range(10_000):
        timers.set("request", float(step))
    assert len(timers._heap) < 100
    assert timers.due(1e8) == ["request"]
    assert timers.next() == 1e9


def test_a_cleared_key_never_comes_out_even_after_it_was_set_again_elsewhere() -> None:
    timers: Timers[str] = Timers()
    timers.set("a", 1.0)
    timers.clear("a")
    timers.set("a", 5.0)
    assert timers.due(2.0) == []
    assert timers.due(5.0) == ["a"]
    assert timers.due(9.0) == []
