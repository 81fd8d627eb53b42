"""The duplicate guard: which attempt of each request a worker, or which submission a controller, has seen last."""

from cluster.protocol import AttemptId
from cluster.timers import Timers


class DuplicateGuard:
    """Remembers attempts until the latest deadline seen of their request: the deadline check refuses them afterwards.

    So it needs no size limit of its own: it holds what arrived within one deadline.
    """

    def __init__(self) -> None:
        self._newest: dict[str, AttemptId] = {}
        self._latest_s: dict[str, float] = {}
        self._expiry: Timers[str] = Timers()

    def __len__(self) -> int:
        return len(self._newest)

    def forget(self, now: float) -> None:
        """Drop what is past its deadline; also done by `admit`, but a node may admit nothing more for a long time."""
        for request_id in self._expiry.due(now):
            del self._newest[request_id], self._latest_s[request_id]

    def admit(self, attempt: AttemptId, deadline_s: float, now: float) -> bool:
        """Whether this attempt is newer than all that were seen of its request; remembers it if so."""
        self.forget(now)
        newest = self._newest.get(attempt.request_id)
        if newest is not None and attempt <= newest:
            return False
        self._newest[attempt.request_id] = attempt
        # A controller that restarts translates the same deadline anew, perhaps to an earlier time.
        self._latest_s[attempt.request_id] = max(deadline_s, self._latest_s.get(attempt.request_id, deadline_s))
        self._expiry.set(attempt.request_id, self._latest_s[attempt.request_id])
        return True
