"""What became of a plan: played in the simulated world, judged by the invariants and by the signs of known failures.

While faults strike, nothing wrong may happen; once all is healed, the cluster has to come back.
"""

import tempfile
from pathlib import Path

import msgspec

from analysis.checkers import run_checkers
from analysis.history import History
from analysis.reader import load_history
from analysis.verdict import Outcome
from chaos.digest import rows_digest
from chaos.progress import Silent
from chaos.results import ResultsDirectory
from chaos.searching.breach import Breach
from chaos.searching.plans import Plan
from chaos.searching.symptoms import symptoms
from chaos.session import INTERRUPTED, play_simulated
from chaos.worlds.world import InfrastructureError
from workloads.capacity import InfeasibleRate

_FOLLOWS_FROM_OFF_THE_BUS = ("invariant 7", "invariant 9")


class Judged(msgspec.Struct, frozen=True):
    """breaches: what was broken, that of a known failure first. digest: of all rows, SHA-256."""

    breaches: tuple[Breach, ...]
    digest: str


def consult(plan: Plan) -> Judged:
    """Play it. What our own code raises is not caught: a plan that makes it raise is a finding as well."""
    with tempfile.TemporaryDirectory(prefix="search-") as folder:
        results = ResultsDirectory(Path(folder), plan.experiment, "simulated", plan.seed)
        try:
            ended_by = play_simulated(plan.experiment, plan.seed, results, Silent())
        except InfeasibleRate:
            # The plan's own estimate of the capacity was too high: nothing was played.
            return Judged((), rows_digest(results.raw))
        except InfrastructureError as error:
            # Without a fault there is nothing that could keep a simulated cluster from coming up.
            raise AssertionError(f"the simulated cluster did not come up: {error}") from error
        if ended_by == INTERRUPTED:
            raise KeyboardInterrupt
        return Judged(tuple(breaches(load_history(results.path), plan.kinds)), rows_digest(results.raw))


def breaches(history: History, kinds: tuple[str, ...]) -> list[Breach]:
    """All that a recorded run shows, the signs of known failures before the invariants. kinds: of its faults.

    A check that had to be made and could not be counts as broken, as in every verdict.
    """
    signs = symptoms(history)
    broken = [
        Breach(f"invariant {each.number}", f"{each.name}: {each.explanation}", kinds)
        for each in run_checkers(history)
        if each.verdict is Outcome.FAIL
    ]
    if any(sign.by == "off_the_bus" for sign in signs):
        # Whatever else is missing is missing because of that.
        broken = [each for each in broken if each.by not in _FOLLOWS_FROM_OFF_THE_BUS]
    return [*signs, *broken]
