"""The worker under random interleavings of controller, engine, link and time, and the cases that deserve a name."""

from collections.abc import Iterable

import pytest
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from analysis.schema import AttemptRow, EventRow
from cluster.errors import Code
from cluster.node import (
    Command,
    EngineDied,
    EngineReport,
    Event,
    Insert,
    LinkDown,
    LinkUp,
    Load,
    ModelFailed,
    ModelLoaded,
    Received,
    Record,
    Remove,
    Send,
    SequenceProgress,
    Wake,
)
from cluster.policy import Policy, WorkerPolicy
from cluster.protocol import AttemptId, Chunk, Dispatch, Drain, Heartbeat, StreamReport, Withdraw
from cluster.worker.prewarm import ModelOffer
from cluster.worker.worker import WorkerNode
from tests.cluster import WALK

POLICY = Policy(worker=WorkerPolicy(batch_max=2, queue_max=3, context_max_tokens=40))
NAMES = st.sampled_from(["a", "b", "c", "d", "e", "f", "g"])


def dispatch(
    attempt: AttemptId, deadline_s: float, *, delivered: int = 0, most: int = 6, incarnation: int = 1
) -> Dispatch:
    return Dispatch(attempt, "controller", incarnation, "m", (1, 2, 3), tuple(range(delivered)), most, deadline_s)


class WorkerWalk(RuleBasedStateMachine):
    @initialize()
    def start(self) -> None:
        self.now = 0.0
        self.node = WorkerNode("w", 1, POLICY, (ModelOffer("m"),))
        self.link = False
        self.sent: dict[AttemptId, Dispatch] = {}
        self.received: list[AttemptId] = []
        self.rows: list[AttemptId] = []
        self.outcomes: dict[AttemptId, list[str]] = {}
        self.newest: dict[str, AttemptId] = {}
        self.latest_s: dict[str, float] = {}
        self.started: list[AttemptId] = []
        self.in_engine: dict[int, AttemptId] = {}
        self.gone: list[int] = []
        self.position: dict[AttemptId, int] = {}
        self.told_end: set[AttemptId] = set()
        self.draining = False
        self.pending: AttemptId | None = None
        commands = self.feed(Wake())
        assert Load("m") in commands
        self.link = True
        self.feed(LinkUp())
        self.feed(ModelLoaded("m"))

    def feed(self, event: Event) -> list[Command]:
        commands = list(self.node.handle(event, self.now))
        for command in commands:
            match command:
                case Insert():
                    self.see_insert(command)
                case Remove(sequence):
                    assert sequence in self.in_engine
                    self.gone.append(sequence)
                    del self.in_engine[sequence]
                case Record(EventRow(kind="attempt_started") as row):
                    attempt = AttemptId(row.request_id, row.submission, row.attempt)
                    assert attempt not in self.started, "started twice"
                    assert self.now < self.sent[attempt].deadline_s, "started past its deadline"
                    assert attempt == self.newest[attempt.request_id], "started although a newer one is known"
                    self.started.append(attempt)
                    self.pending = attempt
                case Record(AttemptRow() as row):
                    assert row.side == "worker"
                    attempt = AttemptId(row.request_id, row.submission, row.attempt)
                    self.rows.append(attempt)
                    self.outcomes.setdefault(attempt, []).append(row.outcome)
                case Send(to, StreamReport() as report):
                    assert to == "controller"
                    assert self.link, "news although nobody can hear them"
                    self.see_report(report)
                case Send(_, Heartbeat() as heartbeat):
                    assert self.link
                    assert heartbeat.draining == self.draining
                    assert heartbeat.sent_s == self.now
        return commands

    def see_insert(self, command: Insert) -> None:
        attempt = self.pending
        assert attempt is not None, "no row tells of this start"
        self.pending = None
        wanted = self.sent[attempt]
        assert command.tokens == wanted.prompt + wanted.delivered
        assert command.max_tokens == wanted.max_tokens - len(wanted.delivered)
        assert command.sequence not in self.in_engine
        assert command.sequence not in self.gone, "a number of the engine is used again"
        self.in_engine[command.sequence] = attempt
        assert len(self.in_engine) <= POLICY.worker.batch_max
        self.position[attempt] = len(wanted.delivered)

    def see_report(self, report: StreamReport) -> None:
        assert (report.worker, report.incarnation, report.sent_s) == ("w", 1, self.now)
        for chunk in report.chunks:
            attempt = chunk.attempt
            if chunk.code == Code.DEADLINE_EXCEEDED:
                assert not chunk.tokens
                continue
            assert attempt not in self.told_end, "news after the end"
            assert chunk.index == self.position.get(attempt, len(self.sent[attempt].delivered))
            assert chunk.tokens == tuple(range(chunk.index, chunk.index + len(chunk.tokens)))
            self.position[attempt] = chunk.index + len(chunk.tokens)
            if chunk.finish is not None or chunk.code is not None:
                self.told_end.add(attempt)

    @rule(
        name=NAMES,
        submission=st.sampled_from([1, 1, 1, 2]),
        number=st.integers(1, 4),
        lifetime_s=st.sampled_from([-1.0, 0.0, 0.3, 2.0, 5.0, 5.0]),
        delivered=st.sampled_from([0, 0, 2, 6]),
        most=st.sampled_from([6, 6, 38]),
        incarnation=st.sampled_from([1, 1, 1, 1, 0, 2]),
    )
    def an_attempt_arrives(
        self, name: str, submission: int, number: int, lifetime_s: float, delivered: int, most: int, incarnation: int
    ) -> None:
        """Perhaps one that arrived before: then with the same bytes."""
        attempt = AttemptId(name, submission, number)
        fresh = dispatch(attempt, self.now + lifetime_s, delivered=delivered, most=most, incarnation=incarnation)
        message = self.sent.setdefault(attempt, fresh)
        if not self.link:
            return
        late, foreign = self.now >= message.deadline_s, message.worker_incarnation != 1
        older = name in self.newest and attempt <= self.newest[name] and self.now < self.latest_s[name]
        self.received.append(attempt)
        if not (late or foreign or older):
            self.newest[name] = attempt
            self.latest_s[name] = max(message.deadline_s, self.latest_s.get(name, 0.0))
        rows, started = len(self.rows), len(self.started)
        self.feed(Received(message))
        others = [row for row in self.rows[rows:] if row != attempt]
        assert all(row.request_id == name for row in others), "an arrival ends nothing but its own request's past"
        if late or foreign or older:
            assert self.rows[rows:] == [attempt]
            assert self.outcomes[attempt][-1] == "discarded"
            assert len(self.started) == started
        elif len(message.delivered) >= message.max_tokens or (most > 37 and message.max_tokens > 37) or self.draining:
            assert self.outcomes[attempt][-1] == "refused"

    @precondition(lambda self: self.sent)
    @rule(data=st.data())
    def a_copy_arrives(self, data: st.DataObject) -> None:
        attempt = data.draw(st.sampled_from(sorted(self.sent)))
        self.an_attempt_arrives(attempt.request_id, attempt.submission, attempt.attempt, 1.0, 0, 6, 1)

    @precondition(lambda self: self.link and self.received)
    @rule(data=st.data())
    def withdraw(self, data: st.DataObject) -> None:
        attempt = data.draw(st.sampled_from(self.received))
        was_running = attempt in self.in_engine.values()
        waiting = self.node.gauges().queue_depth
        self.feed(Received(Withdraw(attempt)))
        assert attempt not in self.in_engine.values()
        if was_running:
            assert len(self.in_engine) == min(POLICY.worker.batch_max, self.running_before(waiting)), "the slot is free"

    def running_before(self, waiting: int) -> int:
        return POLICY.worker.batch_max if waiting else len(self.in_engine)

    @precondition(lambda self: self.in_engine or self.gone)
    @rule(data=st.data(), count=st.integers(1, 3), end=st.sampled_from([None, None, "length", "stop", "error"]))
    def the_engine_reports(self, data: st.DataObject, count: int, end: str | None) -> None:
        """Some of its sequences; one that was removed meanwhile may still be among them."""
        numbers = sorted(self.in_engine) + self.gone[-2:]
        chosen = data.draw(st.lists(st.sampled_from(numbers), unique=True, min_size=1))
        progress = []
        for number in chosen:
            attempt = self.in_engine.get(number)
            at = self.position[attempt] if attempt is not None else 0
            made = count
            if attempt is not None:
                made = min(count, self.sent[attempt].max_tokens - at)
                if end is not None:
                    del self.in_engine[number]
                    self.gone.append(number)
            tokens = tuple(range(at, at + made))
            progress.append(SequenceProgress(number, tokens, (self.now,) * made, end))
        self.feed(EngineReport(tuple(progress), count))

    @precondition(lambda self: self.link)
    @rule()
    def link_goes_down(self) -> None:
        self.link = False
        self.feed(LinkDown("test"))
        gauges = self.node.gauges()
        assert (gauges.active, gauges.queue_depth, len(self.in_engine)) == (0, 0, 0), "a slot is kept for nobody"

    @precondition(lambda self: not self.link)
    @rule()
    def link_comes_up(self) -> None:
        self.link = True
        commands = self.feed(LinkUp())
        assert any(isinstance(command, Send) for command in commands), "it announces itself"

    @precondition(lambda self: self.link and len(self.received) > 25)
    @rule()
    def drain(self) -> None:
        self.draining = True
        before = dict(self.in_engine)
        self.feed(Received(Drain()))
        assert self.in_engine == before, "a drain loses nothing"

    @rule(seconds=st.sampled_from([0.01, 0.2, 0.5, 2.0, 6.0]), on_time=st.booleans())
    def time_passes(self, seconds: float, on_time: bool) -> None:
        """Wakes come when they are due, or, after the process was frozen, all at once."""
        end_s = self.now + seconds
        while (wake_s := self.node.next_wake()) is not None and wake_s <= end_s:
            self.now = max(self.now, wake_s) if on_time else end_s
            self.feed(Wake())
            following = self.node.next_wake()
            assert following is None or following > self.now, "a wake-up that lies in the past would spin"
        self.now = end_s
        assert all(self.now < self.sent[attempt].deadline_s for attempt in self.in_engine.values())

    @invariant()
    def nothing_exceeds_its_bound_and_every_attempt_has_one_end(self) -> None:
        if not hasattr(self, "node"):
            return
        gauges = self.node.gauges()
        assert gauges.active == len(self.in_engine) <= POLICY.worker.batch_max
        assert gauges.queue_depth <= POLICY.worker.queue_max
        assert not gauges.queue_depth or gauges.active == POLICY.worker.batch_max, "a slot is free and somebody waits"
        assert len(self.started) == len(set(self.started))
        assert len(self.received) - len(self.rows) == gauges.open_requests
        assert len(self.node._timers) == 1 + gauges.open_requests, "a timer per open attempt, and the heartbeat's"

    def teardown(self) -> None:
        """In the end each arrival has exactly one row, and nothing is held."""
        if not hasattr(self, "node"):
            return
        self.time_passes(6.0, True)
        assert sorted(self.rows) == sorted(self.received)
        gauges = self.node.gauges()
        assert (gauges.active, gauges.queue_depth, gauges.kv_bytes) == (0, 0, 0)
        for outcomes in self.outcomes.values():
            assert sum(outcome != "discarded" for outcome in outcomes) <= 1


TestWorkerWalk = WorkerWalk.TestCase
TestWorkerWalk.settings = WALK


def ready(policy: Policy = POLICY) -> WorkerNode:
    node = WorkerNode("w", 1, policy, (ModelOffer("m"),))
    node.handle(Wake(), 0.0)
    node.handle(LinkUp(), 0.0)
    node.handle(ModelLoaded("m", kv_bytes_per_token=10), 0.0)
    return node


def kinds(commands: Iterable[Command]) -> list[str]:
    return [type(command).__name__ for command in commands if not isinstance(command, Record)]


def chunks(commands: Iterable[Command]) -> list[Chunk]:
    return [
        chunk
        for command in commands
        if isinstance(command, Send) and isinstance(command.message, StreamReport)
        for chunk in command.message.chunks
    ]


def beats(commands: Iterable[Command]) -> list[Heartbeat]:
    found = [command.message for command in commands if isinstance(command, Send)]
    return [message for message in found if isinstance(message, Heartbeat)]


def test_it_says_warm_only_after_the_load_and_names_a_failed_one() -> None:
    node = WorkerNode("w", 3, POLICY, (ModelOffer("m"),))
    assert node.next_wake() == 0.0
    assert kinds(node.handle(Wake(), 0.0)) == ["Load"], "nothing is announced before the link is up"
    assert [beat.models[0].state for beat in beats(node.handle(LinkUp(), 0.1))] == ["loading"]
    (beat,) = beats(node.handle(ModelLoaded("m"), 0.2))
    assert (beat.models[0].state, beat.incarnation, beat.batch_max) == ("warm", 3, 2)
    node = WorkerNode("w", 3, POLICY, (ModelOffer("m"),))
    node.handle(LinkUp(), 0.0)
    (beat,) = beats(node.handle(ModelFailed("m", "no such file"), 0.3))
    assert beat.models[0].state == "failed"
    assert node.models() == {"m": "failed: no such file"}


def test_it_beats_at_its_interval_whatever_the_engine_does() -> None:
    node, told, now = ready(), 0, 0.0
    node.handle(Received(dispatch(AttemptId("a", 1, 1), 99.0)), 0.0)
    while now < 10.0:
        now = node.next_wake() or 0.0
        told += len(beats(node.handle(Wake(), now)))
    assert told == pytest.approx(10.0 / POLICY.membership.heartbeat_s, abs=1)


@pytest.mark.parametrize("silent_s", [0.0, 7.5])
def test_the_heartbeat_tells_for_how_long_the_engine_has_owed_a_report(silent_s: float) -> None:
    node = ready()
    node.handle(Received(dispatch(AttemptId("a", 1, 1), 99.0)), 20.0)
    (beat,) = beats(node.handle(Wake(), 20.0 + silent_s))
    assert beat.engine_silent_s == silent_s
    assert beat.active == 1


def test_an_idle_engine_owes_nothing() -> None:
    (beat,) = beats(ready().handle(Wake(), 30.0))
    assert beat.engine_silent_s == 0.0


def test_a_newer_attempt_supersedes_the_running_one_and_takes_its_slot() -> None:
    node = ready()
    node.handle(Received(dispatch(AttemptId("a", 1, 1), 9.0)), 0.0)
    commands = node.handle(Received(dispatch(AttemptId("a", 1, 2), 9.0)), 1.0)
    assert kinds(commands) == ["Remove", "Insert"]
    rows = [command.row for command in commands if isinstance(command, Record)]
    assert [row.outcome for row in rows if isinstance(row, AttemptRow)] == ["superseded"]
    assert node.gauges().active == 1


def test_work_that_a_stall_held_back_is_discarded_by_its_deadline_and_told_of() -> None:
    commands = ready().handle(Received(dispatch(AttemptId("a", 1, 1), 9.0)), 9.0)
    assert kinds(commands) == ["Send"]
    assert [chunk.code for chunk in chunks(commands)] == [Code.DEADLINE_EXCEEDED]


def test_a_frozen_worker_starts_nothing_stale_when_it_wakes() -> None:
    node = ready()
    for name in "abcd":
        node.handle(Received(dispatch(AttemptId(name, 1, 1), 9.0)), 0.0)
    report = EngineReport((SequenceProgress(1, (0, 1, 2), (0.1, 0.2, 0.3), "length"),))
    commands = node.handle(report, 60.0)
    assert "Insert" not in kinds(commands)
    assert node.gauges().queue_depth == 0


def test_a_full_queue_refuses_and_says_so() -> None:
    node = ready()
    for number in range(5):
        node.handle(Received(dispatch(AttemptId(f"r{number}", 1, 1), 9.0)), 0.0)
    assert [chunk.code for chunk in chunks(node.handle(Received(dispatch(AttemptId("x", 1, 1), 9.0)), 0.0))] == [
        Code.QUEUE_FULL
    ]


@pytest.mark.parametrize(
    ("change", "code"),
    [
        ({"model": "other"}, Code.MODEL_NOT_FOUND),
        ({"prompt": ()}, Code.INVALID_REQUEST),
        ({"max_tokens": 0}, Code.INVALID_REQUEST),
        ({"prompt": (1,) * 40}, Code.INVALID_REQUEST),
    ],
)
def test_what_it_cannot_do_is_refused_with_its_reason(change: dict[str, object], code: Code) -> None:
    message = dispatch(AttemptId("a", 1, 1), 9.0)
    fields = {name: getattr(message, name) for name in message.__struct_fields__} | change
    commands = ready().handle(Received(Dispatch(**fields)), 0.0)  # type: ignore[arg-type]
    assert [chunk.code for chunk in chunks(commands)] == [code]


def test_an_engine_that_died_fails_its_streams_and_takes_no_more() -> None:
    node = ready()
    for name in "abc":
        node.handle(Received(dispatch(AttemptId(name, 1, 1), 9.0)), 0.0)
    commands = node.handle(EngineDied("segfault"), 1.0)
    assert [chunk.code for chunk in chunks(commands)] == [Code.ENGINE_ERROR] * 3
    assert node.gauges().open_requests == 0
    assert beats(commands)[-1].models[0].state == "failed"
    refused = node.handle(Received(dispatch(AttemptId("d", 1, 1), 9.0)), 1.0)
    assert [chunk.code for chunk in chunks(refused)] == [Code.ENGINE_ERROR]


def test_kv_bytes_are_those_of_the_running_attempts() -> None:
    node = ready()
    node.handle(Received(dispatch(AttemptId("a", 1, 1), 9.0)), 0.0)
    assert node.gauges().kv_bytes == (3 + 6) * 10
    node.handle(Received(Withdraw(AttemptId("a", 1, 1))), 0.1)
    assert node.gauges().kv_bytes == 0


def test_a_slot_that_a_refused_successor_frees_goes_to_the_next_in_the_queue_at_once() -> None:
    node = ready()
    for name in "abc":
        node.handle(Received(dispatch(AttemptId(name, 1, 1), 9.0)), 0.0)
    assert node.gauges().queue_depth == 1
    commands = node.handle(Received(dispatch(AttemptId("a", 1, 2), 9.0, most=38)), 0.1)
    assert [chunk.code for chunk in chunks(commands)] == [Code.INVALID_REQUEST]
    assert kinds(commands) == ["Remove", "Send", "Insert"]
    assert node.gauges().queue_depth == 0
