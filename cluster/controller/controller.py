"""ControllerNode: takes requests from clients, gives attempts to workers, and hands every token on exactly once."""

from collections.abc import Sequence
from random import Random

from analysis.schema import Gauges
from cluster.controller.admission import refusal
from cluster.controller.breaker import BreakerState
from cluster.controller.ledger import Attempt, Entry, Ledger
from cluster.controller.membership import Change, Liveness
from cluster.controller.retry import RetryHandler
from cluster.controller.rows import attempt_ended, event, stale_report
from cluster.controller.service_time import ServiceTimes
from cluster.controller.sessions import SessionRegistry
from cluster.controller.timeouts import TimeoutHandler
from cluster.controller.waiting import Line, WaitingRoom, line_of
from cluster.controller.workforce import Workforce
from cluster.errors import TRAITS, Code
from cluster.guard import DuplicateGuard
from cluster.node import (
    Command,
    Event,
    LinkDown,
    LinkUp,
    NoResponders,
    Received,
    Send,
    SendFailed,
    Stopping,
    Wake,
)
from cluster.policy import Policy
from cluster.protocol import (
    VERSION,
    Accepted,
    AttemptId,
    Cancel,
    Chunk,
    Delivery,
    Dispatch,
    Heartbeat,
    Ping,
    Pong,
    StreamReport,
    Submit,
    Withdraw,
)


class ControllerNode:
    """Sans-IO controller. A new incarnation learns its workers, and which sessions they hold, from their heartbeats.

    Several controllers may serve the same workers. They do not talk to each other: each hears every heartbeat, which
    also says how much the others have given to the worker.
    """

    def __init__(self, name: str, incarnation: int, policy: Policy, random: Random) -> None:
        self.name = name
        self.incarnation = incarnation
        self._policy = policy
        self._workforce = Workforce(name, policy)
        self._membership = self._workforce.membership
        self._breakers = self._workforce.breakers
        self._guard = DuplicateGuard()
        self._ledger = Ledger(policy.routing.requests_max)
        self._waiting = WaitingRoom(policy.worker.ageing_s)
        self._sessions = SessionRegistry(policy.routing.sessions_max, policy.routing.session_ttl_s)
        self._retries = RetryHandler(policy.retry, random)
        # Half of a client's patience: a word may be late, or lost once.
        self._timeouts = TimeoutHandler(policy.timeout, policy.client.silence_s / 2)
        self._service = ServiceTimes()
        self._link = False
        self._settled_s = float("inf")
        self._tokens_delivered = 0
        self._migrations = 0

    def handle(self, event: Event, now: float) -> Sequence[Command]:
        """See cluster.node.Node."""
        match event:
            case Received(StreamReport() as report):
                return [*self._report(report, now), *self._fill(now)]
            case Received(Heartbeat() as heartbeat):
                return [*self._heartbeat(heartbeat, now), *self._fill(now)]
            case Received(Submit() as submit):
                return self._submit(submit, now)
            case Received(Ping(client)):
                return [Send(client, Pong(self.name, self.incarnation, now))]
            case Received(Cancel(_, request_id)):
                return [*self._cancel(request_id, now), *self._fill(now)]
            case Wake():
                return [*self._wake(now), *self._fill(now)]
            case LinkUp():
                return self._link_up(now)
            case LinkDown(reason):
                return self._link_down(reason, now)
            case Stopping():
                return self._give_up_attempts(now)
            case NoResponders(to, Dispatch() as dispatch):
                changes = self._changes(self._membership.unreachable(to, now), now)
                return [*changes, *self._attempt_lost(dispatch.attempt, Code.WORKER_UNREACHABLE, now), *self._fill(now)]
            case SendFailed(_, Dispatch() as dispatch):
                return self._attempt_lost(dispatch.attempt, Code.CONTROLLER_UNREACHABLE, now)
            case _:
                return []

    def next_wake(self) -> float | None:
        """See cluster.node.Node."""
        timeout_s, sweep_s = self._timeouts.next(), self._membership.next_sweep()
        if timeout_s is None or sweep_s is None:
            return sweep_s if timeout_s is None else timeout_s
        return min(timeout_s, sweep_s)

    def gauges(self) -> Gauges:
        """See cluster.node.Node."""
        return Gauges(
            role="controller",
            queue_depth=len(self._waiting),
            queue_max=self._policy.routing.requests_max,
            active=self._workforce.outstanding,
            open_requests=len(self._ledger),
            open_requests_max=self._policy.routing.requests_max,
            workers_ready=self._workforce.ready,
            breakers_open=sum(breaker.state is not BreakerState.CLOSED for breaker in self._breakers.values()),
            tokens_made=self._tokens_delivered,
            sessions=len(self._sessions),
            sessions_max=self._policy.routing.sessions_max,
            session_hits=self._sessions.hits,
            session_misses=self._sessions.misses,
            session_moves=self._sessions.moves,
            retries=self._retries.retries,
            migrations=self._migrations,
            breaker_trips=sum(breaker.trips for breaker in self._breakers.values()),
        )

    def workers(self) -> dict[str, tuple[str, str]]:
        """Liveness and breaker state of every known worker, for people who watch."""
        return self._workforce.states()

    def incarnations(self) -> dict[str, int]:
        """The newest incarnation that it has heard of every known worker, for people who watch."""
        return {worker: member.heartbeat.incarnation for worker, member in self._membership.members.items()}

    def warm_workers(self, model: str) -> int:
        """How many workers could start a request for `model` at once."""
        return len(self._workforce.warm(model))

    def _link_up(self, now: float) -> list[Command]:
        self._link = True
        # Until every worker has had time for a heartbeat, an empty membership means ignorance, not an empty cluster.
        self._settled_s = now + 2 * self._policy.membership.heartbeat_s
        self._membership.see_again(now)
        commands: list[Command] = [event(now, "link_up", self.name)]
        for entry in self._ledger.entries():
            if entry.attempt is None:
                commands += self._dispatch(entry, now)
        return commands

    def _link_down(self, reason: str, now: float) -> list[Command]:
        """Give up all attempts without blame: their tokens are lost on the way to us, and workers give them up too."""
        self._link = False
        self._membership.go_blind()
        given_up = self._give_up_attempts(now)
        # What failed while our own link was silent was not the workers' fault.
        return [event(now, "link_down", self.name, detail=reason), *given_up, *self._workforce.pardon(now)]

    def _give_up_attempts(self, now: float) -> list[Command]:
        commands: list[Command] = []
        for entry in self._ledger.entries():
            if entry.attempt is not None:
                commands += self._close_attempt(entry, "failed", Code.CONTROLLER_UNREACHABLE, now)
                commands += self._park(entry, now)
        return commands

    def _submit(self, submit: Submit, now: float) -> list[Command]:
        if submit.controller_incarnation != self.incarnation:
            # Its deadline is in another clock; the pong tells the client who we are, and it submits again.
            return [Send(submit.client, Pong(self.name, self.incarnation, now))]
        entry = self._ledger.get(submit.request_id)
        fresh = self._guard.admit(AttemptId(submit.request_id, submit.submission, 0), submit.deadline_s, now)
        if entry is not None:
            return self._resume(entry, submit, now)
        if not fresh:
            # Held back on its way, and the request has ended meanwhile: nobody waits for another execution.
            return []
        entry = Entry(submit, now)
        code = refusal(submit, self._ledger, self._membership, now)
        if code is not None:
            return [self._failure(entry, code)]
        self._ledger.add(entry)
        self._retries.request_arrived()
        return [
            event(now, "request_accepted", submit.client, submit.request_id, submit.submission),
            Send(submit.client, Accepted(submit.request_id, submit.submission)),
            *self._enter(entry, now),
        ]

    def _resume(self, entry: Entry, submit: Submit, now: float) -> list[Command]:
        """The client asks again for a request that is running: continue, and send what it has missed."""
        if not entry.accepts(submit):
            return [self._failure(Entry(submit, now), Code.INVALID_REQUEST)]
        commands: list[Command] = []
        if submit.submission > entry.submit.submission:
            if entry.resume(submit) and entry.attempt is not None:
                commands += self._withdraw(entry, "superseded", "", now)
                commands += self._dispatch(entry, now)
            parts = tuple((submit.submission, chunk) for chunk in entry.after(len(submit.delivered)))
            if parts:
                commands.append(Send(submit.client, Delivery(self.incarnation, parts)))
            commands.append(event(now, "request_resumed", submit.client, entry.id, submit.submission))
        return [Send(submit.client, Accepted(entry.id, entry.submit.submission)), *commands]

    def _enter(self, entry: Entry, now: float) -> list[Command]:
        """A new request goes to a worker, or behind those who wait for one already."""
        if self._waiting.first(line_of(entry)) is None:
            return self._dispatch(entry, now)
        self._waiting.add(entry)
        self._timeouts.arm(entry)
        return self._fill(now)

    def _fill(self, now: float) -> list[Command]:
        """Give free places to those who wait, as far as the places go."""
        commands: list[Command] = []
        held_up: list[Line] = []
        while (entry := self._waiting.next(held_up)) is not None:
            if self._service.is_hopeless(entry, now):
                commands += self._end(entry, Code.DEADLINE_EXCEEDED, now)
                continue
            commands += self._dispatch(entry, now)
            if entry in self._waiting:
                held_up.append(line_of(entry))
        return commands

    def _dispatch(self, entry: Entry, now: float) -> list[Command]:
        """Start the next attempt, or arrange for what happens when nobody can take it."""
        entry.retry_s = None
        if not self._link:
            return self._park(entry, now)
        session = entry.submit.session_id
        preferred = self._sessions.preferred(session, now) if session is not None else None
        worker, commands = self._workforce.pick(entry, preferred, now)
        if worker is None:
            return commands + self._nobody(entry, now)
        self._waiting.discard(entry)
        member = self._membership.members[worker]
        attempt = entry.begin_attempt(worker, member.heartbeat.incarnation, now)
        commands += self._workforce.began(attempt, now)
        if session is not None:
            self._sessions.served(session, worker, now)
        self._timeouts.arm(entry)
        dispatch = entry.dispatch(attempt, self.name, member.clock.to_theirs(entry.deadline_s))
        return [*commands, Send(worker, dispatch, needs_responder=True)]

    def _nobody(self, entry: Entry, now: float) -> list[Command]:
        if self._workforce.is_only_full(entry):
            if entry in self._waiting:
                self._timeouts.arm(entry)
            else:
                self._waiting.add(entry)
                self._await_turn(entry, now)
            return []
        self._waiting.discard(entry)
        if now < self._settled_s:
            entry.retry_s = self._settled_s
            self._timeouts.arm(entry)
            return []
        serving = self._workforce.serving(entry.submit.model)
        if entry.hold_until_s is None:
            entry.hold_until_s = now + self._policy.routing.hold_s
        if serving and now < entry.hold_until_s:
            # Somebody could take it but for an open breaker, memory, or its own exclusions: that may pass.
            entry.retry_s = now + self._policy.routing.hold_poll_s
            self._timeouts.arm(entry)
            return []
        return self._retry_or_end(entry, entry.last_code or self._workforce.shortage(serving), now)

    def _park(self, entry: Entry, now: float) -> list[Command]:
        """Wait for our own link; only the deadline ends it earlier."""
        entry.retry_s = None
        self._waiting.discard(entry)
        self._await_turn(entry, now)
        return []

    def _heartbeat(self, heartbeat: Heartbeat, now: float) -> list[Command]:
        stranger = self._membership.estranged(heartbeat)
        if stranger is not False:
            detail = f"protocol {heartbeat.version}, ours is {VERSION}"
            return [event(now, "worker_incompatible", heartbeat.worker, detail=detail)] if stranger else []
        # Here and not at a wake-up: while all heartbeats come in time there may be none.
        self._guard.forget(now)
        changes = self._membership.heard(heartbeat, now)
        self._workforce.changed(heartbeat.worker)
        commands = self._changes(changes, now)
        self._sessions.told(heartbeat.worker, heartbeat.sessions, now)
        return commands

    def _report(self, report: StreamReport, now: float) -> list[Command]:
        self._membership.heard_report(report.worker, report.incarnation, report.sent_s, now)
        commands: list[Command] = []
        news: dict[str, list[tuple[int, Chunk]]] = {}
        for chunk in report.chunks:
            entry = self._ledger.get(chunk.attempt.request_id)
            if entry is None or entry.attempt is None or entry.attempt.id != chunk.attempt:
                commands += stale_report(report.worker, chunk, now)
            elif chunk.index > len(entry.tokens):
                commands += self._attempt_failed(entry, Code.STREAM_BROKEN, now)
            elif chunk.index == len(entry.tokens):  # what comes twice is known already
                commands += self._progress(entry, entry.attempt, chunk, news, now)
        deliveries = [Send(client, Delivery(self.incarnation, tuple(parts))) for client, parts in news.items()]
        return [*deliveries, *commands]

    def _progress(
        self, entry: Entry, attempt: Attempt, chunk: Chunk, news: dict[str, list[tuple[int, Chunk]]], now: float
    ) -> list[Command]:
        """Take a chunk of the present attempt; what goes to the client is added to `news`."""
        told = entry.take(chunk, attempt, now)
        self._tokens_delivered += len(chunk.tokens)
        if chunk.tokens or chunk.finish is not None:
            news.setdefault(entry.submit.client, []).append((entry.submit.submission, told))
        if chunk.finish is not None:
            self._service.completed(entry.submit.model, attempt, now)
            judged = self._workforce.succeeded(attempt, now)
            closed = self._close_attempt(entry, "completed", "", now)
            self._forget(entry)
            return [*closed, *judged]
        if chunk.code is not None:
            return self._attempt_failed(entry, Code(chunk.code), now, told_by_worker=True)
        self._timeouts.arm(entry)
        return []

    def _attempt_lost(self, attempt_id: AttemptId, code: Code, now: float) -> list[Command]:
        entry = self._ledger.get(attempt_id.request_id)
        if entry is None or entry.attempt is None or entry.attempt.id != attempt_id:
            return []
        if code is Code.CONTROLLER_UNREACHABLE:
            return [*self._close_attempt(entry, "failed", code, now), *self._park(entry, now)]
        return self._attempt_failed(entry, code, now)

    def _attempt_failed(self, entry: Entry, code: Code, now: float, told_by_worker: bool = False) -> list[Command]:
        """End the present attempt with `code`; try elsewhere, or end the request."""
        assert entry.attempt is not None
        attempt = entry.attempt
        worker, broken = attempt.worker, attempt.first_token_s is not None
        outcome = "refused" if TRAITS[code].refusal else "failed"
        if told_by_worker:
            commands = self._close_attempt(entry, outcome, code, now)
        else:
            commands = self._withdraw(entry, outcome, code, now)
        if self._policy.retry.exclude_failed:
            entry.excluded += (worker,)
        entry.last_code = code
        if TRAITS[code].blames_worker:
            commands += self._workforce.failed(attempt, code, now)
        if broken and not self._policy.stream.migration:
            return commands + self._end(entry, code, now)
        return commands + self._retry_or_end(entry, code, now)

    def _retry_or_end(self, entry: Entry, code: Code, now: float) -> list[Command]:
        entry.tries += 1
        retry_s = self._retries.plan(code, entry.tries, now, entry.deadline_s)
        if retry_s is None:
            return self._end(entry, code, now)
        entry.retry_s = retry_s
        self._timeouts.arm(entry)
        kind = "migration" if entry.tokens else "retry"
        self._migrations += bool(entry.tokens)
        return [event(now, kind, self.name, entry.id, entry.submit.submission, entry.attempts_made, code)]

    def _withdraw(self, entry: Entry, outcome: str, code: str, now: float) -> list[Command]:
        assert entry.attempt is not None
        withdraw = Send(entry.attempt.worker, Withdraw(entry.attempt.id))
        return [*([withdraw] if self._link else []), *self._close_attempt(entry, outcome, code, now)]

    def _close_attempt(self, entry: Entry, outcome: str, code: str, now: float) -> list[Command]:
        attempt = entry.attempt
        assert attempt is not None
        entry.attempt = None
        self._workforce.ended(attempt, outcome, code)
        return [attempt_ended(entry, attempt, outcome, code, now)]

    def _end(self, entry: Entry, code: Code, now: float) -> list[Command]:
        """The request ends with an error."""
        commands: list[Command] = []
        if entry.attempt is not None:
            commands = self._withdraw(entry, "withdrawn", code, now)
        self._forget(entry)
        return [*commands, self._failure(entry, code)]

    def _failure(self, entry: Entry, code: Code) -> Send:
        submit = entry.submit
        chunk = Chunk(AttemptId(entry.id, submit.submission, entry.attempts_made), len(entry.tokens), code=code)
        return Send(submit.client, Delivery(self.incarnation, ((submit.submission, chunk),)))

    def _forget(self, entry: Entry) -> None:
        self._timeouts.disarm(entry)
        self._waiting.discard(entry)
        self._ledger.remove(entry)

    def _cancel(self, request_id: str, now: float) -> list[Command]:
        entry = self._ledger.get(request_id)
        if entry is None:
            return []
        commands: list[Command] = []
        if entry.attempt is not None:
            commands = self._withdraw(entry, "withdrawn", Code.CANCELLED, now)
        self._forget(entry)
        return commands

    def _wake(self, now: float) -> list[Command]:
        commands = self._changes(self._membership.sweep(now), now)
        for request_id in self._timeouts.due(now):
            entry = self._ledger.get(request_id)
            assert entry is not None
            code = self._timeouts.expired(entry, now)
            if code is Code.DEADLINE_EXCEEDED:
                if entry.attempt is not None:
                    self._service.expired(entry.submit.model, entry.attempt, now)
                commands += self._end(entry, code, now)
            elif code is not None:
                commands += self._silent(entry, code, now)
            elif entry.attempt is not None:
                self._timeouts.arm(entry)
            elif entry.retry_s is not None:
                commands += self._dispatch(entry, now)
            else:
                commands += self._reassure(entry, now)
        return commands

    def _await_turn(self, entry: Entry, now: float) -> None:
        """From now on the request waits, and its client is told so again and again."""
        entry.told_s = now
        self._timeouts.arm(entry)

    def _reassure(self, entry: Entry, now: float) -> list[Command]:
        """Tell the client of a request that waits that we still have it.

        Without a word everybody who waits in a long line would submit again at once, and the line grow by it.
        """
        self._await_turn(entry, now)
        return [Send(entry.submit.client, Accepted(entry.id, entry.submit.submission))] if self._link else []

    def _silent(self, entry: Entry, code: Code, now: float) -> list[Command]:
        """The attempt's patience is over. A load stops all streams of its worker: then it gets as much time again."""
        assert entry.attempt is not None
        if not self._workforce.is_loading(entry.attempt, now):
            return self._attempt_failed(entry, code, now)
        entry.attempt.news_s = now
        self._timeouts.arm(entry)
        return []

    def _changes(self, changes: list[Change], now: float) -> list[Command]:
        commands: list[Command] = []
        for change in changes:
            worker = change.worker
            if change.forgotten:
                self._workforce.forget(worker)
                self._sessions.forget_worker(worker)
                commands.append(event(now, "worker_forgotten", worker, detail=change.reason))
                continue
            self._workforce.changed(worker)
            if change.joined:
                incarnation = self._membership.members[worker].heartbeat.incarnation
                commands.append(event(now, "worker_joined", worker, detail=f"incarnation {incarnation}"))
            if change.restarted:
                self._sessions.forget_worker(worker)
            if change.restarted or change.liveness is Liveness.DEAD:
                commands += self._lose_worker(worker, now)
            commands.append(event(now, f"worker_{change.liveness}", worker, detail=change.reason))
        return commands

    def _lose_worker(self, worker: str, now: float) -> list[Command]:
        commands: list[Command] = []
        for entry in self._ledger.entries():
            if entry.attempt is not None and entry.attempt.worker == worker:
                commands += self._attempt_failed(entry, Code.WORKER_LOST, now)
        return commands
