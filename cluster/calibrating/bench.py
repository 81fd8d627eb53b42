"""`python -m cluster.calibrating.bench MODEL`: an engine in a process of its own that makes the rounds it is told.

It ends when standard input closes, so it dies with whoever started it.
"""

import os
import sys
import threading
import time
from collections.abc import Callable
from itertools import pairwise

import msgspec
from msgspec.structs import replace

from cluster.calibrating.rounds import Answer, Chats, Chatted, Loaded, Order, Round, Taken
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
        self._texts = 0
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

    def obey(self, order: Order) -> Answer:
        """Make the rounds. Raises EngineFailed."""
        until_s, taken = time.monotonic() + order.seconds, list[Taken]()
        while not taken or time.monotonic() < until_s:
            taken += [self.make(one) for one in order.rounds]
        return Answer(taken, [self.chat(chats) for chats in order.chats])

    def chat(self, chats: Chats) -> Chatted:
        """Chats. Raises EngineFailed."""
        self._forget()
        beginnings = [self._tokens(chats.cached_tokens) for _ in range(chats.chats)]
        if chats.cached_tokens:
            for number, tokens in enumerate(beginnings):
                self._ask(tokens, 1, keep_as=number)
            self._await(lambda: len(self._ended) == chats.chats)
        self._forget()
        left = dict.fromkeys(range(chats.chats), chats.turns)
        asked: dict[int, tuple[int, float]] = {}
        firsts_s: list[float] = []
        began_s = time.monotonic()
        while left or asked:
            for number in [number for number in left if number not in {chat for chat, _ in asked.values()}]:
                tokens = beginnings[number] + self._tokens(chats.prompt_tokens)
                cache = number if chats.cached_tokens else None
                sequence = self._ask(tokens, chats.new_tokens, cache, chats.cached_tokens, keep_as=cache)
                asked[sequence] = (number, time.monotonic())
                left[number] -= 1
                if not left[number]:
                    del left[number]
            self._await(lambda: not self._ended.isdisjoint(asked))
            for sequence in sorted(self._ended & set(asked)):
                _, asked_s = asked.pop(sequence)
                firsts_s += [self._times_s[sequence][0] - asked_s] if self._times_s.get(sequence) else []
        whole_s = time.monotonic() - began_s
        self._forget()
        for number in range(chats.chats):
            self._engine.drop_cache(number)
        if not firsts_s:
            raise EngineFailed(f"{self._model}: chats of {chats.prompt_tokens} tokens made no token")
        return Chatted(chats, whole_s, sum(firsts_s) / len(firsts_s), len(firsts_s))

    def _ask(
        self,
        tokens: tuple[int, ...],
        most: int,
        cache: int | None = None,
        cached_tokens: int = 0,
        *,
        keep_as: int | None,
    ) -> int:
        """Insert a turn; its number."""
        self._numbers += 1
        insert = Insert(
            self._numbers, self._model, tokens, most, cache=cache, cached_tokens=cached_tokens, keep_as=keep_as
        )
        self._engine.insert(insert)
        return self._numbers

    def _await(self, done: Callable[[], bool]) -> None:
        with self._news:
            if not self._news.wait_for(lambda: done() or self._failed(), _ROUND_S) or self._failed():
                raise EngineFailed(f"{self._model}: what it was asked did not end")

    def _forget(self) -> None:
        self._times_s.clear()
        self._ended.clear()

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
        self._forget()
        inserts = [self._insert(one) for _ in range(one.prompts)]
        began_s = time.monotonic()
        for insert in inserts:
            self._engine.insert(insert)
        self._await(lambda: len(self._ended) == one.prompts)
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
        return Insert(self._numbers, self._model, self._tokens(one.prompt_tokens), one.new_tokens)

    def _tokens(self, count: int) -> tuple[int, ...]:
        """Others each time."""
        self._texts += 1
        return tuple(3 + (self._texts * 131 + place * 17 + self._texts * place) % 240 for place in range(count))

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
        answer = bench.obey(msgspec.json.decode(line, type=Order))
        out.write(msgspec.json.encode(answer) + b"\n")
    bench.close()
    return code


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
