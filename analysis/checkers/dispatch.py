"""Invariant 6: work goes only to workers that are ready, and no healthy worker is buried."""

import pandas as pd

from analysis.checkers.finding import judged, violations
from analysis.facts import (
    CannotJudge,
    fault_windows,
    host_stalls,
    policy,
    recovery_limit_s,
    run_end_s,
    tokens_delivered,
)
from analysis.history import History
from analysis.timeline import MEMBERSHIP_STATES
from analysis.verdict import InvariantResult, Outcome, Violation

NUMBER = 6
NAME = "work only for ready workers, and no healthy worker declared dead"


def check(history: History) -> InvariantResult:
    """Dispatches are judged against the events of the very controller that made them, in its own clock.

    A death is explained by a fault of the worker, the broker, or the controller that declared it, that was on, or was
    healed no longer ago than the recovery limit, in the `dead_after_s` of silence before it. A stall of the host in
    that silence makes the result invalid: nobody can say then whether the worker was heard.
    """
    deaths = _unexplained_deaths(history)
    stalled = _stalled(history, deaths)
    if len(stalled):
        text = f"the host stalled before {stalled['subject'].iloc[0]} was declared dead: its silence proves nothing"
        return InvariantResult(NUMBER, NAME, Outcome.INVALID, 0, text)
    found = violations(deaths, lambda row: f"{row['subject']} was declared dead while no fault touched it", "time_s")
    dispatches = history.attempts[history.attempts["side"] == "controller"]
    if dispatches.empty and not found and tokens_delivered(history):
        raise CannotJudge("no controller row of any dispatch")
    found += _misdirected(history, dispatches)
    return judged(NUMBER, NAME, found, f"{len(dispatches)} dispatches, all to workers that were ready")


def _misdirected(history: History, dispatches: pd.DataFrame) -> list[Violation]:
    if dispatches.empty:
        return []
    by = ["node", "incarnation", "worker"]
    events = history.events[history.events["kind"].isin(MEMBERSHIP_STATES)].sort_values(["time_s", "sequence"])
    states = events[["node", "incarnation", "time_s", "kind"]].assign(worker=events["subject"])
    sent = dispatches.sort_values(["begun_s", "sequence"])
    ready = pd.Series(False, index=sent.index)
    state = pd.Series("worker_unknown", index=sent.index)
    # A worker may change state in the very moment of a dispatch: what held just before counts as well as what came.
    for at_once in (True, False):
        matched = pd.merge_asof(
            sent, states, left_on="begun_s", right_on="time_s", by=by, allow_exact_matches=at_once
        ).set_index(sent.index)
        ready |= matched["kind"] == "worker_ready"
        state = matched["kind"].where(matched["kind"].notna(), state) if at_once else state
    wrong = sent.assign(state=state.map(lambda kind: MEMBERSHIP_STATES.get(kind, "not yet ready")))[~ready]
    return violations(
        wrong,
        lambda row: f"request {row['request_id']} was sent to {row['worker']}, which was {row['state']}",
        "begun_s",
    )


def _unexplained_deaths(history: History) -> pd.DataFrame:
    events = history.events
    deaths = events[(events["kind"] == "worker_dead") & events["time_s"].between(0, run_end_s(history))]
    if deaths.empty:
        return deaths
    limit_s = recovery_limit_s(history)
    silence_s = policy(history, "membership", "dead_after_s")
    stopped = events[events["kind"] == "node_stopped"].groupby("node")["time_s"].min()
    windows = fault_windows(history)

    def explained(worker: str, controller: str, time_s: float) -> bool:
        return stopped.get(worker, float("inf")) <= time_s or any(
            not {worker, controller, "broker"}.isdisjoint(window.targets)
            and window.overlaps(time_s - silence_s, time_s, limit_s)
            for window in windows
        )

    known = [explained(*death) for death in zip(deaths["subject"], deaths["node"], deaths["time_s"], strict=True)]
    return deaths[[not fine for fine in known]]


def _stalled(history: History, deaths: pd.DataFrame) -> pd.DataFrame:
    if deaths.empty:
        return deaths
    stalls = host_stalls(history)
    silence_s = policy(history, "membership", "dead_after_s")
    long_s = policy(history, "membership", "suspect_after_s")
    lost = [
        stalls.loc[(stalls["end_s"] >= time_s - silence_s) & (stalls["start_s"] <= time_s), "length_s"].sum()
        for time_s in deaths["time_s"]
    ]
    return deaths[[length_s > long_s for length_s in lost]]
