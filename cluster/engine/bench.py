"""What the engine makes of mlx-lm's bare BatchGenerator: `python -m cluster.engine.bench [--model M]`.

`measure` compares tokens per second; cluster.engine.gains what kept caches and a loaded model save.
"""

import argparse
import os
import statistics
import sys
import threading
import time
from collections.abc import Callable

import msgspec

from cluster.engine.blas import find_blas, is_active, preload_environment
from cluster.node import EngineDied, EngineReport, Event, Insert, ModelFailed, ModelLoaded

ROUNDS = 5
PROMPT_TOKENS = 32
NEW_TOKENS = 160
FLUSH_S = 0.05


class Ratio(msgspec.Struct, frozen=True):
    """Medians of one batch size: tokens per second of both sides, and of engine / raw within each round."""

    batch: int
    engine_per_s: float
    raw_per_s: float
    ratio: float
    ratio_min: float
    ratio_max: float


class Gain(msgspec.Struct, frozen=True):
    """Medians of the time to the first token, seconds, without and with; ratio: with over without, of the medians."""

    what: str
    without_s: float
    with_s: float
    ratio: float


def measure(model: str = "tiny", batches: tuple[int, ...] = (1, 8), rounds: int = ROUNDS) -> list[Ratio]:
    """Run both sides in turn, `rounds` times after one round to warm up, in this process.

    Each side has its model in a thread of its own. Raises RuntimeError when the engine cannot load the model.
    """
    engine = _EngineSide(model)
    raw = _RawSide(model)
    ratios = []
    for batch in batches:
        samples = []
        for number in range(rounds + 1):
            # The order alternates, so that neither side always runs on the warmer machine.
            sides = (engine.run, raw.run) if number % 2 else (raw.run, engine.run)
            times_s = {side: side(batch) for side in sides}
            samples.append((times_s[engine.run], times_s[raw.run]))
        ratios.append(_ratio(batch, samples[1:]))
    engine.close()
    raw.close()
    return ratios


def _ratio(batch: int, times_s: list[tuple[float, float]]) -> Ratio:
    tokens = batch * NEW_TOKENS
    ratios = [raw_s / engine_s for engine_s, raw_s in times_s]
    return Ratio(
        batch=batch,
        engine_per_s=statistics.median(tokens / engine_s for engine_s, _ in times_s),
        raw_per_s=statistics.median(tokens / raw_s for _, raw_s in times_s),
        ratio=statistics.median(ratios),
        ratio_min=min(ratios),
        ratio_max=max(ratios),
    )


def _prompts(batch: int) -> list[list[int]]:
    return [[1 + (31 * row + 7 * column) % 500 for column in range(PROMPT_TOKENS)] for row in range(batch)]


class _EngineSide:
    def __init__(self, model: str) -> None:
        from cluster.engine.mlx import MlxEngine

        self._model = model
        self._news = threading.Condition()
        self._loaded: Event | None = None
        self._finished = 0
        self._engine = MlxEngine(
            self._take, time.perf_counter, batch_max=8, prefill_batch_max=8, prefill_step=2048, flush_s=FLUSH_S
        )
        self._sequence = 0
        self._engine.load(model)
        with self._news:
            self._news.wait_for(lambda: self._loaded is not None)
        if not isinstance(self._loaded, ModelLoaded):
            raise RuntimeError(f"the engine cannot load {model}: {self._loaded}")

    def run(self, batch: int) -> float:
        """Seconds from the first insert to the last token."""
        self._finished = 0
        start_s = time.perf_counter()
        for prompt in _prompts(batch):
            self._sequence += 1
            self._engine.insert(Insert(self._sequence, self._model, tuple(prompt), NEW_TOKENS))
        with self._news:
            self._news.wait_for(lambda: self._finished == batch)
        return time.perf_counter() - start_s

    def close(self) -> None:
        self._engine.close(10)

    def _take(self, event: Event) -> None:
        with self._news:
            match event:
                case ModelLoaded() | ModelFailed() | EngineDied():
                    self._loaded = event
                case EngineReport(progress=progress):
                    self._finished += sum(1 for news in progress if news.finish is not None)
            self._news.notify()


class _RawSide:
    """The loop that mlx-lm's documentation shows, on a thread because streams belong to threads."""

    def __init__(self, model: str) -> None:
        self._model = model
        self._batch = 0
        self._seconds = 0.0
        self._start = threading.Semaphore(0)
        self._done = threading.Semaphore(0)
        self._thread = threading.Thread(target=self._serve, daemon=True)
        self._thread.start()
        self._done.acquire()

    def run(self, batch: int) -> float:
        """Seconds from the insert to the last token."""
        self._batch = batch
        self._start.release()
        self._done.acquire()
        return self._seconds

    def close(self) -> None:
        self._batch = 0
        self._start.release()
        self._thread.join()

    def _serve(self) -> None:
        import mlx.core as mx
        import mlx_lm
        from mlx_lm.generate import BatchGenerator

        from cluster.engine.weights import model_directory

        network, tokenizer = mlx_lm.load(str(model_directory(self._model)))
        generator = BatchGenerator(
            network,
            stop_tokens=[[token] for token in tokenizer.eos_token_ids],
            completion_batch_size=8,
            prefill_batch_size=8,
        )
        self._done.release()
        self._start.acquire()
        while self._batch:
            self._seconds = self._complete(generator.insert, generator.next_generated)
            self._done.release()
            self._start.acquire()
        generator.close()
        mx.clear_streams()  # as in MlxEngine

    def _complete(
        self, insert: Callable[[list[list[int]], list[int]], list[int]], step: Callable[[], list[object]]
    ) -> float:
        start_s = time.perf_counter()
        insert(_prompts(self._batch), [NEW_TOKENS] * self._batch)
        tokens = 0
        while tokens < self._batch * NEW_TOKENS:
            tokens += len(step())
        return time.perf_counter() - start_s


def main() -> None:
    """Print a table of ratios, with the BLAS that ran."""
    parser = argparse.ArgumentParser(prog="python -m cluster.engine.bench", description=__doc__)
    parser.add_argument("--model", default="tiny", help="as in cluster.engine.weights (default: %(default)s)")
    parser.add_argument("--rounds", type=int, default=ROUNDS, help="after one to warm up (default: %(default)s)")
    options = parser.parse_args()
    if options.rounds < 1:
        parser.error("--rounds: expected at least 1")
    blas = find_blas()
    if blas.path is not None and blas.path not in os.environ.get("LD_PRELOAD", ""):
        environment = os.environ | preload_environment(blas)
        os.execve(sys.executable, [sys.executable, "-m", "cluster.engine.bench", *sys.argv[1:]], environment)
    from cluster.engine.gains import gains

    print(f"model {options.model}; BLAS {blas.name}{'' if is_active(blas) else ' (not preloaded)'}")
    rows = measure(options.model, rounds=options.rounds)
    for row in rows:
        spread = f"{row.ratio_min:.3f} to {row.ratio_max:.3f}"
        sides = f"{row.engine_per_s:.0f} against {row.raw_per_s:.0f} tokens/s"
        print(f"{f'engine over BatchGenerator, batch {row.batch}':<52}{row.ratio:>8.3f}  {sides}; {spread}")
    one, most = rows[0], rows[-1]
    sides = f"{most.engine_per_s:.0f} against {one.engine_per_s:.0f} tokens/s"
    batching = most.engine_per_s / one.engine_per_s
    print(f"{f'engine, batch {most.batch} over batch {one.batch}':<52}{batching:>8.3f}  {sides}")
    for gain in gains(options.model, options.rounds):
        print(f"{gain.what:<52}{gain.ratio:>8.3f}  {gain.with_s * 1e3:.1f} against {gain.without_s * 1e3:.1f} ms")


if __name__ == "__main__":
    main()
