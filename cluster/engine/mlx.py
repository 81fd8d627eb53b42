"""The real engine: mlx-lm's continuous batching, on a thread of its own.

MLX's streams belong to the thread that made them, so one thread makes every MLX call of the process. Other threads
hand it commands through a queue and learn from the events it emits.
"""

import contextlib
import gc
import logging
import queue
import secrets
import threading
from collections.abc import Callable

import mlx.core as mx
from mlx_lm.generate import generation_stream

from cluster.engine import batch
from cluster.engine.batch import Batch, Limits, LoadAbandoned, Sequence
from cluster.engine.totals import EngineTotals
from cluster.node import (
    Command,
    DropCache,
    EngineAnswered,
    EngineDied,
    EngineReport,
    Event,
    Insert,
    Load,
    ModelFailed,
    ProbeEngine,
    Remove,
    SequenceProgress,
    Unload,
)

COMMANDS_MAX = 4096
"""How many commands may wait for a step boundary."""

_logger = logging.getLogger(__name__)


class CommandsFull(RuntimeError):
    """More than COMMANDS_MAX commands wait: the engine has not come to a step boundary for a long time."""


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
        between_steps: Callable[[float], None] = lambda step_s: None,
        load_batch: Callable[[str, Limits, Callable[[], float], Callable[[], bool]], Batch] = batch.load,
    ) -> None:
        """Start the thread.

        clock: the node's, in seconds. batch_max: sequences of a model that are read or decode; more wait their turn.
        prefill_batch_max, prefill_step: prompts, and tokens of them all with their padding, in one prefill chunk; so
        running streams wait no longer than one such chunk. flush_s: a report is made when this has passed since the
        last one and there is news. between_steps: called on the thread at each boundary with the seconds of the step
        before it, 0 before a command; what it raises ends the engine. load_batch: brings a model into memory.
        """
        if min(batch_max, prefill_batch_max, prefill_step) < 1:
            raise ValueError("batch_max, prefill_batch_max and prefill_step must be at least 1")
        self._emit = emit
        self._clock = clock
        self._limits = Limits(batch_max, prefill_batch_max, prefill_step)
        self._flush_s = flush_s
        self._between_steps = between_steps
        self._load_batch = load_batch
        self._commands: queue.Queue[Command | None] = queue.Queue(COMMANDS_MAX)
        self._closing = threading.Event()
        self._models: dict[str, Batch] = {}
        self._sequences: dict[int, Sequence] = {}
        self._refused: list[SequenceProgress] = []
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

    def probe(self) -> None:
        """Emit EngineAnswered at the next step boundary."""
        self._put(ProbeEngine())

    def close(self, timeout_s: float) -> bool:
        """End the thread at the next step boundary, or soon in a load, without further reports. Whether it has ended.

        A process that ends without this may be aborted by MLX.
        """
        self._closing.set()
        with contextlib.suppress(queue.Full):  # a full queue does not let the thread sleep, so it sees the flag
            self._commands.put_nowait(None)
        self._thread.join(timeout_s)
        return not self._thread.is_alive()

    @property
    def alive(self) -> bool:
        """Whether its thread runs."""
        return self._thread.is_alive()

    def memory(self) -> dict[str, int]:
        """MLX's active, peak and cached bytes, as of the last report, load, removal or drop of a cache."""
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
        # Left to itself MLX starts from the time: workers that start together would draw the same tokens.
        mx.random.seed(secrets.randbits(63))
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
            busy = [model for model in self._models.values() if model.busy]
            if busy:
                turn += 1
                began_s = self._clock()
                self._must_report |= busy[turn % len(busy)].step(self._clock)
                self._between_steps(self._clock() - began_s)
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
            self._between_steps(0.0)
            match command:
                case Insert():
                    self._insert(command)
                case Remove(sequence=number):
                    self._drop(number)
                case DropCache(cache=number):
                    self._drop_cache(number)
                case Load(model=name):
                    self._load(name)
                case Unload(model=name):
                    self._unload(name)
                case ProbeEngine():
                    self._emit(EngineAnswered())
        return False

    def _insert(self, command: Insert) -> None:
        if command.sequence in self._sequences:
            raise ValueError(f"sequence {command.sequence} is running already")
        model = self._models.get(command.model)
        sequence = model.insert(command) if model is not None else None
        if sequence is None:
            self._refused.append(SequenceProgress(command.sequence, (), (), "error"))
            self._must_report = True
            return
        self._sequences[command.sequence] = sequence

    def _drop(self, number: int) -> None:
        sequence = self._sequences.pop(number, None)
        if sequence is not None:
            sequence.batch.remove(sequence)
            self._measure_memory()

    def _drop_cache(self, number: int) -> None:
        for model in self._models.values():
            model.drop_cache(number)
        if not self._sequences:
            # Nothing else would give it back to the system; while it computes, it needs the buffers again.
            mx.clear_cache()
        self._measure_memory()

    def _load(self, name: str) -> None:
        if any(sequence.tokens for sequence in self._sequences.values()) or self._must_report:
            self._report()
        if name not in self._models:
            try:
                self._models[name] = self._load_batch(
                    name, self._limits, self._clock, lambda: not self._closing.is_set()
                )
            except LoadAbandoned:
                return
            except Exception as error:
                # Whatever is wrong with a model, the others go on.
                _logger.warning("cannot load %s", name, exc_info=True)
                self._emit(ModelFailed(name, _one_line(error)))
                return
            self._publish()
        loaded = self._models[name].loaded
        _logger.info("loaded %s: weights %.3f s, first token %.3f s", name, loaded.weights_s, loaded.first_token_s)
        self._emit(loaded)

    def _unload(self, name: str) -> None:
        model = self._models.pop(name, None)
        if model is None:
            return
        self._must_report |= model.busy
        model.fail()
        self._totals = self._totals.plus(model.close())
        gc.collect()  # a generator and its batches refer to each other
        mx.clear_cache()
        self._publish()

    def _report(self) -> None:
        """Emit all news of all sequences, if there is any."""
        progress = self._refused
        self._refused = []
        for sequence in list(self._sequences.values()):
            news = sequence.take_news()
            if news is not None:
                progress.append(news)
                if news.finish is not None:
                    del self._sequences[news.sequence]
        self._must_report = False
        if not progress:
            return
        self._reported_s = self._clock()
        self._publish()
        work, self._told = self._totals.minus(self._told), self._totals
        active = self._memory["active_bytes"]
        self._emit(
            EngineReport(tuple(progress), work.steps, work.decode_s, work.prefill_tokens, work.prefill_s, active)
        )

    def _publish(self) -> None:
        """Make levels and totals readable for other threads: each is replaced as a whole."""
        self._measure_memory()
        totals = self._totals
        for model in self._models.values():
            totals = totals.plus(model.take_stats())
        self._totals = totals

    def _measure_memory(self) -> None:
        self._memory = {
            "active_bytes": mx.get_active_memory(),
            "peak_bytes": mx.get_peak_memory(),
            "cache_bytes": mx.get_cache_memory(),
        }


def _one_line(error: BaseException) -> str:
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0]}" if lines else type(error).__name__
