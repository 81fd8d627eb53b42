"""One stretch of a search: Hypothesis draws plans until one breaks something, and then looks for a smaller one."""

import traceback
from collections.abc import Callable, Container

import hypothesis
import msgspec
from hypothesis import HealthCheck, Phase, Verbosity, given, settings
from msgspec.structs import replace

from chaos.experiment import Experiment
from chaos.searching.oracle import Judged, consult
from chaos.searching.plans import Plan, plans

CRASH = 0
"""In place of an invariant's number: our own code raised."""


class Prey(msgspec.Struct, frozen=True):
    """The smallest plan found that breaks `invariant`, and how. digest: of its rows."""

    plan: Plan
    invariant: int
    what: str
    digest: str


class Hunt(msgspec.Struct, frozen=True):
    """tried: how many plans were drawn before the first that breaks something; played: with those of the shrinking."""

    tried: int
    played: int
    prey: Prey | None


Signature = tuple[int, tuple[str, ...]]
"""Invariant and kinds of faults."""


class _Broken(Exception):
    """Of the plan played last."""


def hunt(
    base: Experiment,
    tries: int,
    seed: int,
    known: Container[Signature] = (),
    watch: Callable[[int, int], None] = lambda tried, played: None,
    play: Callable[[Plan], Judged] = consult,
) -> Hunt:
    """Try at most so many plans. known: what is not looked for any more. watch: told after each play."""
    tried = played = 0
    found: list[Prey] = []

    @hypothesis.seed(seed)
    @settings(
        max_examples=tries,
        database=None,
        deadline=None,
        phases=(Phase.generate, Phase.shrink),
        suppress_health_check=list(HealthCheck),
        report_multiple_bugs=False,
        print_blob=False,
        verbosity=Verbosity.quiet,
    )
    @given(plans(base))
    def look(plan: Plan) -> None:
        nonlocal tried, played
        played += 1
        tried += not found
        prey = _look(plan, play, known)
        watch(tried, played)
        if prey is None or (found and prey.invariant != found[0].invariant):
            # While it is made smaller, it has to remain the same.
            return
        found.append(prey)
        raise _Broken

    try:
        look()
    except _Broken:
        # Hypothesis plays the smallest one last.
        least, more = _without_needless(found[-1], play, known)
        return Hunt(tried, played + more, least)
    return Hunt(tried, played, None)


def _without_needless(prey: Prey, play: Callable[[Plan], Judged], known: Container[Signature]) -> tuple[Prey, int]:
    """Leave out what it takes no part in, fault by fault, which Hypothesis sometimes does not find; plays it took."""
    played = 0
    for name in list(prey.plan.experiment.faults):
        whole = prey.plan.experiment
        if len(whole.faults) == 1:
            break
        others = {other: fault for other, fault in whole.faults.items() if other != name}
        plan = replace(prey.plan, experiment=replace(whole, faults=others))
        played += 1
        smaller = _look(plan, play, known)
        if smaller is not None and smaller.invariant == prey.invariant:
            prey = smaller
    return prey, played


def _look(plan: Plan, play: Callable[[Plan], Judged], known: Container[Signature]) -> Prey | None:
    judged = attempt(plan, play)
    for number, what in sorted(judged.broken.items()):
        if (number, plan.kinds) not in known:
            return Prey(plan, number, what, judged.digest)
    return None


def attempt(plan: Plan, play: Callable[[Plan], Judged] = consult) -> Judged:
    """Play a plan. That our own code raises is CRASH among what is broken: it is what a search looks for as well."""
    try:
        return play(plan)
    except Exception as error:
        where = traceback.extract_tb(error.__traceback__)[-1]
        return Judged({CRASH: f"{type(error).__name__} in {where.name}: {error}"}, "")
