"""A model in memory and its sequences, over mlx-lm's BatchGenerator. Only the engine's thread may use this."""

import contextlib
from collections import deque
from collections.abc import Callable
from typing import Any

import mlx.core as mx
import mlx_lm
import msgspec
from mlx.utils import tree_flatten
from mlx_lm.generate import BatchGenerator
from mlx_lm.generate_utils import BatchStats

from cluster.engine import kv_cache
from cluster.engine.sampling import sampler
from cluster.engine.weights import model_directory
from cluster.node import Insert, ModelLoaded, SequenceProgress
from cluster.protocol import Sampling, Token

_READ_AT_ONCE_BYTES = 256 * 2**20
"""After so many bytes of weights a load looks whether it is still wanted."""


class Limits(msgspec.Struct, frozen=True):
    """batch_max: sequences of a model that are read or decode; more wait their turn, in order.

    prefill_batch_max, prefill_step: prompts, and tokens of them all with their padding, that one step reads.
    """

    batch_max: int
    prefill_batch_max: int
    prefill_step: int

    @property
    def prompts_max(self) -> int:
        """Of prompts in one step. The generator raises its decode batch to this; and each gets one token at least."""
        return min(self.prefill_batch_max, self.batch_max, self.prefill_step)

    def generator(self, network: Any, **more: Any) -> BatchGenerator:
        """One that keeps them, apart from its prefill step, which is for each prompt."""
        return BatchGenerator(
            network, completion_batch_size=self.batch_max, prefill_batch_size=self.prompts_max, **more
        )


class LoadAbandoned(Exception):
    """The engine is to end: nobody waits for this model any more."""


class Sequence:
    """A sequence, and its tokens that are not reported yet.

    unread: prompt tokens that are not in its cache yet. made: how many tokens it has made. uid: the generator's number.
    """

    __slots__ = (
        "batch",
        "cache",
        "cached_tokens",
        "command",
        "finish",
        "kept_bytes",
        "kept_tokens",
        "made",
        "times_s",
        "tokens",
        "uid",
        "unread",
    )

    def __init__(self, command: Insert, batch: "Batch", cache: kv_cache.Cache | None) -> None:
        self.command = command
        self.batch = batch
        self.cache = cache
        self.cached_tokens = command.cached_tokens if cache is not None else 0
        self.unread = len(command.tokens) - self.cached_tokens
        self.uid: int | None = None
        self.made = 0
        self.kept_tokens = 0
        self.kept_bytes = 0
        self.tokens: list[Token] = []
        self.times_s: list[float] = []
        self.finish: str | None = None

    def take_news(self) -> SequenceProgress | None:
        """What is new since this was last called, if anything."""
        if not self.tokens and self.finish is None:
            return None
        news = SequenceProgress(
            self.command.sequence,
            tuple(self.tokens),
            tuple(self.times_s),
            self.finish,
            self.cached_tokens,
            self.kept_tokens,
            self.kept_bytes,
        )
        self.tokens.clear()
        self.times_s.clear()
        return news


class _Kept(msgspec.Struct, frozen=True):
    """A cache kept of a finished sequence, and how many tokens it holds."""

    cache: kv_cache.Cache
    tokens: int


class Batch:
    """A model, its sequences, and the caches kept of those that have finished."""

    def __init__(self, generator: BatchGenerator, vocabulary: int, limits: Limits, loaded: ModelLoaded) -> None:
        self.loaded = loaded
        self._generator = generator
        self._vocabulary = vocabulary
        self._limits = limits
        # The generator holds what is read or decodes. Handed more, it would let in more than its decode batch.
        self._waiting: deque[Sequence] = deque()
        self._live: dict[int, Sequence] = {}
        self._kept: dict[int, _Kept] = {}
        self._window = contextlib.ExitStack()
        self._stats: BatchStats = self._window.enter_context(generator.stats())

    @property
    def busy(self) -> bool:
        """Whether a step would do anything."""
        return bool(self._live or self._waiting)

    def insert(self, command: Insert) -> Sequence | None:
        """Start a sequence, or let it wait its turn; None when it cannot run."""
        tokens = command.tokens
        # MLX does not check indices on the way into the embedding: it would read other memory.
        if not tokens or command.max_tokens < 1 or min(tokens) < 0 or max(tokens) >= self._vocabulary:
            return None
        sequence = Sequence(command, self, self._cached(command))
        self._waiting.append(sequence)
        return sequence

    def remove(self, sequence: Sequence) -> None:
        """Take a sequence out; one that has finished is ignored."""
        if sequence in self._waiting:
            self._waiting.remove(sequence)
        elif sequence.uid is not None and self._live.pop(sequence.uid, None) is not None:
            self._generator.remove([sequence.uid])

    def drop_cache(self, cache: int) -> None:
        """Free a kept cache; one that is not there is ignored."""
        self._kept.pop(cache, None)

    def step(self, clock: Callable[[], float]) -> bool:
        """Decode one token of each, and read one chunk of prompts. Whether there is news that must not wait."""
        self._join()
        prompts = sum(sequence.unread > 1 for sequence in self._live.values())
        limits = self._limits
        self._generator.prefill_step_size = limits.prefill_step // max(1, min(prompts, limits.prompts_max))
        read, responses = self._generator.next()
        for part in read:
            done, total = part.progress
            self._live[part.uid].unread = total - done
        must_report = False
        if responses:
            now = clock()
            for response in responses:
                must_report |= self._take(response, now)
        return must_report

    def fail(self) -> None:
        """End all sequences with `error`."""
        for sequence in (*self._live.values(), *self._waiting):
            sequence.finish = "error"
        self._live.clear()
        self._waiting.clear()

    def take_stats(self) -> BatchStats:
        """The work since this was last called."""
        self._window.close()
        stats, self._stats = self._stats, self._window.enter_context(self._generator.stats())
        return stats

    def close(self) -> BatchStats:
        """Let go of the model, whoever still refers to this object. Returns the last of `take_stats`."""
        self._window.close()
        self._generator.close()
        self._kept.clear()
        del self._generator
        return self._stats

    def _cached(self, command: Insert) -> kv_cache.Cache | None:
        """The cache that the sequence goes on from; one token at least is left to compute the next one from."""
        kept = self._kept.get(command.cache) if command.cache is not None else None
        if kept is None or not 0 < command.cached_tokens <= min(kept.tokens, len(command.tokens) - 1):
            return None
        return kv_cache.beginning(kept.cache, kept.tokens, command.cached_tokens)

    def _join(self) -> None:
        while self._waiting and len(self._live) < self._limits.batch_max:
            sequence = self._waiting.popleft()
            command, cached_tokens = sequence.command, sequence.cached_tokens
            (uid,) = self._generator.insert(
                [list(command.tokens[cached_tokens:])],
                [command.max_tokens],
                caches=[sequence.cache],
                all_tokens=[list(command.tokens[:cached_tokens])],
                samplers=[sampler(command.sampling)],
            )
            sequence.uid, sequence.cache = uid, None
            self._live[uid] = sequence

    def _take(self, response: Any, now: float) -> bool:
        """Take in a token and an end. Whether it is a first token or an end."""
        sequence, finish = self._live[response.uid], response.finish_reason
        is_first = False
        if finish != "stop":  # its token is the end token
            is_first = not sequence.made
            sequence.made += 1
            sequence.tokens.append(response.token)
            sequence.times_s.append(now)
        if finish is None:
            return is_first
        del self._live[response.uid]
        sequence.finish = finish
        self._keep(sequence, response)
        return True

    def _keep(self, sequence: Sequence, response: Any) -> None:
        """Keep the cache of a finished sequence: its prompt and the tokens it has made, without an end token."""
        command = sequence.command
        if command.keep_as is None:
            return
        tokens = len(command.tokens) + sequence.made
        with mx.stream(self._generator.stream):
            kept = kv_cache.keep(response.prompt_cache, len(response.all_tokens), tokens)
        if kept is not None:
            cache, sequence.kept_bytes = kept
            sequence.kept_tokens = tokens
            self._kept[command.keep_as] = _Kept(cache, tokens)


def load(name: str, limits: Limits, clock: Callable[[], float], wanted: Callable[[], bool]) -> Batch:
    """Bring a model into memory and run its first tokens.

    Raises LoadAbandoned soon after it is not `wanted` any more; ModelUnavailable, and whatever mlx-lm raises.
    """
    start_s = clock()
    network, tokenizer, config = mlx_lm.load(str(model_directory(name)), lazy=True, return_config=True)
    weights = [array for _, array in tree_flatten(network.parameters())]
    _read(weights, wanted)
    weights_s = clock() - start_s
    kv_bytes_per_token = _run_first_tokens(limits.generator(network))
    load_s = clock() - start_s
    weights_bytes = sum(array.nbytes for array in weights)
    loaded = ModelLoaded(name, load_s, kv_bytes_per_token, weights_bytes, weights_s, load_s - weights_s, kv_cache.STEP)
    stop_tokens = [[token] for token in sorted(tokenizer.eos_token_ids)]
    generator = limits.generator(network, stop_tokens=stop_tokens)
    vocabulary = config.get("vocab_size") or config["text_config"]["vocab_size"]
    return Batch(generator, int(vocabulary), limits, loaded)


def _read(weights: list[Any], wanted: Callable[[], bool]) -> None:
    """Read the weights piece by piece, so that an engine that is to end need not read all of a large model."""
    piece: list[Any] = []
    for array in weights:
        piece.append(array)
        if sum(part.nbytes for part in piece) >= _READ_AT_ONCE_BYTES:
            mx.eval(piece)
            piece.clear()
            if not wanted():
                raise LoadAbandoned
    mx.eval(piece)


def _run_first_tokens(generator: BatchGenerator) -> int:
    """Run what is compiled or set up at its first use, so that no request pays for it. Returns the bytes of a token.

    Two prompts of different lengths, hence padded; a batch of two, then of one; greedy and sampled tokens.
    """
    try:
        samplers = [None, sampler(Sampling(temperature=1.0, top_p=0.9))]
        generator.insert([[1, 2], [1, 2, 1, 2, 1]], [1, 2], samplers=samplers)
        caches: list[kv_cache.Cache] = []
        while len(caches) < 2:
            responses = generator.next_generated()
            caches += [response.prompt_cache for response in responses if response.finish_reason is not None]
        return kv_cache.bytes_per_token(caches[0])
    finally:
        generator.close()
