"""Workforce: the workers as the controller sees them, and which of them may take a request now."""

from cluster.controller.breaker import BreakerState, CircuitBreaker
from cluster.controller.ledger import Attempt, Entry
from cluster.controller.membership import Liveness, Membership, Warmth
from cluster.controller.routing import HARD, Candidate, choose
from cluster.controller.rows import breaker_change
from cluster.errors import TRAITS, Code
from cluster.node import Command
from cluster.policy import Policy


class Workforce:
    """Membership, circuit breakers and open attempts per worker."""

    def __init__(self, controller: str, policy: Policy) -> None:
        self.membership = Membership(policy.membership)
        self.breakers: dict[str, CircuitBreaker] = {}
        self._controller = controller
        self._policy = policy
        self._outstanding: dict[str, int] = {}

    @property
    def outstanding(self) -> int:
        """Attempts of ours that have not ended."""
        return sum(self._outstanding.values())

    @property
    def ready(self) -> int:
        """Workers that would take a request."""
        return sum(member.liveness is Liveness.READY for member in self.membership.members.values())

    def states(self) -> dict[str, tuple[str, str]]:
        """Liveness and breaker state of every known worker."""
        return {
            worker: (member.liveness.value, self.breakers[worker].state.value)
            for worker, member in self.membership.members.items()
        }

    def joined(self, worker: str) -> None:
        """A worker was heard of."""
        self.breakers.setdefault(worker, CircuitBreaker(self._policy.breaker))
        self._outstanding.setdefault(worker, 0)

    def forget(self, worker: str) -> None:
        """The membership has forgotten a worker, which was dead: its attempts ended when it died."""
        assert not self._outstanding.pop(worker)
        del self.breakers[worker]

    def load(self, worker: str) -> int:
        """Attempts on the worker: ours as we know it, those of other controllers as it said in its last heartbeat."""
        return self._outstanding[worker] + self.membership.members[worker].load_of_others(self._controller)

    def pick(self, entry: Entry, preferred: str | None, now: float) -> tuple[str | None, list[Command]]:
        """The worker for the next attempt of a request, None when nobody may take it now."""
        candidates, commands = self._candidates(entry, now)
        for candidate in candidates:
            # A half-open worker goes first: where every session has found another home, it would never be tried.
            if self.breakers[candidate.worker].state is BreakerState.HALF_OPEN and not candidate.pressure:
                return candidate.worker, commands
        return choose(self._policy.routing, candidates, preferred, entry.submit.priority), commands

    def serving(self, model: str) -> list[str]:
        """Workers that could take a request for the model but for their load, their breaker or its own exclusions."""
        return [worker for worker, member in self.membership.members.items() if member.serves(model)]

    def warm(self, model: str) -> list[str]:
        """Those of them that have the model in memory, and could start a request for it at once."""
        members = self.membership.members
        return [worker for worker in self.serving(model) if members[worker].warmth[model] is Warmth.WARM]

    def shortage(self, serving: list[str]) -> Code:
        """What a request is told that none of those who serve its model could take in time."""
        short = bool(serving) and all(self.membership.members[worker].heartbeat.pressure for worker in serving)
        return Code.RESOURCE_LIMIT_EXCEEDED if short else Code.NO_WORKERS_AVAILABLE

    def able(self, entry: Entry) -> list[str]:
        """Who may be asked, if not now then later: serves the model, and was not asked in vain.

        The wished worker alone, where there is one that may take it or is only full.

        A worker that would have to load the model first is asked only where nobody has it in memory: a load stops all
        streams of that worker, and a place in a warm batch is free sooner.
        """
        if entry.wish and self._grants(entry):
            return [entry.wish]
        model, members = entry.submit.model, self.membership.members
        serving = [worker for worker in self.serving(model) if worker not in entry.excluded]
        warm = [worker for worker in serving if members[worker].warmth[model] is Warmth.WARM]
        return warm or serving

    def _grants(self, entry: Entry) -> bool:
        """Whether the request may go where it wishes to, now or as soon as there is room."""
        member = self.membership.members.get(entry.wish)
        if member is None or not member.serves(entry.submit.model) or not self.breakers[entry.wish].allows():
            return False
        pressure = member.heartbeat.pressure
        return pressure < HARD and (pressure == 0 or entry.submit.priority >= 0)

    def has_room(self, worker: str) -> bool:
        """Whether one more attempt would not wait for long there."""
        return self.load(worker) < self._policy.routing.outstanding_max

    def is_only_full(self, entry: Entry) -> bool:
        """Whether a request has only to wait for a place.

        A worker behind an open breaker has places that nobody may take: they say nothing where another one is trusted.
        """
        able = self.able(entry)
        trusted = [worker for worker in able if self.breakers[worker].allows()] or able
        return bool(able) and not any(self.has_room(worker) for worker in trusted)

    def is_loading(self, attempt: Attempt, now: float) -> bool:
        """Whether the attempt's worker has said that it loads a model, so that its silence proves nothing."""
        member = self.membership.members[attempt.worker]
        since_s = member.loading_since_s
        if since_s is None or member.liveness is not Liveness.READY:
            return False
        return (
            member.heartbeat.incarnation == attempt.worker_incarnation and now < since_s + self._policy.timeout.load_s
        )

    def began(self, attempt: Attempt, now: float) -> list[Command]:
        """An attempt goes to its worker."""
        self._outstanding[attempt.worker] += 1
        return breaker_change(attempt.worker, self.breakers[attempt.worker].dispatched(attempt.id), now)

    def ended(self, attempt: Attempt, outcome: str, code: str) -> None:
        """An attempt has ended; what its worker neither completed nor is to blame for says nothing about the worker."""
        self._outstanding[attempt.worker] -= 1
        if outcome != "completed" and not (code and TRAITS[Code(code)].blames_worker):
            self.breakers[attempt.worker].withdrawn(attempt.id)

    def _candidates(self, entry: Entry, now: float) -> tuple[list[Candidate], list[Command]]:
        """Who may take it now: able, with room, let through by the breaker."""
        model, members = entry.submit.model, self.membership.members
        candidates: list[Candidate] = []
        commands: list[Command] = []
        if entry.wish in self.breakers:
            # A wish is granted by its breaker, which has to be up to date first.
            commands += breaker_change(entry.wish, self.breakers[entry.wish].ripen(now), now)
        for worker in self.able(entry):
            breaker, member = self.breakers[worker], members[worker]
            commands += breaker_change(worker, breaker.ripen(now), now)
            if breaker.allows() and self.has_room(worker):
                pressure = member.heartbeat.pressure
                candidates.append(Candidate(worker, self.load(worker), member.warmth[model], pressure))
        return candidates, commands
