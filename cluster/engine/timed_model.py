"""What a timed engine holds: a model, its sequences, and the caches of those that have finished."""

from array import array
from zlib import crc32

from cluster.node import Insert
from cluster.protocol import Token


class Kept:
    """The cache of a finished sequence: what it would compute from."""

    __slots__ = ("model", "tokens")

    def __init__(self, model: str, tokens: "array[int]") -> None:
        self.model = model
        self.tokens = tokens


class TimedSequence:
    __slots__ = (
        "cached",
        "checksum",
        "keep_as",
        "left",
        "made",
        "number",
        "prompt",
        "prompt_left",
        "reported",
        "times_s",
        "tokens",
    )

    def __init__(self, command: Insert, kept: Kept | None) -> None:
        prompt = array("I", command.tokens)
        cached = min(command.cached_tokens, len(kept.tokens), len(prompt) - 1) if kept is not None else 0
        if kept is not None and cached:
            prompt[:cached] = kept.tokens[:cached]
        self.number = command.sequence
        self.prompt = prompt
        self.checksum = crc32(prompt.tobytes())
        self.cached = cached
        self.prompt_left = len(prompt) - cached
        self.left = command.max_tokens
        self.keep_as = command.keep_as
        self.reported = False
        self.tokens: list[Token] = []
        self.times_s: list[float] = []
        self.made: list[Token] = []

    @property
    def is_new(self) -> bool:
        """Whether it has made no token yet."""
        return not self.tokens and not self.reported

    @property
    def held_tokens(self) -> int:
        """How many tokens its cache holds now."""
        return len(self.prompt) - self.prompt_left + len(self.made) + len(self.tokens)


class TimedModel:
    """A model in memory: whose prompts are read, and who decodes."""

    __slots__ = ("decode", "name", "prefill")

    def __init__(self, name: str) -> None:
        self.name = name
        self.prefill: list[TimedSequence] = []
        self.decode: list[TimedSequence] = []

    def sequences(self) -> list[TimedSequence]:
        return self.decode + self.prefill

    def drop(self, number: int) -> None:
        self.prefill = [item for item in self.prefill if item.number != number]
        self.decode = [item for item in self.decode if item.number != number]
