"""Until when faults keep which workers from work: the harm outlives the heal until the target is seen to be back."""

import contextlib
import math
from collections.abc import Iterator, Sequence

import msgspec

from analysis.facts import CLOCK_TOLERANCE_S, CannotJudge, FaultWindow, policy, recovery_limit_s
from analysis.history import History
from analysis.timeline import breakers, membership

_TIME_OUTS = ("first_token_s", "between_tokens_s")


class Hurt(msgspec.Struct, frozen=True):
    """One target of a fault, from the injection (start_s) to its own return (end_s), seconds since the run began."""

    fault: FaultWindow
    target: str
    start_s: float
    end_s: float


def hurts(history: History, windows: Sequence[FaultWindow]) -> list[Hurt]:
    """What each of these faults did to each of its targets.

    A worker is back when it is ready and its breaker closed, in the eyes of every controller, and is not distrusted
    again before the longest time-out of an attempt is over: by then whatever the fault has spoilt is known. Where no
    controller ever distrusted it, only that time-out bounds the harm. It ends at the latest with the recovery limit
    after the heal. CLOCK_TOLERANCE_S is added, for two nodes' clocks. Raises CannotJudge.
    """
    if not windows:
        return []
    limit_s = recovery_limit_s(history)
    late_s = _known_after_s(history)
    bad = _distrusted(history)
    found = []
    for window in windows:
        for target in window.targets:
            end_s = min(_back_s(window, bad.get(target, []), late_s), window.healed_s + limit_s)
            found.append(Hurt(window, target, window.injected_s, end_s + CLOCK_TOLERANCE_S))
    return found


def hurt_at(found: Sequence[Hurt], time_s: float) -> list[FaultWindow]:
    """The faults that hurt somebody at this moment, each with those of its targets only that it hurts then."""
    still: dict[FaultWindow, list[str]] = {}
    for hurt in found:
        if hurt.start_s <= time_s <= hurt.end_s:
            still.setdefault(hurt.fault, []).append(hurt.target)
    return [msgspec.structs.replace(fault, targets=tuple(targets)) for fault, targets in still.items()]


def _known_after_s(history: History) -> float:
    """After how long the last attempt that a fault has spoilt has failed; 0 where attempts have no time-out."""
    found = [0.0]
    for name in _TIME_OUTS:
        with contextlib.suppress(CannotJudge):
            found.append(policy(history, "timeout", name))
    return max(found)


def _back_s(window: FaultWindow, bad: Sequence[tuple[float, float]], late_s: float) -> float:
    back_s = window.healed_s
    seen = False
    for start_s, end_s in bad:
        if end_s > back_s and start_s <= back_s + late_s:
            back_s, seen = end_s, True
    return back_s if seen else back_s + late_s


def _distrusted(history: History) -> dict[str, list[tuple[float, float]]]:
    """By worker, in order, from when until when it was not ready or its breaker not closed."""
    found: dict[str, list[tuple[float, float]]] = {}
    for changes, good in ((membership(history.events), "ready"), (breakers(history.events), "closed")):
        for worker, of_worker in changes.groupby("worker", sort=False):
            times, states = of_worker["time_s"].tolist(), of_worker["state"].tolist()
            found.setdefault(str(worker), []).extend(_stretches(times, states, good))
    return {worker: sorted(stretches) for worker, stretches in found.items()}


def _stretches(times_s: Sequence[float], states: Sequence[str], good: str) -> Iterator[tuple[float, float]]:
    for number, (start_s, state) in enumerate(zip(times_s, states, strict=True)):
        if state != good:
            yield start_s, times_s[number + 1] if number + 1 < len(times_s) else math.inf
