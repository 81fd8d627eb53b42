"""Bugs of the worker, and of what its shell does with its link."""

from typing import Any

import msgspec

from cluster.node import Received, Send
from cluster.protocol import Dispatch, Drain, Heartbeat
from cluster.simulation.network import Link, Network
from cluster.worker.resources import ResourceManager, Room
from cluster.worker.scheduler import ContinuousBatcher, RequestQueue, Work
from cluster.worker.session_cache import SessionCache
from cluster.worker.worker import WorkerNode
from tests.mutants.mutant import Mutant, Patch

_LATER_S = 20.0
_SLOW_SUBSCRIPTION_S = 0.8
_RECONNECTS_MAX = 8


def _believes_no_deadline(original: Any, self: WorkerNode, dispatch: Dispatch, now: float) -> Any:
    if now < dispatch.deadline_s:
        return original(self, dispatch, now)
    return original(self, msgspec.structs.replace(dispatch, deadline_s=now + _LATER_S), now)


def _frees_all_on_drain(original: Any, self: WorkerNode, event: Any, now: float) -> Any:
    commands = original(self, event, now)
    return [*commands, *self._free_all(now)] if isinstance(event, Received) and event.message == Drain() else commands


def _any_cache(original: Any, self: SessionCache, model: str, session: str, tokens: Any) -> Any:
    """The one used last, whoever's it is, as if its prompt began alike."""
    found = original(self, model, session, tokens)
    others = [number for number, entry in self._entries.items() if entry.session != session]
    return (others[-1], len(tokens) // 2) if others and (found is None or found[1] < 8) else found


def _keeps_reservation(original: Any, self: ResourceManager, attempt: Any) -> None:
    held = self._reserved.get(attempt, 0)
    original(self, attempt)
    if attempt.attempt > 1:
        self.reserved_bytes += held


def _keeps_slot(original: Any, self: ContinuousBatcher, work: Work) -> None:
    if len(work.made) != work.dispatch.max_tokens - len(work.dispatch.delivered):
        return
    original(self, work)


def _never_full(original: Any, self: Any) -> bool:
    return False


def _batch_of_twice(original: Any, self: ContinuousBatcher) -> bool:
    return len(self._running) >= 2 * self.batch_max


def _never_says_the_end(original: Any, self: WorkerNode, news: Any, now: float) -> Any:
    """A stream's last report is lost now and then: nobody asks whether it has arrived."""
    kept = [(work, chunk) for work, chunk in news if chunk.finish is None or work.sequence is None or work.sequence % 9]
    return original(self, kept, now)


def _hides_silence(original: Any, self: WorkerNode, now: float) -> float:
    return 0.0


def _prompt_only(original: Any, self: Work) -> Any:
    return self.dispatch.prompt


def _from_zero(original: Any, self: Work, *rest: Any, **named: Any) -> Any:
    chunk = original(self, *rest, **named)
    return msgspec.structs.replace(chunk, index=chunk.index - len(self.dispatch.delivered))


def _room_for_all(original: Any, self: ResourceManager, *rest: Any) -> Any:
    return Room()


def _evicts_nothing(original: Any, self: SessionCache, *rest: Any) -> Any:
    policy, self._policy = self._policy, msgspec.structs.replace(self._policy, cache_bytes_max=2**40)
    share, self._session_bytes_max = self._session_bytes_max, 2**40
    dropped = original(self, *rest)
    self._policy, self._session_bytes_max = policy, share
    return dropped


def _loses_last_tokens(
    original: Any, self: Work, tokens: Any = (), times_s: Any = (), finish: Any = None, *rest: Any, **named: Any
) -> Any:
    whole = original(self, tokens, times_s, finish, *rest, **named)
    return msgspec.structs.replace(whole, tokens=(), times_s=()) if finish is not None else whole


def _as_many_again(original: Any, self: WorkerNode, work: Work, now: float) -> Any:
    return msgspec.structs.replace(original(self, work, now), max_tokens=work.dispatch.max_tokens)


def _mute_while_loading(original: Any, self: WorkerNode, now: float) -> Any:
    commands = original(self, now)
    if self._models.loading is None and self._models.computes:
        return commands
    return [each for each in commands if not (isinstance(each, Send) and isinstance(each.message, Heartbeat))]


def _subscribes_late(original: Any, self: Network, link: Link) -> Any:
    """The broker has the connection at once and its subscription a moment later, and the node announces itself now."""
    connection = original(self, link)
    if link.controller:
        return connection
    del self._subscribed[link.node]

    def subscribe() -> None:
        if connection.broker_open:
            self._subscribed[link.node] = connection

    self.kernel.at(self.kernel.now + _SLOW_SUBSCRIPTION_S, subscribe)
    return connection


def _gives_up_reconnecting(original: Any, self: Link) -> None:
    tried = self.__dict__["tried"] = self.__dict__.get("tried", 0) + 1
    if tried <= _RECONNECTS_MAX:
        original(self)


def _forgets_the_third(original: Any, self: WorkerNode, news: Any, now: float) -> Any:
    """A report has room for two streams, and of what is beyond them some is forgotten."""
    kept = [pair for place, pair in enumerate(news) if place < 2 or (pair[0].sequence or 1) % 5]
    return original(self, kept, now)


def mutants() -> list[Mutant]:
    """All of them."""
    node = WorkerNode
    return [
        Mutant(
            "late_work_executed",
            "what arrives past its deadline is done all the same",
            (Patch(node, "_receive", _believes_no_deadline),),
            ("held",),
        ),
        Mutant(
            "drain_loses_work",
            "a worker that drains throws away what it has",
            (Patch(node, "_react", _frees_all_on_drain),),
            ("rolling",),
        ),
        Mutant(
            "cache_of_another_session",
            "a prompt goes on from the cache of somebody else's chat",
            (Patch(SessionCache, "find", _any_cache),),
            ("calm",),
        ),
        Mutant(
            "reservation_leaks",
            "memory that a retried attempt was promised is never given back",
            (Patch(ResourceManager, "release", _keeps_reservation),),
            ("flaky",),
        ),
        Mutant(
            "slot_leaks",
            "a stream that is stopped before its end keeps its slot in the batch",
            (Patch(ContinuousBatcher, "leave", _keeps_slot),),
            ("lost_reports", "flaky"),
        ),
        Mutant(
            "queue_bound_ignored",
            "the worker's queue takes more than it may hold",
            (Patch(RequestQueue, "full", _never_full),),
            ("small_queue",),
        ),
        Mutant(
            "batch_bound_ignored",
            "twice as many streams run at once as may",
            (Patch(ContinuousBatcher, "full", _batch_of_twice),),
            ("calm",),
        ),
        Mutant(
            "end_never_told",
            "the report of a stream's end is lost now and then and not told again",
            (Patch(node, "_tell", _never_says_the_end),),
            ("calm",),
        ),
        Mutant(
            "engine_silence_hidden",
            "heartbeats never say that the engine owes an answer",
            (Patch(node, "engine_silent_s", _hides_silence),),
            ("silent_engine",),
        ),
        Mutant(
            "migration_from_the_prompt",
            "a stream that goes on elsewhere forgets what was delivered",
            (Patch(Work, "tokens", _prompt_only),),
            ("kill",),
        ),
        Mutant(
            "migration_counts_from_zero",
            "a stream that goes on elsewhere numbers its tokens from 0",
            (Patch(Work, "chunk", _from_zero),),
            ("kill",),
        ),
        Mutant(
            "migration_makes_too_many",
            "a stream that goes on elsewhere makes as many tokens again",
            (Patch(node, "_insert", _as_many_again),),
            ("kill",),
        ),
        Mutant(
            "memory_bound_ignored",
            "everything fits, whatever the ledger says",
            (Patch(ResourceManager, "make_room", _room_for_all),),
            ("short_of_memory",),
        ),
        Mutant(
            "caches_unbounded",
            "kept caches are never evicted",
            (Patch(SessionCache, "keep", _evicts_nothing),),
            ("calm",),
        ),
        Mutant(
            "last_tokens_lost",
            "the tokens in a stream's last report are left out",
            (Patch(Work, "chunk", _loses_last_tokens),),
            ("calm",),
        ),
        Mutant(
            "streams_left_out",
            "a report of more than two streams forgets some of them",
            (Patch(node, "_tell", _forgets_the_third),),
            ("calm", "lost_dispatches"),
        ),
        Mutant(
            "mute_while_loading",
            "heartbeats stop while the worker loads its model",
            (Patch(node, "_heartbeat", _mute_while_loading),),
            ("kill_slow_load",),
        ),
        Mutant(
            "subscribed_after_announced",
            "a node announces itself before its subscription is in force",
            (Patch(Network, "register", _subscribes_late),),
            ("reset",),
        ),
        Mutant(
            "reconnecting_given_up",
            "a node tries a few times to come back to the bus, then never again",
            (Patch(Link, "_retry", _gives_up_reconnecting),),
            ("refused",),
        ),
    ]
