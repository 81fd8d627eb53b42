"""Who gets the next attempt."""

from collections.abc import Iterable

import msgspec

from cluster.policy import RoutingPolicy

HARD = 2
"""Memory pressure as heartbeats say it: 0 none, 1 soft (no low priority), 2 hard (nothing new)."""


class Candidate(msgspec.Struct, frozen=True, gc=False):
    """A worker that may get the attempt.

    load: attempts that it has not ended, ours (between two heartbeats fresher than what the worker says) and those of
    other controllers. warmth: of the request's model, the larger the sooner it can begin (membership's `Warmth`).
    pressure: of its memory, see `HARD`.
    """

    worker: str
    load: int
    warmth: int
    pressure: int = 0


def choose(
    policy: RoutingPolicy, candidates: Iterable[Candidate], preferred: str | None = None, priority: int = 0
) -> str | None:
    """The worker for an attempt, None when there is none.

    candidates: alive, not draining, not asked in vain for this request, with room, let through by their breaker; in a
    stable order, the first wins a tie. priority: below 0 (low) nobody under memory pressure is asked.

    The best is the warmest, of those the one under the least memory pressure, of those the least loaded; hard
    pressure is the last resort. `preferred`, the holder of the session's cache, goes before the best unless it is not
    among the candidates, less warm than the best, under hard pressure, or has more than `affinity_slack` more load
    than the best.
    """
    allowed = [candidate for candidate in candidates if priority >= 0 or candidate.pressure == 0]
    if not allowed:
        return None
    best = min(allowed, key=rank)
    if policy.affinity and preferred is not None:
        for holder in allowed:
            if holder.worker == preferred and _may_keep(holder, best, policy.affinity_slack):
                return preferred
    return best.worker


def rank(candidate: Candidate) -> tuple[bool, int, int, int]:
    """The smaller the better."""
    return candidate.pressure >= HARD, -candidate.warmth, candidate.pressure, candidate.load


def _may_keep(holder: Candidate, best: Candidate, slack: int) -> bool:
    return holder.pressure < HARD and holder.warmth == best.warmth and holder.load <= best.load + slack
