"""SessionRegistry: which worker holds the cache of a session."""

from collections import OrderedDict
from collections.abc import Iterable


class SessionRegistry:
    """Session id to worker: `sessions_max` at most, the longest unused out first.

    A session that nothing was dispatched for in `ttl_s` is forgotten. All times are seconds of the caller's clock,
    which never goes back, so the order of use is the order of expiry.

    Counted per dispatch: `hits` went to the remembered worker, `moves` to another, `misses` had none remembered.
    """

    def __init__(self, sessions_max: int, ttl_s: float) -> None:
        self._sessions_max = sessions_max
        self._ttl_s = ttl_s
        self._known: OrderedDict[str, tuple[str, float]] = OrderedDict()
        self.hits = 0
        self.misses = 0
        self.moves = 0

    def __len__(self) -> int:
        return len(self._known)

    def preferred(self, session_id: str, now: float) -> str | None:
        """The worker that last served the session, None when unknown. Asking is no use of it."""
        self._expire(now)
        known = self._known.get(session_id)
        return None if known is None else known[0]

    def served(self, session_id: str, worker: str, now: float) -> None:
        """An attempt of the session was dispatched to `worker`, which serves its next turn best."""
        before = self.preferred(session_id, now)
        if before is None:
            self.misses += 1
        elif before == worker:
            self.hits += 1
        else:
            self.moves += 1
        self._known[session_id] = (worker, now)
        self._known.move_to_end(session_id)
        if len(self._known) > self._sessions_max:
            self._known.popitem(last=False)

    def told(self, worker: str, session_ids: Iterable[str], now: float) -> None:
        """A heartbeat of `worker` names sessions whose cache it holds.

        Learnt is only what is unknown here, and only while there is room: what we have dispatched ourselves is fresher
        than gossip, and of two workers that name a session neither says whose cache is the longer one. A session that
        is known already stays as it is, its expiry too, so that nothing lives for ever by being repeated.
        """
        self._expire(now)
        for session_id in session_ids:
            if len(self._known) >= self._sessions_max:
                return
            self._known.setdefault(session_id, (worker, now))

    def forget_worker(self, worker: str) -> None:
        """The worker's caches died with it. Looks at every session."""
        gone = [session_id for session_id, (holder, _) in self._known.items() if holder == worker]
        for session_id in gone:
            del self._known[session_id]

    def _expire(self, now: float) -> None:
        # Each session is dropped once, so this costs no more than having taken it in.
        while self._known:
            session_id, (_, used_s) = next(iter(self._known.items()))
            if now < used_s + self._ttl_s:
                return
            del self._known[session_id]
