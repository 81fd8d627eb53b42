"""Workforce: the workers as the controller sees them, and which of them may take a request now."""

from collections.abc import Collection

from cluster.controller.breaker import BreakerState, CircuitBreaker
from cluster.controller.ledger import Attempt, Entry
from cluster.controller.membership import Liveness, Membership, Warmth
from cluster.controller.routing import HARD, Candidate, choose
from cluster.controller.rows import breaker_change
from cluster.controller.standings import Group, GroupName, Standing, Standings
from cluster.errors import TRAITS, Code
from cluster.node import Command
from cluster.policy import Policy


class Workforce:
    """Membership, circuit breakers and open attempts per worker.

    Whatever changes one of these for a worker marks it, and the standings are brought up to date before a choice.
    """

    def __init__(self, controller: str, policy: Policy) -> None:
        self.membership = Membership(policy.membership)
        self.breakers: dict[str, CircuitBreaker] = {}
        self._controller = controller
        self._policy = policy
        self._outstanding: dict[str, int] = {}
        self._standings = Standings()
        self._marked: dict[str, None] = {}
        self._distrusted: dict[str, None] = {}
        """Workers whose breakers are not closed."""

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

    def changed(self, worker: str) -> None:
        """A worker was heard of, or its liveness is another."""
        if worker in self.membership.members:
            self.breakers.setdefault(worker, CircuitBreaker(self._policy.breaker))
            self._outstanding.setdefault(worker, 0)
            self._standings.order(worker)
            self._marked[worker] = None

    def forget(self, worker: str) -> None:
        """The membership has forgotten a worker, which was dead: its attempts ended when it died."""
        assert not self._outstanding.pop(worker)
        del self.breakers[worker]
        self._marked.pop(worker, None)
        self._distrusted.pop(worker, None)
        self._standings.forget(worker)

    def load(self, worker: str) -> int:
        """Attempts on the worker: ours as we know it, those of other controllers as it said in its last heartbeat."""
        return self._outstanding[worker] + self.membership.members[worker].load_of_others(self._controller)

    def pick(self, entry: Entry, preferred: str | None, now: float) -> tuple[str | None, list[Command]]:
        """The worker for the next attempt of a request, None when nobody may take it now."""
        commands = self._ripen(entry, now)
        group, excluded = self._able(entry)
        if group is None:
            return None, commands
        half_open = [worker for worker in self._distrusted if worker not in excluded and group.candidate(worker)]
        for worker in sorted(half_open, key=self._standings.order):
            # A half-open worker goes first: where every session has found another home, it would never be tried.
            candidate = group.candidate(worker)
            if candidate is not None and not candidate.pressure:
                return worker, commands
        low = entry.submit.priority < 0
        holder = group.candidate(preferred) if preferred is not None and preferred not in excluded else None
        candidates = [one for one in (group.best(excluded, unpressed=low), holder) if one is not None]
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

    def has_room(self, worker: str) -> bool:
        """Whether one more attempt would not wait for long there."""
        return self.load(worker) < self._policy.routing.outstanding_max

    def is_only_full(self, entry: Entry) -> bool:
        """Whether a request has only to wait for a place.

        A worker behind an open breaker has places that nobody may take: they say nothing where another one is trusted.
        """
        group, excluded = self._able(entry)
        if group is None or group.best(excluded) is not None:
            return False
        if any(worker not in excluded for worker in group.trusted):
            return True
        return not any(self.has_room(worker) for worker in group.able if worker not in excluded)

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
        return self._judged(attempt.worker, self.breakers[attempt.worker].dispatched(attempt.id), now)

    def succeeded(self, attempt: Attempt, now: float) -> list[Command]:
        """Its stream has completed."""
        return self._judged(attempt.worker, self.breakers[attempt.worker].succeeded(attempt.id), now)

    def failed(self, attempt: Attempt, code: Code, now: float) -> list[Command]:
        """Its stream has failed, and its worker is to blame."""
        return self._judged(attempt.worker, self.breakers[attempt.worker].failed(attempt.id, code, now), now)

    def pardon(self, now: float) -> list[Command]:
        """What failed lately was nobody's fault."""
        commands: list[Command] = []
        for worker, breaker in self.breakers.items():
            commands += self._judged(worker, breaker.pardon(), now)
        return commands

    def ended(self, attempt: Attempt, outcome: str, code: str) -> None:
        """An attempt has ended; what its worker neither completed nor is to blame for says nothing about the worker."""
        self._outstanding[attempt.worker] -= 1
        self._marked[attempt.worker] = None
        if outcome != "completed" and not (code and TRAITS[Code(code)].blames_worker):
            self.breakers[attempt.worker].withdrawn(attempt.id)

    def _judged(self, worker: str, state: BreakerState | None, now: float) -> list[Command]:
        """A breaker was told something; state: its new one, None when it stayed."""
        self._marked[worker] = None
        if self.breakers[worker].state is BreakerState.CLOSED:
            self._distrusted.pop(worker, None)
        else:
            self._distrusted[worker] = None
        return breaker_change(worker, state, now)

    def _ripen(self, entry: Entry, now: float) -> list[Command]:
        """Bring the breakers of those up to date who might take the request."""
        commands: list[Command] = []
        if entry.wish in self._distrusted:
            # A wish is granted by its breaker.
            commands += self._judged(entry.wish, self.breakers[entry.wish].ripen(now), now)
        if self._distrusted:
            group, excluded = self._able(entry)
            for worker in sorted(self._distrusted, key=self._standings.order):
                if group is None or worker not in group.able or worker in excluded:
                    continue
                commands += self._judged(worker, self.breakers[worker].ripen(now), now)
        return commands

    def _able(self, entry: Entry) -> tuple[Group | None, Collection[str]]:
        """Who may be asked, if not now then later, without those excluded: serves the model, was not asked in vain.

        The wished worker alone, where there is one that may take it or is only full.

        A worker that would have to load the model first is asked only where nobody has it in memory: a load stops all
        streams of that worker, and a place in a warm batch is free sooner.
        """
        self._settle()
        if entry.wish and self._grants(entry):
            return self._wished(entry), ()
        for group in self._standings.groups(entry.submit.model):
            if any(worker not in entry.excluded for worker in group.able):
                return group, entry.excluded
        return None, ()

    def _wished(self, entry: Entry) -> Group:
        """A group of the wished worker alone."""
        group = Group()
        warm = self.membership.members[entry.wish].warmth[entry.submit.model] is Warmth.WARM
        group.put(entry.wish, 0, self._standing(entry.wish)[entry.submit.model, warm])
        return group

    def _grants(self, entry: Entry) -> bool:
        """Whether the request may go where it wishes to, now or as soon as there is room."""
        member = self.membership.members.get(entry.wish)
        if member is None or not member.serves(entry.submit.model) or not self.breakers[entry.wish].allows():
            return False
        pressure = member.heartbeat.pressure
        return pressure < HARD and (pressure == 0 or entry.submit.priority >= 0)

    def _settle(self) -> None:
        """Bring the standings up to date with what was marked."""
        for worker in self._marked:
            self._standings.put(worker, self._standing(worker))
        self._marked.clear()

    def _standing(self, worker: str) -> dict[GroupName, Standing]:
        """How a worker stands with each model that it serves."""
        member = self.membership.members[worker]
        trusted = self.breakers[worker].allows()
        load = self.load(worker)
        open_to_more = trusted and load < self._policy.routing.outstanding_max
        return {
            (model, warmth is Warmth.WARM): Standing(
                trusted, Candidate(worker, load, warmth, member.heartbeat.pressure) if open_to_more else None
            )
            for model, warmth in member.warmth.items()
            if member.serves(model)
        }
