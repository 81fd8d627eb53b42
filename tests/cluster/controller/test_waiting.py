"""Who gets the next place: priority, then patience, then age; nobody starves."""

from hypothesis import given
from hypothesis import strategies as st

from cluster.controller.ledger import Entry
from cluster.controller.waiting import Line, WaitingRoom, line_of
from cluster.protocol import Submit

AGEING_S = 5.0


def entry(name: str, at_s: float, priority: int = 0, model: str = "m", wish: str = "") -> Entry:
    return Entry(Submit("c", 1, name, 1, model, (1,), (), 4, 100.0, None, priority, worker=wish), at_s)


def order(room: WaitingRoom, model: str = "m") -> list[str]:
    names = []
    while (first := room.first((model, ""))) is not None:
        names.append(first.id)
        room.discard(first)
    return names


def test_high_priority_first_and_first_come_first_served_among_equals() -> None:
    room = WaitingRoom(AGEING_S)
    for at, (name, priority) in enumerate([("low", -1), ("a", 0), ("b", 0), ("high", 1)]):
        room.add(entry(name, at * 0.1, priority))
    assert order(room) == ["high", "a", "b", "low"]
    assert len(room) == 0
    assert room.next([]) is None


def test_who_waits_rises_by_one_priority_in_ageing_s() -> None:
    room = WaitingRoom(AGEING_S)
    room.add(entry("old", 0.0))
    room.add(entry("young", AGEING_S + 0.1, 1))
    assert order(room) == ["old", "young"]


def test_models_wait_in_lines_of_their_own() -> None:
    room = WaitingRoom(AGEING_S)
    room.add(entry("a", 0.0, 0, "m"))
    room.add(entry("b", 0.0, 1, "n"))
    assert ids(room, []) == ["b", "a"]
    assert order(room) == ["a"]


def ids(room: WaitingRoom, held_up: list[Line]) -> list[str]:
    """Who would go now, one of each line, without anybody going."""
    names, held_up = [], list(held_up)
    while (first := room.next(held_up)) is not None:
        names.append(first.id)
        held_up.append(line_of(first))
    return names


def test_those_with_a_wish_wait_in_a_line_of_their_own_and_are_served_by_age() -> None:
    room = WaitingRoom(AGEING_S)
    for at, (name, wish) in enumerate([("a", "w0"), ("b", ""), ("c", "w0"), ("d", "w1")]):
        room.add(entry(name, at * 0.1, wish=wish))
    assert ids(room, []) == ["a", "b", "d"]
    assert ids(room, [("m", "w0")]) == ["b", "d"], "a line that cannot go on holds up no other"
    assert len(room) == 4


def test_one_that_waits_already_keeps_its_place() -> None:
    room = WaitingRoom(AGEING_S)
    first = entry("first", 0.0)
    room.add(first)
    room.add(entry("second", 0.1))
    room.add(first)
    assert order(room) == ["first", "second"]


def test_one_that_comes_back_stands_where_its_acceptance_puts_it() -> None:
    room = WaitingRoom(AGEING_S)
    back = entry("back", 0.05)
    for number in range(3):
        room.add(entry(str(number), number * 0.1))
    room.add(back)
    assert order(room) == ["0", "back", "1", "2"]


@given(st.lists(st.tuples(st.sampled_from([-1, 0, 1]), st.floats(0, 30)), min_size=1, max_size=40))
def test_nobody_is_passed_by_whoever_came_two_levels_of_ageing_later(arrivals: list[tuple[int, float]]) -> None:
    room = WaitingRoom(AGEING_S)
    came = {}
    for number, (priority, at_s) in enumerate(sorted(arrivals, key=lambda arrival: arrival[1])):
        room.add(entry(str(number), at_s, priority))
        came[str(number)] = at_s
    names = order(room)
    assert sorted(names) == sorted(came)
    for place, name in enumerate(names):
        assert all(came[later] > came[name] - 3 * AGEING_S for later in names[place:])
