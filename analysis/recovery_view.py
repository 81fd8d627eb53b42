"""The recovery section of a report: the worst of all faults as key figures and bars, tables by fault and episode."""

import math
from collections.abc import Callable, Sequence

import msgspec

from analysis.history import History
from analysis.page import Figure, percent, seconds
from analysis.recovery import FaultTimes, fault_times
from analysis.verdict import EpisodeResult, Outcome

ROWS_MAX = 12
"""Faults, and episodes, that a report lists; `verdict.json` has them all."""
_NAMES_MAX = 6
NOTICED = {
    "already_distrusted": "its targets were distrusted already",
    "unseen": "cannot be seen from outside",
    "attempt_failed": "an attempt failed",
    "attempt_refused": "an attempt was refused",
    "worker_suspected": "heartbeats were overdue",
    "worker_dead": "heartbeats stayed away",
    "breaker_opened": "its breaker opened",
    "contact_lost": "a client heard nothing",
    "resubmitted": "it asked again",
    "link_down": "a link was lost",
    "engine_died": "the engine ended",
}
_RETURNS = {
    "back": (Outcome.PASS, "back"),
    "never": (Outcome.FAIL, "not back"),
    "not_judged": (Outcome.INCONCLUSIVE, "not judged"),
    "cannot_say": (Outcome.INCONCLUSIVE, "cannot say"),
}


class RecoveryStep(msgspec.Struct, frozen=True):
    """One part of a recovery, of the fault where it went worst. value, note: for people.

    share, limit_share: of the longest time in sight, for a bar with a mark at its limit.
    """

    label: str
    meaning: str
    value: str
    note: str
    share: float
    limit_share: float | None


class FaultLine(msgspec.Struct, frozen=True):
    """One fault for a table. punctual: how it kept what the policy says, a mark and a phrase; None: nothing was due."""

    name: str
    label: str
    struck_s: float
    noticed: str
    noticed_how: str
    due: str
    due_by: str
    punctual: tuple[Outcome, str] | None
    mitigation: str
    at_risk: int


class EpisodeLine(msgspec.Struct, frozen=True):
    """One episode for a table. steady, goodput: the whole phrase; *_tag: a mark and its first words, *_why: its rest.

    shares, attempts_then, load_then: what to compare with.
    """

    name: str
    label: str
    when: str
    steady: str
    steady_tag: tuple[Outcome, str]
    steady_why: str
    goodput: str
    goodput_tag: tuple[Outcome, str]
    goodput_why: str
    shares: str
    attempts: str
    attempts_then: str
    load: str
    load_then: str
    at_risk: int
    lost: int
    wasted_attempts: int
    wasted_tokens: int


class RecoveryView(msgspec.Struct, frozen=True):
    """The section. fault_count, episode_count: how many there were, of which at most ROWS_MAX are listed."""

    steps: list[RecoveryStep]
    faults: list[FaultLine]
    episodes: list[EpisodeLine]
    sentences: list[str]
    fault_count: int
    episode_count: int

    def figures(self) -> list[Figure]:
        """The worst of each part, for the first screen."""
        return [Figure(step.label, step.value, step.note) for step in self.steps]


def recovery_view(history: History, episodes: Sequence[EpisodeResult]) -> RecoveryView | None:
    """None where no fault was injected."""
    times = fault_times(history)
    if not times:
        return None
    return RecoveryView(
        # Of somebody else's cluster only the return is felt outside.
        steps=_steps(history, times)[-1 if history.info.outside else 0 :],
        faults=[_fault_line(each, history.info.complete) for each in times[:ROWS_MAX]],
        episodes=[_episode_line(each) for each in episodes[:ROWS_MAX]],
        sentences=[each.explanation() for each in times[:ROWS_MAX]],
        fault_count=len(times),
        episode_count=len(episodes),
    )


def _steps(history: History, times: list[FaultTimes]) -> list[RecoveryStep]:
    """Detection, mitigation and return, in the order in which they happen after an injection."""
    limits = {metric: _limit(history, metric) for metric in ("detection_s", "mitigation_s", "return_to_steady_s")}
    every = [value for each in times for value in (each.detection_s, each.mitigation_s, each.return_to_steady_s)]
    longest = max([value for value in (*every, *limits.values()) if value is not None], default=0.0) or 1.0
    complete = history.info.complete

    def step(
        metric: str,
        label: str,
        meaning: Callable[[FaultTimes], str],
        known: Callable[[FaultTimes], bool],
        unknown: Callable[[FaultTimes], str],
    ) -> RecoveryStep:
        judged = [each for each in times if known(each)]
        limit_s = limits[metric]
        asked = "no limit was set" if limit_s is None else f"limit ≤ {limit_s:g} s"
        mark = None if limit_s is None else limit_s / longest
        if not judged:
            return RecoveryStep(label, meaning(times[0]), "–", unknown(times[0]), 0.0, mark)
        worst = max(judged, key=lambda each: _badness(getattr(each, metric)))
        value_s: float | None = getattr(worst, metric)
        # A run that was cut does not know what came after.
        value = seconds(value_s) if value_s is not None else "never" if complete else "unknown"
        note = asked
        if metric == "detection_s" and value_s is None and worst.predicted_s is None and limit_s is None:
            note = "no mechanism has to notice it"
        if len({getattr(each, metric) for each in judged}) > 1 or len(judged) < len(times):
            note += f"; worst: {worst.name} ({worst.label.replace('_', ' ')})"
        left = len(times) - len(judged)
        note += f"; {left} of {len(times)} not judged" if left else ""
        return RecoveryStep(label, meaning(worst), value, note, (value_s or 0.0) / longest, mark)

    noticed = any(each.detection_s is not None for each in times)
    return [
        step(
            "detection_s",
            "Detection",
            _detection_meaning,
            # Where no mechanism has to notice a fault, that nobody did is no news beside those that were noticed.
            lambda each: (
                each.detection_known
                and (
                    each.detection_s is not None
                    or each.late is True
                    or limits["detection_s"] is not None
                    or not noticed
                )
            ),
            lambda each: "there was nothing to notice, or the next fault struck too soon",
        ),
        step(
            "mitigation_s",
            "Mitigation",
            lambda each: "from the injection to the last dispatch wasted on a target",
            lambda each: True,
            lambda each: "",
        ),
        step(
            "return_to_steady_s",
            "Return to steady state",
            lambda each: "from the heal until the cluster was whole again",
            lambda each: not each.not_judged,
            lambda each: f"not judged: {each.not_judged}",
        ),
    ]


def _badness(value_s: float | None) -> float:
    return math.inf if value_s is None else value_s


def _detection_meaning(times: FaultTimes) -> str:
    if times.detection_s is None:
        return "from the injection until the cluster noticed"
    how = NOTICED.get(times.noticed_how, times.noticed_how.replace("_", " "))
    return f"from the injection until {times.noticed_by} noticed: {how}"


def _limit(history: History, metric: str) -> float | None:
    """The upper limit that the experiment sets on a metric."""
    expectations = history.experiment.get("expectations")
    for asked in expectations.values() if isinstance(expectations, dict) else ():
        if isinstance(asked, dict) and asked.get("metric") == metric:
            most = asked.get("at_most")
            return float(most) if isinstance(most, int | float) else None
    return None


def _fault_line(times: FaultTimes, complete: bool) -> FaultLine:
    how = NOTICED.get(times.noticed_how, times.noticed_how.replace("_", " "))
    if times.detection_s is not None:
        noticed = seconds(times.detection_s)
        noticed_how = f"by {times.noticed_by}: {how}"
    elif times.noticed_how in ("already_distrusted", "unseen"):
        noticed, noticed_how = "–", how
    elif not times.detection_known:
        soon = "the next fault struck before anybody had to"
        noticed, noticed_how = "–", "by nobody" if times.predicted_s is None else f"not judged: {soon}"
    else:
        noticed, noticed_how = ("never" if complete else "unknown"), ""
    due, due_by = "–", "no mechanism has to notice it"
    if times.predicted_s is not None:
        due, due_by = f"within {seconds(times.predicted_s)}", times.predicted_by
    late = None if times.late is None else (Outcome.FAIL if times.late else Outcome.PASS, times.punctuality())
    return FaultLine(
        times.name, times.label, times.injected_s, noticed, noticed_how, due, due_by, late,
        "–" if times.noticed_how == "unseen" else seconds(times.mitigation_s), times.at_risk,
    )  # fmt: skip


def _episode_line(episode: EpisodeResult) -> EpisodeLine:
    healed = "never healed" if episode.healed_s is None else f"to {episode.healed_s:.2f} s"
    span = episode.goodput_before_interval
    steady_tag, steady_why = _tagged(episode.steady, episode.steady_text)
    goodput_tag, goodput_why = _tagged(episode.goodput, episode.goodput_text)
    usual = "" if span is None else f" ({percent(span[0])} to {percent(span[1])})"
    return EpisodeLine(
        name=_some(episode.faults, ", "),
        label=_some(episode.labels, "; "),
        when=f"{episode.began_s:.2f} s {healed}",
        steady=episode.steady_text,
        steady_tag=steady_tag,
        steady_why=steady_why,
        goodput=episode.goodput_text,
        goodput_tag=goodput_tag,
        # Said once beside it.
        goodput_why="" if goodput_why == steady_why else goodput_why,
        shares=f"before {percent(episode.goodput_before)}{usual}, under fault {percent(episode.goodput_during)}, "
        f"at last {percent(episode.goodput_last)}",
        attempts=_number(episode.amplification_during),
        attempts_then=f"before {_number(episode.amplification_before)}, until back "
        f"{_number(episode.amplification_after)}, at last {_number(episode.amplification_last)}",
        load=f"{_number(episode.load_during_per_s, 1)} /s",
        load_then=f"before {_number(episode.load_before_per_s, 1)}, at last {_number(episode.load_last_per_s, 1)}",
        at_risk=episode.at_risk,
        lost=episode.lost,
        wasted_attempts=episode.wasted_attempts,
        wasted_tokens=episode.wasted_tokens,
    )


def _some(names: Sequence[str], between: str) -> str:
    left = len(names) - _NAMES_MAX
    return between.join(names[:_NAMES_MAX]) + (f" and {left} more" if left > 0 else "")


def _tagged(state: str, text: str) -> tuple[tuple[Outcome, str], str]:
    """A phrase as a mark with its first words, and the reason after them."""
    outcome, words = _RETURNS[state]
    if state == "back":
        return (outcome, text), ""
    why = text.removeprefix(words).removeprefix(":").strip()
    return (outcome, words), why[1:-1] if why.startswith("(") and why.endswith(")") else why


def _number(value: float | None, digits: int = 2) -> str:
    return "–" if value is None else f"{value:,.{digits}f}"
