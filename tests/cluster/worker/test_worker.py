"""The worker under random interleavings of controller, engine, link and time, and the cases that deserve a name."""

from collections.abc import Iterable
from typing import Any

import pytest
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule
from msgspec import structs

from analysis.schema import AttemptRow, EventRow
from cluster.errors import Code
from cluster.node import (
    Command,
    DropCache,
    EngineAnswered,
    EngineDied,
    EngineReport,
    Event,
    Insert,
    LinkDown,
    LinkUp,
    Load,
    MemoryLimit,
    ModelFailed,
    ModelLoaded,
    NoResponders,
    Received,
    Record,
    Remove,
    Send,
    SequenceProgress,
    Unload,
    Wake,
)
from cluster.policy import MemoryPolicy, Policy, WorkerPolicy
from cluster.protocol import (
    EVERY_CONTROLLER,
    AttemptId,
    Chunk,
    Dispatch,
    Drain,
    Evict,
    Heartbeat,
    Prewarm,
    StreamReport,
    Withdraw,
)
from cluster.worker.prewarm import ModelOffer
from cluster.worker.worker import WorkerNode
from tests.cluster import WALK

POLICY = Policy(worker=WorkerPolicy(batch_max=2, queue_max=3, context_max_tokens=40))
NAMES = st.sampled_from(["a", "b", "c", "d", "e", "f", "g"])
WEIGHTS_BYTES = {"m": 200, "n": 300}
KV_BYTES = {"m": 2, "n": 3}


def dispatch(
    attempt: AttemptId,
    deadline_s: float,
    *,
    delivered: int = 0,
    most: int = 6,
    incarnation: int = 1,
    model: str = "m",
    prompt: tuple[int, ...] = (1, 2, 3),
    controller: str = "controller",
    session: str | None = None,
    priority: int = 0,
) -> Dispatch:
    return Dispatch(
        attempt,
        controller,
        incarnation,
        model,
        prompt,
        tuple(range(delivered)),
        most,
        deadline_s,
        session_id=session,
        priority=priority,
    )


About = tuple[str, tuple[int, ...], str, str | None, int]
"""Model, prompt, controller, session, priority."""

ABOUT = st.tuples(
    st.sampled_from(["m", "m", "n"]),
    st.sampled_from([(1, 2, 3), (1, 2, 3, 0), (1, 4)]),
    st.sampled_from(["c1", "c2"]),
    st.sampled_from([None, "s", "t", "u"]),
    st.sampled_from([-1, 0, 1]),
)
SELDOM = st.sampled_from([False, False, False, True])


class WorkerWalk(RuleBasedStateMachine):
    """Two models, two controllers, an engine that keeps caches, and memory for everything or for less."""

    @initialize(
        bytes_max=st.sampled_from([None, 800, 620, 400, 250]),
        prewarm=st.booleans(),
        first=st.sampled_from(["m", "n"]),
    )
    def start(self, bytes_max: int | None, prewarm: bool, first: str) -> None:
        """With 620 bytes both models fit, and little else; with 400 one at a time; with 250 the second never."""
        self.now = 0.0
        self.bytes_max = bytes_max
        memory = MemoryPolicy(bytes_max=bytes_max, cache_bytes_max=90, session_share_max=0.5, sessions_told_max=2)
        policy = structs.replace(POLICY, memory=memory, worker=structs.replace(POLICY.worker, prewarm=prewarm))
        offers = (ModelOffer(first, 1, WEIGHTS_BYTES[first]), ModelOffer("n" if first == "m" else "m"))
        self.node = WorkerNode("w", 1, policy, offers)
        self.link = False
        self.sent: dict[AttemptId, Dispatch] = {}
        self.received: list[AttemptId] = []
        self.rows: list[AttemptId] = []
        self.outcomes: dict[AttemptId, list[str]] = {}
        self.newest: dict[str, AttemptId] = {}
        self.latest_s: dict[str, float] = {}
        self.started: list[AttemptId] = []
        self.in_engine: dict[int, AttemptId] = {}
        self.keep_as: dict[int, int | None] = {}
        self.gone: list[int] = []
        self.removed: list[int] = []
        self.position: dict[AttemptId, int] = {}
        self.told_end: set[AttemptId] = set()
        self.draining = False
        self.pending: AttemptId | None = None
        self.loading: str | None = None
        self.loaded: set[str] = set()
        self.states: dict[str, str] = {}
        self.caches: dict[int, tuple[str, tuple[int, ...]]] = {}
        self.feed(Wake())
        self.link = True
        self.feed(LinkUp())
        if self.loading is not None:
            self.the_load_ends(True)

    def feed(self, event: Event) -> list[Command]:
        commands = list(self.node.handle(event, self.now))
        for command in commands:
            match command:
                case Insert():
                    self.see_insert(command)
                case Remove(sequence):
                    assert sequence in self.in_engine
                    self.gone.append(sequence)
                    self.removed.append(sequence)
                    del self.in_engine[sequence]
                case Load(model):
                    assert self.loading is None, "two loads at once"
                    assert model not in self.loaded, "it is there already"
                    assert not self.link or self.states[model] == "loading", "not announced before the engine pauses"
                    self.loading = model
                case Unload(model):
                    self.loaded.remove(model)
                    assert not any(self.sent[attempt].model == model for attempt in self.in_engine.values())
                    self.caches = {number: kept for number, kept in self.caches.items() if kept[0] != model}
                case DropCache(cache):
                    del self.caches[cache]
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
                    assert row.priority == self.sent[attempt].priority
                    self.rows.append(attempt)
                    self.outcomes.setdefault(attempt, []).append(row.outcome)
                case Send(to, StreamReport() as report):
                    assert self.link, "news although nobody can hear them"
                    assert command.needs_responder
                    self.see_report(to, report)
                case Send(to, Heartbeat() as heartbeat):
                    assert to == EVERY_CONTROLLER
                    self.see_heartbeat(heartbeat)
        return commands

    def see_heartbeat(self, heartbeat: Heartbeat) -> None:
        assert self.link
        assert heartbeat.draining == self.draining
        assert heartbeat.sent_s == self.now
        assert sum(count for _, count in heartbeat.shares) == heartbeat.queue_depth + heartbeat.active
        assert len(heartbeat.sessions) <= 2
        self.states = {state.model: state.state for state in heartbeat.models}
        assert list(self.states.values()).count("loading") <= 1
        if self.bytes_max is None:
            assert heartbeat.pressure == 0

    def see_insert(self, command: Insert) -> None:
        attempt = self.pending
        assert attempt is not None, "no row tells of this start"
        self.pending = None
        wanted = self.sent[attempt]
        assert command.model == wanted.model
        assert command.model in self.loaded, "its model is not warm"
        assert command.tokens == wanted.prompt + wanted.delivered
        assert command.max_tokens == wanted.max_tokens - len(wanted.delivered)
        assert command.sequence not in self.in_engine
        assert command.sequence not in self.gone, "a number of the engine is used again"
        if command.cache is not None:
            model, tokens = self.caches[command.cache]
            assert model == command.model
            assert 0 < command.cached_tokens < len(command.tokens)
            assert tokens[: command.cached_tokens] == command.tokens[: command.cached_tokens]
        else:
            assert command.cached_tokens == 0
        self.in_engine[command.sequence] = attempt
        self.keep_as[command.sequence] = command.keep_as
        assert len(self.in_engine) <= POLICY.worker.batch_max
        self.position[attempt] = len(wanted.delivered)

    def see_report(self, to: str, report: StreamReport) -> None:
        assert (report.worker, report.incarnation, report.sent_s) == ("w", 1, self.now)
        assert report.chunks
        for chunk in report.chunks:
            attempt = chunk.attempt
            assert to == self.sent[attempt].controller, "news for somebody else"
            if chunk.code == Code.DEADLINE_EXCEEDED:
                assert not chunk.tokens
                continue
            assert attempt not in self.told_end, "news after the end"
            assert chunk.index == self.position.get(attempt, len(self.sent[attempt].delivered))
            assert chunk.tokens == tuple(range(chunk.index, chunk.index + len(chunk.tokens)))
            self.position[attempt] = chunk.index + len(chunk.tokens)
            if chunk.finish is not None or chunk.code is not None:
                self.told_end.add(attempt)

    def open(self) -> list[Dispatch]:
        return [work.dispatch for work in self.node._open.values()]

    def whole(self, attempt: AttemptId) -> tuple[int, ...]:
        return self.sent[attempt].prompt + tuple(range(self.position[attempt]))

    @rule(
        name=NAMES,
        submission=st.sampled_from([1, 1, 1, 2]),
        number=st.integers(1, 4),
        lifetime_s=st.sampled_from([-1.0, 0.0, 0.3, 2.0, 5.0, 5.0]),
        delivered=st.sampled_from([0, 0, 2, 6]),
        most=st.sampled_from([6, 6, 20, 38]),
        incarnation=st.sampled_from([1, 1, 1, 1, 0, 2]),
        about=ABOUT,
    )
    def an_attempt_arrives(
        self,
        name: str,
        submission: int,
        number: int,
        lifetime_s: float,
        delivered: int,
        most: int,
        incarnation: int,
        about: About,
    ) -> None:
        """Perhaps one that arrived before: then with the same bytes."""
        attempt = AttemptId(name, submission, number)
        model, prompt, controller, session, priority = about
        fresh = dispatch(
            attempt,
            self.now + lifetime_s,
            delivered=delivered,
            most=most,
            incarnation=incarnation,
            model=model,
            prompt=prompt,
            controller=controller,
            session=session,
            priority=priority,
        )
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
        tokens = len(message.prompt) + message.max_tokens
        if late or foreign or older:
            assert self.rows[rows:] == [attempt]
            assert self.outcomes[attempt][-1] == "discarded"
            assert len(self.started) == started
        elif (
            len(message.delivered) >= message.max_tokens
            or tokens > POLICY.worker.context_max_tokens
            or self.draining
            or (self.bytes_max is not None and tokens * KV_BYTES[message.model] > self.bytes_max)
        ):
            assert self.outcomes[attempt][-1] in ("refused", "failed")

    @rule(about=ABOUT, delivered=st.sampled_from([0, 0, 2]), most=st.sampled_from([3, 6, 20, 35]))
    def a_new_request_arrives(self, about: About, delivered: int, most: int) -> None:
        self.an_attempt_arrives(f"x{len(self.sent)}", 1, 1, 5.0, delivered, most, 1, about)

    @rule(about=ABOUT, most=st.sampled_from([3, 6, 20, 35]))
    def two_new_requests_arrive(self, about: About, most: int) -> None:
        self.a_new_request_arrives(about, 0, most)
        self.a_new_request_arrives(about, 0, most)

    @precondition(lambda self: self.node._open)
    @rule(data=st.data(), about=ABOUT, most=st.sampled_from([6, 35, 38]))
    def a_newer_attempt_arrives(self, data: st.DataObject, about: About, most: int) -> None:
        attempt = data.draw(st.sampled_from([message.attempt for message in self.open()]))
        self.an_attempt_arrives(attempt.request_id, attempt.submission + 2, len(self.sent), 5.0, 0, most, 1, about)
        assert attempt not in [message.attempt for message in self.open()]

    @precondition(lambda self: self.in_engine)
    @rule(data=st.data(), count=st.integers(1, 3))
    def a_stream_ends(self, data: st.DataObject, count: int) -> None:
        self.the_engine_reports(data, count, "length", 0)

    @precondition(lambda self: self.sent)
    @rule(data=st.data())
    def a_copy_arrives(self, data: st.DataObject) -> None:
        attempt = data.draw(st.sampled_from(sorted(self.sent)))
        about: About = ("m", (1, 2, 3), "c1", None, 0)
        self.an_attempt_arrives(attempt.request_id, attempt.submission, attempt.attempt, 1.0, 0, 6, 1, about)

    @precondition(lambda self: self.link and self.received)
    @rule(data=st.data())
    def withdraw(self, data: st.DataObject) -> None:
        attempt = data.draw(st.sampled_from(self.received))
        self.feed(Received(Withdraw(attempt)))
        assert attempt not in self.in_engine.values()
        assert attempt not in [message.attempt for message in self.open()]

    @precondition(lambda self: self.link and self.received)
    @rule(controller=st.sampled_from(["c1", "c2"]), really=SELDOM)
    def nobody_reads_the_reports_of_a_controller(self, controller: str, really: bool) -> None:
        if not really:
            return
        others = [message.attempt for message in self.open() if message.controller != controller]
        self.feed(NoResponders(controller, StreamReport("w", 1, self.now, ())))
        assert [message.attempt for message in self.open()] == others

    @precondition(lambda self: self.in_engine or self.removed)
    @rule(
        data=st.data(),
        count=st.integers(1, 3),
        end=st.sampled_from([None, None, "length", "stop", "error"]),
        measured=st.sampled_from([0, 0, 100, 900]),
    )
    def the_engine_reports(self, data: st.DataObject, count: int, end: str | None, measured: int) -> None:
        """Some of its sequences; one that was removed meanwhile may still be among them, ended or not."""
        numbers = sorted(self.in_engine) + self.removed[-2:]
        chosen = data.draw(st.lists(st.sampled_from(numbers), unique=True, min_size=1))
        progress = []
        for number in chosen:
            attempt = self.in_engine.get(number)
            at = self.position[attempt] if attempt is not None else 0
            made = count
            if attempt is not None:
                made = min(count, self.sent[attempt].max_tokens - at)
            tokens = tuple(range(at, at + made))
            keep_as = self.keep_as[number]
            part = SequenceProgress(number, tokens, (self.now,) * made, end)
            if end is not None:
                if attempt is not None:
                    del self.in_engine[number]
                    self.gone.append(number)
                else:
                    self.removed.remove(number)
                if end != "error" and keep_as is not None and (attempt is None or attempt in self.sent):
                    part = self.kept(part, keep_as, attempt)
            progress.append(part)
        self.feed(EngineReport(tuple(progress), count, active_bytes=measured))

    def kept(self, part: SequenceProgress, keep_as: int, attempt: AttemptId | None) -> SequenceProgress:
        """The engine keeps the cache, whoever it belongs to."""
        model = "m" if attempt is None else self.sent[attempt].model
        if model not in self.loaded:
            return part
        tokens = (9,) if attempt is None else self.whole(attempt) + part.tokens
        self.caches[keep_as] = (model, tokens)
        return structs.replace(part, kept_tokens=len(tokens), kept_bytes=len(tokens) * KV_BYTES[model])

    @precondition(lambda self: self.loading is not None)
    @rule(well=st.sampled_from([True, True, True, False]))
    def the_load_ends(self, well: bool) -> None:
        model, self.loading = self.loading, None
        assert model is not None
        waited = [message.attempt for message in self.open() if message.model == model]
        if well:
            self.loaded.add(model)
            self.feed(ModelLoaded(model, 1.0, KV_BYTES[model], WEIGHTS_BYTES[model], 0.7, 0.3))
        else:
            self.feed(ModelFailed(model, "no such file"))
            assert not [attempt for attempt in waited if attempt in [message.attempt for message in self.open()]]

    @rule(model=st.sampled_from(["m", "n"]), priority=st.integers(0, 3))
    def somebody_asks_to_prewarm(self, model: str, priority: int) -> None:
        if self.link:
            self.feed(Received(Prewarm(model, priority)))

    @rule(model=st.sampled_from(["m", "n", "elsewhere"]))
    def somebody_wants_a_model_gone(self, model: str) -> None:
        if self.link:
            self.feed(Received(Evict(model)))
            idle = model not in [message.model for message in self.open()]
            assert not (idle and self.node.models().get(model) == "warm"), "nobody keeps it, and it stays"

    @precondition(lambda self: self.link)
    @rule(really=SELDOM)
    def link_goes_down(self, really: bool) -> None:
        if not really:
            return
        self.link = False
        self.feed(LinkDown("test"))
        gauges = self.node.gauges()
        assert (gauges.active, gauges.queue_depth, len(self.in_engine)) == (0, 0, 0), "a slot is kept for nobody"
        assert gauges.kv_bytes == 0

    @precondition(lambda self: not self.link)
    @rule()
    def link_comes_up(self) -> None:
        self.link = True
        commands = self.feed(LinkUp())
        assert any(isinstance(command, Send) for command in commands), "it announces itself"

    @precondition(lambda self: self.link and len(self.received) > 25)
    @rule(really=SELDOM)
    def drain(self, really: bool) -> None:
        if not really:
            return
        self.draining = True
        before = dict(self.in_engine)
        self.feed(Received(Drain()))
        assert self.in_engine == before, "a drain loses nothing"

    @rule(seconds=st.sampled_from([0.01, 0.01, 0.2, 0.5, 6.0]), on_time=st.booleans())
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
        waiting = [work.dispatch for work in self.node._queue.works()]
        if any(message.model in self.loaded for message in waiting):
            assert gauges.active == POLICY.worker.batch_max, "a slot is free and somebody could have it"
        for message in waiting:
            assert message.model in self.loaded or self.loading is not None, "somebody waits for nothing"
        assert len(self.started) == len(set(self.started))
        assert len(self.received) - len(self.rows) == gauges.open_requests
        assert len(self.node._timers) == 1 + gauges.open_requests, "a timer per open attempt, and the heartbeat's"

    @invariant()
    def memory_is_what_is_held_and_within_its_limit(self) -> None:
        if not hasattr(self, "node"):
            return
        gauges = self.node.gauges()
        needs = [
            (len(message.prompt) + message.max_tokens) * self.node._models.kv_bytes(message.model, 1)
            for message in self.open()
        ]
        assert gauges.kv_bytes == sum(needs)
        assert sorted(self.node._cache._entries) == sorted(self.caches), "engine and worker agree on what is kept"
        kept = sum(len(tokens) * KV_BYTES[model] for model, tokens in self.caches.values())
        assert gauges.cache_bytes == kept <= gauges.cache_bytes_max
        weights = sum(self.node._memory._weights.values())
        ledger = weights + gauges.kv_bytes + gauges.cache_bytes
        assert sorted(self.node._memory._weights) == sorted([*self.loaded, *([self.loading] if self.loading else [])])
        assert gauges.memory_bytes == ledger
        assert self.bytes_max is None or ledger <= self.bytes_max
        if not self.open():
            assert self.node._memory.used_bytes == ledger, "an old measure keeps nobody out"

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
    node.handle(EngineAnswered(), 0.0)
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
    assert node.next_wake() == float("-inf"), "at once, whatever its clock shows"
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


def probes(commands: Iterable[Command]) -> int:
    return kinds(commands).count("ProbeEngine")


def test_an_idle_engine_is_probed_with_a_heartbeat_and_owes_the_answer() -> None:
    node = ready()
    assert probes(node.handle(Wake(), 1.0)) == 1
    commands = node.handle(Wake(), 1.5)
    assert (probes(commands), beats(commands)[0].engine_silent_s) == (0, 0.5), "one probe is open, not two"
    node.handle(EngineAnswered(), 1.6)
    commands = node.handle(Wake(), 2.0)
    assert (probes(commands), beats(commands)[0].engine_silent_s) == (1, 0.0)


def test_a_stuck_engine_stays_in_debt_when_all_its_work_is_taken_back() -> None:
    node = ready()
    node.handle(Wake(), 20.0)
    attempt = AttemptId("a", 1, 1)
    node.handle(Received(dispatch(attempt, 99.0)), 20.0)
    node.handle(Received(Withdraw(attempt)), 22.0)
    (beat,) = beats(node.handle(Wake(), 24.0))
    assert (beat.active, beat.engine_silent_s) == (0, 4.0)


def test_an_engine_that_said_it_died_is_not_asked_again() -> None:
    node = ready()
    assert probes(node.handle(EngineDied("gone"), 1.0)) == 0
    commands = node.handle(Wake(), 30.0)
    assert (probes(commands), beats(commands)[0].engine_silent_s) == (0, 0.0)


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


def test_kv_bytes_are_those_of_all_that_were_accepted() -> None:
    node = ready()
    for name in "abc":
        node.handle(Received(dispatch(AttemptId(name, 1, 1), 9.0)), 0.0)
    assert (node.gauges().active, node.gauges().kv_bytes) == (2, 3 * (3 + 6) * 10)
    for name in "bc":
        node.handle(Received(Withdraw(AttemptId(name, 1, 1))), 0.0)
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


def send(node: WorkerNode, name: str, now: float, **fields: Any) -> list[Command]:
    return list(node.handle(Received(dispatch(AttemptId(name, 1, 1), now + 99.0, **fields)), now))


def told(commands: Iterable[Command]) -> list[Code | str | None]:
    return [chunk.code for chunk in chunks(commands)]


def events(commands: Iterable[Command], kind: str) -> list[str]:
    rows = [command.row for command in commands if isinstance(command, Record)]
    return [row.detail for row in rows if isinstance(row, EventRow) and row.kind == kind]


def limited(bytes_max: int, *offers: ModelOffer, prewarm: bool = True, **memory: Any) -> WorkerNode:
    policy = structs.replace(
        POLICY,
        memory=MemoryPolicy(bytes_max=bytes_max, **memory),
        worker=structs.replace(POLICY.worker, prewarm=prewarm),
    )
    return WorkerNode("w", 1, policy, offers)


def end(number: int, *tokens: int, kept: int = 0, kept_bytes: int = 0) -> EngineReport:
    times_s = tuple(1.0 + at for at in range(len(tokens)))
    part = SequenceProgress(number, tokens, times_s, "length", kept_tokens=kept, kept_bytes=kept_bytes)
    return EngineReport((part,), len(tokens))


def test_a_load_is_announced_before_the_engine_pauses_for_it() -> None:
    node = WorkerNode("w", 1, POLICY, (ModelOffer("m"), ModelOffer("n", 1)))
    commands = node.handle(LinkUp(), 0.0)
    assert kinds(commands) == ["Send", "Send", "Load"]
    assert [state.state for state in beats(commands)[-1].models] == ["cold", "loading"]
    assert commands[-1] == Load("n")


def test_models_load_one_after_the_other_and_say_how_long_it_took() -> None:
    node = WorkerNode("w", 1, POLICY, (ModelOffer("m"), ModelOffer("n", 1)))
    node.handle(Wake(), 0.0)
    commands = node.handle(ModelLoaded("n", 2.0, 10, 99, 1.5, 0.5), 2.0)
    assert kinds(commands) == ["Load"]
    assert events(commands, "model_timing") == ['{"model":"n","load_s":2.0,"weights_s":1.5,"first_token_s":0.5}']
    assert node.models() == {"m": "loading", "n": "warm"}
    assert node.gauges().memory_bytes == 99


def test_a_request_for_a_cold_model_waits_for_its_load_and_lets_those_of_warm_models_pass() -> None:
    node = WorkerNode("w", 1, POLICY, (ModelOffer("m", 2), ModelOffer("n"), ModelOffer("o", 1)))
    node.handle(LinkUp(), 0.0)
    assert kinds(send(node, "a", 0.0, model="n")) == []
    assert Load("n") in node.handle(ModelLoaded("m", kv_bytes_per_token=1), 1.0), "asked for, so before the higher o"
    assert kinds(send(node, "b", 1.0, model="m")) == ["Insert"]
    assert node.gauges().queue_depth == 1
    assert "Load" not in kinds(send(node, "c", 1.0, model="n")), "it is under way"
    commands = node.handle(ModelLoaded("n", kv_bytes_per_token=10), 2.0)
    assert [command.model for command in commands if isinstance(command, Insert)] == ["n"]
    assert node.gauges().kv_bytes == 9 * 1 + 2 * 9 * 10, "what waited has its reservation now"


def test_without_prewarming_a_model_is_loaded_when_it_is_asked_for() -> None:
    node = limited(10_000, ModelOffer("m"), prewarm=False)
    assert kinds(node.handle(LinkUp(), 0.0)) == ["Send"]
    assert kinds(send(node, "a", 1.0)) == ["Send", "Load"]


def test_a_failed_load_answers_whoever_waits_and_may_be_tried_again() -> None:
    node = WorkerNode("w", 1, POLICY, (ModelOffer("m"),))
    node.handle(LinkUp(), 0.0)
    send(node, "a", 0.0)
    assert told(node.handle(ModelFailed("m", "no such file"), 1.0)) == [Code.ENGINE_ERROR]
    assert told(send(node, "b", 1.0)) == [Code.ENGINE_ERROR]
    assert node.gauges().open_requests == 0
    assert kinds(node.handle(Received(Prewarm("m")), 2.0)) == ["Send", "Send", "Load"]


def test_a_model_that_is_told_to_go_goes_at_once_with_its_caches_and_stays_away_until_it_is_asked_for() -> None:
    node = ready()
    send(node, "a", 0.0)
    node.handle(end(1, 0, 1, kept=3, kept_bytes=30), 1.0)
    assert node.gauges().cache_bytes == 30
    commands = node.handle(Received(Evict("m")), 2.0)
    assert kinds(commands) == ["Send", "Unload"]
    assert [state.state for state in beats(commands)[0].models] == ["cold"]
    assert (node.gauges().cache_bytes, node.memory()[0]) == (0, 0)
    assert "Load" not in kinds(node.handle(Wake(), 30.0))
    assert kinds(send(node, "b", 31.0))[-1] == "Load"


def test_a_model_that_is_told_to_go_finishes_what_it_has() -> None:
    node = ready()
    send(node, "a", 0.0)
    assert kinds(node.handle(Received(Evict("m")), 1.0)) == []
    commands = node.handle(end(1, 0, 1), 2.0)
    assert kinds(commands)[-1] == "Unload"
    assert [chunk.finish for chunk in chunks(commands)] == ["length"]


def test_a_model_that_is_wanted_again_before_it_could_go_stays() -> None:
    node = ready()
    send(node, "a", 0.0)
    node.handle(Received(Evict("m")), 1.0)
    node.handle(Received(Prewarm("m")), 1.5)
    assert "Unload" not in kinds(node.handle(end(1, 0, 1), 2.0))
    assert node.models() == {"m": "warm"}


def test_a_model_that_can_never_fit_fails_and_says_why() -> None:
    node = limited(1_000, ModelOffer("m", 0, 1_001), ModelOffer("n", 0, 100))
    commands = node.handle(LinkUp(), 0.0)
    assert commands[-1] == Load("n"), "the next one is not held up"
    assert node.models()["m"] == "failed: its weights need 1001 bytes of 1000, and that much is not free"
    assert told(send(node, "a", 0.0, model="m")) == [Code.RESOURCE_LIMIT_EXCEEDED]


def test_a_model_that_turns_out_too_large_leaves_again() -> None:
    node = limited(1_000, ModelOffer("m"))
    node.handle(LinkUp(), 0.0)
    send(node, "a", 0.0)
    commands = node.handle(ModelLoaded("m", 1.0, 10, 2_000), 1.0)
    assert "Unload" in kinds(commands)
    assert told(commands) == [Code.RESOURCE_LIMIT_EXCEEDED]
    assert node.gauges().memory_bytes == 0


def test_an_idle_model_makes_room_for_one_that_is_asked_for_and_is_not_loaded_again_unasked() -> None:
    node = limited(1_000, ModelOffer("m", 1, 600), ModelOffer("n", 0, 600))
    node.handle(LinkUp(), 0.0)
    assert "Load" not in kinds(node.handle(ModelLoaded("m", 1.0, 1, 600), 1.0)), "n is not worth turning m out"
    commands = send(node, "a", 2.0, model="n")
    assert kinds(commands) == ["Send", "Unload", "Send", "Load"]
    assert node.models() == {"m": "cold", "n": "loading"}
    commands = node.handle(ModelLoaded("n", 1.0, 1, 600), 3.0)
    assert kinds(commands) == ["Send", "Insert"]
    node.handle(end(1, 0, 1, 2, 3, 4, 5), 4.0)
    assert node.models() == {"m": "cold", "n": "warm"}


def test_a_busy_model_is_not_turned_out_and_the_other_may_be_asked_for_again() -> None:
    node = limited(1_000, ModelOffer("m", 1, 600), ModelOffer("n", 0, 600))
    node.handle(LinkUp(), 0.0)
    node.handle(ModelLoaded("m", 1.0, 1, 600), 1.0)
    send(node, "a", 1.0)
    assert told(send(node, "b", 1.0, model="n")) == [Code.RESOURCE_LIMIT_EXCEEDED]
    assert node.models() == {"m": "warm", "n": "cold"}, "it would fit later, so it has not failed"
    node.handle(end(1, 0, 1, 2, 3, 4, 5), 2.0)
    assert "Load" in kinds(send(node, "c", 2.0, model="n"))


def test_what_is_accepted_fits_and_what_could_never_fit_is_refused() -> None:
    node = limited(500, ModelOffer("m"))
    node.handle(LinkUp(), 0.0)
    node.handle(ModelLoaded("m", 1.0, 10, 200), 1.0)
    assert told(send(node, "a", 1.0, most=28)) == [Code.RESOURCE_LIMIT_EXCEEDED], "310 bytes of 300"
    assert told(send(node, "b", 1.0, most=17)) == []
    assert told(send(node, "c", 1.0, most=8)) == [Code.RESOURCE_LIMIT_EXCEEDED], "110 of 100"
    assert told(send(node, "d", 1.0, most=7)) == []
    assert node.gauges().memory_bytes == node.gauges().memory_bytes_max == 500
    (beat,) = beats(node.handle(Wake(), 2.0))
    assert beat.pressure == 2
    node.handle(Received(Withdraw(AttemptId("b", 1, 1))), 2.0)
    assert told(send(node, "e", 2.0, most=17)) == []


def test_above_the_soft_limit_low_priority_is_refused_until_it_is_well_over() -> None:
    node = limited(1_000, ModelOffer("m"), soft_share=0.5, resume_share=0.3)
    node.handle(LinkUp(), 0.0)
    node.handle(ModelLoaded("m", 1.0, 10, 100), 1.0)
    send(node, "a", 1.0, most=20)
    assert told(send(node, "b", 1.0, most=20, priority=-1)) == []
    assert told(send(node, "c", 1.0, priority=-1)) == [Code.RESOURCE_LIMIT_EXCEEDED]
    assert told(send(node, "d", 1.0)) == []
    assert beats(node.handle(Wake(), 2.0))[0].pressure == 1
    node.handle(Received(Withdraw(AttemptId("b", 1, 1))), 2.0)
    assert told(send(node, "e", 2.0, priority=-1)) == [Code.RESOURCE_LIMIT_EXCEEDED], "420 bytes: not below 300 yet"
    node.handle(Received(Withdraw(AttemptId("a", 1, 1))), 2.0)
    assert told(send(node, "f", 2.0, priority=-1)) == []
    assert beats(node.handle(Wake(), 3.0))[0].pressure == 0


def test_a_second_turn_goes_on_from_the_first() -> None:
    node = ready()
    assert [c.keep_as for c in send(node, "a", 0.0, session="s") if isinstance(c, Insert)] == [1]
    node.handle(end(1, 0, 1, 2, 3, 4, 5, kept=9, kept_bytes=90), 1.0)
    assert node.gauges().cache_bytes == 90
    assert beats(node.handle(Wake(), 1.0))[0].sessions == ("s",)
    (insert,) = [
        c for c in send(node, "b", 2.0, session="s", prompt=(1, 2, 3, 0, 1, 2, 9), most=4) if isinstance(c, Insert)
    ]
    assert (insert.cache, insert.cached_tokens, insert.keep_as) == (1, 6, 2)


def test_tokens_that_were_delivered_elsewhere_count_for_caches_too() -> None:
    node = ready()
    send(node, "a", 0.0, session="s", delivered=2)
    node.handle(end(1, 2, 3, 4, 5, kept=9, kept_bytes=90), 1.0)
    (insert,) = [c for c in send(node, "b", 2.0, delivered=5, most=8) if isinstance(c, Insert)]
    assert (insert.cache, insert.cached_tokens) == (1, 7), "three of the prompt, and all but one delivered"


def test_the_cache_of_a_sequence_that_was_removed_meanwhile_is_dropped() -> None:
    node = ready()
    send(node, "a", 0.0)
    node.handle(Received(Withdraw(AttemptId("a", 1, 1))), 0.5)
    assert kinds(node.handle(end(1, 0, kept=4, kept_bytes=40), 1.0)) == ["DropCache"]
    assert node.gauges().cache_bytes == 0


def test_without_room_for_caches_the_engine_keeps_none() -> None:
    node = ready(structs.replace(POLICY, memory=MemoryPolicy(cache_bytes_max=0)))
    (insert,) = [c for c in send(node, "a", 0.0) if isinstance(c, Insert)]
    assert insert.keep_as is None


def test_each_controller_hears_of_its_own_streams_only_and_loses_them_when_it_is_gone() -> None:
    node = ready()
    send(node, "a", 0.0, controller="c1")
    send(node, "b", 0.0, controller="c2")
    send(node, "c", 0.0, controller="c1")
    parts = tuple(SequenceProgress(number, (0,), (1.0,)) for number in (1, 2))
    reports = [c for c in node.handle(EngineReport(parts, 1), 1.0) if isinstance(c, Send)]
    assert [report.to for report in reports] == ["c1", "c2"]
    assert all(report.needs_responder for report in reports)
    assert beats(node.handle(Wake(), 1.0))[0].shares == (("c1", 2), ("c2", 1))
    commands = node.handle(NoResponders("c1", reports[0].message), 1.5)
    assert [c for c in commands if isinstance(c, Remove)] == [Remove(1)]
    assert (node.gauges().active, node.gauges().queue_depth, node.gauges().kv_bytes) == (1, 0, 90)


def test_higher_priority_starts_first_when_a_slot_comes_free() -> None:
    node = ready()
    for name, priority in [("a", 0), ("b", 0), ("low", -1), ("normal", 0), ("high", 1)]:
        send(node, name, 0.0, priority=priority)
    commands = node.handle(end(1, 0, 1, 2, 3, 4, 5), 1.0)
    started = [c.row for c in commands if isinstance(c, Record) and isinstance(c.row, EventRow)]
    assert [row.request_id for row in started if row.kind == "attempt_started"] == ["high"]


def test_a_row_tells_how_full_the_batch_was_and_what_was_not_computed_again() -> None:
    node = ready()
    send(node, "a", 0.0, priority=1)
    send(node, "b", 0.0)
    parts = (
        SequenceProgress(1, (0, 1), (1.0, 1.1), cached_tokens=2),
        SequenceProgress(2, (0,), (1.1,)),
    )
    node.handle(EngineReport(parts, 2, 0.2, 5, 0.3), 1.1)
    last = EngineReport((SequenceProgress(1, (2, 3), (1.2, 1.3), "stop"), SequenceProgress(2, (1, 2), (1.2, 1.3))), 2)
    (row,) = [c.row for c in node.handle(last, 1.3) if isinstance(c, Record) and isinstance(c.row, AttemptRow)]
    assert (row.tokens, row.batch_mean, row.cached_tokens, row.priority) == (4, (1 + 2 + 2 + 2) / 4, 2, 1)
    gauges = node.gauges()
    assert (gauges.steps, gauges.decode_s, gauges.prefill_tokens, gauges.prefill_s) == (4, 0.2, 5, 0.3)
    assert (gauges.cached_tokens, gauges.tokens_made) == (2, 7)


def test_a_drain_ends_what_was_taken_also_what_waits_for_a_load() -> None:
    node = WorkerNode("w", 1, POLICY, (ModelOffer("m", 1), ModelOffer("n"), ModelOffer("o")))
    node.handle(LinkUp(), 0.0)
    send(node, "a", 0.0, model="n")
    assert beats(node.handle(Received(Drain()), 0.5))[0].draining
    assert told(send(node, "b", 0.6)) == [Code.WORKER_DRAINING]
    assert Load("n") in node.handle(ModelLoaded("m", kv_bytes_per_token=1), 1.0)
    commands = node.handle(ModelLoaded("n", kv_bytes_per_token=1), 2.0)
    assert "Insert" in kinds(commands)
    assert "Load" not in kinds(commands), "nobody needs another model now"


def test_during_a_load_the_engine_owes_no_report() -> None:
    node = limited(10_000, ModelOffer("m"), ModelOffer("n"), prewarm=False)
    node.handle(LinkUp(), 0.0)
    send(node, "a", 0.0)
    node.handle(ModelLoaded("m", 1.0, 1, 10), 1.0)
    assert beats(node.handle(Wake(), 3.0))[0].engine_silent_s == 2.0
    send(node, "b", 3.0, model="n")
    assert beats(node.handle(Wake(), 8.0))[0].engine_silent_s == 0.0
    node.handle(ModelLoaded("n", 5.0, 1, 10), 8.0)
    assert beats(node.handle(Wake(), 8.5))[0].engine_silent_s == 0.5


def test_above_the_soft_limit_kept_caches_go_at_once() -> None:
    node = limited(1_000, ModelOffer("m"), soft_share=0.5, resume_share=0.3)
    node.handle(LinkUp(), 0.0)
    node.handle(ModelLoaded("m", 1.0, 10, 100), 1.0)
    send(node, "a", 1.0, most=12)
    node.handle(end(1, *range(6), kept=9, kept_bytes=90), 2.0)
    assert node.gauges().cache_bytes == 90
    send(node, "b", 2.0, most=20)
    assert "DropCache" in kinds(send(node, "c", 2.0, most=20))
    assert node.gauges().cache_bytes == 0


def test_what_the_engine_says_it_holds_counts_and_is_forgotten_when_nobody_runs() -> None:
    node = limited(1_000, ModelOffer("m"))
    node.handle(LinkUp(), 0.0)
    node.handle(ModelLoaded("m", 1.0, 10, 100), 1.0)
    send(node, "a", 1.0)
    node.handle(EngineReport((SequenceProgress(1, (0,), (1.5,)),), 1, active_bytes=950), 1.5)
    assert node.gauges().memory_bytes < 200, "what is promised and held; the rest only the engine has seen"
    assert told(send(node, "b", 1.5)) == [Code.RESOURCE_LIMIT_EXCEEDED]
    node.handle(end(1, 1, 2, 3, 4, 5), 2.0)
    assert node.gauges().memory_bytes == 100
    assert told(send(node, "c", 2.0)) == []


def test_the_model_that_nobody_has_asked_for_the_longest_makes_room() -> None:
    node = limited(1_000, ModelOffer("m", 0, 400), ModelOffer("n", 0, 400), ModelOffer("o", 0, 400), prewarm=False)
    node.handle(LinkUp(), 0.0)
    for number, model in enumerate(("m", "n", "m"), 1):
        send(node, f"r{number}", float(number), model=model)
        if node.models()[model] == "loading":
            node.handle(ModelLoaded(model, 1.0, 1, 400), float(number))
        node.handle(end(number, *range(6)), float(number))
    assert Unload("n") in send(node, "z", 9.0, model="o")


def test_a_request_that_could_not_even_fit_alone_turns_nobody_out() -> None:
    node = limited(1_000, ModelOffer("m", 0, 600), ModelOffer("n", 0, 600), prewarm=False)
    node.handle(LinkUp(), 0.0)
    for number, model in enumerate(("m", "n"), 1):
        send(node, f"r{number}", float(number), model=model)
        node.handle(ModelLoaded(model, 1.0, 20, 600), float(number))
        node.handle(end(number, *range(6)), float(number))
    assert node.models() == {"m": "cold", "n": "warm"}
    commands = send(node, "z", 9.0, model="m", most=20)
    assert told(commands) == [Code.RESOURCE_LIMIT_EXCEEDED]
    assert node.models() == {"m": "cold", "n": "warm"}, "460 bytes beside 600 of weights"


def test_a_lower_limit_takes_caches_at_once_and_breaks_no_promise() -> None:
    node = limited(1_000, ModelOffer("m"), soft_share=0.9, resume_share=0.5)
    node.handle(LinkUp(), 0.0)
    node.handle(ModelLoaded("m", 1.0, 1, 100), 0.0)
    send(node, "a", 1.0, most=30)
    before = node.gauges()
    (beat,) = beats(node.handle(MemoryLimit(120), 2.0))
    assert beat.pressure == 2
    held = node.gauges()
    assert held.memory_bytes == before.memory_bytes > 120
    assert held.memory_bytes_max == held.memory_bytes, "what was promised is no breach of the new limit"
    assert told(send(node, "b", 2.0)) == [Code.RESOURCE_LIMIT_EXCEEDED]
    node.handle(end(1, 1), 3.0)
    assert (node.gauges().memory_bytes, node.gauges().memory_bytes_max) == (100, 120)
    node.handle(MemoryLimit(1_000), 4.0)
    assert node.gauges().memory_bytes_max == 1_000
    assert told(send(node, "c", 4.0)) == []


def test_a_sequence_is_promised_what_the_engine_allocates_for_it() -> None:
    node = limited(1_000, ModelOffer("m"))
    node.handle(LinkUp(), 0.0)
    node.handle(ModelLoaded("m", 1.0, 1, 100, kv_tokens_step=256), 0.0)
    send(node, "a", 1.0)
    assert node.gauges().kv_bytes == 256
    assert node.gauges().memory_bytes == 356
