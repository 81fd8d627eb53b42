"""The client under random interleavings of callers, controllers, a lossy link and time, and the cases with a name."""

from collections.abc import Iterable, Sequence

import pytest
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule
from msgspec import structs

from analysis.schema import EventRow, RequestRow
from cluster.client import ClientNode
from cluster.errors import Code
from cluster.node import (
    Abandon,
    Ask,
    Command,
    Deliver,
    Event,
    LinkDown,
    LinkUp,
    NoResponders,
    Received,
    Record,
    Send,
    SendFailed,
    Wake,
)
from cluster.policy import ClientPolicy, Policy
from cluster.protocol import (
    CONTROLLERS,
    EVERY_CONTROLLER,
    Accepted,
    AttemptId,
    Cancel,
    Chunk,
    Delivery,
    Message,
    Ping,
    Pong,
    Submit,
)
from tests.cluster import WALK

POLICY = Policy(
    client=ClientPolicy(
        ping_s=0.5, contact_lost_s=1.2, accept_s=0.5, silence_s=1.5, resubmit_max=4, open_requests_max=4
    )
)
OFFSETS = {1: 500.0, 2: -3.0, 3: 90_000.0}
"""How far each incarnation's clock is ahead of the client's."""

NAMES = st.integers(0, 9).map("r{}".format)
PLACES = st.integers(0, 99)
"""Which of the requests that were asked, the open ones first."""


def ask(name: str, now: float, *, most: int = 6, timeout_s: float = 5.0) -> Ask:
    return Ask(name, "m", (1, 2), most, now, timeout_s)


def truth(name: str, index: int) -> int:
    return ord(name[-1]) * 100 + index


def part(name: str, index: int, count: int) -> tuple[int, ...]:
    return tuple(truth(name, at) for at in range(index, index + count))


class ClientWalk(RuleBasedStateMachine):
    @initialize()
    def start(self) -> None:
        self.now = 0.0
        self.node = ClientNode("c", 1, POLICY)
        self.link = False
        self.incarnation = 0
        self.asked: dict[str, Ask] = {}
        self.told: dict[str, list[int]] = {}
        self.ended: dict[str, str] = {}
        self.rows: dict[str, RequestRow] = {}
        self.submits: dict[str, list[Submit]] = {}
        self.newest_attempt: dict[str, tuple[int, int]] = {}
        self.link_comes_up()
        self.a_pong_arrives(1, 0.01)

    def feed(self, event: Event) -> list[Command]:
        commands = list(self.node.handle(event, self.now))
        for command in commands:
            match command:
                case Deliver():
                    self.see_deliver(command)
                case Record(RequestRow() as row):
                    self.see_row(row)
                case Send(to, Submit() as submit, needs_responder):
                    assert to == "controller"
                    assert needs_responder
                    self.see_submit(submit)
                case Send(to, message):
                    searching = to in (CONTROLLERS, EVERY_CONTROLLER) and isinstance(message, Ping)
                    assert to == "controller" or searching
                    assert self.link
                    assert isinstance(message, Ping | Cancel)
        return commands

    def one(self, place: int) -> str:
        names = [name for name in self.asked if name not in self.ended] or list(self.asked)
        return names[place % len(names)]

    def see_deliver(self, deliver: Deliver) -> None:
        name = deliver.request_id
        assert name not in self.ended, "something after the end"
        self.told[name] += deliver.tokens
        assert self.told[name] == list(part(name, 0, len(self.told[name]))), "a gap, a duplicate or a foreign token"
        assert deliver.total == len(self.told[name])
        if deliver.finish is not None or deliver.code is not None:
            assert deliver.finish is None or deliver.code is None
            assert deliver.finish is None or len(self.told[name]) == self.asked[name].max_tokens
            self.ended[name] = deliver.finish or deliver.code or ""

    def see_row(self, row: RequestRow) -> None:
        name = row.request_id
        assert name not in self.rows, "two rows"
        self.rows[name] = row
        assert row.ended_s == self.now
        assert row.submissions == len(self.submits[name])
        assert sum(segment.count for segment in row.segments) == len(row.tokens)
        orders = [(segment.submission, segment.attempt) for segment in row.segments]
        assert orders == sorted(orders), "tokens of a superseded attempt"
        assert [segment.index for segment in row.segments] == [
            sum(earlier.count for earlier in row.segments[:place]) for place in range(len(row.segments))
        ]

    def see_submit(self, submit: Submit) -> None:
        name = submit.request_id
        before = self.submits[name]
        assert self.link
        assert self.incarnation, "submitted before any controller was heard of"
        assert name not in self.ended
        assert submit.submission == len(before) + 1
        assert submit.submission <= 1 + POLICY.client.resubmit_max
        assert submit.controller_incarnation == self.incarnation
        assert submit.delivered == tuple(self.told[name]), "it must say which tokens it has"
        deadline_s = self.asked[name].intended_s + self.asked[name].timeout_s
        assert self.now < deadline_s
        assert submit.deadline_s <= deadline_s + OFFSETS[self.incarnation] + 1e-6
        before.append(submit)

    # The caller.

    @rule(name=NAMES, timeout_s=st.sampled_from([0.4, 2.0, 8.0]), late_s=st.sampled_from([0.0, 0.0, 0.2]))
    def a_caller_asks(self, name: str, timeout_s: float, late_s: float) -> None:
        if name in self.asked:
            return
        wanted = self.asked[name] = ask(name, self.now - late_s, timeout_s=timeout_s)
        self.told[name], self.submits[name] = [], []
        full = self.node.gauges().open_requests >= POLICY.client.open_requests_max
        self.feed(wanted)
        assert (self.ended.get(name) == Code.OVERLOADED) == full

    @rule(name=NAMES)
    def a_caller_goes_away(self, name: str) -> None:
        was_open = name in self.asked and name not in self.ended
        commands = self.feed(Abandon(name))
        if was_open:
            assert self.ended[name] == Code.CANCELLED
            sent = [command.message for command in commands if isinstance(command, Send)]
            assert sent == ([Cancel("c", name)] if self.link and self.submits[name] else [])
        else:
            assert commands == []

    # The controller.

    @rule(incarnation=st.sampled_from([1, 1, 1, 2, 3]), travel_s=st.floats(0, 0.5))
    def a_pong_arrives(self, incarnation: int, travel_s: float) -> None:
        if not self.link:
            return
        self.incarnation = max(self.incarnation, incarnation)
        self.feed(Received(Pong("controller", incarnation, self.now - travel_s + OFFSETS[incarnation])))

    @precondition(lambda self: self.asked)
    @rule(place=PLACES, back=st.integers(0, 2))
    def an_accept_arrives(self, place: int, back: int) -> None:
        name = self.one(place)
        made = len(self.submits.get(name, []))
        if self.link and made > back:
            self.feed(Received(Accepted(name, made - back)))

    @precondition(lambda self: self.asked)
    @rule(
        place=PLACES,
        back=st.sampled_from([0, 0, 0, 0, 1]),
        attempt=st.integers(1, 3),
        shift=st.sampled_from([0, 0, 0, -1, -2, 1, 2]),
        count=st.integers(0, 3),
        end=st.sampled_from([None, None, None, "finish", "code"]),
    )
    def news_arrives(self, place: int, back: int, attempt: int, shift: int, count: int, end: str | None) -> None:
        """In order, again, with a gap before it, for an earlier submission, from an older attempt; all is possible."""
        name = self.one(place)
        made = len(self.submits.get(name, []))
        if not self.link or made <= back:
            return
        known, most = len(self.told[name]), self.asked[name].max_tokens
        index = max(0, min(most, known + shift))
        if end == "finish":
            count = most - index
        elif end == "code":
            count = 0
        count = min(count, most - index)
        if not count and end is None:
            return
        order = (made - back, attempt)
        old = name not in self.ended and order < self.newest_attempt.get(name, (0, 0))
        chunk = Chunk(
            AttemptId(name, *order),
            index,
            part(name, index, count),
            finish="length" if end == "finish" else None,
            code=str(Code.STREAM_STALLED) if end == "code" else None,
            worker="w",
        )
        before = len(self.told[name])
        self.feed(Received(Delivery(self.incarnation, ((made - back, chunk),))))
        if old or back:
            assert len(self.told[name]) == before, "taken from a superseded attempt"
        if len(self.told[name]) > before:
            self.newest_attempt[name] = order
        if index > before and name not in self.ended and not old and not back:
            resubmitted = len(self.submits[name]) > made
            assert resubmitted or made > POLICY.client.resubmit_max or not self.contact(), "a gap is asked for again"

    def contact(self) -> bool:
        """Whether it would submit a new request now."""
        return self.node._contact

    # The link.

    @precondition(lambda self: not self.link)
    @rule()
    def link_comes_up(self) -> None:
        self.link = True
        commands = self.feed(LinkUp())
        assert Send(CONTROLLERS, Ping("c")) in commands
        assert not any(isinstance(command, Send) and isinstance(command.message, Submit) for command in commands)

    @precondition(lambda self: self.link)
    @rule()
    def link_goes_down(self) -> None:
        self.link = False
        self.feed(LinkDown("test"))

    @precondition(lambda self: self.asked)
    @rule(place=PLACES, back=st.integers(0, 1), kind=st.sampled_from([NoResponders, SendFailed]))
    def a_submit_bounces(self, place: int, back: int, kind: type[NoResponders] | type[SendFailed]) -> None:
        name = self.one(place)
        made = self.submits.get(name, [])
        if len(made) > back:
            commands = self.feed(kind("controller", made[-1 - back]))
            assert all(message == Ping("c") for message in sent(commands)), "it waits for a sign of life first"

    # Time. Wakes come exactly when they were asked for.

    @rule(seconds=st.sampled_from([0.01, 0.3, 0.5, 1.0, 3.0]), lively=st.booleans())
    def time_passes(self, seconds: float, lively: bool) -> None:
        end_s = self.now + seconds
        while (wake_s := self.node.next_wake()) is not None and wake_s <= end_s:
            self.now = max(self.now, wake_s)
            self.feed(Wake())
            following = self.node.next_wake()
            assert following is None or following > self.now, "a wake-up that lies in the past would spin"
            if lively and self.link and self.incarnation:
                self.feed(Received(Pong("controller", self.incarnation, self.now + OFFSETS[self.incarnation])))
        self.now = end_s

    @invariant()
    def nobody_waits_past_the_deadline_and_nothing_exceeds_its_bound(self) -> None:
        if not hasattr(self, "node"):
            return
        still_open = [name for name in self.asked if name not in self.ended]
        gauges = self.node.gauges()
        assert gauges.open_requests == len(still_open) <= POLICY.client.open_requests_max
        for name in still_open:
            deadline_s = self.asked[name].intended_s + self.asked[name].timeout_s
            assert (self.node.next_wake() or 0.0) <= deadline_s
        assert set(self.rows) == set(self.ended)
        for name, row in self.rows.items():
            assert row.ended_s <= max(row.deadline_s, self.asked[name].intended_s + 0.2) + 1e-9
            assert row.tokens == self.told[name]

    def teardown(self) -> None:
        if not hasattr(self, "node"):
            return
        self.time_passes(9.0, False)
        assert set(self.ended) == set(self.asked)
        assert len(self.node._timers) <= 1, "only the next ping is left"


TestClientWalk = ClientWalk.TestCase
TestClientWalk.settings = WALK


def connected(policy: Policy = POLICY) -> ClientNode:
    node = ClientNode("c", 1, policy)
    node.handle(LinkUp(), 0.0)
    node.handle(Received(Pong("controller", 1, 100.0)), 0.0)
    return node


def sent(commands: Iterable[Command]) -> list[object]:
    return [command.message for command in commands if isinstance(command, Send)]


def row_of(commands: Iterable[Command]) -> RequestRow:
    (row,) = [
        command.row for command in commands if isinstance(command, Record) and isinstance(command.row, RequestRow)
    ]
    return row


def delivery(
    name: str, submission: int, index: int, count: int, *, attempt: int = 1, finish: str | None = None
) -> Event:
    chunk = Chunk(AttemptId(name, submission, attempt), index, part(name, index, count), finish=finish, worker="w")
    return Received(Delivery(1, ((submission, chunk),)))


def test_a_request_is_held_back_until_a_controller_answers_and_its_delay_is_not_hidden() -> None:
    node = ClientNode("c", 1, POLICY)
    assert sent(node.handle(ask("r1", 0.0), 0.0)) == []
    assert sent(node.handle(LinkUp(), 1.0)) == [Ping("c")]
    (submit,) = sent(node.handle(Received(Pong("controller", 4, 77.0)), 1.5))
    assert isinstance(submit, Submit)
    assert (submit.controller_incarnation, submit.submission) == (4, 1)
    assert submit.deadline_s == 77.0 - 1.5 + 5.0
    row = row_of(node.handle(delivery("r1", 1, 0, 6, finish="length"), 2.0))
    assert (row.intended_s, row.sent_s, row.first_token_s, row.outcome) == (0.0, 1.5, 2.0, "completed")


def test_a_wish_for_a_worker_is_handed_on_with_every_submission() -> None:
    node = connected()
    wishful = structs.replace(ask("r1", 0.0), worker="w1")
    (first,) = sent(node.handle(wishful, 0.0))
    assert isinstance(first, Submit)
    node.handle(Received(Accepted("r1", 1)), 0.1)
    (again,) = sent(node.handle(Received(Pong("controller", 2, 500.0)), 0.2))
    assert isinstance(again, Submit)
    assert (first.worker, again.worker, again.submission) == ("w1", "w1", 2)


def test_a_gap_is_not_delivered_but_asked_for_again_from_where_it_began() -> None:
    node = connected()
    node.handle(ask("r1", 0.0), 0.0)
    node.handle(delivery("r1", 1, 0, 2), 0.1)
    commands = node.handle(delivery("r1", 1, 3, 1), 0.2)
    assert not any(isinstance(command, Deliver) for command in commands)
    (submit,) = sent(commands)
    assert isinstance(submit, Submit)
    assert (submit.submission, submit.delivered) == (2, part("r1", 0, 2))
    assert not any(isinstance(command, Deliver) for command in node.handle(delivery("r1", 1, 2, 1), 0.3))
    row = row_of(node.handle(delivery("r1", 2, 2, 4, finish="length"), 0.4))
    assert (row.submissions, row.strays, row.tokens) == (2, 1, list(part("r1", 0, 6)))


def test_overlapping_news_deliver_only_what_is_new() -> None:
    node = connected()
    node.handle(ask("r1", 0.0), 0.0)
    node.handle(delivery("r1", 1, 0, 3), 0.1)
    assert list(node.handle(delivery("r1", 1, 1, 4, attempt=2), 0.2)) == [Deliver("r1", part("r1", 3, 2), 5)]


def test_silence_before_and_after_the_acceptance_ends_in_a_resubmission_at_the_next_pong() -> None:
    node = connected()
    node.handle(ask("r1", 0.0, timeout_s=60.0), 0.0)
    node.handle(Wake(), 0.5)
    (again,) = sent(node.handle(Received(Pong("controller", 1, 101.0)), 0.6))
    assert isinstance(again, Submit)
    assert again.submission == 2
    node.handle(Received(Accepted("r1", 2)), 0.7)
    node.handle(Wake(), 1.3)
    assert sent(node.handle(Received(Pong("controller", 1, 101.4)), 1.4)) == [], "accepted: it has more patience"
    node.handle(Wake(), 2.2)
    assert len(sent(node.handle(Received(Pong("controller", 1, 102.3)), 2.3))) == 1


def test_a_request_that_waits_in_line_is_not_submitted_again_while_the_controller_says_that_it_has_it() -> None:
    node = connected()
    node.handle(ask("r1", 0.0, timeout_s=60.0), 0.0)
    patience_s = POLICY.client.silence_s
    for step in range(1, 9):
        now = step * patience_s * 0.9
        node.handle(Received(Pong("controller", 1, 100.0 + now)), now - 0.1)
        node.handle(Received(Accepted("r1", 1)), now)
        node.handle(Wake(), now)
        assert sent(node.handle(Received(Pong("controller", 1, 100.0 + now)), now)) == []
    node.handle(Wake(), now + patience_s)
    (again,) = sent(node.handle(Received(Pong("controller", 1, 100.0 + now + patience_s)), now + patience_s + 0.01))
    assert isinstance(again, Submit), "silence is silence all the same"


def test_an_acceptance_that_comes_late_is_one() -> None:
    node = connected()
    node.handle(ask("r1", 0.0, timeout_s=60.0), 0.0)
    late_s = POLICY.client.accept_s + 0.01
    node.handle(Wake(), late_s)
    node.handle(Received(Accepted("r1", 1)), late_s + 0.01)
    assert sent(node.handle(Received(Pong("controller", 1, 101.0)), late_s + 0.02)) == []


def test_a_new_incarnation_gets_every_open_request_at_its_first_pong_and_in_its_own_clock() -> None:
    node = connected()
    for name in ("r1", "r2"):
        node.handle(ask(name, 0.0), 0.0)
    submits = sent(node.handle(Received(Pong("controller", 2, 5.0)), 1.0))
    assert [(submit.submission, submit.deadline_s) for submit in submits if isinstance(submit, Submit)] == [
        (2, 9.0)
    ] * 2
    assert sent(node.handle(Received(Pong("controller", 1, 999.0)), 1.1)) == [], "the old one is a ghost"


def test_resubmissions_are_bounded() -> None:
    node, made = connected(), 1
    node.handle(ask("r1", 0.0, timeout_s=500.0), 0.0)
    for step in range(1, 100):
        node.handle(Wake(), step * 2.0)
        made += len(sent(node.handle(Received(Pong("controller", 1, 100.0)), step * 2.0 + 0.01)))
    assert made == 1 + POLICY.client.resubmit_max


@pytest.mark.parametrize(("pong", "code"), [(True, Code.DEADLINE_EXCEEDED), (False, Code.CONTROLLER_UNREACHABLE)])
def test_the_end_at_the_deadline_says_whether_a_controller_was_there(pong: bool, code: Code) -> None:
    node = connected()
    node.handle(ask("r1", 0.0), 0.0)
    node.handle(Received(Pong("controller", 1, 104.9)) if pong else LinkDown("cut"), 4.9)
    row = row_of(node.handle(Wake(), 5.0))
    assert (row.code, row.outcome, row.ended_s) == (code, "failed", 5.0)


def test_lost_contact_is_recorded_once() -> None:
    node, events = connected(), []
    for step in range(1, 20):
        events += [
            command.row.kind
            for command in node.handle(Wake(), step * 0.5)
            if isinstance(command, Record) and isinstance(command.row, EventRow)
        ]
    assert events == ["contact_lost"]


def test_an_id_that_is_open_is_not_taken_twice() -> None:
    node = connected()
    node.handle(ask("r1", 0.0), 0.0)
    with pytest.raises(ValueError, match="open already"):
        node.handle(ask("r1", 0.1), 0.1)


def test_news_of_an_attempt_older_than_the_last_one_taken_are_strays() -> None:
    node = connected()
    node.handle(ask("r1", 0.0), 0.0)
    node.handle(delivery("r1", 1, 0, 2, attempt=2), 0.1)
    assert list(node.handle(delivery("r1", 1, 2, 2, attempt=1), 0.2)) == []
    row = row_of(node.handle(delivery("r1", 1, 2, 4, attempt=2, finish="length"), 0.3))
    assert (row.strays, [segment.attempt for segment in row.segments]) == (1, [2, 2])


def sends(commands: Sequence[Command]) -> list[tuple[str, Message]]:
    return [(command.to, command.message) for command in commands if isinstance(command, Send)]


def test_another_controller_gets_every_open_request_and_the_first_one_a_cancel() -> None:
    node = ClientNode("c", 1, POLICY)
    assert sends(node.handle(LinkUp(), 0.0)) == [(CONTROLLERS, Ping("c"))]
    node.handle(Received(Pong("controller-0", 5, 10.0)), 0.01)
    assert [to for to, _ in sends(node.handle(ask("r1", 0.1), 0.1))] == ["controller-0"]
    # A second answer to the first search changes nothing.
    assert not node.handle(Received(Pong("controller-1", 9, 50.0)), 0.15)
    chunk = Chunk(AttemptId("r1", 1, 1), 0, part("r1", 0, 2), worker="w", worker_incarnation=1)
    node.handle(Received(Delivery(5, ((1, chunk),))), 0.2)
    node.handle(Wake(), POLICY.client.contact_lost_s + 0.1)
    searches = []
    for tick in range(3):
        searches += [to for to, message in sends(node.handle(Wake(), 3.0 + tick)) if isinstance(message, Ping)]
    # The broker may have given the first search to one that is frozen.
    assert searches == [EVERY_CONTROLLER] * 3
    told = sends(node.handle(Received(Pong("controller-1", 2, 100.0)), 3.1))
    assert told[0] == ("controller-0", Cancel("c", "r1"))
    to, submit = told[1]
    assert to == "controller-1"
    assert isinstance(submit, Submit)
    assert (submit.submission, submit.delivered, submit.controller_incarnation) == (2, part("r1", 0, 2), 2)
    late = Chunk(AttemptId("r1", 1, 1), 2, part("r1", 2, 4), finish="length")
    assert not [
        command for command in node.handle(Received(Delivery(5, ((1, late),))), 3.2) if isinstance(command, Deliver)
    ]


def test_a_submission_that_nobody_took_makes_it_look_for_another_controller_at_once() -> None:
    node = ClientNode("c", 1, POLICY)
    node.handle(LinkUp(), 0.0)
    node.handle(Received(Pong("controller-0", 5, 10.0)), 0.01)
    ((_, submit),) = sends(node.handle(ask("r1", 0.1), 0.1))
    assert sends(node.handle(NoResponders("controller-0", submit), 0.11)) == [(CONTROLLERS, Ping("c"))]


def test_a_client_that_is_told_its_controller_asks_nobody_else_however_long_that_is_away() -> None:
    policy = structs.replace(POLICY, client=structs.replace(POLICY.client, controller="controller-1"))
    node = ClientNode("c", 1, policy)
    assert sends(node.handle(LinkUp(), 0.0)) == [("controller-1", Ping("c"))]
    for _ in range(20):
        now = node.next_wake()
        assert now is not None
        assert {to for to, _ in sends(node.handle(Wake(), now))} <= {"controller-1"}
    node.handle(Received(Pong("controller-1", 5, 90.0)), now)
    ((to, submit),) = sends(node.handle(ask("r1", now), now))
    assert (to, isinstance(submit, Submit)) == ("controller-1", True)
    assert sends(node.handle(NoResponders("controller-1", submit), now)) == [("controller-1", Ping("c"))]
