"""Invariant 7: a healed cluster returns to its steady state within the recovery limit, and stays there."""

import pandas as pd

from analysis.checkers.finding import judged, records, violation
from analysis.facts import QuietSpan, fault_windows, quiet_spans, recovery_limit_s, run_end_s, worker_count
from analysis.history import History
from analysis.recovery import CALM_S, fault_times
from analysis.timeline import breakers, controllers, membership, states_at
from analysis.verdict import InvariantResult, Outcome, Violation

NUMBER = 7
NAME = "a healed cluster is whole again within the recovery limit"
# A queue is drained when it is no longer than it ever was before the fault, give or take a chance arrival or two.
_QUEUE_SLACK = 2


def check(history: History) -> InvariantResult:
    """From `recovery_limit_s` after each heal until the next injection or the run's end: all workers ready, all
    breakers closed (of controllers that gave any work), and no worker's queue above its baseline (two samples in a
    row; one may be a chance arrival).

    A run that ends before the limit has passed shows nothing either way, unless the cluster is whole by then.
    """
    if not fault_windows(history):
        return InvariantResult(NUMBER, NAME, Outcome.NOT_APPLICABLE, 0, "no fault was injected")
    limit_s = recovery_limit_s(history)
    if history.info.outside:
        return _as_callers_feel(history, limit_s)
    spans = {(span.start_s, span.end_s): span for span in quiet_spans(history)}
    found: list[Violation] = []
    unknown = 0
    for span in spans.values():
        due_s = span.start_s + limit_s
        if due_s <= span.end_s:
            found += _breaches(history, span, due_s)
        elif not span.followed and _breaches(history, span, span.end_s):
            unknown += 1
    if found:
        return judged(NUMBER, NAME, found, "")
    if unknown or not spans:
        text = "the run ended before the recovery limit after the last heal had passed"
        return InvariantResult(NUMBER, NAME, Outcome.INCONCLUSIVE, 0, text)
    return judged(NUMBER, NAME, [], f"whole again within {limit_s:g} s of every heal, and stayed so")


def _as_callers_feel(history: History, limit_s: float) -> InvariantResult:
    """Of somebody else's cluster only callers tell: by analysis.recovery.STEADY_RULE, without workers and breakers."""
    found: list[Violation] = []
    unknown = 0
    end_s = run_end_s(history)
    for times in fault_times(history):
        if times.healed_s is None or times.not_judged or end_s - times.healed_s < limit_s + CALM_S:
            unknown += 1
        elif times.return_to_steady_s is None or times.return_to_steady_s > limit_s:
            found.append(Violation(times.healed_s, "", "", f"after {times.label} {times.returned()}"))
    if found:
        return judged(NUMBER, NAME, found, "")
    if unknown:
        text = f"callers were not watched for the recovery limit and {CALM_S:g} s after the last heal"
        return InvariantResult(NUMBER, NAME, Outcome.INCONCLUSIVE, 0, text)
    return judged(NUMBER, NAME, [], f"callers felt the steady state again within {limit_s:g} s of every heal")


def _breaches(history: History, span: QuietSpan, due_s: float) -> list[Violation]:
    found = []
    tried = breakers(_without_the_idle(history, span.start_s, due_s))
    wanted = ((membership(history.events), "ready", "worker"), (tried, "closed", "breaker of"))
    for changes, good, what in wanted:
        at_due = [(due_s, worker, state) for worker, state in states_at(changes, due_s).items()]
        after = changes[(changes["time_s"] > due_s) & span.ends_after(changes["time_s"])]
        later = list(zip(after["time_s"], after["worker"], after["state"], strict=True))
        found += [
            Violation(time_s, "", worker, f"{what} {worker} is {state} {time_s - span.start_s:.1f} s after the heal")
            for time_s, worker, state in at_due + later
            if state != good
        ]
    return found + _missing(history, due_s) + _undrained(history, span, due_s)


def _without_the_idle(history: History, since_s: float, until_s: float) -> pd.DataFrame:
    """Events, but for those of controllers that gave no work then while others did.

    A breaker closes when a request has tried its worker; where nobody asks a controller, nothing can try.
    """
    given = history.attempts[history.attempts["side"] == "controller"]
    busy = set(given.loc[given["begun_s"].between(since_s, until_s), "node"])
    idle = controllers(history.events) - busy if busy else set()
    return history.events[~history.events["node"].isin(idle)]


def _missing(history: History, due_s: float) -> list[Violation]:
    count = worker_count(history)
    known = len(states_at(membership(history.events), due_s))
    if known >= count:
        return []
    return [Violation(due_s, "", "", f"only {known} of {count} workers ever joined")]


def _undrained(history: History, span: QuietSpan, due_s: float) -> list[Violation]:
    samples = history.nodes[history.nodes["role"] == "worker"].sort_values(["node", "time_s"])
    baseline = _baseline(history, samples)
    base = 0 if baseline.empty else int(baseline["queue_depth"].max())
    late = samples[samples["time_s"].between(due_s, span.end_s)]
    over = late["queue_depth"] > base + _QUEUE_SLACK
    twice = late[over & over.groupby(late["node"]).shift(1, fill_value=False)].drop_duplicates("node")
    return [
        violation(
            row,
            f"{row['queue_depth']} requests wait on {row['node']} {row['time_s'] - span.start_s:.1f} s after the heal, "
            f"at most {base} did before",
            "time_s",
        )
        for row in records(twice)
    ]


def _baseline(history: History, samples: pd.DataFrame) -> pd.DataFrame:
    name = history.experiment.get("baseline_phase", "baseline")
    for phase in history.phases():
        if phase.name == name:
            return samples[samples["time_s"].between(phase.start_s, phase.end_s)]
    return samples.iloc[:0]
