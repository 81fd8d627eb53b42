"""A request of a load's plan."""

import msgspec

from cluster.protocol import Token

REQUESTS_MAX = 1_000_000
"""Of one schedule."""
PROMPT_TOKENS_MAX = 100_000_000
"""Of all prompts of one schedule together: each takes eight bytes and more."""


class ScheduledRequest(msgspec.Struct, frozen=True):
    """One request of the plan. `intended_s` counts from the start of the load; `turn` counts from 0 in its chat.

    arm: of a comparison, empty for what no arm counts. worker: the wished one, empty where routing decides. block:
    which block of the comparison it belongs to, counted from 0; requests of different arms with the same number are a
    pair. -1: none. generator: the number of the only one that may ask it; None: any.
    """

    request_id: str
    intended_s: float
    session_id: str
    turn: int
    prompt_id: str
    prompt: tuple[Token, ...]
    max_tokens: int
    arm: str = ""
    worker: str = ""
    block: int = -1
    generator: int | None = None
