"""How many workers are enough: the smallest cluster that meets a demand with some of its workers down, by trying them.

A trial is a whole run of the simulated world with a number of workers and a seed. For each seed the number is doubled
until it is enough and then halved in between; the answer is a number that was enough with every seed, which is seen and
not concluded.
"""

import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import msgspec
from msgspec.structs import replace

from analysis.criterion import Criterion
from analysis.facts import CannotJudge
from analysis.point import Figures, measure_point
from analysis.reader import load_history
from chaos.experiment import Experiment, ExperimentError, FaultSpec, PhaseSpec
from chaos.progress import Silent
from chaos.resolve import refusal
from chaos.results import ResultsDirectory
from chaos.session import play_simulated
from workloads.capacity import CapacityUnknown, InfeasibleRate

MEASURED = "down"
SETTLE_S = 5.0
"""After the workers have gone: until then the cluster notices, and does again what they had."""
_WHOLE_S = 12.0
_RECOVERY_S = 20.0
_MEASURED_S_MIN = 20.0
_CONFIDENCE = 0.95


class Demand(msgspec.Struct, frozen=True):
    """What the cluster must do. down: so many of its workers are gone meanwhile. success: the share that completes.

    ttft_p95_s, latency_p95_s: at most, from the time a request was to be sent; None: not asked for.
    requests: over so many it is measured.
    """

    rate_per_s: float
    down: int
    success: float
    ttft_p95_s: float | None
    latency_p95_s: float | None
    requests: int = 2_000

    @property
    def measured_s(self) -> float:
        """For how long it is measured: so many requests, and 20 s at least."""
        return max(_MEASURED_S_MIN, self.requests / self.rate_per_s)

    def __str__(self) -> str:
        parts = [f"{self.rate_per_s:g} requests/s", f"success at least {self.success:.2%}"]
        if self.ttft_p95_s is not None:
            parts.append(f"TTFT p95 at most {self.ttft_p95_s:g} s")
        if self.latency_p95_s is not None:
            parts.append(f"latency p95 at most {self.latency_p95_s:g} s")
        return ", ".join(parts) + (f", with {self.down} of the workers down" if self.down else "")

    def unmet(self, figures: Figures) -> str:
        """Which part of it the figures miss, empty when they miss none."""
        if figures.success is None or figures.success < self.success:
            return "no request was asked" if figures.success is None else f"success {figures.success:.2%}"
        limits = (("TTFT", figures.ttft_p95_s, self.ttft_p95_s), ("latency", figures.latency_p95_s, self.latency_p95_s))
        for name, measured_s, limit_s in limits:
            if limit_s is not None and (measured_s is None or measured_s > limit_s):
                return f"{name} p95 {'cannot be told' if measured_s is None else f'{measured_s:.3f} s'}"
        return ""


class Trial(msgspec.Struct, frozen=True):
    """One run. missed: what of the demand, empty when it is met."""

    workers: int
    seed: int
    missed: str
    ttft_p95_s: float | None = None
    latency_p95_s: float | None = None
    success: float | None = None

    @property
    def enough(self) -> bool:
        """Whether the demand is met."""
        return not self.missed


class Answer(msgspec.Struct, frozen=True):
    """workers: enough with every seed; None: not even the most that were allowed. needed: of each seed the least.

    trials: all that were made.
    """

    workers: int | None
    needed: Mapping[int, int | None]
    trials: Sequence[Trial]

    @property
    def share(self) -> float:
        """At least this share of such stretches is met by so many workers, at 95 % confidence: none of n failed.

        Exact binomial bound for n of n, (1 - confidence) ** (1 / n) (Clopper and Pearson 1934).
        """
        return float((1 - _CONFIDENCE) ** (1 / len(self.needed)))


Try = Callable[[Sequence[tuple[int, int]]], list[Trial]]
"""Plays pairs of workers and seed, in any order, and gives the trials in the order of the pairs."""


def find(play: Try, seeds: Sequence[int], down: int, workers_max: int) -> Answer:
    """Search for each seed, all of them side by side, then look at the answer with every seed."""
    searches = {seed: Search(down + 1, workers_max) for seed in seeds}
    trials: dict[tuple[int, int], Trial] = {}
    while wanted := [(each.next, seed) for seed, each in searches.items() if each.next is not None]:
        for trial in play(wanted):
            trials[trial.workers, trial.seed] = trial
            searches[trial.seed].tell(trial.enough)
    needed = {seed: each.found for seed, each in searches.items()}
    told = [each for each in needed.values() if each is not None]
    answer: int | None = max(told) if len(told) == len(seeds) else None
    while answer is not None:
        left = [(answer, seed) for seed in seeds if (answer, seed) not in trials]
        for trial in play(left):
            trials[trial.workers, trial.seed] = trial
        if all(trials[answer, seed].enough for seed in seeds):
            break
        # More workers did worse than fewer with some seed: what is said must have been seen.
        answer = answer + 1 if answer < workers_max else None
    below = answer - 1 if answer is not None and answer - 1 > down else None
    if below is not None:
        for trial in play([(below, seed) for seed in seeds if (below, seed) not in trials]):
            trials[trial.workers, trial.seed] = trial
    return Answer(answer, needed, sorted(trials.values(), key=lambda each: (each.workers, each.seed)))


class Search:
    """The least number from `least` to `most` that is enough, if more are never worse: doubling, then bisection."""

    def __init__(self, least: int, most: int) -> None:
        self._too_few = least - 1
        self._most = most
        self._enough: int | None = None
        self._ahead = 1
        self.next: int | None = min(least, most)

    @property
    def found(self) -> int | None:
        """The least that was enough; None while none was."""
        return self._enough

    def tell(self, enough: bool) -> None:
        """What came of `next`."""
        assert self.next is not None
        if enough:
            self._enough = self.next
        else:
            self._too_few = self.next
        if self._enough is None:
            self._ahead *= 2
            self.next = min(self._too_few + self._ahead, self._most) if self._too_few < self._most else None
        else:
            self.next = (self._too_few + self._enough) // 2 if self._enough - self._too_few > 1 else None


def experiment_for(base: Experiment, demand: Demand, workers: int) -> Experiment:
    """The cluster, policy and kind of load of `base` with so many workers, asked for what is demanded.

    Raises ExperimentError when that makes no experiment.
    """
    measured_s = SETTLE_S + demand.measured_s
    asked = {"ttft_p95_s": demand.ttft_p95_s, "latency_p95_s": demand.latency_p95_s}
    limits = {
        metric.removesuffix("_s"): Criterion(metric=metric, phase=MEASURED, at_most=limit_s)
        for metric, limit_s in asked.items()
        if limit_s is not None
    }
    gone = FaultSpec(
        kind="kill",
        phase=MEASURED,
        targets=tuple(f"worker-{number}" for number in range(demand.down)),
        duration_s=measured_s - 0.5,
        ttl_s=measured_s + 60.0,
        start_s=0.25,
    )
    experiment = replace(
        base,
        name="sizing",
        title=f"{workers} workers for {demand}",
        question="Are so many workers enough for what is demanded?",
        cluster=replace(base.cluster, workers=workers),
        workload=replace(base.workload, rate=f"{demand.rate_per_s:g}/s", rate_min=None, rate_max=None),
        phases={
            "warm_up": PhaseSpec(duration_s=3.0),
            "baseline": PhaseSpec(duration_s=_WHOLE_S),
            MEASURED: PhaseSpec(duration_s=measured_s),
            "recovery": PhaseSpec(duration_s=_RECOVERY_S),
        },
        faults={"gone": gone} if demand.down else {},
        arms={},
        comparison=None,
        steady_state={"success": Criterion(metric="success_rate", at_least=demand.success, confidence=0.8)},
        expectations={"success": Criterion(metric="success_rate", phase=MEASURED, at_least=demand.success), **limits},
        recovery_limit_s=_RECOVERY_S,
        baseline_phase="baseline",
        recovery_phase="recovery",
    )
    if why := refusal(experiment):
        raise ExperimentError(f"{base.name} cannot be sized: {why}")
    return experiment


def play_one(base: Experiment, demand: Demand, workers: int, seed: int) -> Trial:
    """Play a trial in the simulated world; its rows are measured and thrown away."""
    experiment = experiment_for(base, demand, workers)
    with tempfile.TemporaryDirectory(prefix="sizing-") as folder:
        results = ResultsDirectory(Path(folder), experiment, "simulated", seed)
        try:
            play_simulated(experiment, seed, results, Silent())
        except (InfeasibleRate, CapacityUnknown) as error:
            return Trial(workers, seed, str(error))
        try:
            figures = measure_point(load_history(results.path), MEASURED, SETTLE_S)
        except CannotJudge as error:
            return Trial(workers, seed, str(error))
    return Trial(workers, seed, demand.unmet(figures), figures.ttft_p95_s, figures.latency_p95_s, figures.success)
