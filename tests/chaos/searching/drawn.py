"""Plans as a search draws them, which nobody plays."""

from collections.abc import Callable

from chaos.experiment import Experiment
from chaos.searching.hunt import scout
from chaos.searching.oracle import Judged
from chaos.searching.plans import Plan


def drawn(base: Experiment, seed: int, count: int) -> list[Plan]:
    """The first plans of a seed."""
    plans: list[Plan] = []
    scout(base, seed, count, collecting(plans))
    return plans


def collecting(plans: list[Plan]) -> Callable[[Plan], Judged]:
    """A play that finds nothing, and keeps the plan."""

    def play(plan: Plan) -> Judged:
        plans.append(plan)
        return Judged((), "")

    return play
