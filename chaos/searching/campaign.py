"""A whole search: many stretches of plans, and a chase after the first sight of everything new.

What is chased is decided in the order of the stretches, whatever the order in which they end, so the same seeds find
the same wherever they are played.
"""

from collections.abc import Callable
from typing import NamedTuple

from chaos.experiment import Experiment
from chaos.searching.classes import UNCLASSIFIED, told
from chaos.searching.crews import Crew
from chaos.searching.findings import Findings
from chaos.searching.hunt import SHRINK_PLAYS_MAX, Prey, Scouted, Sighting, Signature
from chaos.searching.tasks import Result, Task

STRETCH = 25
"""Plans of one task."""


class _Chase(NamedTuple):
    sighting: Sighting
    stretch: int
    found_after: int


class Campaign:
    """Plays `plans` plans and keeps what is found. tried, lost: plans played so far, tasks that came to nothing."""

    def __init__(
        self,
        base: Experiment,
        policy: str,
        plans: int,
        first_seed: int,
        findings: Findings,
        say: Callable[[str], None],
        plays_max: int = SHRINK_PLAYS_MAX,
    ) -> None:
        """first_seed: of the first stretch; each has the next one. plays_max: see chaos.searching.hunt.chase."""
        self.tried = 0
        self.lost = 0
        self._base = base
        self._policy = policy
        self._findings = findings
        self._say = say
        self._plays_max = plays_max
        sizes = [min(STRETCH, plans - begun) for begun in range(0, plans, STRETCH)]
        self._stretches = [Task(base, first_seed + number, size) for number, size in enumerate(sizes)]
        self._scouted: dict[int, Scouted | None] = {}
        self._looked_at = 0
        self._sought = [finding.signature for finding in findings.of(policy) if finding.state.stands]
        self._chases: list[_Chase] = []
        self._caught: dict[int, Prey | None] = {}
        self._kept = 0

    def run(self, crew: Crew) -> None:
        """To its end. A chase goes before a stretch: people wait for it. Numbers of chases are below 0."""
        stretches, chases, running = 0, 0, 0
        while True:
            while running < crew.at_once and (chases < len(self._chases) or stretches < len(self._stretches)):
                if chases < len(self._chases):
                    crew.submit(-1 - chases, self._chase(chases))
                    chases += 1
                else:
                    crew.submit(stretches, self._stretches[stretches])
                    stretches += 1
                running += 1
            if not running:
                return
            number, result = crew.next()
            running -= 1
            self._take(number, result)

    def keep(self) -> None:
        """Keep what was caught although something before it was not, as of a search that was interrupted."""
        for number in range(self._kept, len(self._chases)):
            self._add(number, self._caught.get(number))
        self._kept = len(self._chases)

    def _take(self, number: int, result: Result) -> None:
        if result.lost:
            self.lost += 1
            self._say(f"LOST: {'a chase' if number < 0 else f'stretch {number + 1}'}: {result.lost}")
        if number >= 0:
            self._scouted[number] = result.scouted
            self.tried += result.scouted.tried if result.scouted is not None else 0
            self._look()
            self._say(f"{self.tried} plans tried, {len(self._chases)} things to look at")
            return
        self._caught[-1 - number] = result.prey
        while self._kept in self._caught:
            self._add(self._kept, self._caught[self._kept])
            self._kept += 1

    def _look(self) -> None:
        """Decide on chases, as far as stretches are done without a gap."""
        while self._looked_at in self._scouted:
            stretch = self._looked_at
            scouted = self._scouted[stretch]
            for sighting in scouted.sightings if scouted is not None else ():
                if not any(_covers(sought, sighting.signature) for sought in self._sought):
                    self._sought.append(sighting.signature)
                    self._chases.append(_Chase(sighting, stretch, stretch * STRETCH + sighting.nth))
                    self._say(f"seen: {self._named(sighting.signature)}; it is being made small")
            self._looked_at += 1

    def _chase(self, number: int) -> Task:
        chase = self._chases[number]
        stretch = self._stretches[chase.stretch]
        return Task(self._base, stretch.seed, stretch.tries, chase.sighting, self._plays_max)

    def _add(self, number: int, prey: Prey | None) -> None:
        stands = [one.signature for one in self._findings.of(self._policy) if one.state.stands]
        if prey is None or prey.signature in stands:
            return
        finding = self._findings.add(prey, self._policy, self._chases[number].found_after)
        self._say(f"FOUND: {finding.file} --seed {finding.seed}: {finding.what} ({finding.plays} plays)")

    @staticmethod
    def _named(signature: Signature) -> str:
        if signature.number is not None:
            return told(signature.number)
        return f"{UNCLASSIFIED}, {signature.by} after {' + '.join(signature.kinds) or 'nothing'}"


def _covers(sought: Signature, seen: Signature) -> bool:
    """Whether one search need not look for both: of what fits no class, one of each check at a time is enough, for it
    has to be looked at by people first."""
    return sought.number == seen.number and sought.by == seen.by
