"""One stretch of a search: Hypothesis draws plans, each is played, and one that breaks something is made smaller.

Scouting plays every plan of a stretch and notes what each breaks; it depends on the stretch's seed and on nothing else,
so it comes to the same wherever and in whatever order stretches are played. A chase takes one such plan and makes it as
small as it can be while it breaks the same.
"""

import traceback
from collections.abc import Callable

import hypothesis
import msgspec
from hypothesis import HealthCheck, Phase, Verbosity, given, settings
from msgspec.structs import replace

from chaos.experiment import Experiment
from chaos.searching.breach import CRASH, Breach
from chaos.searching.classes import class_of
from chaos.searching.constants import no_constants_of_loaded_code
from chaos.searching.oracle import Judged, consult
from chaos.searching.plans import Plan, plans

SHRINK_PLAYS_MAX = 150
"""A plan of a few faults is rarely made any smaller by more; each costs a second or so of a core."""

Play = Callable[[Plan], Judged]


class Signature(msgspec.Struct, frozen=True):
    """What all plans that show one failure have in common. number: its class; None: by whom it was seen, and after
    which kinds of faults."""

    number: int | None
    by: str = ""
    kinds: tuple[str, ...] = ()

    @classmethod
    def of(cls, breach: Breach) -> "Signature":
        """Of a class there is one, whatever shows it."""
        number = class_of(breach)
        return cls(number) if number is not None else cls(None, breach.by, breach.kinds)

    def is_like(self, other: "Signature") -> bool:
        """Whether a plan made smaller still shows the same: it may do so with fewer kinds of faults."""
        return self.number == other.number and self.by == other.by and set(other.kinds) <= set(self.kinds)


class Sighting(msgspec.Struct, frozen=True):
    """Plan number `nth` of a stretch, from 1, is the first in it that shows `signature`."""

    signature: Signature
    nth: int


class Scouted(msgspec.Struct, frozen=True):
    """tried: plans that were drawn and played; sightings: in their order."""

    tried: int
    sightings: tuple[Sighting, ...]


class Prey(msgspec.Struct, frozen=True):
    """The smallest plan found that shows `signature`, and how. digest: of its rows. plays: what it took."""

    plan: Plan
    signature: Signature
    breach: Breach
    digest: str
    plays: int


class _Broken(Exception):
    """Of the plan played last."""


def scout(base: Experiment, seed: int, tries: int, play: Play = consult) -> Scouted:
    """Play so many plans."""
    seen: dict[Signature, int] = {}
    tried = 0

    def look(plan: Plan) -> None:
        nonlocal tried
        tried += 1
        for breach in attempt(plan, play).breaches:
            seen.setdefault(Signature.of(breach), tried)

    _draw(base, seed, tries, look, (Phase.generate,))
    return Scouted(tried, tuple(Sighting(signature, nth) for signature, nth in seen.items()))


def chase(
    base: Experiment,
    seed: int,
    tries: int,
    sighting: Sighting,
    play: Play = consult,
    plays_max: int = SHRINK_PLAYS_MAX,
) -> Prey | None:
    """Draw the plans of that stretch again, without playing those before the one sighted, and make that one small.

    None where it does not show the same any more, which with deterministic code cannot be.
    """
    drawn = plays = 0
    told: dict[bytes, Prey | None] = {}
    best: list[Prey] = []

    def look(plan: Plan) -> None:
        nonlocal drawn, plays
        drawn += 1
        if drawn < sighting.nth or (drawn > sighting.nth and not best):
            return
        key = msgspec.json.encode(plan)
        if key not in told:
            if plays >= plays_max:
                return
            plays += 1
            told[key] = _like(plan, play, sighting.signature)
        prey = told[key]
        if prey is not None:
            best.append(prey)
            raise _Broken

    try:
        _draw(base, seed, tries, look, (Phase.generate, Phase.shrink))
    except _Broken:
        # Hypothesis plays the smallest one last.
        least, more = _without_needless(best[-1], play)
        return replace(least, plays=plays + more)
    return None


def _draw(base: Experiment, seed: int, tries: int, look: Callable[[Plan], None], phases: tuple[Phase, ...]) -> None:
    @hypothesis.seed(seed)
    @settings(
        max_examples=tries,
        database=None,
        deadline=None,
        phases=phases,
        suppress_health_check=list(HealthCheck),
        report_multiple_bugs=False,
        print_blob=False,
        verbosity=Verbosity.quiet,
    )
    @given(plans(base))
    def drawn(plan: Plan) -> None:
        look(plan)

    with no_constants_of_loaded_code():
        drawn()


def _without_needless(prey: Prey, play: Play) -> tuple[Prey, int]:
    """Leave out what it takes no part in, fault by fault, which Hypothesis sometimes does not find; plays it took."""
    played = 0
    for name in list(prey.plan.experiment.faults):
        whole = prey.plan.experiment
        if len(whole.faults) == 1:
            break
        others = {other: fault for other, fault in whole.faults.items() if other != name}
        played += 1
        plan = replace(prey.plan, experiment=replace(whole, faults=others))
        prey = _like(plan, play, prey.signature) or prey
    return prey, played


def _like(plan: Plan, play: Play, signature: Signature) -> Prey | None:
    judged = attempt(plan, play)
    for breach in judged.breaches:
        if signature.is_like(Signature.of(breach)):
            return Prey(plan, Signature.of(breach), breach, judged.digest, 0)
    return None


def attempt(plan: Plan, play: Play = consult) -> Judged:
    """Play a plan. That our own code raises is CRASH among what is broken: it is what a search looks for as well."""
    try:
        return play(plan)
    except Exception as error:
        where = traceback.extract_tb(error.__traceback__)[-1]
        what = f"{type(error).__name__} in {where.name}: {error}"
        return Judged((Breach(CRASH, what, plan.kinds),), "")
