"""SessionRegistry: which worker holds the cache of a session."""

from collections import OrderedDict


class SessionRegistry:
    """Session id to worker, least recently used out first when `sessions_max` is reached."""

    def __init__(self, sessions_max: int) -> None:
        self._sessions_max = sessions_max
        self._workers: OrderedDict[str, str] = OrderedDict()

    def __len__(self) -> int:
        return len(self._workers)

    def preferred(self, session_id: str) -> str | None:
        """The worker that last served the session, None when unknown."""
        return self._workers.get(session_id)

    def served(self, session_id: str, worker: str) -> None:
        """The session's next turn is best served by `worker`."""
        self._workers[session_id] = worker
        self._workers.move_to_end(session_id)
        if len(self._workers) > self._sessions_max:
            self._workers.popitem(last=False)
