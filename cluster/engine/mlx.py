"""The real engine: mlx-lm's continuous batching, on a thread of its own.

MLX's streams belong to the thread that made them, so one thread makes every MLX call of the process. Other threads
hand it commands through a queue and learn from the events it emits.
"""

import contextlib
import gc
import logging
import queue
import threading
from collections.abc import Callable, Sequence

import mlx.core as mx
import mlx_lm
import msgspec
from mlx_lm.generate import BatchGenerator, generation_stream
from mlx_lm.generate_utils import BatchStats

from cluster.engine.weights import model_directory
from cluster.node import (
    Command,
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
from cluster.protocol import Token

COMMANDS_MAX = 4096
"""How many commands may wait for a step boundary."""

_logger = logging.getLogger(__name__)


class CommandsFull(RuntimeError):
    """More than COMMANDS_MAX commands wait: the engine has not come to a step boundary for a long time."""


class EngineTotals(msgspec.Struct, frozen=True):
    """What the engine has done since it started. None of these ever decreases.

    steps: decode steps. prefill_tokens lacks the last token of each prompt: it is part of the first decode step.
    """

    steps: int = 0
    decode_tokens: int = 0
    decode_s: float = 0.0
    prefill_tokens: int = 0
    prefill_s: float = 0.0

    def plus(self, stats: BatchStats) -> "EngineTotals":
        """These totals and the work of one more interval."""
        return EngineTotals(
            steps=self.steps + stats.generation_steps,
            decode_tokens=self.decode_tokens + stats.generation_tokens,
            decode_s=self.decode_s + stats.decode_time,
            prefill_tokens=self.prefill_tokens + stats.prompt_tokens,
            prefill_s=self.prefill_s + stats.prompt_time,
        )


class _Sequence:
    """A sequence in a generator, and its tokens that are not reported yet."""

    __slots__ = ("finish", "has_token", "model", "number", "times_s", "tokens", "uid")

    def __init__(self, number: int, model: "_Model", uid: int) -> None:
        self.number = number
        self.model = model
        self.uid = uid
        self.has_token = False
        self.tokens: list[Token] = []
        self.times_s: list[float] = []
        self.finish: str | None = None


class _Model:
    """A model in memory and its generator. `live`: its running sequences by the generator's ids."""

    __slots__ = ("generator", "kv_bytes_per_token", "live", "load_s", "stats", "vocabulary", "window")

    def __init__(self, generator: BatchGenerator, vocabulary: int, kv_bytes_per_token: int, load_s: float) -> None:
        self.generator = generator
        self.vocabulary = vocabulary
        self.kv_bytes_per_token = kv_bytes_per_token
        self.load_s = load_s
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
    """Greedy decoding of many sequences and models at once.

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
        prefill_batch_max, prefill_step: prompts, and tokens of each, in one prefill chunk. flush_s: a report is made
        when this has passed since the last one and there is news.
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
        self._refused: list[SequenceProgress] = []
        self._steps = 0
        self._must_report = False
        self._reported_s = clock()
        self._totals = EngineTotals()
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

    def insert(self, sequence: int, model: str, tokens: Sequence[Token], max_tokens: int) -> None:
        """Start a sequence under a number that no running sequence has; at most `max_tokens` new tokens.

        It ends at once with `error` when the model is not loaded, the prompt is empty or not of the vocabulary, or
        max_tokens is below 1.
        """
        self._put(Insert(sequence, model, tuple(tokens), max_tokens))

    def remove(self, sequence: int) -> None:
        """Take a sequence out; its tokens not reported yet are dropped. A sequence that has ended is ignored."""
        self._put(Remove(sequence))

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
        (uid,) = model.generator.insert([tokens], [command.max_tokens])
        sequence = _Sequence(command.sequence, model, uid)
        model.live[uid] = sequence
        self._sequences[command.sequence] = sequence

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
        model = self._models[name]
        self._emit(ModelLoaded(name, model.load_s, model.kv_bytes_per_token))

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
        _logger.info("loaded %s: weights %.3f s, first token %.3f s", name, weights_s, load_s - weights_s)
        generator = BatchGenerator(network, stop_tokens=stop_tokens, **options)
        vocabulary = config.get("vocab_size") or config["text_config"]["vocab_size"]
        return _Model(generator, int(vocabulary), kv_bytes_per_token, load_s)

    def _unload(self, name: str) -> None:
        model = self._models.pop(name, None)
        if model is None:
            return
        for sequence in model.live.values():
            sequence.finish = "error"
            self._must_report = True
        model.live.clear()
        self._totals = self._totals.plus(model.close())
        gc.collect()  # a generator and its batches refer to each other
        mx.clear_cache()
        self._publish()

    def _step(self, model: _Model) -> None:
        _, responses = model.generator.next()
        if not responses:
            return
        self._steps += 1
        now = self._clock()
        live = model.live
        for response in responses:
            sequence = live[response.uid]
            finish = response.finish_reason
            if finish is None:
                if not sequence.has_token:
                    sequence.has_token = self._must_report = True
            else:
                del live[response.uid]
                sequence.finish = finish
                self._must_report = True
                if finish == "stop":
                    continue  # its token is the end token
            sequence.tokens.append(response.token)
            sequence.times_s.append(now)

    def _report(self) -> None:
        """Emit all news of all sequences, if there is any."""
        progress = self._refused
        self._refused = []
        for sequence in list(self._sequences.values()):
            if not sequence.tokens and sequence.finish is None:
                continue
            news = SequenceProgress(sequence.number, tuple(sequence.tokens), tuple(sequence.times_s), sequence.finish)
            progress.append(news)
            if sequence.finish is None:
                sequence.tokens.clear()
                sequence.times_s.clear()
            else:
                del self._sequences[sequence.number]
        self._must_report = False
        if not progress:
            return
        self._reported_s = self._clock()
        self._publish()
        steps, self._steps = self._steps, 0
        self._emit(EngineReport(tuple(progress), steps))

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


def _run_one_token(generator: BatchGenerator) -> int:
    """Run the first token of a model, so that no request pays for it. Returns the KV bytes of one token."""
    try:
        generator.insert([[1, 2]], [1])
        responses = generator.next_generated()
        # Read from the cache itself: a configuration names neither the element type nor every architecture's layout.
        parts = [part for cache in responses[0].prompt_cache for part in cache.state]
        arrays = [part for part in parts if isinstance(part, mx.array) and part.ndim == 4]
        return sum(array.nbytes // array.shape[2] for array in arrays)
    finally:
        generator.close()


def _one_line(error: BaseException) -> str:
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0]}" if lines else type(error).__name__
