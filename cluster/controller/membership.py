"""Who is there: liveness of workers by the controller's own clock, and what they last said of themselves."""

from enum import IntEnum, StrEnum

from cluster.policy import MembershipPolicy
from cluster.protocol import VERSION, ClockBound, Heartbeat
from cluster.timers import Timers


class Liveness(StrEnum):
    """ready: may get work. suspected: overdue, no new work. dead: overdue for so long that its work is given up."""

    READY = "ready"
    SUSPECTED = "suspected"
    DEAD = "dead"


class Warmth(IntEnum):
    """How soon a worker can begin with a model."""

    COLD = 0
    LOADING = 1
    WARM = 2


_WARMTH = {"cold": Warmth.COLD, "loading": Warmth.LOADING, "warm": Warmth.WARM}


class Member:
    """One worker in its newest incarnation. warmth: of the models that it can serve; those that failed are not there.

    loading_since_s: since when it has been loading the model that it loads now, None while it loads none.
    """

    __slots__ = ("_loading", "clock", "heard_s", "heartbeat", "liveness", "loading_since_s", "warmth")

    def __init__(self, heartbeat: Heartbeat, now: float) -> None:
        self.clock = ClockBound()
        self.heard_s = now
        self.liveness = Liveness.READY
        self.loading_since_s: float | None = None
        self._loading = ""
        self.take(heartbeat, now)

    def take(self, heartbeat: Heartbeat, now: float) -> None:
        """What the worker says of itself now."""
        self.heartbeat = heartbeat
        self.warmth = {state.model: _WARMTH[state.state] for state in heartbeat.models if state.state in _WARMTH}
        loading = next((model for model, warmth in self.warmth.items() if warmth is Warmth.LOADING), "")
        if loading != self._loading:
            self._loading = loading
            self.loading_since_s = now if loading else None

    def serves(self, model: str) -> bool:
        """Whether a request for `model` may be sent to the worker; where it is not warm, it waits for the load."""
        return self.liveness is Liveness.READY and model in self.warmth and not self.heartbeat.draining

    def load_of_others(self, controller: str) -> int:
        """How many attempts of other controllers wait or run there."""
        return sum(count for name, count in self.heartbeat.shares if name != controller)


class Change:
    """A member's step from one state to another.

    restarted: an incarnation that we knew is gone for good. forgotten: a dead one is no member any more.
    """

    __slots__ = ("forgotten", "joined", "liveness", "reason", "restarted", "worker")

    def __init__(
        self,
        worker: str,
        liveness: Liveness,
        reason: str = "",
        *,
        joined: bool = False,
        restarted: bool = False,
        forgotten: bool = False,
    ) -> None:
        self.worker = worker
        self.liveness = liveness
        self.reason = reason
        self.joined = joined
        self.restarted = restarted
        self.forgotten = forgotten


class Membership:
    """Workers that the controller has heard of, at most `workers_max`: a new one takes the place of the longest dead.

    Where all of them are alive, a new one is ignored.
    """

    def __init__(self, policy: MembershipPolicy) -> None:
        self._policy = policy
        self._timers: Timers[str] = Timers()
        self._blind = False
        self._strangers: dict[str, int] = {}
        self.members: dict[str, Member] = {}

    def estranged(self, heartbeat: Heartbeat) -> bool | None:
        """Whether the heartbeat is of another version of the protocol; None: yes, and that was said before."""
        if heartbeat.version == VERSION:
            return False
        known = self._strangers.get(heartbeat.worker)
        if known == heartbeat.incarnation or (known is None and len(self._strangers) >= self._policy.workers_max):
            return None
        self._strangers[heartbeat.worker] = heartbeat.incarnation
        return True

    def heard(self, heartbeat: Heartbeat, now: float) -> list[Change]:
        """Take in a heartbeat. A lower incarnation than the known one is a ghost and changes nothing."""
        member = self.members.get(heartbeat.worker)
        changes: list[Change] = []
        if member is None or heartbeat.incarnation > member.heartbeat.incarnation:
            if member is None and len(self.members) >= self._policy.workers_max:
                dead = [name for name, known in self.members.items() if known.liveness is Liveness.DEAD]
                if not dead:
                    return []
                longest = min(dead, key=lambda name: self.members[name].heard_s)
                del self.members[longest]
                changes.append(Change(longest, Liveness.DEAD, f"{heartbeat.worker} took its place", forgotten=True))
            restarted = member is not None
            member = self.members[heartbeat.worker] = Member(heartbeat, now)
            changes.append(Change(heartbeat.worker, Liveness.READY, joined=True, restarted=restarted))
        elif heartbeat.incarnation < member.heartbeat.incarnation:
            return []
        member.take(heartbeat, now)
        before = member.liveness
        self._alive(heartbeat.worker, member, heartbeat.sent_s, now)
        if self._engine_is_silent(member):
            member.liveness = Liveness.SUSPECTED
        if member.liveness is not before:
            silent = member.liveness is Liveness.SUSPECTED
            reason = f"its engine is silent for {heartbeat.engine_silent_s:.2f} s" if silent else "heard again"
            changes.append(Change(heartbeat.worker, member.liveness, reason))
        return changes

    def _engine_is_silent(self, member: Member) -> bool:
        """Whether the worker itself lives and nothing comes of what it is given."""
        limit_s = self._policy.engine_silent_max_s
        return limit_s is not None and member.heartbeat.engine_silent_s > limit_s

    def heard_report(self, worker: str, incarnation: int, sent_s: float, now: float) -> None:
        """A report of tokens proves that a ready worker lives; it does not revive one that is overdue."""
        member = self.members.get(worker)
        if member is not None and member.heartbeat.incarnation == incarnation and member.liveness is Liveness.READY:
            self._alive(worker, member, sent_s, now)

    def unreachable(self, worker: str, now: float) -> list[Change]:
        """The broker says that nobody listens there: suspect the worker until it is heard again."""
        member = self.members.get(worker)
        if member is None or member.liveness is not Liveness.READY:
            return []
        member.liveness = Liveness.SUSPECTED
        self._timers.set(worker, member.heard_s + self._policy.dead_after_s)
        return [Change(worker, Liveness.SUSPECTED, "no subscriber")]

    def go_blind(self) -> None:
        """Our own link is down: silence proves nothing about others until `see_again`."""
        self._blind = True

    def see_again(self, now: float) -> None:
        """Our link is back: everybody gets the full time to be heard."""
        self._blind = False
        self._give_time(now)

    def _give_time(self, now: float) -> None:
        for worker, member in self.members.items():
            if member.liveness is not Liveness.DEAD:
                member.heard_s = now
                self._timers.set(worker, now + self._policy.suspect_after_s)

    def sweep(self, now: float) -> list[Change]:
        """Suspect or bury those whose time is up.

        A sweep that comes late by more than a heartbeat says that we did not run (frozen, or the host stood still):
        what was sent meanwhile waits to be read, so it was our silence, and everybody gets the full time again.
        """
        due_s = self._timers.next()
        if due_s is not None and now > due_s + self._policy.heartbeat_s:
            self._give_time(now)
            return []
        changes: list[Change] = []
        for worker in self._timers.due(now):
            member = self.members[worker]
            silent_s = now - member.heard_s
            if self._blind:
                continue
            # As the timer was set: `silent_s` may round to less, and the sweep would be due again for ever.
            if now >= member.heard_s + self._policy.dead_after_s:
                member.liveness = Liveness.DEAD
                changes.append(Change(worker, Liveness.DEAD, f"silent for {silent_s:.2f} s"))
                continue
            if member.liveness is Liveness.READY:
                member.liveness = Liveness.SUSPECTED
                changes.append(Change(worker, Liveness.SUSPECTED, f"silent for {silent_s:.2f} s"))
            self._timers.set(worker, member.heard_s + self._policy.dead_after_s)
        return changes

    def next_sweep(self) -> float | None:
        """When `sweep` has something to do."""
        return self._timers.next()

    def knows_model(self, model: str) -> bool:
        """Whether any worker that is not dead names the model, in whatever state."""
        return any(
            model == state.model
            for member in self.members.values()
            if member.liveness is not Liveness.DEAD
            for state in member.heartbeat.models
        )

    def any_alive(self) -> bool:
        """Whether any worker is not dead."""
        return any(member.liveness is not Liveness.DEAD for member in self.members.values())

    def _alive(self, worker: str, member: Member, sent_s: float, now: float) -> None:
        member.liveness = Liveness.READY
        member.heard_s = now
        member.clock.observe(sent_s, now)
        self._timers.set(worker, now + self._policy.suspect_after_s)
