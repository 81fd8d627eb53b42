"""Reports that the wire doubles or loses: what comes again costs nothing, a gap costs the attempt and no token."""

import pytest

from cluster.node import Command, Send
from cluster.protocol import Chunk, Dispatch, Withdraw
from tests.cluster.controller.test_controller import Desk, dispatches, part, told


def withdrawn(commands: list[Command]) -> list[Withdraw]:
    return [sent.message for sent in commands if isinstance(sent, Send) and isinstance(sent.message, Withdraw)]


def begun(desk: Desk) -> tuple[str, Dispatch]:
    ((worker, sent),) = dispatches(desk.submit("r1", 0.0))
    return worker, sent


@pytest.mark.parametrize("again", [0, 2])
def test_a_report_that_comes_twice_breaks_no_stream_and_blames_nobody(again: int) -> None:
    desk = Desk()
    worker, sent = begun(desk)
    chunks = [Chunk(sent.attempt, 0, part("r1", 0, 2)), Chunk(sent.attempt, 2, part("r1", 2, 1))]
    for chunk in chunks:
        desk.report(worker, chunk, 0.1)
    assert desk.report(worker, next(chunk for chunk in chunks if chunk.index == again), 0.2) == []
    (last,) = told(desk.report(worker, Chunk(sent.attempt, 3, part("r1", 3, 3), finish="length"), 0.3))
    assert (last.index, last.finish) == (3, "length")
    assert desk.node.workers()[worker] == ("ready", "closed")
    assert desk.node.gauges().retries == 0


def test_a_gap_ends_the_attempt_and_nothing_behind_it_is_told() -> None:
    desk = Desk()
    worker, sent = begun(desk)
    desk.report(worker, Chunk(sent.attempt, 0, part("r1", 0, 2)), 0.1)
    commands = desk.report(worker, Chunk(sent.attempt, 3, part("r1", 3, 1)), 0.2)
    assert told(commands) == []
    assert withdrawn(commands) == [Withdraw(sent.attempt)]
