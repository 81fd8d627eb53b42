"""The states of workers and of their breakers over time, as the controller in office saw them."""

import pandas as pd

MEMBERSHIP_STATES = {
    "worker_joined": "joined",
    "worker_ready": "ready",
    "worker_suspected": "suspected",
    "worker_dead": "dead",
}
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
    known: dict[str, None] = {}
    lines: list[tuple[float, str, str]] = []
    for time_s, kind, subject in zip(told["time_s"], told["kind"], told["subject"], strict=True):
        if kind == "node_started":
            # A new controller knows nothing of what the one before it believed.
            lines.extend((time_s, worker, at_start) for worker in known)
        else:
            known[subject] = None
            lines.append((time_s, subject, states[kind]))
    return pd.DataFrame(lines, columns=["time_s", "worker", "state"])
