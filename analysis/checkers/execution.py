"""Invariant 5: one attempt per token, never a superseded one; nothing runs late or twice; retries stay in budget."""

from analysis.checkers.finding import judged, violations
from analysis.executions import late_starts, repeated_starts
from analysis.facts import finished, offered, policy, run_end_s, segments
from analysis.history import History
from analysis.verdict import InvariantResult, Violation

NUMBER = 5
NAME = "no execution late or twice, no token of a superseded attempt"


def check(history: History) -> InvariantResult:
    """Segments never go back to an earlier attempt; workers start each attempt once and before its deadline.

    Retries are at most `budget_burst + budget_share * offered`, the most that the token bucket can ever pay for.
    """
    found = violations(
        repeated_starts(history),
        lambda row: (
            f"request {row['request_id']}: attempt {row['submission']}.{row['attempt']} "
            f"was executed {row['starts']} times"
        ),
        "time_s",
    )
    found += violations(
        late_starts(history),
        lambda row: (
            f"request {row['request_id']}: {row['node']} started attempt {row['submission']}.{row['attempt']} "
            f"{row['late_s']:.3f} s after its deadline"
        ),
        "time_s",
    )
    return judged(NUMBER, NAME, found + _superseded(history) + _overspent(history), "each attempt ran once and in time")


def _superseded(history: History) -> list[Violation]:
    parts = segments(finished(history))
    before = parts.groupby("row")[["submission", "attempt"]].shift(1)
    older = (parts["submission"] < before["submission"]) | (
        (parts["submission"] == before["submission"]) & (parts["attempt"] < before["attempt"])
    )
    return violations(
        parts[older],
        lambda row: (
            f"request {row['request_id']}: token {row['index']} came from attempt {row['submission']}."
            f"{row['attempt']}, which had been superseded"
        ),
        "received_s",
    )


def _overspent(history: History) -> list[Violation]:
    retries = int(((history.events["kind"] == "retry") & (history.events["time_s"] >= 0)).sum())
    count = len(offered(history))
    allowed = policy(history, "retry", "budget_burst") + policy(history, "retry", "budget_share") * count
    if retries <= allowed:
        return []
    text = f"{retries} retries for {count} requests are more than the budget of {allowed:.0f}"
    return [Violation(run_end_s(history), "", "", text)]
