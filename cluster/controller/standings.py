"""Standings: who may take a request, kept in order, so that a choice among a thousand workers looks at a few."""

import heapq
from collections.abc import Container, Iterator, Mapping
from typing import NamedTuple

from cluster.controller.routing import Candidate, rank

Place = tuple[tuple[bool, int, int, int], int, str]
"""Rank, order of joining, worker: the smallest goes first."""

GroupName = tuple[str, bool]
"""A model, and whether its workers have it in memory."""


class Standing(NamedTuple):
    """How a worker stands with a model that it serves.

    trusted: its breaker lets a request through. candidate: None when it has no room, or is not trusted.
    """

    trusted: bool
    candidate: Candidate | None


class Group:
    """Workers that serve a model, and are alike in whether they have it in memory. trusted: see Standing."""

    __slots__ = ("_heap", "_present", "able", "trusted")

    def __init__(self) -> None:
        self.able: dict[str, None] = {}
        self.trusted: dict[str, None] = {}
        self._present: dict[str, tuple[Place, Candidate]] = {}
        self._heap: list[Place] = []

    def put(self, worker: str, order: int, standing: Standing) -> None:
        """Take in how a worker stands."""
        self.able[worker] = None
        if standing.trusted:
            self.trusted[worker] = None
        else:
            self.trusted.pop(worker, None)
        candidate = standing.candidate
        if candidate is None:
            self._present.pop(worker, None)
            return
        place = (rank(candidate), order, worker)
        known = self._present.get(worker)
        self._present[worker] = (place, candidate)
        if known is None or known[0] != place:
            heapq.heappush(self._heap, place)
            # Places that were left stay in the heap until they surface; rebuilt before they outnumber the others.
            if len(self._heap) > 64 and len(self._heap) > 4 * len(self._present):
                self._heap = [present for present, _ in self._present.values()]
                heapq.heapify(self._heap)

    def remove(self, worker: str) -> None:
        """It does not belong here any more."""
        self.able.pop(worker, None)
        self.trusted.pop(worker, None)
        self._present.pop(worker, None)

    def candidate(self, worker: str) -> Candidate | None:
        """A worker that may take a request now, None when it may not."""
        known = self._present.get(worker)
        return None if known is None else known[1]

    def best(self, excluded: Container[str], unpressed: bool = False) -> Candidate | None:
        """The first by rank that is not excluded. unpressed: nor under any memory pressure."""
        passed: list[Place] = []
        found = None
        while self._heap:
            place = self._heap[0]
            known = self._present.get(place[2])
            if known is None or known[0] != place:
                heapq.heappop(self._heap)
                continue
            if place[2] not in excluded and not (unpressed and known[1].pressure):
                found = known[1]
                break
            passed.append(heapq.heappop(self._heap))
        for place in passed:
            heapq.heappush(self._heap, place)
        return found


class Standings:
    """The groups of all models. Whoever changes a worker says so, see `cluster.controller.workforce`."""

    def __init__(self) -> None:
        self._joined = 0
        self._order: dict[str, int] = {}
        self._groups: dict[GroupName, Group] = {}
        self._member_of: dict[str, tuple[GroupName, ...]] = {}

    def order(self, worker: str) -> int:
        """The how manieth it was to join; one that was forgotten comes last."""
        if worker not in self._order:
            self._joined += 1
            self._order[worker] = self._joined
        return self._order[worker]

    def put(self, worker: str, standings: Mapping[GroupName, Standing]) -> None:
        """How a worker stands now, in every group to which it belongs."""
        for name in self._member_of.get(worker, ()):
            if name not in standings:
                group = self._groups[name]
                group.remove(worker)
                if not group.able:
                    del self._groups[name]
        for name, standing in standings.items():
            self._groups.setdefault(name, Group()).put(worker, self.order(worker), standing)
        self._member_of[worker] = tuple(standings)

    def forget(self, worker: str) -> None:
        """It is gone for good."""
        self.put(worker, {})
        del self._member_of[worker]
        self._order.pop(worker, None)

    def groups(self, model: str) -> Iterator[Group]:
        """Of the model: those who have it in memory, then those who would have to load it first."""
        for warm in (True, False):
            group = self._groups.get((model, warm))
            if group is not None:
                yield group
