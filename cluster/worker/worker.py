"""WorkerNode: takes attempts from controllers, keeps the engine's batch full, and reports every token once."""

from collections import Counter
from collections.abc import Sequence

from analysis.schema import Gauges
from cluster.errors import TRAITS, Code
from cluster.guard import DuplicateGuard
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
    ProbeEngine,
    Received,
    Record,
    Remove,
    Send,
    SequenceProgress,
    Stopping,
    Unload,
    Wake,
)
from cluster.policy import Policy
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
from cluster.timers import Timers
from cluster.worker.engine_watch import EngineWatch
from cluster.worker.prewarm import ModelOffer, ModelPreWarmer
from cluster.worker.resources import ResourceManager, Room
from cluster.worker.rows import EngineTotals, attempt_row, batch_sizes, event_row, reports, timing_row
from cluster.worker.scheduler import ContinuousBatcher, RequestQueue, Work
from cluster.worker.session_cache import SessionCache

_HEARTBEAT = "heartbeat"


class WorkerNode:
    """Sans-IO worker. It loads its models at the first Wake and may be sent work once a heartbeat names them."""

    def __init__(self, name: str, incarnation: int, policy: Policy, models: tuple[ModelOffer, ...]) -> None:
        self.name = name
        self.incarnation = incarnation
        self._policy = policy
        self._models = ModelPreWarmer(models, policy.worker.prewarm)
        self._cache = SessionCache(policy.memory)
        self._memory = ResourceManager(policy.memory, self._cache, self._models)
        self._queue = RequestQueue(policy.worker.queue_max, policy.worker.ageing_s)
        self._batch = ContinuousBatcher(policy.worker.batch_max)
        # All that wait or run, at most one attempt of a request, in order of arrival.
        self._open: dict[str, Work] = {}
        self._guard = DuplicateGuard()
        self._timers: Timers[str | AttemptId] = Timers()
        # At once, whatever the clock shows: one that is set back may show less than zero.
        self._timers.set(_HEARTBEAT, float("-inf"))
        self._totals = EngineTotals()
        self._link = False
        self._draining = False
        self._engine = EngineWatch()

    def handle(self, event: Event, now: float) -> Sequence[Command]:
        """See cluster.node.Node."""
        return [*self._react(event, now), *self._proceed(now)]

    def next_wake(self) -> float | None:
        """See cluster.node.Node."""
        return self._timers.next()

    def gauges(self) -> Gauges:
        """See cluster.node.Node. `kv_bytes` is what the open attempts may come to hold."""
        policy, bytes_max = self._policy.worker, self._memory.bound_bytes()
        return Gauges(
            role="worker",
            queue_depth=len(self._queue),
            queue_max=policy.queue_max,
            active=len(self._batch),
            active_max=policy.batch_max,
            open_requests=len(self._open),
            open_requests_max=policy.queue_max + policy.batch_max,
            kv_bytes=self._memory.reserved_bytes,
            kv_bytes_max=-1 if bytes_max is None else bytes_max,
            tokens_made=self._totals.tokens_made,
            cache_bytes=self._cache.size_bytes,
            cache_bytes_max=self._policy.memory.cache_bytes_max,
            memory_bytes=self._memory.ledger_bytes,
            memory_bytes_max=-1 if bytes_max is None else bytes_max,
            steps=self._totals.steps,
            decode_s=self._totals.decode_s,
            prefill_tokens=self._totals.prefill_tokens,
            prefill_s=self._totals.prefill_s,
            cached_tokens=self._totals.cached_tokens,
        )

    def models(self) -> dict[str, str]:
        """Each model and its state, for people who watch. A failed one comes with the reason."""
        return {
            known.model: f"failed: {self._models.failure(known.model)[0]}" if known.state == "failed" else known.state
            for known in self._models.states()
        }

    def memory(self) -> tuple[int, int]:
        """Bytes of weights that it holds, and the pressure of its memory, see Heartbeat."""
        return self._memory.weights_bytes, self._memory.pressure(self._busy())

    def engine_silent_s(self, now: float) -> float:
        """See Heartbeat."""
        return self._engine.silent_s(now, busy=bool(len(self._batch)), loading=self._models.loading is not None)

    def streams(self) -> list[int]:
        """How many tokens each stream in the batch has made here."""
        return [len(work.made) for work in self._open.values() if work.started_s is not None]

    def _react(self, event: Event, now: float) -> list[Command]:
        match event:
            case EngineReport():
                return self._engine_report(event, now)
            case Received(Dispatch() as dispatch):
                return self._receive(dispatch, now)
            case Received(Withdraw(attempt)):
                return self._withdraw(attempt, now)
            case Wake():
                return self._wake(now)
            case Received(Drain()):
                self._draining = True
                return self._heartbeat(now)
            case Received(Prewarm(model, priority)):
                return self._prewarm(model, priority, now)
            case Received(Evict(model)):
                self._models.evict(model)
                return []
            case LinkUp():
                self._link = True
                return [event_row(now, "link_up", self.name), *self._heartbeat(now)]
            case LinkDown(reason):
                return self._link_down(reason, now)
            case Stopping():
                return self._free_all(now)
            case EngineAnswered():
                return self._engine.answered(now)
            case MemoryLimit(bytes_max):
                return self._limit_memory(bytes_max, now)
            case NoResponders(to, StreamReport()):
                return self._controller_gone(to, now)
            case ModelLoaded(model) if model == self._models.loading:
                return self._model_loaded(event, now)
            case ModelFailed(model, reason) if model == self._models.loading:
                return self._model_failed(model, reason, Code.ENGINE_ERROR, now)
            case EngineDied(reason):
                return self._engine_died(reason, now)
            case _:
                return []

    def _proceed(self, now: float) -> list[Command]:
        """After every event: give back memory, let go of models, begin a load, fill the batch."""
        freed = [*self._clear(self._memory.relieve(), now), *self._clear(self._memory.let_go(self._busy), now)]
        return [*freed, *self._load(now), *self._admit(now)]

    # Attempts: how they come in, start, make tokens, and end.

    def _receive(self, dispatch: Dispatch, now: float) -> list[Command]:
        """Take, refuse or discard an attempt. Discarded ones get no answer unless somebody may wait for it."""
        work = Work(dispatch, now)
        if dispatch.worker_incarnation != self.incarnation:
            return self._discard(work, "", "meant for another incarnation", now)
        if now >= dispatch.deadline_s:
            return self._discard(work, Code.DEADLINE_EXCEEDED, "arrived past its deadline", now)
        if not self._guard.admit(dispatch.attempt, dispatch.deadline_s, now):
            return self._discard(work, "", "duplicate or superseded", now)
        commands: list[Command] = []
        older = self._open.get(dispatch.attempt.request_id)
        if older is not None:
            commands += self._stop(older, "superseded", "", now)
        refusal = self._refusal(dispatch)
        room = self._make_room(self._kv_bytes(dispatch), dispatch.model, now) if refusal is None else None
        if room is None:
            return commands + self._refuse(work, refusal or Code.RESOURCE_LIMIT_EXCEEDED, now)
        self._memory.reserve(dispatch.attempt, self._kv_bytes(dispatch))
        self._models.asked_for(dispatch.model, now)
        self._open[dispatch.attempt.request_id] = work
        self._queue.push(work)
        self._timers.set(dispatch.attempt, dispatch.deadline_s)
        return commands + room

    def _refusal(self, dispatch: Dispatch) -> Code | None:
        """Why not, None if the attempt may be taken as far as it does not depend on what else is in memory."""
        if self._draining:
            return Code.WORKER_DRAINING
        state = self._models.state(dispatch.model)
        if state is None:
            return Code.MODEL_NOT_FOUND
        if state == "failed":
            return self._models.failure(dispatch.model)[1]
        if dispatch.max_tokens <= len(dispatch.delivered) or not dispatch.prompt:
            return Code.INVALID_REQUEST
        if len(dispatch.prompt) + dispatch.max_tokens > self._policy.worker.context_max_tokens:
            return Code.INVALID_REQUEST
        if self._queue.full:
            return Code.QUEUE_FULL
        if dispatch.priority < 0 and self._memory.strained():
            return Code.RESOURCE_LIMIT_EXCEEDED
        if self._memory.exceeds(self._models.weights_bytes(dispatch.model) + self._kv_bytes(dispatch)):
            return Code.RESOURCE_LIMIT_EXCEEDED
        return None

    def _admit(self, now: float) -> list[Command]:
        """Fill free slots from the queue, with those whose model is warm. Nothing past its deadline starts."""
        commands: list[Command] = []
        while not self._batch.full and (work := self._queue.pop(self._models.is_warm)) is not None:
            dispatch = work.dispatch
            if now >= dispatch.deadline_s:
                self._close(work)
                commands += self._discard(work, Code.DEADLINE_EXCEEDED, "waited past its deadline", now)
                continue
            self._engine.given(now, busy=bool(len(self._batch)))
            commands += [event_row(now, "attempt_started", self.name, dispatch.attempt), self._insert(work, now)]
        return commands

    def _insert(self, work: Work, now: float) -> Insert:
        """Start it, from the cache that saves most. Its own is kept under the number of its sequence."""
        dispatch, tokens = work.dispatch, work.tokens
        sequence = self._batch.start(work, now)
        cache, cached_tokens = self._cache.find(dispatch.model, work.session, tokens) or (None, 0)
        return Insert(
            sequence,
            dispatch.model,
            tokens,
            dispatch.max_tokens - len(dispatch.delivered),
            dispatch.sampling,
            cache,
            cached_tokens,
            sequence if self._cache.enabled else None,
        )

    def _engine_report(self, report: EngineReport, now: float) -> list[Command]:
        commands: list[Command] = []
        news: list[tuple[Work, Chunk]] = []
        batch = batch_sizes(report)
        self._engine.news(now)
        self._totals.add(report)
        for part in report.progress:
            work = self._batch.get(part.sequence)
            if work is None:
                # It had been removed; what the engine has kept of it nobody would ever free.
                commands += [DropCache(part.sequence)] if part.kept_tokens else []
                continue
            self._totals.told(work, part, batch)
            failed = part.finish == "error"
            code = Code.ENGINE_ERROR if failed else None
            finish = None if failed else part.finish
            news.append((work, work.chunk(part.tokens, part.times_s, finish, code, part.cached_tokens)))
            if part.finish is not None:
                self._batch.leave(work)
                self._close(work)
                commands.append(self._row(work, "failed" if failed else "completed", code or "", now))
                commands += self._keep(work, part)
        self._memory.measured(report.active_bytes)
        return [*self._tell(news, now), *commands]

    def _keep(self, work: Work, part: SequenceProgress) -> list[Command]:
        """The engine has kept the cache of a finished sequence: take it in, and drop what has to go for it."""
        if not part.kept_tokens:
            return []
        tokens = (work.tokens + tuple(work.made))[: part.kept_tokens]
        model, session = work.dispatch.model, work.session
        return [DropCache(old) for old in self._cache.keep(part.sequence, model, session, tokens, part.kept_bytes)]

    def _withdraw(self, attempt: AttemptId, now: float) -> list[Command]:
        work = self._open.get(attempt.request_id)
        return self._stop(work, "withdrawn", "", now) if work is not None and work.dispatch.attempt == attempt else []

    def _stop(self, work: Work, outcome: str, code: str, now: float) -> list[Command]:
        """End a waiting or running attempt before its time."""
        self._close(work)
        row = self._row(work, outcome, code, now)
        if work.sequence is None:
            self._queue.take(work.dispatch.attempt)
            return [row]
        self._batch.leave(work)
        return [Remove(work.sequence), row]

    def _close(self, work: Work) -> None:
        """Whatever the end of an accepted attempt is, it passes here: what was held for it is given back."""
        attempt = work.dispatch.attempt
        del self._open[attempt.request_id]
        self._timers.clear(attempt)
        self._memory.release(attempt)

    def _refuse(self, work: Work, code: Code, now: float) -> list[Command]:
        """Answer an attempt that was never accepted, or has been closed, without a token."""
        outcome = "refused" if TRAITS[code].refusal else "failed"
        return [self._row(work, outcome, code, now), *self._tell([(work, work.chunk(code=code))], now)]

    def _discard(self, work: Work, code: str, why: str, now: float) -> list[Command]:
        row = self._row(work, "discarded", code, now)
        event = event_row(now, "attempt_discarded", self.name, work.dispatch.attempt, why)
        return [row, event, *(self._tell([(work, work.chunk(code=code))], now) if code else [])]

    # Models and memory.

    def _kv_bytes(self, dispatch: Dispatch) -> int:
        """What the attempt may come to hold. Unknown, hence 0, while its model has never been loaded."""
        tokens = len(dispatch.prompt) + dispatch.max_tokens
        return self._models.kv_bytes(dispatch.model, tokens)

    def _busy(self) -> list[str]:
        """Models that somebody waits for or that are computing."""
        return list(dict.fromkeys(work.dispatch.model for work in self._open.values()))

    def _make_room(self, more_bytes: int, model: str, now: float, below: int | None = None) -> list[Command] | None:
        """What has to be done so that so much fits; None when it does not fit whatever goes."""
        room = self._memory.make_room(more_bytes, model, self._busy(), below)
        return None if room is None else self._clear(room, now)

    def _clear(self, room: Room, now: float) -> list[Command]:
        """Let go of what has to go. A model goes only when no cache is left."""
        commands: list[Command] = [DropCache(cache) for cache in room.caches]
        for model in room.models:
            commands += [*self._model_state(model, now), Unload(model)]
        return commands

    def _limit_memory(self, bytes_max: int | None, now: float) -> list[Command]:
        """What was promised stays promised; kept caches go for it, and nothing new is taken beyond it."""
        self._memory.limit(bytes_max)
        return [*self._clear(self._memory.relieve(), now), *self._heartbeat(now)]

    def _load(self, now: float) -> list[Command]:
        """Begin the next load if none is under way. The heartbeat that announces it comes before the engine pauses."""
        if not self._models.may_load:
            return []
        commands: list[Command] = []
        demanded = self._queue.models()
        while (model := self._models.next(demanded)) is not None:
            if self._draining and model not in demanded:
                break
            weights_bytes = self._models.weights_bytes(model)
            below = None if model in demanded else self._models.priority(model)
            room = self._make_room(weights_bytes, model, now, below)
            if room is not None:
                self._models.begin(model)
                self._memory.hold_weights(model, weights_bytes)
                return [*commands, *room, *self._model_state(model, now), Load(model)]
            commands += self._no_room(model, weights_bytes, now)
            demanded = self._queue.models()
        return commands

    def _no_room(self, model: str, weights_bytes: int, now: float) -> list[Command]:
        """A model that can never fit has failed. One that only others keep out now may be asked for again."""
        reason = f"its weights need {weights_bytes} bytes of {self._memory.bytes_max}, and that much is not free"
        if self._memory.exceeds(weights_bytes):
            return self._model_failed(model, reason, Code.RESOURCE_LIMIT_EXCEEDED, now)
        self._models.postpone(model)
        event = event_row(now, "model_state", self.name, detail=f"{model} cold: {reason}")
        return [event, *self._refuse_waiting(model, Code.RESOURCE_LIMIT_EXCEEDED, now)]

    def _prewarm(self, model: str, priority: int, now: float) -> list[Command]:
        revived = self._models.prewarm(model, priority)
        return self._model_state(model, now) if revived else []

    def _model_loaded(self, loaded: ModelLoaded, now: float) -> list[Command]:
        """Its sizes are known now: what waits for it gets its reservation, or is refused."""
        model = loaded.model
        self._engine.news(now)
        self._models.loaded(model, loaded.weights_bytes, loaded.kv_bytes_per_token, loaded.kv_tokens_step)
        self._memory.hold_weights(model, self._models.weights_bytes(model))
        commands: list[Command] = [timing_row(now, self.name, loaded)]
        room = self._make_room(0, model, now)
        if room is None:
            reason = f"it takes {self._models.weights_bytes(model)} bytes, and that much is not free"
            failed = self._model_failed(model, reason, Code.RESOURCE_LIMIT_EXCEEDED, now)
            return [*commands, Unload(model), *failed]
        commands += [*room, *self._model_state(model, now)]
        for work in self._queue.works():
            if work.dispatch.model == model:
                commands += self._promise(work, now)
        return commands

    def _promise(self, work: Work, now: float) -> list[Command]:
        """Reserve for an attempt that was taken before the sizes of its model were known."""
        dispatch = work.dispatch
        self._memory.reserve(dispatch.attempt, 0)
        room = self._make_room(self._kv_bytes(dispatch), dispatch.model, now)
        if room is not None:
            self._memory.reserve(dispatch.attempt, self._kv_bytes(dispatch))
            return room
        self._queue.take(dispatch.attempt)
        self._close(work)
        return self._refuse(work, Code.RESOURCE_LIMIT_EXCEEDED, now)

    def _model_failed(self, model: str, reason: str, code: Code, now: float) -> list[Command]:
        self._engine.news(now)
        self._models.failed(model, reason, code)
        self._memory.free_weights(model)
        return [*self._model_state(model, now), *self._refuse_waiting(model, code, now)]

    def _refuse_waiting(self, model: str, code: Code, now: float) -> list[Command]:
        """Nobody need wait for this model any longer."""
        commands: list[Command] = []
        for work in self._queue.works():
            if work.dispatch.model == model:
                self._queue.take(work.dispatch.attempt)
                self._close(work)
                commands += self._refuse(work, code, now)
        return commands

    def _model_state(self, model: str, now: float) -> list[Command]:
        state = self._models.state(model)
        detail = f"{model} {state}" + (f": {self._models.failure(model)[0]}" if state == "failed" else "")
        return [event_row(now, "model_state", self.name, detail=detail), *self._heartbeat(now)]

    def _engine_died(self, reason: str, now: float) -> list[Command]:
        """All that it held is gone, and it comes back only with another process."""
        commands: list[Command] = [event_row(now, "engine_died", self.name, detail=reason)]
        news: list[tuple[Work, Chunk]] = []
        for work in list(self._open.values()):
            news.append((work, work.chunk(code=Code.ENGINE_ERROR)))
            commands += self._stop(work, "failed", Code.ENGINE_ERROR, now)
        self._models.engine_died(reason)
        self._engine.died()
        for state in self._models.states():
            self._memory.free_weights(state.model)
            self._cache.forget_model(state.model)
        return commands + self._tell(news, now) + self._heartbeat(now)

    # Time, link and controllers.

    def _wake(self, now: float) -> list[Command]:
        commands: list[Command] = []
        for key in self._timers.due(now):
            if isinstance(key, AttemptId):
                commands += self._stop(self._open[key.request_id], "withdrawn", Code.DEADLINE_EXCEEDED, now)
            else:
                commands += self._heartbeat(now)
        return commands

    def _heartbeat(self, now: float) -> list[Command]:
        self._timers.set(_HEARTBEAT, now + self._policy.membership.heartbeat_s)
        self._guard.forget(now)
        if not self._link:
            return []
        shares = Counter(work.dispatch.controller for work in self._open.values())
        heartbeat = Heartbeat(
            self.name,
            self.incarnation,
            now,
            self._models.states(),
            len(self._queue),
            len(self._batch),
            self._batch.batch_max,
            self._draining,
            self.engine_silent_s(now),
            self._memory.pressure(self._busy()),
            self._cache.tell(),
            tuple(shares.items()),
        )
        probing = self._models.computes and self._engine.probe(now, busy=bool(len(self._batch)))
        return [Send(EVERY_CONTROLLER, heartbeat), *([ProbeEngine()] if probing else [])]

    def _link_down(self, reason: str, now: float) -> list[Command]:
        """Tokens made from now on reach nobody, and a stream with a gap is worthless: free all slots."""
        self._link = False
        return [event_row(now, "link_down", self.name, detail=reason), *self._free_all(now)]

    def _free_all(self, now: float) -> list[Command]:
        commands: list[Command] = []
        for work in list(self._open.values()):
            commands += self._stop(work, "withdrawn", Code.STREAM_BROKEN, now)
        return commands

    def _controller_gone(self, controller: str, now: float) -> list[Command]:
        """Nobody reads the streams that it has asked for: free their slots, and say so, for it may be back by now."""
        commands: list[Command] = []
        news: list[tuple[Work, Chunk]] = []
        for work in list(self._open.values()):
            if work.dispatch.controller == controller:
                news.append((work, work.chunk(code=Code.STREAM_BROKEN)))
                commands += self._stop(work, "withdrawn", Code.STREAM_BROKEN, now)
        return [*commands, *self._tell(news, now)]

    def _tell(self, news: list[tuple[Work, Chunk]], now: float) -> list[Command]:
        """One report to each controller of what is new of the streams that it asked for."""
        return reports(self.name, self.incarnation, [(work.dispatch.controller, chunk) for work, chunk in news], now)

    def _row(self, work: Work, outcome: str, code: str, now: float) -> Record:
        return attempt_row(work, self.name, self.incarnation, outcome, code, now)
