"""Bugs of the controller."""

from collections.abc import Sequence
from typing import Any

import msgspec

from cluster.controller.breaker import BreakerState, CircuitBreaker
from cluster.controller.controller import ControllerNode
from cluster.controller.ledger import Entry, Ledger
from cluster.controller.membership import Liveness, Member, Membership
from cluster.controller.retry import RetryHandler
from cluster.controller.sessions import SessionRegistry
from cluster.controller.timeouts import TimeoutHandler
from cluster.controller.waiting import WaitingRoom
from cluster.controller.workforce import Workforce
from cluster.errors import Code
from cluster.guard import DuplicateGuard
from cluster.node import Event, NoResponders
from cluster.protocol import AttemptId, ClockBound
from tests.mutants.mutant import Mutant, Patch


def _forgets_exclusions(original: Any, self: ControllerNode, entry: Entry, *rest: Any, **named: Any) -> Any:
    commands = original(self, entry, *rest, **named)
    entry.excluded = ()
    return commands


def _always_pays(original: Any, self: RetryHandler, *rest: Any) -> Any:
    self._tokens = float(self._policy.budget_burst)
    return original(self, *rest)


def _by_sender_clock(original: Any, self: Membership, worker: str, member: Member, sent_s: float, now: float) -> None:
    original(self, worker, member, sent_s, now)
    if now - sent_s > self._policy.suspect_after_s:
        member.liveness = Liveness.SUSPECTED


def _unless_open(original: Any, self: CircuitBreaker) -> bool:
    return self.state is not BreakerState.OPEN


def _keeps_failures(original: Any, self: CircuitBreaker, attempt: AttemptId) -> Any:
    failures = self._failures
    state = original(self, attempt)
    self._failures = failures
    return state


def _leaks_failed(original: Any, self: Workforce, attempt: Any, outcome: str, code: str) -> None:
    original(self, attempt, outcome, code)
    if outcome == "failed":
        self._outstanding[attempt.worker] += 1


def _any_attempt_will_do(original: Any, self: ControllerNode, report: Any, now: float) -> Any:
    """Chunks are told apart by their request alone."""
    chunks = []
    for chunk in report.chunks:
        entry = self._ledger.get(chunk.attempt.request_id)
        if entry is not None and entry.attempt is not None:
            chunk = msgspec.structs.replace(chunk, attempt=entry.attempt.id)
        chunks.append(chunk)
    return original(self, msgspec.structs.replace(report, chunks=tuple(chunks)), now)


def _renumbered(self: ControllerNode, report: Any, wrong: Any) -> Any:
    """The report with chunks of present attempts said to be just where the stream stands, where `wrong` says so."""
    known: dict[str, int] = {}
    chunks = []
    for chunk in report.chunks:
        entry = self._ledger.get(chunk.attempt.request_id)
        if entry is not None and entry.attempt is not None and entry.attempt.id == chunk.attempt:
            at = known.get(entry.id, len(entry.tokens))
            if wrong(chunk.index, at):
                chunk = msgspec.structs.replace(chunk, index=at)
            known[entry.id] = max(at, chunk.index + len(chunk.tokens))
        chunks.append(chunk)
    return msgspec.structs.replace(report, chunks=tuple(chunks))


def _overlooks_gaps(original: Any, self: ControllerNode, report: Any, now: float) -> Any:
    return original(self, _renumbered(self, report, lambda index, known: index > known), now)


def _takes_twice(original: Any, self: ControllerNode, report: Any, now: float) -> Any:
    return original(self, _renumbered(self, report, lambda index, known: index < known), now)


def _admits_all(original: Any, self: DuplicateGuard, *rest: Any) -> bool:
    original(self, *rest)
    return True


def _own_clock(original: Any, self: ClockBound, time_s: float) -> float:
    return time_s


def _last_come(original: Any, self: WaitingRoom, line: Any) -> Any:
    waiting = [entry for entry, own in self._waiting.values() if own == line]
    if not waiting:
        return None
    last = max(waiting, key=lambda entry: entry.accepted_s)
    return (-last.accepted_s, last.id)


def _known_incarnation_only(original: Any, self: Membership, heartbeat: Any, now: float) -> Any:
    member = self.members.get(heartbeat.worker)
    if member is not None and member.heartbeat.incarnation != heartbeat.incarnation:
        return []
    return original(self, heartbeat, now)


def _deadline_only(original: Any, self: TimeoutHandler, entry: Entry, now: float) -> Any:
    code = original(self, entry, now)
    return code if code is Code.DEADLINE_EXCEEDED else None


def _arms_deadline_only(original: Any, self: TimeoutHandler, entry: Entry) -> None:
    if entry.attempt is not None:
        self._timers.set(entry.id, entry.deadline_s)
    else:
        original(self, entry)


def _keeps_holder(original: Any, holder: Any, best: Any, slack: int) -> bool:
    return True


def _serves_if_alive(original: Any, self: Member, model: str) -> bool:
    return self.liveness is not Liveness.DEAD and model in self.warmth and not self.heartbeat.draining


def _blames_refused(original: Any, self: ControllerNode, entry: Entry, code: Code, now: float, **named: Any) -> Any:
    attempt = entry.attempt
    commands = original(self, entry, code, now, **named)
    if code is Code.RESOURCE_LIMIT_EXCEEDED and attempt is not None:
        commands += self._workforce.failed(attempt, code, now)
    return commands


def _keeps_failed(original: Any, self: Ledger, entry: Entry) -> None:
    if entry.tries == 0:
        original(self, entry)


def _forgets_no_session(original: Any, self: SessionRegistry, *rest: Any) -> None:
    most, self._sessions_max = self._sessions_max, 1_000_000
    original(self, *rest)
    self._sessions_max = most


def _reuses_number(original: Any, self: Entry, *rest: Any) -> Any:
    self.attempts_made = 0
    return original(self, *rest)


def _skips_a_token(original: Any, self: Entry, index: int) -> Any:
    return original(self, index + 1)


def _deaf_to_no_responders(original: Any, self: ControllerNode, event: Event, now: float) -> Sequence[Any]:
    return [] if isinstance(event, NoResponders) else original(self, event, now)


def _forgets_the_first(original: Any, self: Entry, attempt: Any, controller: str, deadline_s: float) -> Any:
    whole = original(self, attempt, controller, deadline_s)
    return msgspec.structs.replace(whole, delivered=whole.delivered[1:])


def _ignores_silence(original: Any, self: Membership, now: float) -> Any:
    self._timers.due(now)
    return []


def _nothing(original: Any, *rest: Any, **named: Any) -> list[Any]:
    return []


def _none(original: Any, *rest: Any, **named: Any) -> None:
    return None


def mutants() -> list[Mutant]:
    """All of them."""
    from cluster.controller import routing

    node = ControllerNode
    return [
        Mutant(
            "retry_without_exclusion",
            "a worker on which a request has failed is asked for it again",
            (Patch(node, "_attempt_failed", _forgets_exclusions),),
            ("flaky",),
        ),
        Mutant(
            "retry_budget_ignored",
            "retries are granted whatever the budget says",
            (Patch(RetryHandler, "plan", _always_pays),),
            ("storm",),
        ),
        Mutant(
            "retry_budget_never_refilled",
            "new requests earn no retries",
            (Patch(RetryHandler, "request_arrived", _none),),
            ("a_few_failures", "flaky"),
        ),
        Mutant(
            "liveness_by_sender_clock",
            "a heartbeat is as old as the time in it says",
            (Patch(Membership, "_alive", _by_sender_clock),),
            ("skewed",),
        ),
        Mutant(
            "half_open_lets_all_through",
            "a half-open breaker lets everybody pass, not one probe",
            (Patch(CircuitBreaker, "allows", _unless_open),),
            ("lost_dispatches", "sick"),
        ),
        Mutant(
            "breaker_never_opens",
            "failures are counted and nothing follows",
            (Patch(CircuitBreaker, "failed", _none),),
            ("lost_dispatches", "sick"),
        ),
        Mutant(
            "breaker_never_closes",
            "a probe that succeeds changes nothing",
            (Patch(CircuitBreaker, "_probe_succeeded", _none),),
            ("sick", "lost_dispatches"),
        ),
        Mutant(
            "failures_not_reset",
            "a success leaves the breaker's count of failures in a row as it was",
            (Patch(CircuitBreaker, "succeeded", _keeps_failures),),
            ("a_few_failures",),
        ),
        Mutant(
            "outstanding_leaks",
            "a failed attempt goes on taking a place of its worker",
            (Patch(Workforce, "ended", _leaks_failed),),
            ("sick",),
        ),
        Mutant(
            "superseded_tokens_taken",
            "tokens of an attempt that was given up are taken for the present one's",
            (Patch(node, "_report", _any_attempt_will_do),),
            ("lost_withdrawals", "frozen"),
        ),
        Mutant(
            "controller_overlooks_gaps",
            "what comes after a lost report is taken as if nothing were missing",
            (Patch(node, "_report", _overlooks_gaps),),
            ("lost_reports",),
        ),
        Mutant(
            "controller_takes_twice",
            "a report that comes twice counts twice",
            (Patch(node, "_report", _takes_twice),),
            ("doubled",),
        ),
        Mutant(
            "duplicate_guard_removed",
            "an attempt that comes twice is admitted twice",
            (Patch(DuplicateGuard, "admit", _admits_all),),
            ("doubled",),
        ),
        Mutant(
            "deadline_in_senders_clock",
            "deadlines are sent in the sender's clock",
            (Patch(ClockBound, "to_theirs", _own_clock),),
            ("skewed_ahead", "skewed"),
        ),
        Mutant(
            "last_come_first_served",
            "who came last goes first, so the first wait until it is too late",
            (Patch(WaitingRoom, "_head", _last_come),),
            ("spike",),
        ),
        Mutant(
            "new_incarnation_ignored",
            "the ghost of a worker's old incarnation keeps its place",
            (Patch(Membership, "heard", _known_incarnation_only),),
            ("kill",),
        ),
        Mutant(
            "streams_of_the_dead_kept",
            "the streams of a dead worker are not given up",
            (Patch(node, "_lose_worker", _nothing),),
            ("kill_patient",),
        ),
        Mutant(
            "silent_streams_kept",
            "no timeout of an attempt ever fires",
            (Patch(TimeoutHandler, "expired", _deadline_only), Patch(TimeoutHandler, "arm", _arms_deadline_only)),
            ("lost_dispatches", "silent_engine"),
        ),
        Mutant(
            "sessions_stick",
            "a session stays with its worker however slow that has become",
            (Patch(routing, "_may_keep", _keeps_holder),),
            ("slow",),
        ),
        Mutant(
            "suspected_get_work",
            "a worker whose heartbeats are overdue goes on getting work",
            (Patch(Member, "serves", _serves_if_alive),),
            ("cut",),
        ),
        Mutant(
            "refusals_blamed",
            "a worker that is short of memory is blamed for saying so",
            (Patch(node, "_attempt_failed", _blames_refused),),
            ("short_of_memory",),
        ),
        Mutant(
            "ended_request_stays",
            "a request that was tried twice stays in the ledger after its end",
            (Patch(Ledger, "remove", _keeps_failed),),
            ("flaky",),
        ),
        Mutant(
            "sessions_unbounded",
            "remembered sessions are never forgotten",
            (Patch(SessionRegistry, "served", _forgets_no_session),),
            ("calm",),
        ),
        Mutant(
            "retry_reuses_its_number",
            "a retry goes under the number of the attempt that failed",
            (Patch(Entry, "begin_attempt", _reuses_number),),
            ("kill", "flaky"),
        ),
        Mutant(
            "resume_skips_a_token",
            "who submits again is sent what it misses but for one token",
            (Patch(Entry, "after", _skips_a_token),),
            ("lost_deliveries",),
        ),
        Mutant(
            "no_responders_ignored",
            "that nobody listens at a worker is not heeded",
            (Patch(node, "handle", _deaf_to_no_responders),),
            ("kill",),
        ),
        Mutant(
            "migration_leaves_out_a_token",
            "a stream goes on elsewhere from what was delivered but for its first token",
            (Patch(Entry, "dispatch", _forgets_the_first),),
            ("frozen", "cut"),
        ),
        Mutant(
            "silence_never_noticed",
            "overdue heartbeats are not looked at",
            (Patch(Membership, "sweep", _ignores_silence),),
            ("cut_without_breaker",),
        ),
    ]
