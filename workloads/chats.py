"""Conversations: prompts that grow turn by turn, some of which begin with the same system prompt."""

from collections import deque
from collections.abc import Iterator
from itertools import chain

import msgspec
import numpy as np

from cluster.protocol import Token
from workloads.lengths import draw_length, draw_times, length_limits
from workloads.spec import WorkloadSpec
from workloads.streams import Stream, stream
from workloads.vocabulary import PromptVocabulary

_BLOCK = 1024


class Turn(msgspec.Struct, frozen=True):
    """What a request asks, without its time."""

    session_id: str
    turn: int
    prompt_id: str
    prompt: tuple[Token, ...]
    max_tokens: int


class Chats:
    """All chats of a load, by number: what a chat says depends on its number, the seed, the spec and the vocabulary."""

    def __init__(self, spec: WorkloadSpec, seed: int, vocabulary: PromptVocabulary, context_max_tokens: int) -> None:
        """Raises ValueError when a single message can exceed the context."""
        self.spec = spec
        self.vocabulary = vocabulary
        self.context_max_tokens = context_max_tokens
        self._seed = seed
        self._system_prompts = [self._system_prompt(number) for number in range(self._count())]
        markers = vocabulary.markers
        longest = max((len(markers.opening(text)) for text in ((), *self._system_prompts)), default=0)
        alone = longest + length_limits(spec.prompt_tokens)[1] + len(markers.before_reply)
        alone += length_limits(spec.output_tokens)[1]
        if alone > context_max_tokens:
            what = "one message and its answer can take"
            raise ValueError(f"{what} {alone} tokens, the context holds {context_max_tokens}")

    def chat(self, number: int) -> "Chat":
        """A chat that has not begun."""
        system = self._system_prompts[self._choice(number)] if self._has_system(number) else ()
        return Chat(number, self, self.vocabulary.markers.opening(system), stream(self._seed, Stream.CONTENT, number))

    def side_by_side(self) -> Iterator[Turn]:
        """Turns without end: each of a running chat chosen at random. A chat that is over makes room for a new one."""
        spec = self.spec
        choices = stream(self._seed, Stream.SESSIONS)
        chats = [self.chat(number) for number in range(spec.sessions)]
        begun = spec.sessions
        while True:
            for place in choices.integers(0, spec.sessions, size=_BLOCK).tolist():
                yield chats[place].next_turn()
                if chats[place].turns == spec.turns_max:
                    chats[place] = self.chat(begun)
                    begun += 1

    def turn_offsets(self, number: int) -> list[float]:
        """When a chat's turns come, in seconds since its first: think times, summed up."""
        assert self.spec.think_s is not None
        random = stream(self._seed, Stream.THINKING, number)
        gaps = draw_times(self.spec.think_s, random, self.spec.turns_max - 1)
        return [0.0, *np.cumsum(gaps).tolist()]

    def _count(self) -> int:
        return 0 if self.spec.system_prompts is None else self.spec.system_prompts.count

    def _system_prompt(self, number: int) -> tuple[Token, ...]:
        assert self.spec.system_prompts is not None
        random = stream(self._seed, Stream.SYSTEM_CONTENT, number)
        return self.vocabulary.content(random, draw_length(self.spec.system_prompts.tokens, random))

    def _has_system(self, number: int) -> bool:
        given = self.spec.system_prompts
        return given is not None and self._chances(number)[0] < given.share

    def _choice(self, number: int) -> int:
        return int(self._chances(number)[1] * self._count())

    def _chances(self, number: int) -> tuple[float, float]:
        has, which = stream(self._seed, Stream.SYSTEM_CHOICE, number).random(2).tolist()
        return has, which


class Chat:
    """One conversation, whose answers are scripted: what the model really says does not change what comes next."""

    def __init__(self, number: int, chats: Chats, opening: tuple[Token, ...], random: np.random.Generator) -> None:
        """opening: what every prompt begins with, whatever is forgotten."""
        self._number = number
        self._chats = chats
        self._opening = opening
        self._random = random
        self._past: deque[tuple[Token, ...]] = deque()
        self._past_tokens = 0
        self.turns = 0

    def next_turn(self) -> Turn:
        """What the next request asks. The scripted answer to it is as long as its output cap."""
        spec, vocabulary = self._chats.spec, self._chats.vocabulary
        markers = vocabulary.markers
        message = vocabulary.content(self._random, draw_length(spec.prompt_tokens, self._random))
        max_tokens = draw_length(spec.output_tokens, self._random)
        asked = (*message, *markers.before_reply)
        room = self._chats.context_max_tokens - max_tokens - len(self._opening) - len(asked)
        while self._past_tokens > room:
            self._past_tokens -= len(self._past.popleft())
        prompt = (*self._opening, *chain.from_iterable(self._past), *asked)
        reply = vocabulary.content(self._random, max_tokens)
        exchange = (*asked, *reply, *markers.before_next)
        self._past.append(exchange)
        self._past_tokens += len(exchange)
        turn = Turn(f"s{self._number}", self.turns, f"s{self._number}t{self.turns}", prompt, max_tokens)
        self.turns += 1
        return turn
