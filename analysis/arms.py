"""The arms of a comparison: the requests and the blocks of one of them, and how it compares with another.

A metric of an arm is that metric of a history in which nobody else's requests are.
"""

import math
from typing import NamedTuple

import msgspec
import numpy as np
import pandas as pd

from analysis.comparison import Comparison, Percentile, compare, mean
from analysis.facts import CannotJudge, due, offered
from analysis.first_token import FIRST_TOKEN_PARTS, first_token_times
from analysis.history import History
from analysis.measurement import Measurement, Metric
from analysis.statistics import Values, mean_interval
from analysis.time_shares import PARTS, request_times
from analysis.verdict import CriterionResult, Outcome

NAME = "comparison (self-check)"
_PART_SHARE_MIN = 0.1
_ALIKE = 10
"""So many sessions of neighbouring prefix lengths count as alike. In a sweep of 60 over a factor of 16 they differ by
half. With fewer the interval of a median depends on where their bounds happen to lie; more make it wider."""
_BLOCK = "block"
"""The phase that a block is in a history of that block alone."""


class ArmBlock(NamedTuple):
    """A block as it ran. Seconds since the run began, from when on its requests counted until when they were asked."""

    arm: str
    number: int
    counts_s: float
    stop_s: float


def arm_names(history: History) -> list[str]:
    """The arms of the run's experiment; none where it compares nothing."""
    arms = history.experiment.get("arms")
    return [str(name) for name in arms] if isinstance(arms, dict) else []


def arm_blocks(history: History, arm: str | None = None) -> list[ArmBlock]:
    """The blocks of an arm (None: of all) that ended, in order of time. None where arms are compared by sessions."""
    events = history.events[history.events["subject"].isin(arm_names(history) if arm is None else [arm])]
    ended = events[events["kind"] == "block_ended"]
    stops = dict(zip(zip(ended["subject"], ended["detail"], strict=True), ended["time_s"], strict=True))
    started = events[events["kind"] == "block_started"].sort_values("time_s")
    return [
        ArmBlock(name, int(detail), float(time_s), float(stops[name, detail]))
        for name, detail, time_s in zip(started["subject"], started["detail"], started["time_s"], strict=True)
        if (name, detail) in stops
    ]


def of_arm(history: History, arm: str) -> History:
    """Only the requests of an arm that count: by blocks those that were due in the counting part of their own block."""
    schedule = history.schedule[history.schedule["arm"] == arm]
    blocks = arm_blocks(history, arm)
    if blocks:
        counts = {block.number: (block.counts_s, block.stop_s) for block in blocks}
        asked = due(msgspec.structs.replace(history, schedule=schedule))
        spans = [counts.get(number, (math.inf, math.inf)) for number in asked["block"]]
        inside = [first <= at_s < last for at_s, (first, last) in zip(asked["intended_s"], spans, strict=True)]
        schedule = schedule[schedule["request_id"].isin(asked.loc[inside, "request_id"])]
    return _only(history, schedule)


def measure_arm(history: History, metric: Metric, arm: str, phase: str | None, confidence: float) -> Measurement:
    """A metric over the requests of an arm. What is divided by time is averaged over its blocks. Raises CannotJudge."""
    if not metric.per_time or not arm_blocks(history, arm):
        return metric.measure(_with_earlier_turns(history, of_arm(history, arm)), phase, confidence)
    values = np.concatenate([*values_by_number(history, metric, arm, phase, confidence).values(), np.empty(0)])
    if not len(values):
        return Measurement(None, None, None, None, 0, "mean")
    lower, upper = mean_interval(values, 2 * confidence - 1) or (None, None)
    return Measurement(float(values.mean()), mean_interval(values, confidence), lower, upper, len(values), "mean")


def compare_arms(
    history: History, metric: Metric, arm: str, versus: str, phase: str | None, confidence: float
) -> Comparison | None:
    """The metric of `arm` divided by that of `versus`, in pairs of blocks or of sessions with one number.

    Sessions are planned with prefixes of all lengths of a sweep, so it is no news of the arms that a long one takes
    longer than a short one: those of similar length are resampled among themselves. See analysis.comparison.compare,
    also for when it is None. Raises CannotJudge.
    """
    above, below = (values_by_number(history, metric, name, phase, confidence) for name in (arm, versus))
    lengths = prefix_lengths(history, arm)
    pairs = sorted(above.keys() & below.keys(), key=lambda number: (lengths.get(number, 0), number))
    statistic = mean if metric.values is None else Percentile(metric.share)
    treatment, control = ([side[number] for number in pairs] for side in (above, below))
    alike = _ALIKE if lengths else None
    return compare(treatment, control, statistic, paired=True, confidence=confidence, alike=alike)


def measure_ratio(
    history: History, metric: Metric, arm: str, versus: str, phase: str | None, confidence: float
) -> Measurement:
    """See compare_arms. samples: pairs of blocks or sessions."""
    found = compare_arms(history, metric, arm, versus, phase, confidence)
    if found is None:
        pairs = len(_numbers(history, arm) & _numbers(history, versus))
        return Measurement(None, None, None, None, pairs, "ratio")
    note = f"a difference below {100 * found.detectable:.3g} % cannot be told from none here"
    if metric.values is not None:
        note += "".join(f"; {said}" for said in _where_time_goes(history, arm, versus, metric.first_token))
    return Measurement(found.ratio, found.interval, found.lower, found.upper, found.blocks[0], "ratio", note)


def check(history: History) -> CriterionResult:
    """Whether arms that were to run one at a time did: blocks that ran into each other, or ran dry, are invalid."""
    blocks = sorted(arm_blocks(history), key=lambda block: block.counts_s)
    if not blocks:
        text = "no arms were compared one at a time"
        return CriterionResult(NAME, Outcome.NOT_APPLICABLE, None, "", "blocks", 0, None, text)
    lines = offered(history).merge(history.schedule[["request_id", "arm", "block"]], on="request_id")
    spans = (
        lines[lines["arm"] != ""].groupby(["arm", "block"]).agg(first=("intended_s", "min"), last=("ended_s", "max"))
    )
    spans = spans.sort_values("first")
    late = int((spans["last"].to_numpy()[:-1] > spans["first"].to_numpy()[1:]).sum())
    names = history.schedule.loc[history.schedule["arm"] != "", "segment"]
    dry = history.events[(history.events["kind"] == "load_ran_dry") & history.events["subject"].isin(names)]
    found = late + dry["subject"].nunique()
    text = f"{len(spans)} blocks ran one at a time, each with enough to do"
    if late:
        text = f"{late} blocks were still at work when the next one began: comparison.pause_s is too short"
    elif found:
        text = f"{found} closed blocks had no request left to ask before their time was over"
    verdict = Outcome.INVALID if found else Outcome.PASS
    return CriterionResult(NAME, verdict, float(found), "<= 0", "blocks", len(spans), None, text)


def _where_time_goes(history: History, arm: str, versus: str, first_token: bool) -> list[str]:
    """What the mean answer, or its first token, is made of in both arms, and what is left of it in the first.

    So a ratio says which part of the time it is about, and which one is to blame where it misses its limit.
    """
    what = "first token" if first_token else "answer"
    told, left = [], ""
    for name in (arm, versus):
        own = of_arm(history, name)
        lines = first_token_times(own) if first_token else request_times(own)
        if lines.empty:
            continue
        meaning = FIRST_TOKEN_PARTS if first_token else PARTS
        means = lines[[*meaning, "total_s"]].mean()
        total_s = float(means.pop("total_s"))
        means = means.sort_values(ascending=False, kind="stable")
        parts = [
            f"{1000 * part_s:.3g} ms {meaning[str(part)]}"
            for part, part_s in means.items()
            if part_s >= _PART_SHARE_MIN * total_s
        ]
        told.append(f"the mean {what} of {name} takes {1000 * total_s:.3g} ms: {', '.join(parts)}")
        if name == arm:
            left = f"what {arm} has left of it is mostly {meaning[str(means.index[0])]}"
    return [*told, left] if left else told


def prefix_lengths(history: History, arm: str) -> dict[int, int]:
    """Tokens of the turn before the measured one, by number of session: all of them begin the measured prompt.

    Empty where arms are compared by blocks.
    """
    plan = history.schedule
    measured = plan[plan["arm"] == arm]
    lengths = plan[(plan["turn"] == 0) & (plan["arm"] == "")].set_index("session_id")["prompt_tokens"]
    return {
        int(number): int(lengths[session])
        for number, session in zip(measured["block"], measured["session_id"], strict=True)
        if session in lengths.index
    }


def _numbers(history: History, arm: str) -> set[int]:
    return set(history.schedule.loc[history.schedule["arm"] == arm, "block"])


def values_by_number(
    history: History, metric: Metric, arm: str, phase: str | None, confidence: float
) -> dict[int, Values]:
    """What the metric is made of, by number of block or session: its values, or of a block what it measures."""
    alone = of_arm(history, arm)
    blocks = arm_blocks(history, arm)
    groups: dict[int, Values] = {}
    if not blocks:
        if metric.values is None:
            raise CannotJudge("one session is too little for this metric: compare by blocks")
        values = metric.values(alone, phase).dropna()
        number = alone.schedule.set_index("request_id")["block"].reindex(values.index)
        return {int(name): np.asarray(part, dtype=float) for name, part in values.groupby(number)}
    for block in blocks:
        own = _of_block(alone, block)
        if metric.values is not None:
            groups[block.number] = np.asarray(metric.values(own, _BLOCK).dropna(), dtype=float)
        elif (value := metric.measure(own, _BLOCK, confidence).value) is not None:
            groups[block.number] = np.array([value])
    return groups


def _of_block(alone: History, block: ArmBlock) -> History:
    """A history whose only phase is the block."""
    events = alone.events[~alone.events["kind"].isin(("phase_started", "phase_ended"))]
    ends = {"block_started": "phase_started", "block_ended": "phase_ended"}
    own = events[events["kind"].isin(ends) & (events["subject"] == block.arm) & (events["detail"] == str(block.number))]
    own = own.assign(kind=own["kind"].map(ends), subject=_BLOCK)
    schedule = alone.schedule[alone.schedule["block"] == block.number]
    return msgspec.structs.replace(_only(alone, schedule), events=pd.concat([events, own]))


def _only(history: History, schedule: pd.DataFrame) -> History:
    names = schedule["request_id"]
    return msgspec.structs.replace(
        history,
        schedule=schedule,
        requests=history.requests[history.requests["request_id"].isin(names)],
        attempts=history.attempts[history.attempts["request_id"].isin(names)],
    )


def _with_earlier_turns(history: History, alone: History) -> History:
    """What came before a measured turn is not measured, yet says how long its prefix was."""
    sessions = history.schedule["session_id"].isin(alone.schedule["session_id"])
    earlier = history.schedule[sessions & (history.schedule["arm"] == "")]
    # Beyond the end of the run nothing is due, so that nobody counts them.
    return msgspec.structs.replace(
        alone, schedule=pd.concat([alone.schedule, earlier.assign(intended_s=math.inf)], ignore_index=True)
    )
