"""Invariant 4: nothing offered is lost or made up, and no token is delivered that no worker made."""

import numpy as np

from analysis.checkers.finding import judged, violations
from analysis.facts import cleanly_stopped, counts, finished, run_end_s, segments
from analysis.history import History
from analysis.verdict import InvariantResult, Violation

NUMBER = 4
NAME = "conservation of requests and tokens"
_ATTEMPT = ["request_id", "submission", "attempt"]


def check(history: History) -> InvariantResult:
    """offered = completed + failed + refused + cancelled, plus what is in flight in a run that was cut.

    Of every attempt a client got at most the tokens that its worker says it made. Rows of a worker that did not stop
    on request may be missing, which is no breach.
    """
    tally = counts(history)
    ended = tally.completed + tally.failed + tally.refused + tally.cancelled
    found = []
    if ended + tally.in_flight != tally.offered or (tally.in_flight and history.info.complete):
        still = f" and {tally.in_flight} never ended" if tally.in_flight else ""
        text = f"{tally.offered} requests were offered, {ended} ended{still}"
        found.append(Violation(run_end_s(history), "", "", text))
    found += _token_breaches(history)
    return judged(NUMBER, NAME, found, f"{tally.offered} requests offered, all accounted for; token sums agree")


def _token_breaches(history: History) -> list[Violation]:
    rows = finished(history).drop_duplicates("request_id")
    keys = [*_ATTEMPT, "worker", "worker_incarnation"]
    got = segments(rows[rows["outcome"] == "completed"]).groupby(keys, as_index=False)
    delivered = got.agg(delivered=("count", "sum"), ended_s=("received_s", "max"))
    worked = history.attempts[history.attempts["side"] == "worker"]
    made = worked.groupby(_ATTEMPT, as_index=False).agg(made=("tokens", "max"))
    both = delivered.merge(made, on=_ATTEMPT, how="left")
    stopped = cleanly_stopped(history)
    pairs = zip(both["worker"], both["worker_incarnation"], strict=True)
    told = np.array([pair in stopped for pair in pairs], dtype=bool)
    found = violations(
        both[both["made"].isna() & told],
        lambda row: (
            f"request {row['request_id']}: {row['delivered']} tokens of attempt {row['submission']}."
            f"{row['attempt']}, of which {row['worker']} has no row"
        ),
    )
    return found + violations(
        both[both["delivered"] > both["made"]],
        lambda row: (
            f"request {row['request_id']}: {row['delivered']} tokens delivered of attempt {row['submission']}."
            f"{row['attempt']}, of which {row['worker']} made {row['made']:.0f}"
        ),
    )
