"""Who gets the next attempt."""

from collections.abc import Iterable, Mapping

from cluster.policy import RoutingPolicy


def choose(
    policy: RoutingPolicy,
    eligible: Iterable[str],
    outstanding: Mapping[str, int],
    excluded: tuple[str, ...],
    preferred: str | None,
) -> str | None:
    """The worker for an attempt, None when there is none.

    eligible: workers that are alive, warm for the model, and let through by their breaker, in a stable order.
    outstanding: attempts we have sent to each and not seen the end of, which between two heartbeats is fresher than
    what the worker says. excluded: workers on which this request has failed. preferred: holder of the session's
    cache; it yields when it has more than `affinity_slack` outstanding above the least loaded.
    """
    best: str | None = None
    least = 0
    preferred_load: int | None = None
    for worker in eligible:
        if worker in excluded:
            continue
        load = outstanding.get(worker, 0)
        if worker == preferred:
            preferred_load = load
        if best is None or load < least:
            best, least = worker, load
    if policy.affinity and preferred_load is not None and preferred_load <= least + policy.affinity_slack:
        return preferred
    return best
