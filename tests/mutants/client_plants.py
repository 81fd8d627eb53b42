"""Bugs of the client."""

from typing import Any

import msgspec

from cluster.client import ClientNode
from cluster.protocol import Chunk, Pong
from tests.mutants.mutant import Mutant, Patch


def _at_the_end(original: Any, self: ClientNode, entry: Any, chunk: Chunk, now: float) -> Any:
    """What is beyond a gap is put behind what is there."""
    known = len(entry.tokens)
    if chunk.index > known:
        chunk = msgspec.structs.replace(chunk, index=known)
    return original(self, entry, chunk, now)


def _twice(original: Any, self: ClientNode, entry: Any, chunk: Chunk, now: float) -> Any:
    known = len(entry.tokens)
    if chunk.index < known:
        chunk = msgspec.structs.replace(chunk, index=known)
    return original(self, entry, chunk, now)


def _forgets_open_requests(original: Any, self: ClientNode, pong: Pong, now: float) -> Any:
    newer = pong.controller == self._controller and pong.incarnation > self._controller_incarnation > 0
    before = list(self._open.values())
    if newer:
        for entry in before:
            entry.waiting = False
            # It is taken to be in the new controller's ledger.
            entry.submission = self._policy.client.resubmit_max + 1
    return original(self, pong, now)


def _waits_for_ever(original: Any, self: ClientNode, entry: Any, now: float) -> Any:
    return []


def _sticks(original: Any, self: ClientNode, now: float, why: str) -> Any:
    return []


def _submits_once(original: Any, self: ClientNode, entry: Any, now: float) -> Any:
    return original(self, entry, now) if entry.submission == 0 else []


def _forgets_the_end(original: Any, self: ClientNode, entry: Any, now: float, *rest: Any, **named: Any) -> Any:
    """Ends a request for its caller and goes on holding it."""
    commands = original(self, entry, now, *rest, **named)
    if entry.submission > 1:
        self._open[entry.ask.request_id] = entry
    return commands


def mutants() -> list[Mutant]:
    """All of them."""
    node = ClientNode
    return [
        Mutant(
            "client_overlooks_gaps",
            "what comes after a lost delivery is put behind what is there",
            (Patch(node, "_take", _at_the_end),),
            ("lost_deliveries",),
        ),
        Mutant(
            "client_takes_twice",
            "a delivery that comes twice is handed on twice",
            (Patch(node, "_take", _twice),),
            ("doubled",),
        ),
        Mutant(
            "dropped_by_a_restart",
            "open requests are taken to be known to a controller that has begun anew",
            (Patch(node, "_pong", _forgets_open_requests),),
            ("controller_restart",),
        ),
        Mutant(
            "deadline_not_told",
            "a request whose deadline has passed is never ended",
            (Patch(node, "_expire", _waits_for_ever),),
            ("controller_kill",),
        ),
        Mutant(
            "dead_controller_kept",
            "a client never gives up a controller that does not answer",
            (Patch(node, "_lose_contact", _sticks),),
            ("one_of_two_controllers",),
        ),
        Mutant(
            "never_submitted_again",
            "a request whose submission or delivery was lost is not submitted again",
            (Patch(node, "_submit", _submits_once),),
            ("lost_deliveries", "controller_restart"),
        ),
        Mutant(
            "ended_request_held",
            "a request that was submitted twice stays open after its end",
            (Patch(node, "_end", _forgets_the_end),),
            ("controller_restart", "lost_deliveries"),
        ),
    ]
