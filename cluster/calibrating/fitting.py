"""From what was measured to the numbers of `StepCosts` and `NetworkCosts`: least squares, none of them below zero."""

import itertools
from collections import defaultdict
from collections.abc import Iterable, Sequence
from itertools import pairwise

import numpy as np
import numpy.typing as npt
from msgspec.structs import replace
from scipy.optimize import nnls

from cluster.calibrating.bench import BATCH_MAX
from cluster.calibrating.measuring import Measured
from cluster.calibrating.rounds import Chats, Chatted, Taken
from cluster.calibration import Fit
from cluster.engine.costs import StepCosts
from cluster.engine.timed import TimedEngine
from cluster.node import EngineReport, Insert
from cluster.policy import Policy
from cluster.simulation.condition import NetworkCosts

Values = npt.NDArray[np.float64]

NOISE_FACTORS = 48
NOISE_STEPS_MAX = 64
_RESIDUALS = (5, 25, 50, 75, 95)
_ROUND_TRIPS = (5, 50, 95)
_DIGITS = 5
DECODE_TERMS = ("step_s", "decode_each_s", "context_each_s")
TURN_TERMS = ("finish_s", "finish_each_s", "keep_s")
PREFILL_TERMS = ("prefill_step_s", "prefill_prompt_s", "prefill_each_s", "prefill_context_each_s")


def fit(measured: Measured) -> tuple[StepCosts, NetworkCosts, dict[str, Fit]]:
    """The costs that explain what was measured. load_s is the mean over the engines; vocabulary stays as it is.

    The numbers of a step come from engines that computed alone, and from the lower quartile of rounds that are alike,
    so they say what a step takes when nothing comes between, also on a host that is not otherwise idle. What does come
    between is in the noise: that of all steps while so few engines computed that they hardly got into each other's way.
    """
    decode = _fit_decode(measured.alone)
    prefill = _fit_prefill(measured.alone, decode)
    load = measured.loads[0]
    bare = StepCosts(
        load_s=_rounded(float(np.mean([each.load_s for each in measured.loads]))),
        kv_bytes_per_token=load.kv_bytes_per_token,
        weights_bytes=load.weights_bytes,
        **dict(zip(decode.terms, map(_rounded, decode.estimates), strict=True)),  # type: ignore[arg-type]
        **dict(zip(prefill.terms, map(_rounded, prefill.estimates), strict=True)),  # type: ignore[arg-type]
    )
    turns, costs = _fit_turns(measured.chatted, bare)
    contention = _contention(measured.side_by_side)
    few = [engines for engines, factor in enumerate(contention, 1) if factor <= 1.25] or [1]
    series = [
        [gap_s / (_decode_s(costs, taken, step) * contention[engines - 1]) for step, gap_s in enumerate(taken.gaps_s)]
        for engines in few
        for taken in measured.side_by_side[engines]
    ]
    noise, noise_steps = noise_of(series)
    fits = {"decode": decode, "prefill": prefill, "turn": turns}
    whole = replace(costs, noise=noise, noise_steps=noise_steps, contention=contention)
    return whole, bus_of([each for engines in (0, *few) for each in measured.round_trips_s.get(engines, [])]), fits


def percentiles(values: Sequence[float], which: Iterable[int]) -> tuple[float, ...]:
    """Of values, rounded."""
    return tuple(_rounded(float(each)) for each in np.percentile(values, list(which)))


def round_trips(measured: Measured) -> dict[str, tuple[float, float, float]]:
    """See Calibration."""
    found: dict[str, tuple[float, float, float]] = {}
    for count, taken_s in measured.round_trips_s.items():
        if taken_s:
            low, middle, high = percentiles(taken_s, _ROUND_TRIPS)
            found[str(count)] = (low, middle, high)
    return found


def bus_of(taken_s: Sequence[float]) -> NetworkCosts:
    """One way of two is half of a round trip to oneself.

    The 5th percentile is what it takes at least; up to the 95th the rest is spread evenly; and the tail makes the mean
    of all what it was.
    """
    ways_s = np.asarray(taken_s) / 2
    low_s, high_s, mean_s = float(np.percentile(ways_s, 5)), float(np.percentile(ways_s, 75)), float(ways_s.mean())
    jitter_s = high_s - low_s
    return NetworkCosts(_rounded(low_s), _rounded(jitter_s), _rounded(max(0.0, mean_s - low_s - jitter_s / 2)))


def noise_of(series: Sequence[Sequence[float]]) -> tuple[tuple[float, ...], int]:
    """Equally likely factors, and for how many steps in a row one holds, from actual over expected times of steps.

    The factors are the means of equal shares of all values from the smallest to the largest, so they have the same mean
    and nearly the same spread. The stretch is that of which independent factors are as correlated as the values were:
    the integrated autocorrelation time (Sokal, Monte Carlo Methods in Statistical Mechanics (1997), section 3).
    """
    values = np.sort(np.concatenate([np.asarray(each, dtype=float) for each in series]))
    parts = np.array_split(values, min(NOISE_FACTORS, len(values)))
    factors = tuple(_rounded(max(0.01, float(part.mean()))) for part in parts)
    return factors, int(np.clip(round(_correlation_time(series, values)), 1, NOISE_STEPS_MAX))


def _correlation_time(series: Sequence[Sequence[float]], values: Values) -> float:
    """In steps. Outliers are cut at the 99th percentile: one long pause says nothing of how long slowness lasts."""
    top, middle = float(np.percentile(values, 99)), 0.0
    cut = [np.minimum(np.asarray(each, dtype=float), top) for each in series]
    middle = float(np.mean(np.concatenate(cut)))
    spread = float(np.var(np.concatenate(cut)))
    if spread == 0:
        return 1.0
    time = 1.0
    for lag in range(1, NOISE_STEPS_MAX):
        pairs = [(each[:-lag] - middle) * (each[lag:] - middle) for each in cut if len(each) > lag]
        together = float(np.mean(np.concatenate(pairs))) / spread if pairs else 0.0
        if together < 0.05:
            break
        time += 2 * together
    return time


def _fit_decode(alone: Sequence[Taken]) -> Fit:
    cells: dict[tuple[int, int], list[float]] = defaultdict(list)
    for taken in alone:
        one = taken.round
        if len(taken.gaps_s) >= 4:
            cells[one.prompts, one.prompt_tokens + one.new_tokens // 2] += taken.gaps_s
    rows = [(1.0, batch, batch * longest) for batch, longest in cells]
    return least_squares(DECODE_TERMS, rows, [_undisturbed(each) for each in cells.values()])


def _fit_prefill(alone: Sequence[Taken], decode: Fit) -> Fit:
    budget = Policy().worker.prefill_step_tokens
    step_s, each_s, context_s = decode.estimates
    cells: dict[tuple[int, int], list[float]] = defaultdict(list)
    for taken in alone:
        one = taken.round
        decode_s = step_s + one.prompts * each_s + one.prompts * one.prompt_tokens * context_s
        cells[one.prompts, one.prompt_tokens].append(taken.first_s - decode_s)
    rows = []
    for prompts, tokens in cells:
        most = max(1, budget // prompts)
        ends = [*range(most, tokens, most), tokens]
        looks = sum((end - begin) * end for begin, end in pairwise([0, *ends]))
        rows.append((float(len(ends)), float(len(ends) * prompts), float(prompts * tokens), float(prompts * looks)))
    return least_squares(PREFILL_TERMS, rows, [max(1e-6, _undisturbed(each)) for each in cells.values()])


def _fit_turns(chatted: Sequence[Chatted], bare: StepCosts) -> tuple[Fit, StepCosts]:
    """What is missing to the chats when the timed engine plays them with nothing but steps: by turn, at both its ends.

    The wait of a lone chat for its first token tells what a kept cache costs at the beginning, all the rest is the end.
    """
    alone = [each for each in chatted if each.chats.chats == 1 and each.chats.cached_tokens]
    missing_s = [each.first_s - play(bare, each.chats)[1] for each in alone]
    costs = replace(bare, resume_s=_rounded(max(0.0, _undisturbed(missing_s) if missing_s else 0.0)))
    by_chats: dict[Chats, list[float]] = defaultdict(list)
    for each in chatted:
        # Of a model that stops early not all steps were made, and nobody knows what they would have taken.
        if each.turns == each.chats.chats * each.chats.turns:
            by_chats[each.chats].append(each.whole_s)
    rows, seconds, scales = [], [], []
    for chats, whole_s in by_chats.items():
        turns = chats.chats * chats.turns
        rows.append((1.0, float(chats.chats), float(chats.cached_tokens > 0)))
        # What is missing may be next to nothing, or less, so an error counts by the share of the whole turn that it is.
        seconds.append((_undisturbed(whole_s) - play(costs, chats)[0]) / turns)
        scales.append(_undisturbed(whole_s) / turns)
    found = (
        least_squares(TURN_TERMS, rows, seconds, scales)
        if rows
        else Fit(TURN_TERMS, (0.0,) * 3, ((0.0,) * 3,) * 3, 0, ())
    )
    ends = dict(zip(TURN_TERMS, map(_rounded, found.estimates), strict=True))
    return found, replace(costs, **ends)


def play(costs: StepCosts, chats: Chats) -> tuple[float, float]:
    """How long the timed engine takes for chats, and until the mean first token of a turn; seconds."""
    worker = replace(Policy().worker, batch_max=BATCH_MAX, prefill_batch_max=BATCH_MAX)
    engine = TimedEngine(costs, worker, Policy().stream.flush_s)
    engine.load("m", 0.0)
    now = engine.next_time() or 0.0
    engine.advance(now)
    numbers, chat_of, asked_s = itertools.count(), dict[int, int](), dict[int, float]()
    text = tuple(range(chats.cached_tokens + chats.prompt_tokens))
    left, firsts_s, began_s = dict.fromkeys(range(chats.chats), chats.turns + 1), list[float](), now

    def ask(chat: int) -> None:
        first, number = left[chat] > chats.turns, next(numbers)
        left[chat] -= 1
        chat_of[number], asked_s[number] = chat, now
        tokens, most = (text[: max(1, chats.cached_tokens)], 1) if first else (text, chats.new_tokens)
        cached, cache = 0 if first else chats.cached_tokens, chat if chats.cached_tokens else None
        engine.insert(Insert(number, "m", tokens, most, cache=cache, cached_tokens=cached, keep_as=cache), now)

    for chat in range(chats.chats):
        ask(chat)
    idle: list[int] = []
    while (next_s := engine.next_time()) is not None:
        now = next_s
        for event in engine.advance(now):
            for part in event.progress if isinstance(event, EngineReport) else ():
                if part.times_s and part.sequence in asked_s:
                    firsts_s.append(part.times_s[0] - asked_s.pop(part.sequence))
                if part.finish is not None:
                    idle.append(chat_of[part.sequence])
        if left[0] == chats.turns and len(idle) == chats.chats:
            # All have a beginning that is kept: from here on it counts.
            began_s, firsts_s = now, []
        elif min(left.values()) >= chats.turns:
            continue
        for chat in [chat for chat in idle if left[chat]]:
            ask(chat)
        idle.clear()
    return now - began_s, float(np.mean(firsts_s))


def least_squares(
    terms: tuple[str, ...],
    rows: Sequence[Sequence[float]],
    seconds: Sequence[float],
    scales: Sequence[float] | None = None,
) -> Fit:
    """Coefficients of which none is negative, with errors made small as shares of `scales` (None: of `seconds`).

    The covariance is that of ordinary least squares over the coefficients that are not at their bound.
    """
    scale = np.asarray(seconds if scales is None else scales, dtype=float)
    wanted = np.asarray(seconds, dtype=float) / scale
    design = np.asarray(rows, dtype=float) / scale[:, None]
    estimates, _ = nnls(design, wanted)
    residuals = wanted - design @ estimates
    free = np.flatnonzero(estimates > 0)
    covariance = np.zeros((len(terms), len(terms)))
    freedom = len(wanted) - len(free)
    if freedom > 0 and len(free):
        part = design[:, free]
        variance = float(np.sum(residuals**2)) / freedom
        covariance[np.ix_(free, free)] = variance * np.linalg.pinv(part.T @ part)
    return Fit(
        terms,
        tuple(float(each) for each in estimates),
        tuple(tuple(_rounded(float(each)) for each in row) for row in covariance),
        len(wanted),
        percentiles(list(residuals), _RESIDUALS),
    )


def _contention(side_by_side: dict[int, list[Taken]]) -> tuple[float, ...]:
    """How much longer the same rounds take while so many compute, never less than with fewer."""
    alone_s = _typical(side_by_side[1])
    factors = [1.0]
    for count in sorted(side_by_side)[1:]:
        factors.append(max(factors[-1], _typical(side_by_side[count]) / alone_s))
    return tuple(_rounded(factor) for factor in factors)


def _typical(taken: Sequence[Taken]) -> float:
    """Mean seconds of a round, over the rounds that there are of each kind: of three on two cores two share one."""
    kinds: dict[tuple[int, int], list[float]] = defaultdict(list)
    for each in taken:
        kinds[each.round.prompts, each.round.prompt_tokens].append(each.first_s + sum(each.gaps_s))
    return float(np.mean([np.mean(each) for each in kinds.values()]))


def _decode_s(costs: StepCosts, taken: Taken, step: int) -> float:
    return costs.decode_s(taken.round.prompts, taken.round.prompt_tokens + step + 1)


def _undisturbed(seconds: Sequence[float]) -> float:
    """What something takes when nothing comes between: the lower quartile."""
    return float(np.percentile(seconds, 25))


def _rounded(value: float) -> float:
    return float(f"{value:.{_DIGITS}g}")
