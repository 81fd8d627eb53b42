"""The real engine: mlx-lm's continuous batching, on a thread of its own.

MLX's streams belong to the thread that made them, so one thread makes every MLX call of the process. Other threads
hand it commands through a queue and learn from the events it emits.
"""

import contextlib
import functools
import gc
import logging
import queue
import threading
from collections.abc import Callable
from typing import Any

import mlx.core as mx
import mlx_lm
import msgspec
from mlx.utils import tree_flatten
from mlx_lm.generate import BatchGenerator, generation_stream
from mlx_lm.generate_utils import BatchStats
from mlx_lm.sample_utils import make_sampler

from cluster.engine import kv_cache
from cluster.engine.totals import EngineTotals
from cluster.engine.weights import model_directory
from cluster.node import (
    Command,
    DropCache,
    EngineDied,
    EngineReport,
    Event,
    Insert,
    Load,
    ModelFailed,
    ModelLoaded,
    Remove,
    SequenceProgress,
    Unload,
)
from cluster.protocol import Sampling, Token

COMMANDS_MAX = 4096
"""How many commands may wait for a step boundary."""

_logger = logging.getLogger(__name__)


class CommandsFull(RuntimeError):
    """More than COMMANDS_MAX commands wait: the engine has not come to a step boundary for a long time."""


class _Sequence:
    """A sequence in a generator, and its tokens that are not reported yet. made: all that it has made."""

    __slots__ = (
        "cached_tokens",
        "finish",
        "keep_as",
        "kept_bytes",
        "kept_tokens",
        "made",
        "model",
        "number",
        "prompt_tokens",
        "times_s",
        "tokens",
        "uid",
    )

    def __init__(self, command: Insert, model: "_Model", uid: int, cached_tokens: int) -> None:
        self.number = command.sequence
        self.keep_as = command.keep_as
        self.prompt_tokens = len(command.tokens)
        self.model = model
        self.uid = uid
        self.cached_tokens = cached_tokens
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
            self.number,
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
    """A cache kept of a finished sequence of a model, and how many tokens it holds."""

    model: "_Model"
    cache: list[Any]
    tokens: int


class _Model:
    """A model in memory and its generator. `live`: its running sequences by the generator's ids."""

    __slots__ = ("generator", "live", "loaded", "stats", "vocabulary", "window")

    def __init__(self, generator: BatchGenerator, vocabulary: int, loaded: ModelLoaded) -> None:
        self.generator = generator
        self.vocabulary = vocabulary
        self.loaded = loaded
        self.live: dict[int, _Sequence] = {}
        self.window = contextlib.ExitStack()
        self.stats: BatchStats = self.window.enter_context(generator.stats())

    def take_stats(self) -> BatchStats:
        """The work since this was last called."""
        self.window.close()
        stats, self.stats = self.stats, self.window.enter_context(self.generator.stats())
        return stats

    def close(self) -> BatchStats:
        """Let go of the model, whoever still refers to this object. Returns the last of `take_stats`."""
        self.window.close()
        self.generator.close()
        del self.generator
        return self.stats


class MlxEngine:
    """Decoding of many sequences and models at once.

    The methods may be called from any thread. Commands return at once and are applied at the next step boundary, in
    order; they raise CommandsFull, and are ignored after EngineDied. Events are emitted from the engine's thread;
    `emit` must not block, and what it raises ends the engine.
    """

    def __init__(
        self,
        emit: Callable[[Event], None],
        clock: Callable[[], float],
        *,
        batch_max: int,
        prefill_batch_max: int,
        prefill_step: int,
        flush_s: float,
    ) -> None:
        """Start the thread.

        clock: the node's, in seconds. batch_max: sequences of a model that decode together; more wait their turn.
        prefill_batch_max, prefill_step: prompts, and tokens of them all with their padding, in one prefill chunk; so
        running streams wait no longer than one such chunk. flush_s: a report is made when this has passed since the
        last one and there is news.
        """
        if min(batch_max, prefill_batch_max, prefill_step) < 1:
            raise ValueError("batch_max, prefill_batch_max and prefill_step must be at least 1")
        self._emit = emit
        self._clock = clock
        self._batch_max = batch_max
        # The generator would raise its decode batch to the size of its prefill batch.
        self._prefill_batch_max = min(prefill_batch_max, batch_max)
        self._prefill_step = prefill_step
        self._flush_s = flush_s
        self._commands: queue.Queue[Command | None] = queue.Queue(COMMANDS_MAX)
        self._closing = threading.Event()
        self._models: dict[str, _Model] = {}
        self._sequences: dict[int, _Sequence] = {}
        self._kept: dict[int, _Kept] = {}
        self._refused: list[SequenceProgress] = []
        self._steps = 0
        self._must_report = False
        self._reported_s = clock()
        self._totals = EngineTotals()
        self._told = EngineTotals()
        self._memory: dict[str, int] = {"active_bytes": 0, "peak_bytes": 0, "cache_bytes": 0}
        self._thread = threading.Thread(target=self._run, name="mlx-engine", daemon=True)
        self._thread.start()

    def load(self, model: str) -> None:
        """Load a model (`weights.model_directory` names them) and run one token: ModelLoaded or ModelFailed follows.

        All decoding pauses meanwhile, so what is not reported yet is reported before.
        """
        self._put(Load(model))

    def unload(self, model: str) -> None:
        """Drop a model from memory. Its sequences end with `error`."""
        self._put(Unload(model))

    def insert(self, command: Insert) -> None:
        """Start a sequence under a number that no running sequence has.

        It ends at once with `error` when the model is not loaded, the prompt is empty or not of the vocabulary, or
        max_tokens is below 1. A cache that is not kept (any more) is not used.
        """
        self._put(command)

    def remove(self, sequence: int) -> None:
        """Take a sequence out; its tokens not reported yet are dropped. A sequence that has ended is ignored."""
        self._put(Remove(sequence))

    def drop_cache(self, cache: int) -> None:
        """Free a kept cache; one that is not there is ignored."""
        self._put(DropCache(cache))

    def close(self, timeout_s: float) -> bool:
        """End the thread at the next step boundary, without further reports. Returns whether it has ended.

        A process that ends without this may be aborted by MLX.
        """
        self._closing.set()
        with contextlib.suppress(queue.Full):  # a full queue does not let the thread sleep, so it sees the flag
            self._commands.put_nowait(None)
        self._thread.join(timeout_s)
        return not self._thread.is_alive()

    def memory(self) -> dict[str, int]:
        """MLX's active, peak and cached bytes as of the last report or load."""
        return dict(self._memory)

    def totals(self) -> EngineTotals:
        """The work done up to the last report."""
        return self._totals

    def _put(self, command: Command) -> None:
        if not self._thread.is_alive():
            return
        try:
            self._commands.put_nowait(command)
        except queue.Full:
            raise CommandsFull(f"{COMMANDS_MAX} commands wait for the engine's next step boundary") from None

    def _run(self) -> None:
        try:
            self._serve()
        except BaseException as error:
            _logger.exception("the engine's thread ends")
            self._emit(EngineDied(_one_line(error)))
        finally:
            # Reversed, because each generator restores the wired limit that it found when it was made.
            for model in reversed(self._models.values()):
                model.close()
            self._models.clear()
            self._sequences.clear()
            self._kept.clear()
            gc.collect()
            mx.synchronize(generation_stream)
            # MLX aborts the process at its exit when the streams of a thread outlive the thread.
            mx.clear_streams()

    def _serve(self) -> None:
        turn = 0
        while self._apply_commands():
            busy = [model for model in self._models.values() if model.live]
            if busy:
                turn += 1
                self._step(busy[turn % len(busy)])
            if self._must_report or self._clock() - self._reported_s >= self._flush_s:
                self._report()

    def _apply_commands(self) -> bool:
        """Apply what waits; sleep while there is nothing to compute or to report. False: the engine is to end."""
        while not self._closing.is_set():
            idle = not self._sequences and not self._must_report
            try:
                command = self._commands.get(block=idle)
            except queue.Empty:
                return True
            match command:
                case Insert():
                    self._insert(command)
                case Remove(sequence=number):
                    self._drop(number)
                case DropCache(cache=number):
                    self._kept.pop(number, None)
                case Load(model=name):
                    self._load(name)
                case Unload(model=name):
                    self._unload(name)
        return False

    def _insert(self, command: Insert) -> None:
        if command.sequence in self._sequences:
            raise ValueError(f"sequence {command.sequence} is running already")
        model = self._models.get(command.model)
        tokens = list(command.tokens)
        if (
            model is None
            or not tokens
            or command.max_tokens < 1
            # MLX does not check indices on the way into the embedding: it would read other memory.
            or min(tokens) < 0
            or max(tokens) >= model.vocabulary
        ):
            self._refused.append(SequenceProgress(command.sequence, (), (), "error"))
            self._must_report = True
            return
        cache = self._cached(command, model)
        cached_tokens = command.cached_tokens if cache is not None else 0
        (uid,) = model.generator.insert(
            [tokens[cached_tokens:]],
            [command.max_tokens],
            caches=[cache],
            all_tokens=[tokens[:cached_tokens]],
            samplers=[_sampler(command.sampling)],
        )
        sequence = _Sequence(command, model, uid, cached_tokens)
        model.live[uid] = sequence
        self._sequences[command.sequence] = sequence

    def _cached(self, command: Insert, model: _Model) -> list[Any] | None:
        """The cache that the sequence goes on from; one token at least is left to compute the next one from."""
        kept = self._kept.get(command.cache) if command.cache is not None else None
        usable = kept is not None and kept.model is model
        if kept is None or not usable or not 0 < command.cached_tokens <= min(kept.tokens, len(command.tokens) - 1):
            return None
        return kv_cache.beginning(kept.cache, kept.tokens, command.cached_tokens)

    def _drop(self, number: int) -> None:
        sequence = self._sequences.pop(number, None)
        if sequence is not None and sequence.model.live.pop(sequence.uid, None) is not None:
            sequence.model.generator.remove([sequence.uid])

    def _load(self, name: str) -> None:
        if any(sequence.tokens for sequence in self._sequences.values()) or self._must_report:
            self._report()
        if name not in self._models:
            try:
                self._models[name] = self._open(name)
            except Exception as error:
                # Whatever is wrong with a model, the others go on.
                _logger.warning("cannot load %s", name, exc_info=True)
                self._emit(ModelFailed(name, _one_line(error)))
                return
            self._publish()
        self._emit(self._models[name].loaded)

    def _open(self, name: str) -> _Model:
        start_s = self._clock()
        network, tokenizer, config = mlx_lm.load(str(model_directory(name)), return_config=True)
        weights_s = self._clock() - start_s
        stop_tokens = [[token] for token in sorted(tokenizer.eos_token_ids)]
        options = {
            "completion_batch_size": self._batch_max,
            "prefill_batch_size": self._prefill_batch_max,
            "prefill_step_size": self._prefill_step,
        }
        kv_bytes_per_token = _run_one_token(BatchGenerator(network, **options))
        load_s = self._clock() - start_s
        loaded = ModelLoaded(
            name,
            load_s,
            kv_bytes_per_token,
            sum(array.nbytes for _, array in tree_flatten(network.parameters())),
            weights_s,
            load_s - weights_s,
        )
        _logger.info("loaded %s: weights %.3f s, first token %.3f s", name, weights_s, loaded.first_token_s)
        generator = BatchGenerator(network, stop_tokens=stop_tokens, **options)
        vocabulary = config.get("vocab_size") or config["text_config"]["vocab_size"]
        return _Model(generator, int(vocabulary), loaded)

    def _unload(self, name: str) -> None:
        model = self._models.pop(name, None)
        if model is None:
            return
        for sequence in model.live.values():
            sequence.finish = "error"
            self._must_report = True
        model.live.clear()
        self._kept = {number: kept for number, kept in self._kept.items() if kept.model is not model}
        self._totals = self._totals.plus(model.close())
        gc.collect()  # a generator and its batches refer to each other
        mx.clear_cache()
        self._publish()

    def _step(self, model: _Model) -> None:
        prompts = sum(not sequence.made for sequence in model.live.values())
        # The generator's limit is for each prompt.
        model.generator.prefill_step_size = max(1, self._prefill_step // max(1, min(prompts, self._prefill_batch_max)))
        _, responses = model.generator.next()
        if not responses:
            return
        self._steps += 1
        now = self._clock()
        live = model.live
        for response in responses:
            sequence = live[response.uid]
            finish = response.finish_reason
            if finish != "stop":  # its token is the end token
                self._must_report |= not sequence.made
                sequence.made += 1
                sequence.tokens.append(response.token)
                sequence.times_s.append(now)
            if finish is not None:
                del live[response.uid]
                sequence.finish = finish
                self._must_report = True
                self._keep(sequence, response)

    def _keep(self, sequence: _Sequence, response: Any) -> None:
        """Keep the cache of a finished sequence: its prompt and what has been reported of it."""
        if sequence.keep_as is None:
            return
        tokens = sequence.prompt_tokens + sequence.made
        kept = kv_cache.keep(response.prompt_cache, len(response.all_tokens), tokens)
        if kept is not None:
            cache, sequence.kept_bytes = kept
            sequence.kept_tokens = tokens
            self._kept[sequence.keep_as] = _Kept(sequence.model, cache, tokens)

    def _report(self) -> None:
        """Emit all news of all sequences, if there is any."""
        progress = self._refused
        self._refused = []
        for sequence in list(self._sequences.values()):
            news = sequence.take_news()
            if news is not None:
                progress.append(news)
                if news.finish is not None:
                    del self._sequences[sequence.number]
        self._must_report = False
        if not progress:
            return
        self._reported_s = self._clock()
        self._publish()
        steps, self._steps = self._steps, 0
        work, self._told = self._totals.minus(self._told), self._totals
        active = self._memory["active_bytes"]
        self._emit(EngineReport(tuple(progress), steps, work.decode_s, work.prefill_tokens, work.prefill_s, active))

    def _publish(self) -> None:
        """Make the levels readable for other threads: each is replaced as a whole."""
        self._memory = {
            "active_bytes": mx.get_active_memory(),
            "peak_bytes": mx.get_peak_memory(),
            "cache_bytes": mx.get_cache_memory(),
        }
        totals = self._totals
        for model in self._models.values():
            totals = totals.plus(model.take_stats())
        self._totals = totals


@functools.lru_cache(maxsize=64)
def _sampler(sampling: Sampling) -> Any:
    """One object for equal samplings, for a batch that has only one is sampled in one go. None: greedy."""
    if sampling.temperature <= 0:
        return None
    return make_sampler(temp=sampling.temperature, top_p=sampling.top_p)


def _run_one_token(generator: BatchGenerator) -> int:
    """Run the first token of a model, so that no request pays for it. Returns the KV bytes of one token."""
    try:
        generator.insert([[1, 2]], [1])
        responses = generator.next_generated()
        return kv_cache.bytes_per_token(responses[0].prompt_cache)
    finally:
        generator.close()


def _one_line(error: BaseException) -> str:
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0]}" if lines else type(error).__name__
