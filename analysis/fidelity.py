"""How near the simulated world comes to a live run: the same schedule in both, joined by request, with signs."""

from collections.abc import Iterator
from enum import StrEnum

import msgspec
import numpy as np
import pandas as pd

from analysis.arms import arm_names
from analysis.comparison import Percentile, Statistic, compare, mean
from analysis.facts import CannotJudge, fault_windows
from analysis.history import History
from analysis.metrics import measure
from analysis.statistics import Values

CONFIDENCE = 0.95
BLOCKS = 24
JOINED_MIN = 40
"""Fewer pairs of requests say nothing of a 90th percentile."""
LIMITS = {"end_to_end": 0.10, "inter_token": 0.10, "ttft": 0.20}
"""Of the error of p50 and p90, as shares of the live value. The errors of means and of rates have none."""
_PLANNED = ("request_id", "intended_s", "session_id", "turn", "prompt_id", "prompt_tokens", "max_tokens")
_STATISTICS: dict[str, Statistic] = {"mean": mean, "p50": Percentile(0.5), "p90": Percentile(0.9)}
_RECOVERY = ("detection_s", "mitigation_s", "return_to_steady_s")
_ALIKE = 4


class NotAPair(Exception):
    """These two runs are no live and simulated run of one schedule. The message says what to do."""


class Verdict(StrEnum):
    """Of an error. few: too few requests to say."""

    WITHIN = "within"
    BEYOND = "beyond"
    FEW = "few"
    NO_LIMIT = "-"


class Line(msgspec.Struct, frozen=True):
    """One quantity. error: simulated / live - 1, interval: of it, two-sided at 95 %, from pairs of blocks of requests.

    seconds, or 1/s for throughput. limit: of the error's size; None: there is none. samples: pairs of requests.
    """

    part: str
    quantity: str
    statistic: str
    live: float | None
    simulated: float | None
    error: float | None
    interval: tuple[float, float] | None
    limit: float | None
    samples: int
    verdict: Verdict


class Fidelity(msgspec.Struct, frozen=True):
    """All lines of a pair of runs. costs: by what calibration the simulated one was made."""

    experiment: str
    live: str
    simulated: str
    costs: str
    offered: int
    joined: int
    lines: list[Line]

    @property
    def beyond(self) -> list[Line]:
        """Those that miss their limit."""
        return [line for line in self.lines if line.verdict is Verdict.BEYOND]


def fidelity(live: History, simulated: History) -> Fidelity:
    """Compare a pair. Raises NotAPair."""
    _check_pair(live, simulated)
    pairs = _pairs(live, simulated)
    lines: list[Line] = []
    for part, chosen in _parts(live, pairs):
        lines += _request_lines(part, chosen)
    lines += _rate_lines(live, simulated)
    lines += _recovery_lines(live, simulated)
    cluster = simulated.experiment.get("cluster")
    costs = cluster.get("costs") if isinstance(cluster, dict) else None
    name = costs.get("profile") if isinstance(costs, dict) else None
    return Fidelity(
        live.info.experiment,
        live.info.run_id,
        simulated.info.run_id,
        str(name or "costs that no calibration has named"),
        len(live.requests),
        len(pairs),
        lines,
    )


def _check_pair(live: History, simulated: History) -> None:
    how = "make the pair with: python -m chaos.run --world simulated --like LIVE"
    worlds = (live.info.world, simulated.info.world)
    if worlds != ("live", "simulated"):
        raise NotAPair(f"expected a live run and then a simulated one, got {worlds[0]} and {worlds[1]}; {how}")
    if live.info.experiment != simulated.info.experiment:
        what = f"{live.info.experiment} and {simulated.info.experiment} are two experiments"
        raise NotAPair(f"{what}; {how}")
    planned = [run.schedule[list(_PLANNED)].reset_index(drop=True) for run in (live, simulated)]
    if not planned[0].equals(planned[1]):
        what = "another seed" if live.info.seed != simulated.info.seed else "another rate, or another vocabulary"
        raise NotAPair(f"the two runs have different schedules ({what}); {how}")


def _pairs(live: History, simulated: History) -> pd.DataFrame:
    """One line for each request that completed in both, in the order in which they were to be sent live.

    Two columns of each quantity, seconds: live and simulated. A stream of one token has no gaps: there is NaN.
    """
    joined = _times(live).merge(_times(simulated), on="request_id", suffixes=("_live", "_simulated"))
    arms = live.schedule[["request_id", "arm"]]
    return joined.merge(arms, on="request_id").sort_values("intended_s_live", kind="stable", ignore_index=True)


def _times(run: History) -> pd.DataFrame:
    rows = run.requests[run.requests["outcome"] == "completed"]
    gaps = rows["tokens"].map(len) - 1
    return pd.DataFrame(
        {
            "request_id": rows["request_id"],
            "intended_s": rows["intended_s"],
            "ttft": rows["first_token_s"] - rows["intended_s"],
            "inter_token": (rows["ended_s"] - rows["first_token_s"]) / gaps.where(gaps > 0),
            "end_to_end": rows["ended_s"] - rows["intended_s"],
        }
    )


def _parts(live: History, pairs: pd.DataFrame) -> Iterator[tuple[str, pd.DataFrame]]:
    """All, then by phase of the live run, then under each fault, then by arm."""
    intended_s = pairs["intended_s_live"]
    yield "all", pairs
    for phase in live.phases():
        yield f"phase {phase.name}", pairs[(intended_s >= phase.start_s) & (intended_s < phase.end_s)]
    for fault in fault_windows(live):
        inside = (intended_s >= fault.injected_s) & (intended_s < fault.healed_s)
        yield f"fault {fault.name}", pairs[inside]
    for arm in arm_names(live):
        yield f"arm {arm}", pairs[pairs["arm"] == arm]


def _request_lines(part: str, pairs: pd.DataFrame) -> list[Line]:
    return [
        _line(part, quantity, name, statistic, pairs)
        for quantity in LIMITS
        for name, statistic in _STATISTICS.items()
        if len(pairs)
    ]


def _line(part: str, quantity: str, name: str, statistic: Statistic, pairs: pd.DataFrame) -> Line:
    both = pairs[[f"{quantity}_live", f"{quantity}_simulated"]].dropna()
    live, simulated = (both[column].to_numpy(dtype=float) for column in both.columns)
    if len(both) == 0:
        return Line(part, quantity, name, None, None, None, None, None, 0, Verdict.FEW)
    there, here = statistic(live), statistic(simulated)
    error = here / there - 1 if there > 0 else None
    found = compare(_blocks(simulated), _blocks(live), statistic, paired=True, confidence=CONFIDENCE, alike=_ALIKE)
    interval = None if found is None else (found.interval[0] - 1, found.interval[1] - 1)
    limit = None if name == "mean" else LIMITS[quantity]
    return Line(part, quantity, name, there, here, error, interval, limit, len(both), _verdict(error, limit, len(both)))


def _verdict(error: float | None, limit: float | None, samples: int) -> Verdict:
    if limit is None:
        return Verdict.NO_LIMIT
    if error is None or samples < JOINED_MIN:
        return Verdict.FEW
    return Verdict.WITHIN if abs(error) <= limit else Verdict.BEYOND


def _blocks(values: Values) -> list[Values]:
    return [part for part in np.array_split(values, BLOCKS) if len(part)]


def _rate_lines(live: History, simulated: History) -> Iterator[Line]:
    """Completed tokens per second, in each phase."""
    for phase in live.phases():
        yield _measured(live, simulated, f"phase {phase.name}", "throughput", "throughput_tokens_per_s", phase.name)


def _recovery_lines(live: History, simulated: History) -> Iterator[Line]:
    """The worst of all faults."""
    if len(live.faults):
        for name in _RECOVERY:
            yield _measured(live, simulated, "faults", name.removesuffix("_s"), name, None)


def _measured(live: History, simulated: History, part: str, quantity: str, metric: str, phase: str | None) -> Line:
    values = [_value(run, metric, phase) for run in (live, simulated)]
    there, here = values
    error = here / there - 1 if there and here is not None else None
    return Line(part, quantity, "value", there, here, error, None, None, 1, Verdict.NO_LIMIT)


def _value(run: History, metric: str, phase: str | None) -> float | None:
    try:
        return measure(run, metric, phase).value
    except CannotJudge:
        return None


_HEADINGS = ("part", "quantity", "", "live", "simulated", "error", "95 % interval", "limit", "pairs", "verdict")


def table(found: Fidelity) -> list[tuple[str, ...]]:
    """Headings and a row per line."""
    return [_HEADINGS, *(_cells(line) for line in found.lines)]


def title(found: Fidelity) -> str:
    """What was compared."""
    return (
        f"{found.experiment}: {found.simulated} against {found.live}, {found.joined} of {found.offered} requests "
        f"completed in both, costs: {found.costs}"
    )


def conclusion(found: Fidelity) -> str:
    """How many lines keep their limit."""
    counted = {verdict: sum(line.verdict is verdict for line in found.lines) for verdict in Verdict}
    within, judged = counted[Verdict.WITHIN], counted[Verdict.WITHIN] + counted[Verdict.BEYOND]
    few = f", {counted[Verdict.FEW]} with too few requests to say" if counted[Verdict.FEW] else ""
    return f"{within} of {judged} lines with a limit are within it{few}"


def _cells(line: Line) -> tuple[str, ...]:
    return (
        line.part,
        line.quantity,
        line.statistic,
        _quantity(line.live, line.quantity),
        _quantity(line.simulated, line.quantity),
        "-" if line.error is None else f"{100 * line.error:+.1f} %",
        "-" if line.interval is None else f"{100 * line.interval[0]:+.1f} .. {100 * line.interval[1]:+.1f} %",
        "-" if line.limit is None else f"{100 * line.limit:.0f} %",
        str(line.samples),
        line.verdict.value,
    )


def _quantity(value: float | None, quantity: str) -> str:
    if value is None:
        return "-"
    if quantity == "throughput":
        return f"{value:.1f}/s"
    return f"{1e3 * value:.4g} ms" if value < 10 else f"{value:.4g} s"
