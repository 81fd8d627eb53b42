"""Episodes: faults that overlap in time are one, from the first injection to the last heal, and return together. What
an episode cost in requests, attempts and tokens, and whether goodput came back after it."""

import math

import msgspec
import numpy as np
import pandas as pd

from analysis.facts import FaultWindow, QuietSpan, fault_windows, finished, offered, quiet_spans, run_end_s, segments
from analysis.goodput import GoodputReturn, Load, Return, Share, baseline_span, goodput_return, last_part
from analysis.history import History
from analysis.recovery import FaultTimes, fault_times, load_end_s, touched
from analysis.verdict import EpisodeResult

_ATTEMPT = ["request_id", "submission", "attempt", "worker"]


class Attempts(msgspec.Struct, frozen=True):
    """The attempts that controllers began, by begun_s. first: whether it was the first of its request."""

    rows: pd.DataFrame

    @classmethod
    def of(cls, history: History) -> "Attempts":
        """Of the requests of the run."""
        rows = history.attempts[history.attempts["side"] == "controller"].sort_values("begun_s", kind="stable")
        cancelled = set(finished(history).query("outcome == 'cancelled'")["request_id"])
        return cls(
            rows.assign(
                first=~rows.duplicated("request_id"),
                wasted=(rows["outcome"] != "completed") & ~rows["request_id"].isin(cancelled),
            )
        )

    def over(self, start_s: float, end_s: float) -> pd.DataFrame:
        """Those begun from start_s until before end_s."""
        return self.rows[(self.rows["begun_s"] >= start_s) & (self.rows["begun_s"] < end_s)]

    def amplification(self, start_s: float, end_s: float) -> float | None:
        """Attempts begun per request begun: 1 without a retry. What is tried again of earlier requests counts, for it
        is load too. None where no request was begun."""
        begun = self.over(start_s, end_s)
        first = int(begun["first"].sum())
        return len(begun) / first if first else None


def episodes(history: History) -> list[EpisodeResult]:
    """All episodes of a run, by time."""
    windows, times = fault_windows(history), fault_times(history)
    spans = {span.fault: span for span in quiet_spans(history)}
    load, attempts = Load.of(history), Attempts.of(history)
    tokens = _wasted_tokens(history)
    return [
        _episode(history, members, [times[windows.index(each)] for each in members], spans, load, attempts, tokens)
        for members in together(windows)
    ]


def together(windows: list[FaultWindow]) -> list[list[FaultWindow]]:
    """Faults by time of injection, in groups that are on together or one after the other without a gap."""
    groups: list[list[FaultWindow]] = []
    end_s = -math.inf
    for window in windows:
        if window.injected_s > end_s:
            groups.append([])
        groups[-1].append(window)
        end_s = max(end_s, window.healed_s)
    return groups


def _episode(
    history: History,
    members: list[FaultWindow],
    times: list[FaultTimes],
    spans: dict[FaultWindow, QuietSpan],
    load: Load,
    attempts: Attempts,
    tokens: pd.DataFrame,
) -> EpisodeResult:
    span = spans.get(members[0])
    began_s = members[0].injected_s
    healed_s = run_end_s(history) if span is None else span.start_s
    until_s = healed_s if span is None else max(healed_s, load_end_s(history, span))
    back_s = times[0].return_to_steady_s
    over_s = until_s if back_s is None else healed_s + back_s
    state, told = _steady(history, times, span, until_s)
    goodput = _goodput(history, load, span, began_s, times[0].not_judged)
    during, before_s = load.over(began_s, healed_s), baseline_span(history)
    lines = offered(history)
    at_risk = set().union(*(touched(history, each, lines) for each in members))
    cost = attempts.over(began_s, over_s)
    last_s = None if span is None else last_part(history, span)
    return EpisodeResult(
        faults=[each.name for each in members],
        labels=list(dict.fromkeys(each.label for each in times)),
        began_s=began_s,
        healed_s=None if span is None else healed_s,
        until_s=until_s,
        steady=state.value,
        return_to_steady_s=back_s,
        steady_text=told,
        goodput=goodput.state.value,
        goodput_back_s=goodput.back_s,
        goodput_text=goodput.text,
        goodput_before=goodput.before.share,
        goodput_before_interval=goodput.before.interval(),
        goodput_during=during.share,
        goodput_last=goodput.last.share,
        load_before_per_s=goodput.before.per_s,
        load_during_per_s=during.per_s,
        load_last_per_s=goodput.last.per_s,
        amplification_before=attempts.amplification(*before_s),
        amplification_during=attempts.amplification(began_s, healed_s),
        amplification_after=None if span is None else attempts.amplification(healed_s, over_s),
        amplification_last=None if last_s is None else attempts.amplification(*last_s),
        at_risk=len(at_risk),
        lost=_lost(history, lines, at_risk),
        wasted_attempts=int(cost["wasted"].sum()),
        wasted_tokens=int(tokens.loc[tokens["begun_s"].between(began_s, over_s, inclusive="left"), "wasted"].sum()),
    )


def _steady(history: History, times: list[FaultTimes], span: QuietSpan | None, until_s: float) -> tuple[Return, str]:
    """What became of the steady state, and that as a phrase."""
    back_s, not_judged = times[0].return_to_steady_s, times[0].not_judged
    if back_s is not None:
        return Return.BACK, f"back after {back_s:.2f} s"
    if not_judged:
        return Return.NOT_JUDGED, f"not judged: {not_judged}"
    if not history.info.complete:
        return Return.CANNOT_SAY, "cannot say: the run was cut"
    if span is None:
        return Return.NEVER, "never: it was not healed"
    end = "the next fault" if span.followed else "the load ended"
    return Return.NEVER, f"not back in the {until_s - span.start_s:.1f} s until {end}"


def _goodput(history: History, load: Load, span: QuietSpan | None, began_s: float, cut_off: str) -> GoodputReturn:
    if span is not None:
        return goodput_return(history, load, span, began_s, cut_off)
    text = "cannot say (never healed)" if history.info.complete else "cannot say (the run was cut)"
    return GoodputReturn(load.over(*baseline_span(history)), Share(0, 0, 0.0), Return.CANNOT_SAY, None, text)


def _lost(history: History, lines: pd.DataFrame, at_risk: set[str]) -> int:
    fine = ["completed", "cancelled"] if history.info.complete else ["completed", "cancelled", "in_flight"]
    return int((lines["request_id"].isin(at_risk) & ~lines["outcome"].isin(fine)).sum())


def _wasted_tokens(history: History) -> pd.DataFrame:
    """For each attempt when it began (begun_s) and how many of its tokens nobody got (wasted).

    Made: what the worker says, and where it left no row what the controller took. Of a worker that was killed that is
    a lower bound.
    """
    rows = history.attempts
    made = rows.groupby(_ATTEMPT, as_index=False).agg(begun_s=("begun_s", "min"), made=("tokens", "max"))
    parts = segments(finished(history))
    given = parts.groupby(_ATTEMPT, as_index=False).agg(given=("count", "sum"))
    both = made.merge(given, "left", _ATTEMPT)
    return both.assign(wasted=np.maximum(0, both["made"] - both["given"].fillna(0)))
