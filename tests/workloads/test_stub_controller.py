"""The stub controller keeps its plan, says how late it was, and a client node understands it."""

from collections.abc import Sequence

from analysis.schema import RequestRow
from cluster.client import ClientNode
from cluster.node import Ask, Command, Deliver, LinkUp, Received, Record, Send, Wake
from cluster.policy import Policy
from cluster.protocol import Accepted, Cancel, Chunk, Delivery, Ping, Pong, Submit
from workloads.stub_controller import StubController, Timing


def submit(name: str = "r1", tokens: int = 3) -> Received:
    return Received(Submit("client-0", 7, name, 1, "stub", (1, 2), (), tokens, 99.0))


def chunks(commands: Sequence[Command]) -> list[Chunk]:
    found = []
    for command in commands:
        assert isinstance(command, Send)
        if isinstance(command.message, Delivery):
            found += [chunk for _, chunk in command.message.chunks]
    return found


def test_tokens_come_at_their_times_and_the_last_one_ends_it() -> None:
    stub = StubController("controller-0", 7, Timing(0.5, 0.1))
    assert stub.handle(Received(Ping("client-0")), 9.0) == [Send("client-0", Pong("controller-0", 7, 9.0))]
    assert stub.handle(submit(), 10.0) == [Send("client-0", Accepted("r1", 1))]
    seen = []
    while (wake_s := stub.next_wake()) is not None:
        seen += [
            (round(wake_s, 6), chunk.index, chunk.tokens, chunk.finish) for chunk in chunks(stub.handle(Wake(), wake_s))
        ]
    assert seen == [(10.5, 0, (0,), None), (10.6, 1, (1,), None), (10.7, 2, (2,), "length")]
    assert stub.gauges().open_requests == 0
    assert (stub.requests, stub.tokens, max(stub.late_s)) == (1, 3, 0.0)


def test_what_comes_late_is_told_and_does_not_delay_the_next() -> None:
    stub = StubController("controller-0", 7, Timing(0.5, 0.1))
    stub.handle(submit(), 10.0)
    assert len(chunks(stub.handle(Wake(), 10.65))) == 2
    assert [round(late_s, 6) for late_s in stub.late_s] == [0.15, 0.05]
    assert stub.next_wake() is not None
    assert len(chunks(stub.handle(Wake(), 10.69))) == 0
    assert len(chunks(stub.handle(Wake(), 10.7001))) == 1


def test_pieces_without_a_gap_come_at_once_each_in_a_message_of_its_own() -> None:
    stub = StubController("controller-0", 7, Timing(0.0, 0.0, 4))
    commands = stub.handle(submit(tokens=10), 10.0)
    assert len(commands) == 4
    assert [chunk.tokens for chunk in chunks(commands)] == [(0, 1, 2, 3), (4, 5, 6, 7), (8, 9)]
    assert stub.next_wake() is None


def test_what_is_cancelled_ends_and_may_come_again() -> None:
    stub = StubController("controller-0", 7, Timing(0.5, 0.1))
    stub.handle(submit(), 10.0)
    stub.handle(Received(Cancel("client-0", "r1")), 10.1)
    stub.handle(submit(), 10.2)
    assert chunks(stub.handle(Wake(), 10.5)) == []
    assert [chunk.index for chunk in chunks(stub.handle(Wake(), 10.7))] == [0]


def test_a_client_node_takes_what_it_delivers() -> None:
    client, stub = ClientNode("client-0", 1, Policy()), StubController("controller-0", 7, Timing(0.05, 0.01, 2))
    now, asked = 1.0, False
    rows: list[RequestRow] = []
    ends: list[Deliver] = []
    letters = list(client.handle(LinkUp(), now))
    for _ in range(100):
        while letters:
            letter = letters.pop(0)
            if isinstance(letter, Send):
                other = client if letter.to == "client-0" else stub
                letters += other.handle(Received(letter.message), now)
            elif isinstance(letter, Deliver) and letter.finish:
                ends.append(letter)
            elif isinstance(letter, Record) and isinstance(letter.row, RequestRow):
                rows.append(letter.row)
        if rows and ends:
            break
        now += 0.005
        if not asked:
            asked = True
            letters += client.handle(Ask("r1", "stub", (1, 2), 5, now, 5.0), now)
        letters += [*stub.handle(Wake(), now), *client.handle(Wake(), now)]
    (row,) = rows
    assert (row.outcome, row.tokens, row.finish, len(row.segments)) == ("completed", [0, 1, 2, 3, 4], "length", 3)
