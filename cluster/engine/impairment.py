"""What can be wrong with an engine, and what that does to its reports."""

from random import Random
from typing import Literal

import msgspec
from msgspec.structs import replace

from cluster.node import EngineReport, Event, Insert, SequenceProgress
from cluster.protocol import Token

Death = Literal["silent", "loud"]


class Impairment(msgspec.Struct, frozen=True, kw_only=True):
    """How an engine is hurt.

    slowdown: each step and each load takes so many times as long as it would. dies: its thread is gone while the rest
    of its process goes on: `silent` says nothing, `loud` ends with an exception, which is reported. loads_fail: every
    load raises. wrong_token_share: of the tokens, drawn with `seed`, are replaced by others. fail_share: of the
    sequences, drawn with `seed`, end with an error at once.
    """

    slowdown: float = 1.0
    dies: Death | None = None
    loads_fail: bool = False
    wrong_token_share: float = 0.0
    fail_share: float = 0.0
    seed: int = 0


class Spoiler:
    """Fails a seeded share of an engine's sequences, and replaces a seeded share of its tokens by others."""

    def __init__(self, impairment: Impairment) -> None:
        self._share = impairment.wrong_token_share
        self._fail_share = impairment.fail_share
        self._random = Random(impairment.seed)

    def failure(self, command: Insert) -> EngineReport | None:
        """What the worker is told instead of an insertion into the engine; None: the sequence is let through."""
        if self._random.random() >= self._fail_share:
            return None
        return EngineReport((SequenceProgress(command.sequence, (), (), "error"),))

    def spoil(self, event: Event) -> Event:
        """The event as it is told instead."""
        if not self._share or not isinstance(event, EngineReport):
            return event
        progress = tuple(
            replace(part, tokens=tuple(self._token(token) for token in part.tokens)) for part in event.progress
        )
        return replace(event, progress=progress)

    def _token(self, token: Token) -> Token:
        return (token - 1 if token else 1) if self._random.random() < self._share else token
