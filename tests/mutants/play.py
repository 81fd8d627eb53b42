"""Play scenarios with and without mutants, and say by what a mutant was caught."""

import contextlib
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import msgspec

from analysis.judge import judge
from analysis.reader import load_history
from analysis.verdict import Outcome, Verdict
from chaos import run
from chaos.results import ResultsDirectory
from tests.chaos.simulated_runs import Quiet
from tests.mutants.mutant import DoesNotApply, Mutant, in_place, unreached
from tests.mutants.scenarios import experiment

SEED = 1


class Played(msgspec.Struct, frozen=True):
    """A run's verdict, and how long run and judgement took, seconds of this host."""

    verdict: Verdict
    seconds: float


class Caught(msgspec.Struct, frozen=True):
    """What became of a mutant. by: the invariant or criterion that refuted it, empty where it survived."""

    mutant: Mutant
    scenario: str
    by: str
    seconds: float
    problem: str = ""

    @property
    def fine(self) -> bool:
        """Whether it was caught as it should be."""
        return bool(self.by) and not self.problem


def play(scenario: str, mutant: Mutant | None = None, seed: int = SEED) -> Played:
    """Run a scenario through the real director, recorder, merge, checkers and judge; only the report is left out.

    The mutant is in place while the cluster runs, and gone when it is judged. Raises DoesNotApply.
    """
    began_s = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="mutant-") as folder:
        whole = experiment(scenario, Path(folder))
        results = ResultsDirectory(Path(folder), whole, "simulated", seed)
        with in_place(mutant) if mutant is not None else contextlib.nullcontext() as reached:
            run._execute(whole, "simulated", seed, results, Quiet(), None, None)  # type: ignore[arg-type]
        if mutant is not None and reached is not None and (missed := unreached(mutant, reached)):
            raise DoesNotApply(f"{mutant.name}: nothing in {scenario} calls {', '.join(missed)}")
        verdict = judge(load_history(results.path))
    return Played(verdict, time.monotonic() - began_s)


def refuted_by(verdict: Verdict) -> str:
    """The first invariant that is broken, else the first criterion that is refuted, or calls the run invalid.

    A fault that proves nothing makes a run invalid too, but says nothing about the cluster: that is not enough.
    """
    for invariant in verdict.invariants:
        if invariant.verdict is Outcome.FAIL:
            return f"invariant {invariant.number}: {invariant.explanation}"
    for outcome in (Outcome.FAIL, Outcome.INVALID):
        for criterion in verdict.criteria:
            if criterion.verdict is outcome:
                return f"{criterion.name}: {criterion.explanation}"
    return ""


def hunt(mutant: Mutant, player: Callable[[str, Mutant], Played] = play) -> Caught:
    """Play its scenarios until one of them catches it. An error of the changed code is no catch."""
    seconds, problem = 0.0, ""
    for scenario in mutant.scenarios:
        began_s = time.monotonic()
        try:
            played = player(scenario, mutant)
        except DoesNotApply as reason:
            problem = str(reason)
            continue
        except Exception as error:
            # Whatever a mutant makes the cluster raise: nothing judged it, so nothing has caught it.
            return Caught(mutant, scenario, "", seconds, f"{type(error).__name__} in {scenario}: {error}")
        finally:
            seconds += time.monotonic() - began_s
        problem = ""
        if by := refuted_by(played.verdict):
            return Caught(mutant, scenario, by, seconds)
    return Caught(mutant, ", ".join(mutant.scenarios), "", seconds, problem)
