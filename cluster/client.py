"""ClientNode: what a caller of the cluster must get right.

It owns the request id, the deadline, the order of tokens, cancellation, and resubmission: a client that has lost
contact with its controller (silence, no responders, a new incarnation) looks for any controller that answers, and
submits every open request there again under the same id and the next submission number, saying which tokens it
already has.
"""

from collections.abc import Sequence

from analysis.schema import EventRow, Gauges, RequestRow, Segment
from cluster.errors import TRAITS, Code
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
from cluster.policy import Policy
from cluster.protocol import (
    CONTROLLERS,
    EVERY_CONTROLLER,
    Accepted,
    Cancel,
    Chunk,
    ClockBound,
    Delivery,
    Ping,
    Pong,
    Submit,
    Token,
)
from cluster.timers import Timers

_PING = ""
"""Timer key of the next ping; request ids are never empty."""


class _Open:
    """A request whose end the caller has not been told yet."""

    __slots__ = (
        "accepted",
        "ask",
        "cached_tokens",
        "controller",
        "deadline_s",
        "first_token_s",
        "last_attempt",
        "news_s",
        "segments",
        "sent_s",
        "strays",
        "submission",
        "tokens",
        "waiting",
    )

    def __init__(self, ask: Ask) -> None:
        self.ask = ask
        self.deadline_s = ask.intended_s + ask.timeout_s
        self.submission = 0
        self.controller = ""
        self.sent_s: float | None = None
        self.news_s = 0.0
        self.accepted = False
        self.waiting = True
        self.first_token_s: float | None = None
        self.tokens: list[Token] = []
        self.segments: list[Segment] = []
        self.last_attempt = (0, 0)
        self.cached_tokens = 0
        self.strays = 0


class ClientNode:
    """Sans-IO client of the cluster. Callers send it `Ask` and `Abandon`, and get `Deliver` back."""

    def __init__(self, name: str, incarnation: int, policy: Policy) -> None:
        self.name = name
        self.incarnation = incarnation
        self._policy = policy
        self._controller = ""
        self._controller_incarnation = 0
        self._clock = ClockBound()
        self._link = False
        self._contact = False
        self._searching = False
        self._heard_s = 0.0
        self._open: dict[str, _Open] = {}
        self._timers: Timers[str] = Timers()
        self._tokens_delivered = 0

    def handle(self, event: Event, now: float) -> Sequence[Command]:
        """See cluster.node.Node."""
        match event:
            case Received(Delivery() as delivery):
                return self._delivery(delivery, now)
            case Received(Accepted(request_id, submission)):
                return self._accept(request_id, submission, now)
            case Received(Pong() as pong):
                return self._pong(pong, now)
            case Ask():
                return self._ask(event, now)
            case Abandon(request_id):
                return self._abandon(request_id, now)
            case Wake():
                return self._wake(now)
            case LinkUp():
                return self._link_up(now)
            case LinkDown(reason):
                self._link = False
                return [self._event(now, "link_down", detail=reason), *self._lose_contact(now, "link down")]
            case NoResponders(message=Submit() as submit) | SendFailed(message=Submit() as submit):
                return self._not_submitted(submit, now)
            case _:
                return []

    def next_wake(self) -> float | None:
        """See cluster.node.Node."""
        return self._timers.next()

    def gauges(self) -> Gauges:
        """See cluster.node.Node."""
        return Gauges(
            role="client",
            open_requests=len(self._open),
            open_requests_max=self._policy.client.open_requests_max,
            tokens_made=self._tokens_delivered,
        )

    def _ask(self, ask: Ask, now: float) -> list[Command]:
        if ask.request_id in self._open:
            raise ValueError(f"request id {ask.request_id!r} is open already")
        entry = _Open(ask)
        self._open[ask.request_id] = entry
        if len(self._open) > self._policy.client.open_requests_max:
            return self._end(entry, now, code=Code.OVERLOADED)
        self._timers.set(ask.request_id, entry.deadline_s)
        return self._submit(entry, now) if self._contact else []

    def _submit(self, entry: _Open, now: float) -> list[Command]:
        """Submit, or submit again; the caller has checked that there is contact."""
        if entry.submission > self._policy.client.resubmit_max:
            return []
        ask = entry.ask
        entry.submission += 1
        former, entry.controller = entry.controller, self._controller
        entry.waiting = False
        entry.accepted = False
        entry.news_s = now
        commands: list[Command] = []
        if entry.sent_s is None:
            entry.sent_s = now
        else:
            commands.append(self._event(now, "resubmitted", entry))
        if former not in ("", self._controller):
            # It may only be frozen or cut off: what it still does for this request is of no use to anybody.
            commands.append(Send(former, Cancel(self.name, ask.request_id)))
        submit = Submit(
            self.name,
            self._controller_incarnation,
            ask.request_id,
            entry.submission,
            ask.model,
            ask.prompt,
            tuple(entry.tokens),
            ask.max_tokens,
            self._clock.to_theirs(entry.deadline_s),
            ask.session_id,
            ask.priority,
            ask.sampling,
            ask.worker,
        )
        commands.append(Send(self._controller, submit, needs_responder=True))
        self._rearm(entry)
        return commands

    def _rearm(self, entry: _Open) -> None:
        """Wake for the deadline, or earlier when the controller owes us an answer."""
        due = entry.deadline_s
        if not entry.waiting:
            patience = self._policy.client.silence_s if entry.accepted else self._policy.client.accept_s
            due = min(due, entry.news_s + patience)
        self._timers.set(entry.ask.request_id, due)

    def _accept(self, request_id: str, submission: int, now: float) -> list[Command]:
        entry = self._open.get(request_id)
        if entry is not None and entry.submission == submission:
            # Again and again for a request that waits in line: the controller has it, late as its word may be.
            entry.accepted = True
            entry.waiting = entry.waiting and not self._contact
            entry.news_s = now
            self._rearm(entry)
        return []

    def _pong(self, pong: Pong, now: float) -> list[Command]:
        same = pong.controller == self._controller
        if same and pong.incarnation < self._controller_incarnation:
            return []
        if not same and self._contact:
            return []  # a second answer to our search: we have a controller
        if not same or pong.incarnation > self._controller_incarnation:
            self._controller = pong.controller
            self._controller_incarnation = pong.incarnation
            self._clock = ClockBound()
            for entry in self._open.values():
                entry.waiting = True
        self._clock.observe(pong.sent_s, now)
        self._heard_s = now
        self._contact = self._link
        self._searching = False
        commands: list[Command] = []
        if self._contact:
            for entry in list(self._open.values()):
                if entry.waiting and now < entry.deadline_s:
                    commands += self._submit(entry, now)
        return commands

    def _link_up(self, now: float) -> list[Command]:
        self._link = True
        self._searching = False
        return [self._event(now, "link_up"), *self._ping(now)]

    def _ping(self, now: float) -> list[Command]:
        self._timers.set(_PING, now + self._policy.client.ping_s)
        # The broker may hand a search to a frozen controller: one without an answer goes to all of them.
        search = EVERY_CONTROLLER if self._searching else CONTROLLERS
        to = self._controller if self._contact else self._policy.client.controller or search
        self._searching = self._link and not self._contact
        return [Send(to, Ping(self.name))] if self._link else []

    def _lose_contact(self, now: float, why: str) -> list[Command]:
        """From now on requests wait for the next pong, and then are all submitted again."""
        for entry in self._open.values():
            entry.waiting = True
            self._rearm(entry)
        if not self._contact:
            return []
        self._contact = False
        return [self._event(now, "contact_lost", subject=self._controller, detail=why)]

    def _not_submitted(self, submit: Submit, now: float) -> list[Command]:
        entry = self._open.get(submit.request_id)
        if entry is not None and entry.submission == submit.submission:
            entry.waiting = True
            self._rearm(entry)
        lost = self._lose_contact(now, "the controller's subject has no subscriber")
        return [*lost, *self._ping(now)] if lost else []

    def _wake(self, now: float) -> list[Command]:
        commands: list[Command] = []
        for key in self._timers.due(now):
            if key == _PING:
                silent_s = now - self._heard_s
                if self._contact and silent_s > self._policy.client.contact_lost_s:
                    commands += self._lose_contact(now, f"no pong for {silent_s:.2f} s")
                commands += self._ping(now)
                continue
            entry = self._open[key]
            if now >= entry.deadline_s:
                commands += self._expire(entry, now)
            else:
                # Accepted or not, the answer is overdue: the next pong submits the request again.
                entry.waiting = True
                self._rearm(entry)
        return commands

    def _expire(self, entry: _Open, now: float) -> list[Command]:
        code = Code.DEADLINE_EXCEEDED if self._contact else Code.CONTROLLER_UNREACHABLE
        return [*self._cancel(entry), *self._end(entry, now, code=code)]

    def _abandon(self, request_id: str, now: float) -> list[Command]:
        entry = self._open.get(request_id)
        if entry is None:
            return []
        return [*self._cancel(entry), *self._end(entry, now, code=Code.CANCELLED)]

    def _cancel(self, entry: _Open) -> list[Command]:
        if entry.submission == 0 or not self._link:
            return []
        return [Send(entry.controller, Cancel(self.name, entry.ask.request_id))]

    def _delivery(self, delivery: Delivery, now: float) -> list[Command]:
        commands: list[Command] = []
        for submission, chunk in delivery.chunks:
            entry = self._open.get(chunk.attempt.request_id)
            if entry is None:
                commands.append(self._stray(chunk, now))
            elif submission != entry.submission or _order(chunk) < entry.last_attempt:
                entry.strays += 1
            else:
                commands += self._take(entry, chunk, now)
        return commands

    def _take(self, entry: _Open, chunk: Chunk, now: float) -> list[Command]:
        """Append what is new in the chunk; a gap means that a part was lost on the way to us."""
        known = len(entry.tokens)
        if chunk.index > known:
            entry.waiting = True
            return self._submit(entry, now) if self._contact else []
        new = chunk.tokens[known - chunk.index :]
        if chunk.tokens and not new and chunk.finish is None:
            entry.strays += 1
            return []
        entry.accepted = True
        entry.waiting = False
        entry.news_s = now
        entry.last_attempt = _order(chunk)
        if new:
            if entry.first_token_s is None:
                entry.first_token_s = now
                entry.cached_tokens = chunk.cached_tokens
            entry.tokens += new
            self._tokens_delivered += len(new)
            submission, attempt = _order(chunk)
            entry.segments.append(
                Segment(known, len(new), submission, attempt, chunk.worker, chunk.worker_incarnation, now)
            )
        if chunk.finish is not None or chunk.code is not None:
            return self._end(entry, now, tokens=new, finish=chunk.finish, code=chunk.code)
        self._rearm(entry)
        return [Deliver(entry.ask.request_id, new, len(entry.tokens), cached_tokens=entry.cached_tokens)]

    def _end(
        self,
        entry: _Open,
        now: float,
        tokens: tuple[Token, ...] = (),
        finish: str | None = None,
        code: str | None = None,
    ) -> list[Command]:
        ask = entry.ask
        del self._open[ask.request_id]
        self._timers.clear(ask.request_id)
        row = RequestRow(
            request_id=ask.request_id,
            model=ask.model,
            session_id=ask.session_id or "",
            turn=ask.turn,
            prompt_id=ask.prompt_id,
            prompt_tokens=len(ask.prompt),
            max_tokens=ask.max_tokens,
            intended_s=ask.intended_s,
            # A request that never left still has a place in time: its end.
            sent_s=now if entry.sent_s is None else entry.sent_s,
            first_token_s=entry.first_token_s,
            ended_s=now,
            deadline_s=entry.deadline_s,
            outcome=_outcome(code),
            code=code or "",
            finish=finish or "",
            submissions=entry.submission,
            cached_tokens=entry.cached_tokens,
            strays=entry.strays,
            tokens=entry.tokens,
            segments=entry.segments,
        )
        return [Record(row), Deliver(ask.request_id, tokens, len(entry.tokens), finish, code, entry.cached_tokens)]

    def _stray(self, chunk: Chunk, now: float) -> Record:
        submission, attempt = _order(chunk)
        return Record(EventRow(now, "stray_chunk", chunk.worker, chunk.attempt.request_id, submission, attempt))

    def _event(
        self, now: float, kind: str, entry: _Open | None = None, subject: str | None = None, detail: str = ""
    ) -> Record:
        request_id = entry.ask.request_id if entry is not None else ""
        submission = entry.submission if entry is not None else 0
        return Record(EventRow(now, kind, self.name if subject is None else subject, request_id, submission, 0, detail))


def _order(chunk: Chunk) -> tuple[int, int]:
    return chunk.attempt.submission, chunk.attempt.attempt


def _outcome(code: str | None) -> str:
    if code is None:
        return "completed"
    if code == Code.CANCELLED:
        return "cancelled"
    return "refused" if TRAITS[Code(code)].refusal else "failed"
