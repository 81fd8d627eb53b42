"""WorkerNode: takes attempts from a controller, keeps the engine's batch full, and reports every token once."""

from collections.abc import Sequence

from analysis.schema import AttemptRow, EventRow, Gauges
from cluster.errors import Code
from cluster.guard import DuplicateGuard
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
    NoResponders,
    Received,
    Record,
    Remove,
    Send,
    SequenceProgress,
    Wake,
)
from cluster.policy import Policy
from cluster.protocol import (
    EVERY_CONTROLLER,
    AttemptId,
    Chunk,
    Dispatch,
    Drain,
    Heartbeat,
    ModelState,
    StreamReport,
    Withdraw,
)
from cluster.timers import Timers
from cluster.worker.prewarm import ModelOffer
from cluster.worker.scheduler import ContinuousBatcher, RequestQueue, Work

_HEARTBEAT = "heartbeat"


class WorkerNode:
    """Sans-IO worker. It loads its models at the first Wake and may be sent work once a heartbeat calls them warm."""

    def __init__(self, name: str, incarnation: int, policy: Policy, models: tuple[ModelOffer, ...]) -> None:
        self.name = name
        self.incarnation = incarnation
        self._policy = policy
        self._models = dict.fromkeys((offer.model for offer in models), "cold")
        self._reasons: dict[str, str] = {}
        self._kv_bytes_per_token: dict[str, int] = {}
        self._queue = RequestQueue(policy.worker.queue_max)
        self._batch = ContinuousBatcher(policy.worker.batch_max)
        self._guard = DuplicateGuard()
        self._timers: Timers[str | AttemptId] = Timers()
        self._timers.set(_HEARTBEAT, 0.0)
        self._link = False
        self._draining = False
        self._engine_news_s = 0.0
        self._tokens_made = 0

    def handle(self, event: Event, now: float) -> Sequence[Command]:
        """See cluster.node.Node."""
        match event:
            case EngineReport(progress):
                return self._engine_report(progress, now)
            case Received(Dispatch() as dispatch):
                return self._receive(dispatch, now)
            case Received(Withdraw(attempt)):
                return self._withdraw(attempt, now)
            case Wake():
                return self._wake(now)
            case Received(Drain()):
                self._draining = True
                return self._heartbeat(now)
            case LinkUp():
                self._link = True
                return [self._event(now, "link_up"), *self._heartbeat(now)]
            case LinkDown(reason):
                return self._link_down(reason, now)
            case ModelLoaded(model, _, kv_bytes_per_token):
                self._kv_bytes_per_token[model] = kv_bytes_per_token
                return self._model_state(model, "warm", "", now)
            case ModelFailed(model, reason):
                return self._model_state(model, "failed", reason, now)
            case NoResponders(to, StreamReport()):
                return self._controller_gone(to, now)
            case EngineDied(reason):
                return self._engine_died(reason, now)
            case _:
                return []

    def next_wake(self) -> float | None:
        """See cluster.node.Node."""
        return self._timers.next()

    def gauges(self) -> Gauges:
        """See cluster.node.Node. `kv_bytes` is what the running attempts may come to hold."""
        policy = self._policy.worker
        return Gauges(
            role="worker",
            queue_depth=len(self._queue),
            queue_max=policy.queue_max,
            active=len(self._batch),
            active_max=policy.batch_max,
            open_requests=len(self._queue) + len(self._batch),
            open_requests_max=policy.queue_max + policy.batch_max,
            kv_bytes=sum(self._kv_bytes(work.dispatch) for work in self._batch.running()),
            tokens_made=self._tokens_made,
        )

    def models(self) -> dict[str, str]:
        """Each model and its state, for people who watch. A failed one comes with the reason."""
        return {
            model: f"failed: {self._reasons[model]}" if state == "failed" else state
            for model, state in self._models.items()
        }

    def _kv_bytes(self, dispatch: Dispatch) -> int:
        tokens = len(dispatch.prompt) + dispatch.max_tokens
        return tokens * self._kv_bytes_per_token.get(dispatch.model, 0)

    def _receive(self, dispatch: Dispatch, now: float) -> list[Command]:
        """Take, refuse or discard an attempt. Discarded ones get no answer unless somebody may wait for it."""
        work = Work(dispatch, now)
        if dispatch.worker_incarnation != self.incarnation:
            return self._discard(work, "", "meant for another incarnation", now)
        if now >= dispatch.deadline_s:
            return self._discard(work, Code.DEADLINE_EXCEEDED, "arrived past its deadline", now)
        if not self._guard.admit(dispatch.attempt, dispatch.deadline_s, now):
            return self._discard(work, "", "duplicate or superseded", now)
        commands = self._supersede(dispatch.attempt, now)
        refusal = self._refusal(dispatch)
        if refusal is not None:
            row = self._row(work, "refused", refusal, now)
            told = self._tell([(work, work.chunk(code=refusal))], now)
            # The superseded attempt may have left a slot that others wait for.
            return [*commands, row, *told, *self._admit(now)]
        self._queue.push(work)
        self._timers.set(dispatch.attempt, dispatch.deadline_s)
        return commands + self._admit(now)

    def _refusal(self, dispatch: Dispatch) -> Code | None:
        if self._draining:
            return Code.WORKER_DRAINING
        if self._models.get(dispatch.model) != "warm":
            return Code.MODEL_NOT_FOUND if dispatch.model not in self._models else Code.ENGINE_ERROR
        if dispatch.max_tokens <= len(dispatch.delivered) or not dispatch.prompt:
            return Code.INVALID_REQUEST
        if len(dispatch.prompt) + dispatch.max_tokens > self._policy.worker.context_max_tokens:
            return Code.INVALID_REQUEST
        if self._queue.full:
            return Code.QUEUE_FULL
        return None

    def _supersede(self, attempt: AttemptId, now: float) -> list[Command]:
        """A newer attempt of a request takes the place of an older one that still waits or runs here."""
        commands: list[Command] = []
        for work in [*self._queue.works(), *self._batch.running()]:
            older = work.dispatch.attempt
            if older.request_id == attempt.request_id:
                commands += self._stop(older, "superseded", "", now)
        return commands

    def _admit(self, now: float) -> list[Command]:
        """Fill free slots from the queue. Nothing past its deadline starts."""
        commands: list[Command] = []
        while len(self._queue) and not self._batch.full:
            work = self._queue.pop()
            dispatch = work.dispatch
            if now >= dispatch.deadline_s:
                self._timers.clear(dispatch.attempt)
                commands += self._discard(work, Code.DEADLINE_EXCEEDED, "waited past its deadline", now)
                continue
            if not len(self._batch):
                self._engine_news_s = now
            sequence = self._batch.start(work, now)
            commands.append(self._event(now, "attempt_started", dispatch.attempt))
            budget = dispatch.max_tokens - len(dispatch.delivered)
            commands.append(Insert(sequence, dispatch.model, dispatch.prompt + dispatch.delivered, budget))
        return commands

    def _engine_report(self, progress: tuple[SequenceProgress, ...], now: float) -> list[Command]:
        commands: list[Command] = []
        chunks: list[tuple[Work, Chunk]] = []
        self._engine_news_s = now
        for part in progress:
            work = self._batch.get(part.sequence)
            if work is None:
                continue
            if part.tokens and work.first_token_s is None:
                work.first_token_s = part.times_s[0]
            self._tokens_made += len(part.tokens)
            failed = part.finish == "error"
            code = Code.ENGINE_ERROR if failed else None
            finish = None if failed else part.finish
            chunks.append((work, work.chunk(part.tokens, part.times_s, finish, code, part.cached_tokens)))
            if part.finish is not None:
                self._batch.leave(work)
                self._timers.clear(work.dispatch.attempt)
                commands.append(self._row(work, "failed" if failed else "completed", code or "", now))
        commands += self._admit(now)
        return [*self._tell(chunks, now), *commands]

    def _withdraw(self, attempt: AttemptId, now: float) -> list[Command]:
        commands = self._stop(attempt, "withdrawn", "", now)
        return commands + self._admit(now)

    def _stop(self, attempt: AttemptId, outcome: str, code: str, now: float) -> list[Command]:
        """End a waiting or running attempt that nobody waits for; nothing if it is neither."""
        self._timers.clear(attempt)
        waiting = self._queue.take(attempt)
        if waiting is not None:
            return [self._row(waiting, outcome, code, now)]
        running = self._batch.find(attempt)
        if running is None:
            return []
        assert running.sequence is not None
        self._batch.leave(running)
        return [Remove(running.sequence), self._row(running, outcome, code, now)]

    def _wake(self, now: float) -> list[Command]:
        commands: list[Command] = []
        for key in self._timers.due(now):
            if isinstance(key, AttemptId):
                commands += self._stop(key, "withdrawn", Code.DEADLINE_EXCEEDED, now)
            else:
                commands += self._load_cold(now)
                commands += self._heartbeat(now)
        return commands + self._admit(now)

    def _load_cold(self, now: float) -> list[Command]:
        commands: list[Command] = []
        for model, state in list(self._models.items()):
            if state == "cold":
                commands += [*self._model_state(model, "loading", "", now), Load(model)]
        return commands

    def _heartbeat(self, now: float) -> list[Command]:
        self._timers.set(_HEARTBEAT, now + self._policy.membership.heartbeat_s)
        if not self._link:
            return []
        heartbeat = Heartbeat(
            self.name,
            self.incarnation,
            now,
            tuple(ModelState(model, state) for model, state in self._models.items()),
            len(self._queue),
            len(self._batch),
            self._batch.batch_max,
            self._draining,
            now - self._engine_news_s if len(self._batch) else 0.0,
        )
        return [Send(EVERY_CONTROLLER, heartbeat)]

    def _link_down(self, reason: str, now: float) -> list[Command]:
        """Tokens made from now on reach nobody, and a stream with a gap is worthless: free all slots."""
        self._link = False
        commands: list[Command] = [self._event(now, "link_down", detail=reason)]
        for work in [*self._queue.works(), *self._batch.running()]:
            commands += self._stop(work.dispatch.attempt, "withdrawn", Code.STREAM_BROKEN, now)
        return commands

    def _controller_gone(self, controller: str, now: float) -> list[Command]:
        """Nobody reads the streams that it has given: free their slots."""
        commands: list[Command] = []
        for work in [*self._queue.works(), *self._batch.running()]:
            if work.dispatch.controller == controller:
                commands += self._stop(work.dispatch.attempt, "withdrawn", Code.STREAM_BROKEN, now)
        return commands + self._admit(now)

    def _model_state(self, model: str, state: str, reason: str, now: float) -> list[Command]:
        self._models[model] = state
        self._reasons[model] = reason
        detail = f"{model} {state}" + (f": {reason}" if reason else "")
        return [self._event(now, "model_state", detail=detail), *self._heartbeat(now)]

    def _engine_died(self, reason: str, now: float) -> list[Command]:
        commands: list[Command] = [self._event(now, "engine_died", detail=reason)]
        chunks: list[tuple[Work, Chunk]] = []
        for work in [*self._queue.works(), *self._batch.running()]:
            chunks.append((work, work.chunk(code=Code.ENGINE_ERROR)))
            commands += self._stop(work.dispatch.attempt, "failed", Code.ENGINE_ERROR, now)
        for model in self._models:
            self._models[model] = "failed"
            self._reasons[model] = reason
        return commands + self._tell(chunks, now) + self._heartbeat(now)

    def _discard(self, work: Work, code: str, why: str, now: float) -> list[Command]:
        row = self._row(work, "discarded", code, now)
        event = self._event(now, "attempt_discarded", work.dispatch.attempt, why)
        return [row, event, *(self._tell([(work, work.chunk(code=code))], now) if code else [])]

    def _tell(self, news: list[tuple[Work, Chunk]], now: float) -> list[Command]:
        """One report to each controller of what is new of the streams that it gave."""
        by_controller: dict[str, list[Chunk]] = {}
        for work, chunk in news:
            by_controller.setdefault(work.dispatch.controller, []).append(chunk)
        return [
            Send(controller, StreamReport(self.name, self.incarnation, now, tuple(chunks)), needs_responder=True)
            for controller, chunks in by_controller.items()
        ]

    def _row(self, work: Work, outcome: str, code: str, now: float) -> Record:
        dispatch = work.dispatch
        row = AttemptRow(
            side="worker",
            request_id=dispatch.attempt.request_id,
            submission=dispatch.attempt.submission,
            attempt=dispatch.attempt.attempt,
            worker=self.name,
            worker_incarnation=self.incarnation,
            begun_s=work.received_s,
            started_s=work.started_s,
            first_token_s=work.first_token_s,
            ended_s=now,
            deadline_s=dispatch.deadline_s,
            index=len(dispatch.delivered),
            tokens=work.tokens_made,
            outcome=outcome,
            code=code,
        )
        return Record(row)

    def _event(self, now: float, kind: str, attempt: AttemptId | None = None, detail: str = "") -> Record:
        if attempt is None:
            return Record(EventRow(now, kind, self.name, detail=detail))
        return Record(EventRow(now, kind, self.name, attempt.request_id, attempt.submission, attempt.attempt, detail))
