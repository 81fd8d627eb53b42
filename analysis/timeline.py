"""The states of workers and of their breakers over time, as the controllers in office saw them.

Where controllers differ, the worst of what they believe counts: a worker is only as good as for all of them.
"""

import pandas as pd

MEMBERSHIP_STATES = {
    "worker_joined": "joined",
    "worker_ready": "ready",
    "worker_suspected": "suspected",
    "worker_dead": "dead",
}
_WORST_FIRST = ("dead", "suspected", "unknown", "joined", "ready", "open", "half_open", "closed")
BREAKER_STATES = {"breaker_opened": "open", "breaker_half_open": "half_open", "breaker_closed": "closed"}


def controllers(events: pd.DataFrame) -> set[str]:
    """Names of the nodes that keep a membership."""
    return set(events.loc[events["kind"].isin(MEMBERSHIP_STATES), "node"])


def membership(events: pd.DataFrame) -> pd.DataFrame:
    """Changes by time: time_s, worker, state (joined, ready, suspected, dead; unknown to a controller just started)."""
    return _changes(events, MEMBERSHIP_STATES, at_start="unknown")


def breakers(events: pd.DataFrame) -> pd.DataFrame:
    """Changes by time: time_s, worker, state (closed, open, half_open). A breaker starts closed."""
    return _changes(events, BREAKER_STATES, at_start="closed")


def states_at(changes: pd.DataFrame, time_s: float) -> dict[str, str]:
    """Worker to state at a time, changes of that very moment included."""
    past = changes[changes["time_s"] <= time_s].drop_duplicates("worker", keep="last")
    return dict(zip(past["worker"], past["state"], strict=True))


def _changes(events: pd.DataFrame, states: dict[str, str], at_start: str) -> pd.DataFrame:
    started = events[(events["kind"] == "node_started") & events["node"].isin(controllers(events))]
    told = pd.concat([started, events[events["kind"].isin(states)]])
    told = told.sort_values(["time_s", "incarnation", "sequence"], kind="stable")
    beliefs: dict[str, dict[str, str]] = {}
    lines: list[tuple[float, str, str]] = []

    def note(time_s: float, controller: str, worker: str, state: str) -> None:
        of_worker = beliefs.setdefault(worker, {})
        of_worker[controller] = state
        lines.append((time_s, worker, min(of_worker.values(), key=_WORST_FIRST.index)))

    for time_s, controller, kind, subject in zip(
        told["time_s"], told["node"], told["kind"], told["subject"], strict=True
    ):
        if kind == "node_started":
            # A new controller knows nothing of what the one before it believed.
            for worker in list(beliefs):
                note(time_s, controller, worker, at_start)
        else:
            note(time_s, controller, subject, states[kind])
    return pd.DataFrame(lines, columns=["time_s", "worker", "state"])
