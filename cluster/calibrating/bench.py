"""`python -m cluster.calibrating.bench MODEL`: an engine in a process of its own that makes the rounds it is told.

It ends when standard input closes, so it dies with whoever started it.
"""

import os
import sys
import threading
import time
from itertools import pairwise

import msgspec
from msgspec.structs import replace

from cluster.calibrating.rounds import Answer, Loaded, Order, Round, Taken
from cluster.engine.blas import find_blas, is_active
from cluster.live.host import mlx_engine
from cluster.node import EngineDied, EngineReport, Event, Insert, ModelFailed, ModelLoaded
from cluster.policy import Policy

BATCH_MAX = 16
_LOAD_S = 600.0
_ROUND_S = 120.0
_TRIES_MAX = 20


class EngineFailed(Exception):
    """The engine did not do what it was told. One line."""


class Bench:
    """Rounds on the real engine, as a worker has it, apart from a larger batch."""

    def __init__(self, model: str) -> None:
        self._model = model
        self._news = threading.Condition()
        self._told: Event | None = None
        self._times_s: dict[int, list[float]] = {}
        self._ended: set[int] = set()
        self._numbers = 0
        policy = Policy()
        policy = replace(policy, worker=replace(policy.worker, batch_max=BATCH_MAX, prefill_batch_max=BATCH_MAX))
        self._engine = mlx_engine(policy, self._take, time.monotonic)

    def load(self) -> Loaded:
        """Bring the model into memory."""
        self._engine.load(self._model)
        with self._news:
            self._news.wait_for(lambda: self._told is not None, _LOAD_S)
        told = self._told
        if not isinstance(told, ModelLoaded):
            reason = getattr(told, "reason", f"not loaded within {_LOAD_S:g} s")
            return Loaded(error=f"{self._model}: {reason}")
        return Loaded(told.load_s, told.kv_bytes_per_token, told.weights_bytes, is_active(find_blas()))

    def obey(self, order: Order) -> list[Taken]:
        """Make the rounds. Raises EngineFailed."""
        until_s, taken = time.monotonic() + order.seconds, list[Taken]()
        while not taken or time.monotonic() < until_s:
            taken += [self.make(one) for one in order.rounds]
        return taken

    def make(self, one: Round) -> Taken:
        """One round. Raises EngineFailed.

        A model may answer a prompt with nothing but an end token; then other prompts are tried.
        """
        for _ in range(_TRIES_MAX):
            taken = self._try(one)
            if taken is not None:
                return taken
        raise EngineFailed(f"{self._model}: prompts of {one.prompt_tokens} tokens made no token, {_TRIES_MAX} times")

    def _try(self, one: Round) -> Taken | None:
        self._times_s.clear()
        self._ended.clear()
        inserts = [self._insert(one) for _ in range(one.prompts)]
        began_s = time.monotonic()
        for insert in inserts:
            self._engine.insert(insert)
        with self._news:
            done = self._news.wait_for(lambda: len(self._ended) == one.prompts or self._failed(), _ROUND_S)
        if not done or self._failed():
            raise EngineFailed(f"{self._model}: a round of {one.prompts} prompts did not end")
        streams = [self._times_s.get(insert.sequence, []) for insert in inserts]
        if not all(streams):
            return None
        # While all of them run: from the last first token to the first end, which is early where a model stops.
        first_s = max(times_s[0] for times_s in streams)
        last_s = min(times_s[-1] for times_s in streams)
        steps = [time_s for time_s in streams[0] if first_s <= time_s <= last_s]
        gaps_s = tuple(after - before for before, after in pairwise(steps))
        return Taken(one, first_s - began_s, gaps_s)

    def close(self) -> None:
        """End the engine's thread."""
        self._engine.close(10.0)

    def _insert(self, one: Round) -> Insert:
        self._numbers += 1
        number = self._numbers
        tokens = tuple(3 + (number * 131 + place * 17 + number * place) % 240 for place in range(one.prompt_tokens))
        return Insert(number, self._model, tokens, one.new_tokens)

    def _failed(self) -> bool:
        return isinstance(self._told, EngineDied)

    def _take(self, event: Event) -> None:
        """On the engine's thread."""
        with self._news:
            match event:
                case ModelLoaded() | ModelFailed() | EngineDied():
                    self._told = event
                case EngineReport(progress=progress):
                    for part in progress:
                        self._times_s.setdefault(part.sequence, []).extend(part.times_s)
                        if part.finish is not None:
                            self._ended.add(part.sequence)
            self._news.notify()


def main(model: str) -> int:
    """Answer each line until there is none."""
    out = os.fdopen(os.dup(1), "wb", buffering=0)
    # Libraries print what they like to descriptor 1.
    os.dup2(2, 1)
    bench = Bench(model)
    loaded = bench.load()
    out.write(msgspec.json.encode(loaded) + b"\n")
    code = 0
    if loaded.error:
        code = 1
    for line in sys.stdin.buffer if not code else ():
        answer: Answer = bench.obey(msgspec.json.decode(line, type=Order))
        out.write(msgspec.json.encode(answer) + b"\n")
    bench.close()
    return code


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
