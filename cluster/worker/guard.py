"""The duplicate guard: which attempt of each request the worker has seen last."""

from cluster.protocol import AttemptId
from cluster.timers import Timers


class DuplicateGuard:
    """Remembers attempts until their deadline, after which the deadline check refuses them anyway.

    So it needs no size limit of its own: it holds what arrived within one deadline.
    """

    def __init__(self) -> None:
        self._newest: dict[str, AttemptId] = {}
        self._expiry: Timers[str] = Timers()

    def __len__(self) -> int:
        return len(self._newest)

    def admit(self, attempt: AttemptId, deadline_s: float, now: float) -> bool:
        """Whether this attempt is newer than all that were seen of its request; remembers it if so."""
        for request_id in self._expiry.due(now):
            del self._newest[request_id]
        newest = self._newest.get(attempt.request_id)
        if newest is not None and attempt <= newest:
            return False
        self._newest[attempt.request_id] = attempt
        self._expiry.set(attempt.request_id, deadline_s)
        return True
