"""Little's law in every phase: mean requests in flight = throughput x mean time in the cluster.

Two witnesses that know nothing of each other are held against it: the clients' counters of open requests, sampled every
half second, and the rows that they wrote as each request ended. Where they disagree, rows are missing or times are
wrong, and no latency or throughput of the run means anything.

J. Little, A proof for the queuing formula L = lambda W, Operations Research 9 (1961); in a finite window it is exact
when only the part of each life that lies in the window counts (Little and Graves, Little's law, in Building Intuition
(2008)).
"""

import math

import numpy as np
import pandas as pd

from analysis.facts import finished, offered
from analysis.history import History, Phase
from analysis.statistics import Values
from analysis.verdict import CriterionResult, Outcome

NAME = "Little's law (self-check)"
SAMPLES_MIN = 10
HANDLE_S = 0.05
"""Between a request's times in its row and the moments in which its client counts it: an event of the client's loop."""


def check(history: History) -> CriterionResult:
    """The phase in which the law is met worst; invalid when it is not met there.

    The clients' mean number of open requests may differ from the rows' by what sampling itself does (known exactly: the
    rows say what a sample at each of these times should have seen), and by the arrivals per second times how much later
    a request is counted than its row says (its mean dispatch lag, and HANDLE_S at each end).
    """
    found = [seen for phase in history.phases() if (seen := _phase(history, phase)) is not None]
    if not history.info.complete or not found:
        text = "the run was cut, so requests in flight left no row" if not history.info.complete else ""
        text = text or f"no phase has {SAMPLES_MIN} samples of every client"
        return CriterionResult(NAME, Outcome.NOT_APPLICABLE, None, "", "requests", 0, None, text)
    name, sampled, expected, tolerance, samples = max(found, key=lambda seen: abs(seen[1] - seen[2]) / seen[3])
    excess = abs(sampled - expected) / tolerance
    text = (
        f"in phase {name} the clients counted {sampled:.2f} requests in flight on average, throughput times mean "
        f"latency is {expected:.2f} (they may differ by {tolerance:.2f})"
    )
    if excess > 1:
        text += ": rows are missing or their times are wrong"
    verdict = Outcome.INVALID if excess > 1 else Outcome.PASS
    limit = f"within {tolerance:.2g} of {expected:.4g}"
    return CriterionResult(NAME, verdict, sampled, limit, "requests", samples, None, text)


def _phase(history: History, phase: Phase) -> tuple[str, float, float, float, int] | None:
    """Phase, mean in flight as sampled and by the rows, how far they may lie apart, samples of the client with fewest.

    None where a client has too few samples.
    """
    start_s, end_s = phase.start_s, phase.end_s
    clients = history.nodes[history.nodes["role"] == "client"]
    inside = clients[clients["time_s"].between(start_s, end_s, inclusive="left")]
    if clients.empty or not math.isfinite(end_s):
        return None
    counts = inside.groupby("node").size().reindex(clients["node"].unique(), fill_value=0)
    if counts.min() < SAMPLES_MIN:
        return None
    lives = _lives(history)
    sampled = should = 0.0
    for node, samples in inside.groupby("node"):
        mine = lives[lives["node"] == node]
        sampled += float(samples["open_requests"].mean())
        should += float(_alive(mine, samples["time_s"].to_numpy(dtype=float)).mean())
    begun, ended = (lives[name].to_numpy(dtype=float) for name in ("intended_s", "ended_s"))
    overlap = np.maximum(0.0, np.minimum(ended, end_s) - np.maximum(begun, start_s))
    expected = float(overlap.sum()) / (end_s - start_s)
    came = lives[lives["intended_s"].between(start_s, end_s, inclusive="left")]
    lag_s = float((came["sent_s"] - came["intended_s"]).mean()) if len(came) else 0.0
    per_s = max(len(came), int((overlap > 0).sum())) / (end_s - start_s)
    tolerance = abs(should - expected) + per_s * (max(0.0, lag_s) + 2 * HANDLE_S) + 1e-9
    return phase.name, sampled, expected, tolerance, int(counts.min())


def _lives(history: History) -> pd.DataFrame:
    """Of every request: its client, and when it began and ended; what never ended lives for ever."""
    rows = finished(history).drop_duplicates("request_id")
    lives = rows[["request_id", "node", "intended_s", "sent_s", "ended_s"]]
    lines = offered(history)
    hung = lines[lines["outcome"] == "in_flight"]
    if hung.empty:
        return lives
    # Whose they were nobody knows: the first client's, for the sum it is all the same.
    owner = history.nodes.loc[history.nodes["role"] == "client", "node"].min()
    return pd.concat(
        [
            lives,
            hung[["request_id", "intended_s"]].assign(node=owner, sent_s=hung["intended_s"], ended_s=math.inf),
        ],
        ignore_index=True,
    )


def _alive(lives: pd.DataFrame, times_s: Values) -> Values:
    """How many were open at each of these times."""
    begun = np.sort(lives["intended_s"].to_numpy(dtype=float))
    ended = np.sort(lives["ended_s"].to_numpy(dtype=float))
    alive: Values = (
        np.searchsorted(begun, times_s, side="right") - np.searchsorted(ended, times_s, side="right")
    ).astype(float)
    return alive
