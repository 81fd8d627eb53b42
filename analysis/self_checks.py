"""Self-checks: criteria of our own making, of what the machine did to the measurement, and the run to the machine."""

from analysis import closed_load, little
from analysis.arms import check as check_comparison
from analysis.facts import CannotJudge, asked, fault_windows, host_stalls, offered, policy, recovery_limit_s
from analysis.history import History
from analysis.statistics import percentile, percentile_interval
from analysis.verdict import CriterionResult, Outcome

DISPATCH_LAG_MAX_S = 0.25


def self_checks(history: History) -> list[CriterionResult]:
    """What our own machine did to the measurement, and we to the machine."""
    return [
        _host_stall(history),
        _dispatch_lag(history),
        little.check(history),
        closed_load.check(history),
        check_comparison(history),
        _clean_slate(history),
    ]


def _clean_slate(history: History) -> CriterionResult:
    """A fault that outlives its run hurts whoever comes next, so it fails the run however well that went."""
    name, left = "clean slate (self-check)", history.info.left_behind
    if left is None:
        text = "nothing of the run was outside of its own process" if history.info.complete else "nobody looked"
        return CriterionResult(name, Outcome.NOT_APPLICABLE, None, "", "things", 0, None, text)
    verdict = Outcome.FAIL if left else Outcome.PASS
    text = f"left behind: {'; '.join(left)}" if left else "no process of the run is left, and everything is undone"
    return CriterionResult(name, verdict, float(len(left)), "<= 0", "things", 1, None, text)


def _host_stall(history: History) -> CriterionResult:
    name = "host stall (self-check)"
    try:
        limit_s = policy(history, "membership", "suspect_after_s")
    except CannotJudge as reason:
        return CriterionResult(name, Outcome.NOT_APPLICABLE, None, "", "s", 0, None, str(reason))
    stalls = host_stalls(history)
    worst_s = 0.0 if stalls.empty else float(stalls["length_s"].max())
    text = f"the host stood still for {worst_s:.2f} s at most"
    verdict = Outcome.PASS
    if worst_s > limit_s:
        text = f"the host stood still for {worst_s:.2f} s: heartbeats and latencies of that time mean nothing"
        verdict = Outcome.INVALID
    return CriterionResult(name, verdict, worst_s, f"<= {limit_s:g}", "s", len(stalls), None, text)


def _dispatch_lag(history: History) -> CriterionResult:
    name, limit = "dispatch lag (self-check)", f"<= {DISPATCH_LAG_MAX_S:g}"
    try:
        lag_s = _own_lag_s(history)
    except CannotJudge as reason:
        return CriterionResult(name, Outcome.NOT_APPLICABLE, None, limit, "s", 0, None, str(reason))
    value = percentile(lag_s, 0.99)
    if value is None:
        text = f"{len(lag_s)} requests are too few to say whether the load was on time"
        return CriterionResult(name, Outcome.NOT_APPLICABLE, None, limit, "s", len(lag_s), None, text)
    text = f"99 % of requests were sent within {value:.3f} s of their intended time"
    verdict = Outcome.PASS
    if value > DISPATCH_LAG_MAX_S:
        text = f"1 % of requests were sent {value:.3f} s late or later: the generators were too slow for this load"
        verdict = Outcome.INVALID
    return CriterionResult(name, verdict, value, limit, "s", len(lag_s), percentile_interval(lag_s, 0.99, 0.95), text)


def _own_lag_s(history: History) -> list[float]:
    """Sent minus intended, seconds, of requests that nothing but their generator could delay.

    A client without a controller or a broker holds its requests back, which is the fault's doing and no lag of ours.
    """
    windows = [
        window for window in fault_windows(history) if any(not name.startswith("worker-") for name in window.targets)
    ]
    limit_s = recovery_limit_s(history) if windows else 0.0
    lines = offered(history)
    # A closed load has no plan to be late for.
    lines = lines[lines["sent_s"].notna() & ~lines["request_id"].isin(asked(history).index)]
    return [
        sent_s - intended_s
        for intended_s, sent_s in zip(lines["intended_s"], lines["sent_s"], strict=True)
        if not any(window.overlaps(intended_s, sent_s, limit_s) for window in windows)
    ]
