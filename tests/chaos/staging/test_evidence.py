"""What counts as a proof from outside, and what does not."""

import pytest

from chaos.staging.evidence import Before, During, judge_cut, judge_shape, least_s, spoken
from chaos.staging.witness import Reading
from chaos.worlds.world import Cut, Shape

FINE = Reading(0.003, 0.004)
SILENT = Reading()
REFUSED = Reading(why="no connection: Connection refused")
BEFORE = Before({7: 100}, 8, FINE)
UNSEEN = Before(None, 0, FINE)
MUTE = Before({7: 100}, 0, FINE)


def during(
    early: dict[int, int] | None, late: dict[int, int] | None, reading: Reading, held: bool | None = None
) -> During:
    return During(early, late, reading, held)


@pytest.mark.parametrize(
    ("cut", "before", "seen", "bites", "because"),
    [
        (Cut.STALL, BEFORE, during({7: 108}, {7: 108}, SILENT), True, "nothing of the node arrives any more, 8"),
        (Cut.STALL, BEFORE, during({7: 108}, {}, SILENT), True, "of the node's own connection"),
        # The broker's word weighs more than ours: the node goes another way.
        (Cut.STALL, BEFORE, during({7: 108}, {7: 109}, SILENT), False, "still hears the node: 1 messages"),
        (Cut.BLACK_HOLE, BEFORE, during({7: 108}, {9: 3}, SILENT), False, "still hears the node: 3 messages"),
        # Silence of one who said nothing before proves nothing; then ours decides.
        (Cut.STALL, MUTE, during({7: 100}, {7: 100}, SILENT), True, "a connection of ours through the same proxy"),
        (Cut.STALL, MUTE, during({7: 100}, {7: 100}, FINE), False, "it is greeted after 0.003 s"),
        (Cut.STALL, UNSEEN, during(None, None, SILENT), True, "it is not greeted within 1 s, 0.003 s before"),
        (Cut.STALL, UNSEEN, during(None, None, REFUSED), False, "it should be silent, not ended"),
        (Cut.STALL, Before(None, 0, SILENT), during(None, None, SILENT), False, "it was not answered before either"),
        (Cut.REFUSE, BEFORE, during({}, {}, REFUSED, True), True, "has dropped the connection of before"),
        (Cut.REFUSE, BEFORE, during({7: 1}, {7: 1}, REFUSED, True), False, "still lists the connection"),
        (Cut.REFUSE, BEFORE, during({}, {8: 1}, REFUSED, True), False, "has another connection"),
        (Cut.REFUSE, UNSEEN, during(None, None, REFUSED), True, "it is refused"),
        (Cut.REFUSE, UNSEEN, during(None, None, FINE), False, "it is greeted"),
        (Cut.RESET, BEFORE, during({8: 1}, {8: 2}, FINE, True), True, "has dropped the connection of before"),
        (Cut.RESET, UNSEEN, during(None, None, FINE, True), True, "one that was there before has been ended"),
        (Cut.RESET, UNSEEN, during(None, None, FINE, False), False, "lives on"),
        (Cut.RESET, UNSEEN, during(None, None, FINE), False, "none was there before"),
        (Cut.UPSTREAM, UNSEEN, during(None, None, Reading(0.003)), True, "greeted and not answered"),
        (Cut.UPSTREAM, UNSEEN, during(None, None, FINE), False, "it is answered"),
        (Cut.UPSTREAM, UNSEEN, during(None, None, SILENT), False, "not even greeted"),
        (Cut.DOWNSTREAM, BEFORE, during({7: 108}, {7: 120}, SILENT), True, "it is not greeted"),
    ],
)
def test_cuts(cut: Cut, before: Before, seen: During, bites: bool, because: str) -> None:
    found, why = judge_cut(cut, before, seen)
    assert found is bites
    assert because in why


def test_what_was_said_between_two_looks() -> None:
    assert spoken({1: 5}, {1: 5}) == 0
    assert spoken({1: 5}, {1: 7, 2: 3}) == 5
    assert spoken({1: 5}, {}) == 0


def test_what_a_shape_adds() -> None:
    both = Shape(latency_s=0.1)
    assert least_s(both) == pytest.approx(0.3), "greeting and answer go down, the request goes up"
    assert least_s(Shape(latency_s=0.1, directions=("upstream",))) == pytest.approx(0.1)
    assert least_s(Shape(latency_s=0.1, jitter_s=0.05, directions=("downstream",))) == pytest.approx(0.1)
    assert least_s(Shape(bytes_per_s=10_000)) == pytest.approx(0.37)
    assert least_s(Shape(slice_bytes=100, slice_delay_s=0.01)) == pytest.approx((2 + 33) * 0.01)


def test_shapes() -> None:
    shape = Shape(latency_s=0.1)
    assert judge_shape(shape, FINE, Reading(0.11, 0.21), 2.3)[0]
    assert not judge_shape(shape, FINE, Reading(0.05, 0.05), 2.3)[0]
    assert judge_shape(shape, FINE, SILENT, 2.3)[0]
    assert not judge_shape(shape, SILENT, SILENT, 2.3)[0]
    assert not judge_shape(shape, FINE, REFUSED, 2.3)[0], "broken is not slow"
