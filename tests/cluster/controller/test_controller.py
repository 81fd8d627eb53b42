"""The controller under random interleavings of everything that can reach it, and the cases that deserve a name.

The walk plays clients, workers and the wire; it reads only commands, gauges and `workers()`, as a shell would.
"""

from random import Random
from typing import Any

import pytest
from hypothesis import note
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, initialize, invariant, multiple, precondition, rule

from analysis.schema import AttemptRow, EventRow
from cluster.controller.controller import ControllerNode
from cluster.errors import Code
from cluster.node import (
    Command,
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
from cluster.policy import (
    BreakerPolicy,
    MembershipPolicy,
    Policy,
    RetryPolicy,
    RoutingPolicy,
    TimeoutPolicy,
)
from cluster.protocol import (
    Accepted,
    AttemptId,
    Cancel,
    Chunk,
    Delivery,
    Dispatch,
    Heartbeat,
    ModelState,
    Ping,
    Pong,
    StreamReport,
    Submit,
    Token,
    Withdraw,
)
from tests.cluster import WALK

POLICY = Policy(
    membership=MembershipPolicy(heartbeat_s=0.5, suspect_after_s=1.5, dead_after_s=4.0, workers_max=3),
    timeout=TimeoutPolicy(first_token_s=2.0, between_tokens_s=1.0),
    retry=RetryPolicy(max_attempts=3, backoff_s=0.1, backoff_max_s=0.4, budget_share=0.25, budget_burst=4),
    breaker=BreakerPolicy(failures_to_open=2, open_s=1.0, open_max_s=2.0),
    routing=RoutingPolicy(outstanding_max=3, hold_s=0.5, hold_poll_s=0.1, requests_max=5, sessions_max=2),
)
OFFSETS = {"w0": 1_000.0, "w1": -50.0, "w2": 0.0}
WORKERS = st.sampled_from(sorted(OFFSETS))
TRAVEL_S = 0.01


def truth(request_id: str, index: int) -> Token:
    """The one right token at an index of a request's completion."""
    return (len(request_id) * 31 + ord(request_id[-1]) * 7 + index * 13) % 997


def part(request_id: str, index: int, count: int) -> tuple[Token, ...]:
    return tuple(truth(request_id, at) for at in range(index, index + count))


class Caller:
    """A request as its client sees it."""

    def __init__(self, submit: Submit) -> None:
        self.submit = submit
        self.position = len(submit.delivered)
        self.accepted = False
        self.ended = False


class Running:
    """An attempt as its worker sees it."""

    def __init__(self, dispatch: Dispatch) -> None:
        self.dispatch = dispatch
        self.position = len(dispatch.delivered)


class ControllerWalk(RuleBasedStateMachine):
    requests: Bundle[str] = Bundle("requests")

    @initialize(seed=st.integers(0, 3))
    def start(self, seed: int) -> None:
        self.now = 0.0
        self.node = ControllerNode("controller", 1, POLICY, Random(seed))
        self.link = False
        self.callers: dict[str, Caller] = {}
        self.heard: dict[str, Heartbeat] = {}
        self.heard_s: dict[str, float] = {}
        self.incarnations = dict.fromkeys(OFFSETS, 1)
        self.wire: list[tuple[str, Dispatch | Withdraw]] = []
        self.running: dict[str, dict[AttemptId, Running]] = {worker: {} for worker in OFFSETS}
        self.live: dict[str, tuple[AttemptId, str]] = {}
        self.last_attempt: dict[str, AttemptId] = {}
        self.failed_on: dict[str, set[str]] = {}
        self.breaker: dict[str, str] = {}
        self.probe: dict[str, AttemptId | None] = {}
        self.excused: set[str] = set()
        self.accepted = self.retries = 0
        self.sound = True
        self.feed(LinkUp())
        self.link = True
        for worker in sorted(OFFSETS):
            self.beat(worker, "warm", False)

    # What the node is fed, and what is read off its answers.

    def feed(self, event: Event) -> list[Command]:
        self.sound = False
        commands = list(self.node.handle(event, self.now))
        for command in commands:
            match command:
                case Send(to, Dispatch() as dispatch, needs_responder):
                    assert needs_responder, "a missing worker must be told of at once"
                    self.see_dispatch(to, dispatch)
                case Send(to, Withdraw() as withdraw):
                    self.wire.append((to, withdraw))
                case Send(_, Delivery() as delivery):
                    self.see_delivery(delivery)
                case Send(_, Accepted(request_id, submission)):
                    assert self.callers[request_id].submit.submission == submission
                    self.callers[request_id].accepted = True
                case Record(AttemptRow() as row):
                    self.see_row(row)
                case Record(EventRow() as row):
                    self.see_event(row)
        self.sound = True
        return commands

    def see_dispatch(self, worker: str, dispatch: Dispatch) -> None:
        request_id, member = dispatch.attempt.request_id, self.heard[worker]
        caller = self.callers[request_id]
        assert self.link
        assert request_id not in self.live, "two attempts of one request at a time"
        assert request_id not in self.last_attempt or dispatch.attempt > self.last_attempt[request_id]
        assert not caller.ended
        assert self.now < caller.submit.deadline_s
        assert dispatch.deadline_s <= caller.submit.deadline_s + OFFSETS[worker] + 1e-6
        assert dispatch.delivered == part(request_id, 0, len(dispatch.delivered))
        assert len(dispatch.delivered) == caller.position, "the attempt continues what the caller has been sent"
        assert dispatch.max_tokens == caller.submit.max_tokens
        assert member.incarnation == dispatch.worker_incarnation
        if member.models[0].state != "warm":
            assert member.models[0].state == "cold", "not ready for work"
            assert not any(self.could_take(other, request_id) for other in self.heard), "others have it in memory"
        assert not member.draining
        assert worker not in self.excused, "suspected since nobody listened there"
        assert self.now < self.heard_s[worker] + POLICY.membership.suspect_after_s + 1e-9, "overdue"
        assert worker not in self.failed_on.get(request_id, ()), "the request has failed there before"
        state = self.breaker.get(worker, "closed")
        assert state in ("closed", "half_open"), state
        if state == "half_open":
            assert self.probe[worker] is None, "a second probe"
            self.probe[worker] = dispatch.attempt
        self.live[request_id] = (dispatch.attempt, worker)
        self.last_attempt[request_id] = dispatch.attempt
        assert sum(at == worker for _, at in self.live.values()) <= POLICY.routing.outstanding_max
        self.wire.append((worker, dispatch))

    def could_take(self, worker: str, request_id: str) -> bool:
        heard = self.heard[worker]
        ready = self.node.workers()[worker][0] == "ready" and not heard.draining
        return ready and heard.models[0].state == "warm" and worker not in self.failed_on.get(request_id, ())

    def see_row(self, row: AttemptRow) -> None:
        attempt = AttemptId(row.request_id, row.submission, row.attempt)
        assert self.live.pop(row.request_id) == (attempt, row.worker), "an attempt ends once, and only if it began"
        if self.probe.get(row.worker) == attempt:
            self.probe[row.worker] = None
        if row.outcome in ("failed", "refused") and row.code != Code.CONTROLLER_UNREACHABLE:
            self.failed_on.setdefault(row.request_id, set()).add(row.worker)

    def see_event(self, row: EventRow) -> None:
        if row.kind.startswith("breaker_"):
            self.breaker[row.subject] = row.kind.removeprefix("breaker_").replace("opened", "open")
            self.probe[row.subject] = None
        elif row.kind == "request_accepted":
            self.accepted += 1
        elif row.kind in ("retry", "migration"):
            self.retries += 1

    def see_delivery(self, delivery: Delivery) -> None:
        assert delivery.controller_incarnation == 1
        for submission, chunk in delivery.chunks:
            request_id = chunk.attempt.request_id
            caller = self.callers[request_id]
            assert not caller.ended, "news of a request that has ended"
            assert submission == caller.submit.submission
            assert chunk.index == caller.position, "a gap, or tokens twice"
            assert chunk.tokens == part(request_id, chunk.index, len(chunk.tokens))
            caller.position += len(chunk.tokens)
            assert caller.position <= caller.submit.max_tokens
            if chunk.finish is not None or chunk.code is not None:
                assert chunk.finish is None or chunk.code is None
                assert chunk.code is None or Code(chunk.code)
                caller.ended = True

    # Clients.

    @rule(
        target=requests,
        name=st.integers(0, 11),
        model=st.sampled_from(["m"] * 5 + ["unknown"]),
        most=st.sampled_from([3, 3, 3, 0]),
        timeout_s=st.sampled_from([0.0, 1.0, 3.0, 6.0]),
        session=st.none() | st.sampled_from(["s1", "s2", "s3"]),
    )
    def submit(self, name: int, model: str, most: int, timeout_s: float, session: str | None) -> Any:
        request_id = f"r{name}"
        if request_id in self.callers:
            return multiple()
        submit = Submit("c", 1, request_id, 1, model, (1, 2), (), most, self.now + timeout_s, session)
        self.callers[request_id] = Caller(submit)
        full = self.node.gauges().open_requests >= POLICY.routing.requests_max
        commands = self.feed(Received(submit))
        caller = self.callers[request_id]
        assert caller.accepted or caller.ended, "every submit is answered at once"
        codes = [
            chunk.code
            for command in commands
            if isinstance(command, Send) and isinstance(command.message, Delivery)
            for _, chunk in command.message.chunks
        ]
        if timeout_s == 0.0:
            assert codes == [Code.DEADLINE_EXCEEDED]
        elif full:
            assert codes == [Code.OVERLOADED]
        elif most == 0:
            assert codes == [Code.INVALID_REQUEST]
        return request_id

    @rule(
        request_id=requests,
        forgets=st.integers(0, 3),
        knows=st.sampled_from([0, 0, 0, 1]),
        elsewhere=st.sampled_from([0, 0, 1]),
    )
    def submit_again(self, request_id: str, forgets: int, knows: int, elsewhere: int) -> None:
        """The client lost the last deliveries, or knows tokens from an earlier or another controller."""
        caller = self.callers[request_id]
        if caller.ended:
            return
        # A client never forgets what it had when it submitted before.
        had = max(len(caller.submit.delivered), caller.position - forgets) + knows
        had = min(had, caller.submit.max_tokens - 1)
        fields = {name: getattr(caller.submit, name) for name in caller.submit.__struct_fields__}
        fields |= {"submission": caller.submit.submission + 1 + elsewhere, "delivered": part(request_id, 0, had)}
        before, caller.submit, caller.position = caller.position, Submit(**fields), had
        former = self.live.get(request_id)
        self.feed(Received(caller.submit))
        if elsewhere:
            assert caller.ended or caller.position == had, "what it did not hear from us is of another stream"
            assert former is None or self.live.get(request_id) != former, "its client would not listen to the old one"
        else:
            assert caller.ended or caller.position == max(before, had), "what was missed is sent again"

    @rule(request_id=requests)
    def an_old_submission_arrives_late(self, request_id: str) -> None:
        caller = self.callers[request_id]
        if caller.ended or caller.submit.submission == 1:
            return
        fields = {name: getattr(caller.submit, name) for name in caller.submit.__struct_fields__}
        commands = self.feed(Received(Submit(**(fields | {"submission": 1, "delivered": ()}))))
        assert [type(command.message) for command in commands if isinstance(command, Send)] == [Accepted]

    @rule(request_id=requests)
    def cancel(self, request_id: str) -> None:
        caller = self.callers[request_id]
        if caller.ended:
            return
        caller.ended = True
        commands = self.feed(Received(Cancel("c", request_id)))
        assert not any(isinstance(command, Send) and command.to == "c" for command in commands)
        assert request_id not in self.live

    @rule()
    def submit_for_another_incarnation(self) -> None:
        wrong = Submit("c", 7, "foreign", 1, "m", (1,), (), 3, self.now + 5)
        assert self.feed(Received(wrong)) == [Send("c", Pong("controller", 1, self.now))]

    @rule()
    def ping(self) -> None:
        assert self.feed(Received(Ping("c"))) == [Send("c", Pong("controller", 1, self.now))]

    # Workers.

    @rule(
        worker=WORKERS, state=st.sampled_from(["warm"] * 4 + ["cold"]), draining=st.sampled_from([False] * 4 + [True])
    )
    def beat(self, worker: str, state: str, draining: bool) -> None:
        sent_s = self.now - TRAVEL_S + OFFSETS[worker]
        heartbeat = Heartbeat(worker, self.incarnations[worker], sent_s, (ModelState("m", state),), 0, 0, 2, draining)
        self.heard[worker], self.heard_s[worker] = heartbeat, self.now
        self.excused.discard(worker)
        self.feed(Received(heartbeat))

    @rule(worker=WORKERS)
    def restart(self, worker: str) -> None:
        self.incarnations[worker] += 1
        self.running[worker].clear()
        self.beat(worker, "warm", False)
        assert not any(at == worker for _, at in self.live.values()) or self.breaker.get(worker) != "open"

    @rule(worker=WORKERS, draining=st.booleans())
    def a_ghost_beats(self, worker: str, draining: bool) -> None:
        ghost = Heartbeat(worker, self.incarnations[worker] - 1, self.now, (), 0, 0, 2, draining)
        assert self.feed(Received(ghost)) == []

    @rule(worker=WORKERS, data=st.data())
    def report(self, worker: str, data: st.DataObject) -> None:
        """News of any attempts that run there, given up by the controller or not; a part may have been lost."""
        chunks = []
        for attempt, run in list(self.running[worker].items()):
            what = data.draw(st.sampled_from(["nothing", "token", "token", "finish", "error", "refused", "lost"]))
            left = run.dispatch.max_tokens - run.position
            if what == "nothing" or (what == "token" and not left):
                continue
            index, tokens = run.position, part(attempt.request_id, run.position, 1 if what == "token" else 0)
            finish = code = None
            if what == "finish":
                tokens, finish = part(attempt.request_id, run.position, left), "length"
            elif what == "error":
                code = str(Code.ENGINE_ERROR)
            elif what == "refused":
                code = str(Code.QUEUE_FULL)
            run.position += len(tokens)
            if what == "lost":
                run.position += 1
                continue
            if finish is not None or code is not None:
                del self.running[worker][attempt]
            chunks.append(Chunk(attempt, index, tokens, (), finish, code))
        if chunks and self.link:
            member = self.node.workers()[worker]
            if member[0] == "ready":
                self.heard_s[worker] = self.now
            sent_s = self.now - TRAVEL_S + OFFSETS[worker]
            self.feed(Received(StreamReport(worker, self.incarnations[worker], sent_s, tuple(chunks))))

    # The wire.

    @precondition(lambda self: self.wire)
    @rule(fate=st.sampled_from(["arrives", "arrives", "arrives", "lost", "no responders", "not sent"]))
    def oldest_message(self, fate: str) -> None:
        worker, message = self.wire.pop(0)
        if fate == "arrives" and isinstance(message, Withdraw):
            self.running[worker].pop(message.attempt, None)
        elif fate == "arrives" and isinstance(message, Dispatch):
            if message.worker_incarnation == self.incarnations[worker]:
                self.running[worker][message.attempt] = Running(message)
        elif fate == "no responders" and isinstance(message, Dispatch):
            self.excused.add(worker)
            self.feed(NoResponders(worker, message))
            assert (message.attempt, worker) not in self.live.values()
        elif fate == "not sent" and isinstance(message, Dispatch):
            self.feed(SendFailed(worker, message))
            assert (message.attempt, worker) not in self.live.values()

    @precondition(lambda self: self.link)
    @rule()
    def link_goes_down(self) -> None:
        self.link = False
        self.feed(LinkDown("test"))
        assert not self.live, "its tokens cannot reach us any more"
        assert all(breaker == "closed" for _, breaker in self.node.workers().values())

    @precondition(lambda self: not self.link)
    @rule()
    def link_comes_up(self) -> None:
        self.link = True
        for worker, (liveness, _) in self.node.workers().items():
            if liveness != "dead":
                self.heard_s[worker] = self.now
        self.feed(LinkUp())

    # Time. Wakes come exactly when they were asked for.

    @rule(seconds=st.sampled_from([0.01, 0.05, 0.1, 0.3, 0.6, 1.0, 2.0]), all_beat=st.booleans())
    def time_passes(self, seconds: float, all_beat: bool) -> None:
        end_s = self.now + seconds
        while (wake_s := self.node.next_wake()) is not None and wake_s <= end_s:
            assert wake_s >= self.now, "an overdue wake-up"
            self.now = max(self.now, wake_s)
            self.feed(Wake())
            following = self.node.next_wake()
            assert following is None or following > self.now, "a wake-up that lies in the past would spin"
        self.now = end_s
        if all_beat and self.link:
            for worker in sorted(OFFSETS):
                state = self.heard[worker].models[0].state
                self.beat(worker, state, self.heard[worker].draining)

    @invariant()
    def counts_agree_and_stay_within_their_bounds(self) -> None:
        if not hasattr(self, "node"):
            return
        gauges = self.node.gauges()
        assert gauges.active == len(self.live)
        for worker, count in self.node._workforce._outstanding.items():
            assert count == sum(at == worker for _, at in self.live.values()), worker
        still_open = [name for name, caller in self.callers.items() if caller.accepted and not caller.ended]
        assert gauges.open_requests == len(still_open) <= POLICY.routing.requests_max
        assert len(self.node._timeouts._timers) == len(still_open), "one wake-up per open request"
        assert len(self.node._sessions) <= 2
        budget = POLICY.retry.budget_burst + POLICY.retry.budget_share * self.accepted
        assert self.retries <= budget + 1e-9
        for worker, (_, breaker) in self.node.workers().items():
            assert breaker == self.breaker.get(worker, "closed")

    @invariant()
    def a_request_that_waits_has_a_wake_up(self) -> None:
        if not hasattr(self, "node"):
            return
        waiting = [caller for caller in self.callers.values() if caller.accepted and not caller.ended]
        if waiting:
            wake_s = self.node.next_wake()
            assert wake_s is not None
            assert wake_s <= min(caller.submit.deadline_s for caller in waiting)

    def teardown(self) -> None:
        """However the walk went, at the last deadline everything has ended and nothing is left."""
        if not hasattr(self, "node") or not self.sound:
            return
        self.time_passes(7.0, False)
        assert all(caller.ended for caller in self.callers.values()), "a request without an end"
        assert not self.live
        gauges = self.node.gauges()
        assert (gauges.active, gauges.open_requests) == (0, 0)
        note(f"{self.accepted} accepted, {self.retries} retried")


TestControllerWalk = ControllerWalk.TestCase
TestControllerWalk.settings = WALK


class Desk:
    """A controller with two warm workers, spoken to one message at a time."""

    def __init__(self, policy: Policy = POLICY, *, workers: tuple[str, ...] = ("w0", "w1")) -> None:
        self.node = ControllerNode("controller", 1, policy, Random(0))
        self.node.handle(LinkUp(), 0.0)
        for worker in workers:
            self.beat(worker, 0.0)

    def beat(self, worker: str, now: float, *, incarnation: int = 1, state: str = "warm", **more: Any) -> list[Command]:
        fields: dict[str, Any] = {"draining": False, **more}
        beat = Heartbeat(worker, incarnation, now, (ModelState("m", state),), 0, 0, 2, **fields)
        return list(self.node.handle(Received(beat), now))

    def submit(
        self,
        name: str,
        now: float,
        *,
        deadline_s: float = 50.0,
        session: str | None = None,
        priority: int = 0,
        wish: str = "",
    ) -> list[Command]:
        submit = Submit("c", 1, name, 1, "m", (1,), (), 6, deadline_s, session, priority, worker=wish)
        return list(self.node.handle(Received(submit), now))

    def report(self, worker: str, chunk: Chunk, now: float) -> list[Command]:
        return list(self.node.handle(Received(StreamReport(worker, 1, now, (chunk,))), now))

    def until(self, now: float) -> list[Command]:
        commands: list[Command] = []
        while (wake_s := self.node.next_wake()) is not None and wake_s <= now:
            for worker, (liveness, _) in self.node.workers().items():
                if liveness == "ready":
                    self.beat(worker, wake_s)
            commands += self.node.handle(Wake(), wake_s)
        return commands


def dispatches(commands: list[Command]) -> list[tuple[str, Dispatch]]:
    sends = [command for command in commands if isinstance(command, Send)]
    return [(send.to, send.message) for send in sends if isinstance(send.message, Dispatch)]


def told(commands: list[Command]) -> list[Chunk]:
    sends = [command.message for command in commands if isinstance(command, Send)]
    return [chunk for message in sends if isinstance(message, Delivery) for _, chunk in message.chunks]


def test_a_hole_in_a_stream_is_not_handed_on_but_migrated_from_before_it() -> None:
    desk = Desk()
    ((worker, first),) = dispatches(desk.submit("r1", 0.0))
    desk.report(worker, Chunk(first.attempt, 0, part("r1", 0, 2)), 0.1)
    commands = desk.report(worker, Chunk(first.attempt, 3, part("r1", 3, 1)), 0.2)
    assert told(commands) == []
    assert Send(worker, Withdraw(first.attempt)) in commands
    ((other, second),) = dispatches(desk.until(1.0))
    assert other != worker
    assert second.delivered == part("r1", 0, 2)
    assert second.attempt == AttemptId("r1", 1, 2)


def test_news_of_a_given_up_attempt_are_dropped_and_answered_with_a_withdrawal_while_it_runs() -> None:
    desk = Desk()
    ((worker, first),) = dispatches(desk.submit("r1", 0.0))
    desk.until(2.5)
    late = desk.report(worker, Chunk(first.attempt, 0, part("r1", 0, 1)), 2.5)
    assert told(late) == []
    assert Send(worker, Withdraw(first.attempt)) in late
    ended = desk.report(worker, Chunk(first.attempt, 1, part("r1", 1, 1), finish="length"), 2.6)
    assert not any(isinstance(command, Send) for command in ended)


def test_a_new_controller_waits_for_its_workers_before_it_says_that_there_are_none() -> None:
    desk = Desk(workers=())
    assert told(desk.submit("r1", 0.1)) == []
    assert told(desk.until(0.9)) == []
    assert dispatches(desk.beat("w0", 0.95)) == []
    ((worker, _),) = dispatches(desk.until(1.0))
    assert worker == "w0"


def test_a_controller_that_has_waited_long_enough_says_that_there_are_none() -> None:
    desk = Desk(workers=())
    desk.submit("r1", 0.1)
    (end,) = told(desk.until(9.0))
    assert end.code == Code.NO_WORKERS_AVAILABLE


def test_a_cancel_frees_the_workers_slot() -> None:
    desk = Desk()
    ((worker, first),) = dispatches(desk.submit("r1", 0.0))
    commands = list(desk.node.handle(Received(Cancel("c", "r1")), 0.1))
    assert Send(worker, Withdraw(first.attempt)) in commands


def test_an_open_breaker_gets_one_probe_and_others_go_elsewhere() -> None:
    desk = Desk()
    for number in range(2):
        for worker, sent in dispatches(desk.submit(f"f{number}", 0.0, session="s")):
            assert worker == "w0"
            desk.report(worker, Chunk(sent.attempt, 0, code=str(Code.ENGINE_ERROR)), 0.1)
    assert desk.node.workers()["w0"][1] == "open"
    desk.until(1.2)
    chosen = [worker for number in range(6) for worker, _ in dispatches(desk.submit(f"r{number}", 1.2))]
    assert chosen.count("w0") == 1


def test_a_half_open_worker_is_probed_although_every_session_is_at_home_elsewhere() -> None:
    desk = Desk()
    for number in range(2):
        for worker, sent in dispatches(desk.submit(f"f{number}", 0.0, session="s")):
            desk.report(worker, Chunk(sent.attempt, 0, code=str(Code.ENGINE_ERROR)), 0.1)
    desk.until(1.2)
    ((home, probe),) = dispatches(desk.submit("r1", 1.2, session="s"))
    assert home == "w0"
    ((other, _),) = dispatches(desk.submit("r2", 1.2, session="s"))
    assert other == "w1"
    desk.report("w0", Chunk(probe.attempt, 0, part("r1", 0, 6), finish="length"), 1.3)
    assert desk.node.workers()["w0"][1] == "closed"


def test_what_a_client_missed_is_sent_again_with_its_origin() -> None:
    desk = Desk()
    ((worker, sent),) = dispatches(desk.submit("r1", 0.0))
    (first,) = told(desk.report(worker, Chunk(sent.attempt, 0, part("r1", 0, 3)), 0.1))
    again = Submit("c", 1, "r1", 2, "m", (1,), part("r1", 0, 1), 6, 50.0)
    (missed,) = told(list(desk.node.handle(Received(again), 0.2)))
    assert (missed.index, missed.tokens) == (1, part("r1", 1, 2))
    assert (missed.worker, missed.worker_incarnation) == (first.worker, first.worker_incarnation) == (worker, 1)


def test_a_client_that_was_elsewhere_meanwhile_gets_another_attempt_from_what_it_has() -> None:
    desk = Desk()
    ((worker, sent),) = dispatches(desk.submit("r1", 0.0))
    desk.report(worker, Chunk(sent.attempt, 0, part("r1", 0, 3)), 0.1)
    elsewhere = (900, 901)
    back = list(desk.node.handle(Received(Submit("c", 1, "r1", 3, "m", (1,), elsewhere, 6, 50.0)), 0.2))
    assert Send(worker, Withdraw(sent.attempt)) in back
    assert told(back) == []
    ((_, anew),) = dispatches(back)
    assert anew.attempt == AttemptId("r1", 3, 2)
    assert anew.delivered == elsewhere


def test_going_to_and_fro_uses_up_no_attempt() -> None:
    """An attempt that its client has given up has not failed."""
    desk = Desk()
    ((worker, sent),) = dispatches(desk.submit("r1", 0.0))
    for submission in (3, 5, 7, 9):
        again = Submit("c", 1, "r1", submission, "m", (1,), (), 6, 50.0)
        ((worker, sent),) = dispatches(list(desk.node.handle(Received(again), 0.1)))
    failed = desk.report(worker, Chunk(sent.attempt, 0, code=str(Code.ENGINE_ERROR)), 0.2)
    assert told(failed) == [], "the first failure is no reason to give up"
    assert len(dispatches(desk.until(1.0))) == 1


@pytest.mark.parametrize(
    "changed",
    [
        {"priority": 1},
        {"model": "other"},
        {"prompt": (2,)},
        {"max_tokens": 7},
        {"session_id": "another"},
        {"worker": "w0"},
        {"delivered": (1, 2, 3, 4, 5, 6)},
    ],
    ids=str,
)
def test_a_submission_that_is_not_of_its_request_is_refused_and_the_request_goes_on(changed: dict[str, Any]) -> None:
    desk = Desk()
    desk.beat("w1", 0.0, state="failed")
    for number in range(5):
        desk.submit(f"r{number}", 0.0)
    assert desk.node.gauges().queue_depth == 2
    asked = {"model": "m", "prompt": (1,), "delivered": (), "max_tokens": 6, "session_id": None, "priority": 0}
    for name in ("r0", "r4"):  # one runs, one waits
        submit = Submit("c", 1, name, 2, deadline_s=50.0, **(asked | changed))
        (answer,) = told(list(desk.node.handle(Received(submit), 0.1)))
        assert answer.code == Code.INVALID_REQUEST
    assert (desk.node.gauges().open_requests, desk.node.gauges().queue_depth) == (5, 2)
    desk.node.handle(Received(Cancel("c", "r4")), 0.2)
    assert (desk.node.gauges().open_requests, desk.node.gauges().queue_depth) == (4, 1)


def test_a_submission_is_forgotten_after_its_deadline_although_nothing_new_comes() -> None:
    desk = Desk()
    ((worker, sent),) = dispatches(desk.submit("r1", 0.0, deadline_s=2.0))
    desk.report(worker, Chunk(sent.attempt, 0, part("r1", 0, 6), finish="length"), 0.1)
    assert len(desk.node._guard) == 1
    desk.beat("w0", 2.1)
    assert len(desk.node._guard) == 0


def test_dead_workers_make_room_for_new_ones() -> None:
    desk = Desk(workers=("w0", "w1", "w2"))
    desk.submit("r1", 0.0, session="s")
    for at_s in (1.0, 2.0, 3.0, 4.0):
        desk.beat("w2", at_s)
        desk.node.handle(Wake(), at_s)
    assert desk.node.workers()["w0"][0] == "dead"
    rows = [command.row for command in desk.beat("w9", 4.1) if isinstance(command, Record)]
    kinds = [(row.kind, row.subject) for row in rows if isinstance(row, EventRow)]
    assert kinds[:2] == [("worker_forgotten", "w0"), ("worker_joined", "w9")]
    assert set(desk.node.workers()) == set(desk.node._breakers) == {"w1", "w2", "w9"}
    desk.beat("w0", 4.2)
    assert set(desk.node.workers()) == set(desk.node._breakers) == {"w2", "w9", "w0"}


def test_a_submission_that_was_held_back_until_its_request_had_ended_starts_nothing() -> None:
    desk = Desk()
    ((worker, sent),) = dispatches(desk.submit("r1", 0.0))
    desk.report(worker, Chunk(sent.attempt, 0, part("r1", 0, 6), finish="length"), 0.1)
    assert desk.submit("r1", 0.2) == []


@pytest.mark.parametrize("code", [Code.QUEUE_FULL, Code.RESOURCE_LIMIT_EXCEEDED, Code.WORKER_DRAINING])
def test_refusals_are_no_breaker_failures_and_go_elsewhere(code: Code) -> None:
    desk = Desk()
    for number in range(2):
        ((worker, sent),) = dispatches(desk.submit(f"r{number}", number * 1.0))
        assert worker == "w0"
        desk.report(worker, Chunk(sent.attempt, 0, code=str(code)), number * 1.0 + 0.1)
        ((other, _),) = dispatches(desk.until(number * 1.0 + 0.6))
        assert other == "w1"
    assert desk.node.workers()["w0"] == ("ready", "closed")


def test_a_restart_of_a_worker_moves_its_requests_at_once_and_its_old_tokens_count_for_nothing() -> None:
    desk = Desk()
    ((worker, first),) = dispatches(desk.submit("r1", 0.0))
    commands = desk.beat(worker, 0.5, incarnation=2)
    rows = [command.row for command in commands if isinstance(command, Record)]
    assert [(row.outcome, row.code) for row in rows if isinstance(row, AttemptRow)] == [("failed", Code.WORKER_LOST)]
    assert told(desk.report(worker, Chunk(first.attempt, 0, part("r1", 0, 1)), 0.6)) == []


def test_what_failed_while_our_own_link_was_silent_was_not_the_workers_fault() -> None:
    desk = Desk()
    for number in range(2):
        for worker, sent in dispatches(desk.submit(f"f{number}", 0.0, session="s")):
            desk.report(worker, Chunk(sent.attempt, 0, code=str(Code.ENGINE_ERROR)), 0.1)
    assert desk.node.workers()["w0"][1] == "open"
    desk.node.handle(LinkDown("cut"), 0.2)
    assert desk.node.workers()["w0"][1] == "closed"


def test_a_worker_gets_no_more_than_it_has_room_for_and_the_rest_waits_for_it() -> None:
    desk = Desk(Policy(routing=RoutingPolicy(outstanding_max=1, hold_s=0.2)), workers=("w0",))
    ((_, first),) = dispatches(desk.submit("r1", 0.0))
    desk.report("w0", Chunk(first.attempt, 0, part("r1", 0, 1)), 0.9)
    assert dispatches(desk.submit("r2", 0.0)) == []
    waiting = desk.until(1.9)
    assert dispatches(waiting) == []
    assert told(waiting) == [], "held beyond hold_s, for there will be room"
    freed = desk.report("w0", Chunk(first.attempt, 1, part("r1", 1, 5), finish="length"), 1.9)
    assert [sent.attempt.request_id for _, sent in dispatches(freed)] == ["r2"], "at once, without polling"


def test_who_could_go_to_a_full_worker_waits_for_it_although_another_is_idle_behind_its_open_breaker() -> None:
    desk = Desk(Policy(routing=RoutingPolicy(outstanding_max=1, hold_s=0.2), breaker=BreakerPolicy(failures_to_open=1)))
    ((worker, broken),) = dispatches(desk.submit("f1", 0.0, session="s"))
    desk.report(worker, Chunk(broken.attempt, 0, code=str(Code.ENGINE_ERROR)), 0.0)
    ((other, _),) = dispatches(desk.until(0.05))
    assert desk.node.workers()[worker][1] == "open"
    assert desk.node.workers()[other][1] == "closed"
    waiting = [*desk.submit("r1", 0.1), *desk.until(0.8)]
    assert told(waiting) == [], "held beyond hold_s, for there will be room"
    assert desk.node.gauges().queue_depth == 1


def test_those_who_wait_are_not_overtaken_but_by_a_higher_priority() -> None:
    desk = Desk(Policy(routing=RoutingPolicy(outstanding_max=1)), workers=("w0",))
    ((_, running),) = dispatches(desk.submit("r1", 0.0))
    for number, priority in enumerate([0, -1, 0, 1]):
        assert dispatches(desk.submit(f"q{number}", 0.1, priority=priority)) == []
    assert desk.node.gauges().queue_depth == 4
    served = []
    for _ in range(4):
        end = Chunk(running.attempt, 0, part(running.attempt.request_id, 0, 6), finish="length")
        ((_, running),) = dispatches(desk.report("w0", end, 0.2))
        served.append(running.attempt.request_id)
    assert served == ["q3", "q0", "q2", "q1"]
    assert desk.node.gauges().queue_depth == 0


def test_what_other_controllers_gave_a_worker_counts_as_its_load() -> None:
    desk = Desk()
    desk.beat("w0", 0.1, shares=(("controller", 0), ("controller-1", 2)))
    chosen = [worker for number in range(2) for worker, _ in dispatches(desk.submit(f"r{number}", 0.2))]
    assert chosen == ["w1", "w1"]


def test_a_cold_worker_is_asked_only_where_nobody_is_warm() -> None:
    desk = Desk(Policy(routing=RoutingPolicy(outstanding_max=1)), workers=("w0",))
    desk.beat("w1", 0.0, state="cold")
    assert [worker for worker, _ in dispatches(desk.submit("r1", 0.1))] == ["w0"]
    assert dispatches(desk.submit("r2", 0.1)) == [], "a warm place is free sooner than a model is loaded"
    assert desk.node.gauges().queue_depth == 1, "it waits for that place, and not for a refusal"
    cold = Desk(workers=())
    cold.beat("w1", 0.0, state="cold")
    assert [worker for worker, _ in dispatches(cold.submit("r1", 0.1))] == ["w1"]


def test_a_load_stops_the_clock_of_the_attempts_on_its_worker() -> None:
    desk = Desk(workers=())
    desk.beat("w0", 0.0, state="cold")
    ((_, sent),) = dispatches(desk.submit("r1", 0.1))
    for tick in range(1, 12):
        commands = list(desk.beat("w0", tick * 0.5, state="loading")) + list(desk.node.handle(Wake(), tick * 0.5))
        assert not [row for row in commands if isinstance(row, Record) and isinstance(row.row, AttemptRow)]
    (chunk,) = told(desk.report("w0", Chunk(sent.attempt, 0, part("r1", 0, 6), finish="length"), 5.6))
    assert chunk.finish == "length"


def test_a_load_that_takes_too_long_is_a_failure() -> None:
    desk = Desk(Policy(timeout=TimeoutPolicy(first_token_s=1.0, load_s=3.0)), workers=())
    desk.beat("w0", 0.0, state="cold")
    desk.submit("r1", 0.1)
    rows = []
    for tick in range(1, 12):
        commands = list(desk.beat("w0", tick * 0.5, state="loading")) + list(desk.node.handle(Wake(), tick * 0.5))
        rows += [command.row for command in commands if isinstance(command, Record)]
    failed = [row for row in rows if isinstance(row, AttemptRow)]
    assert [row.code for row in failed] == [Code.FIRST_TOKEN_TIMEOUT]
    assert 3.0 <= failed[0].ended_s <= 5.0


def test_a_worker_of_another_protocol_gets_nothing_and_is_told_of_once() -> None:
    desk = Desk(workers=())
    first = desk.beat("w9", 0.1, version=1)
    assert [command.row.kind for command in first if isinstance(command, Record)] == ["worker_incompatible"]
    assert desk.beat("w9", 0.6, version=1) == []
    desk.submit("r1", 0.7)
    (end,) = told(desk.until(9.0))
    assert end.code == Code.NO_WORKERS_AVAILABLE


def test_a_session_that_only_a_heartbeat_told_of_goes_where_its_cache_is() -> None:
    desk = Desk()
    desk.beat("w1", 0.1, sessions=("s",))
    ((worker, _),) = dispatches(desk.submit("r1", 0.2, session="s"))
    assert worker == "w1"


def test_low_priority_is_refused_by_name_when_memory_is_short_everywhere() -> None:
    desk = Desk()
    for worker in ("w0", "w1"):
        desk.beat(worker, 0.1, pressure=1)
    assert dispatches(desk.submit("low", 0.2, priority=-1)) == []
    assert len(dispatches(desk.submit("normal", 0.2))) == 1
    ended: list[Chunk] = []
    for tick in range(3, 40):
        for worker in ("w0", "w1"):
            desk.beat(worker, tick * 0.1, pressure=1)
        ended += told(list(desk.node.handle(Wake(), tick * 0.1)))
    assert [(end.attempt.request_id, end.code) for end in ended if end.code] == [("low", Code.RESOURCE_LIMIT_EXCEEDED)]
