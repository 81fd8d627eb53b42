"""An engine that computes no tokens but takes the time they would take, by the law of mlx-lm's BatchGenerator.

One step is a decode of all running sequences of a model plus at most one chunk of its prompts; models take turns, step
by step. A sequence's first token comes in the step after the one that ended its prompt. Commands apply at step
boundaries; a load takes the place of a step. Between two changes all steps of a lone busy model have the same work, so
they are computed in one go up to the next report, and cut short when a command comes earlier or the host's contention
changes.

Tokens are a checksum of everything before them, so that a completion depends on its whole prompt, differs between
prompts, and goes on alike from any prefix. A sequence that goes on from a kept cache computes from what the cache
holds: from a wrong one it makes wrong tokens.
"""

import math
from array import array
from bisect import bisect_right
from collections.abc import Callable, Sequence
from random import Random
from zlib import crc32

import msgspec

from cluster.engine.costs import Noise, StepCosts
from cluster.engine.timed_model import Kept, TimedModel, TimedSequence
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
    ModelLoaded,
    ProbeEngine,
    Remove,
    SequenceProgress,
    Unload,
)
from cluster.policy import WorkerPolicy
from cluster.protocol import Token

__all__ = ["StepCosts", "TimedEngine", "completion"]


def _next_token(checksum: int, vocabulary: int) -> tuple[Token, int]:
    token = checksum % vocabulary
    return token, crc32(token.to_bytes(4, "little"), checksum)


def completion(prompt: Sequence[Token], max_tokens: int, vocabulary: int) -> list[Token]:
    """The reference completion of this engine: what every correct stream must equal."""
    checksum = crc32(array("I", prompt).tobytes())
    tokens: list[Token] = []
    for _ in range(max_tokens):
        token, checksum = _next_token(checksum, vocabulary)
        tokens.append(token)
    return tokens


class TimedEngine:
    """Sans-IO: the shell hands it the worker's commands, calls `advance(now)` at `next_time()`, and feeds the worker
    what that returns.

    `slowdown` multiplies the cost of steps and loads that begin after it is set. A load of a model named in `broken`
    fails with the reason given there.
    """

    def __init__(
        self,
        costs: StepCosts,
        policy: WorkerPolicy,
        flush_s: float,
        *,
        random: Random | None = None,
        contention: Callable[[], float] | None = None,
    ) -> None:
        """random: of the noise of `costs`; None: the same for all. contention: the present factor of its host."""
        self.costs = costs
        self._noise = Noise(costs, random or Random(0))
        self._contention = contention
        self.slowdown = 1.0
        self.broken: dict[str, str] = {}
        self._policy = policy
        self._flush_s = flush_s
        self._models: dict[str, TimedModel] = {}
        self._kept: dict[int, Kept] = {}
        self._kept_tokens = 0
        self._commands: list[Command] = []
        self._events: list[Event] = []
        self._refused: list[SequenceProgress] = []
        self._dead = False
        self._boundary_s = 0.0
        self._reported_s = 0.0
        self._loading: str | None = None
        self._load_s = 0.0
        # The planned steps, all alike: of which model, how many, how long each, and how much of it for prompts.
        self._model = TimedModel("")
        self._steps = 0
        self._step_s = 0.0
        self._prefill_step_s = 0.0
        # Of steps that are not alike, when each ends.
        self._ends_s: list[float] | None = None
        self._chunks: list[tuple[TimedSequence, int]] = []
        self._work = EngineReport(())

    def insert(self, command: Insert, now: float) -> None:
        """Start a sequence at the next step boundary. It ends with `error` at once if its model is not loaded."""
        self._command(command, now)

    def remove(self, sequence: int, now: float) -> None:
        """Drop a sequence at the next step boundary."""
        self._command(Remove(sequence), now)

    def drop_cache(self, cache: int, now: float) -> None:
        """Free a kept cache at the next step boundary."""
        self._command(DropCache(cache), now)

    def load(self, model: str, now: float) -> None:
        """Load a model: no step runs for `load_s`. What came before is reported first, what comes after waits."""
        self._command(Load(model), now)

    def unload(self, model: str, now: float) -> None:
        """Drop a model and the caches of its sequences at the next step boundary."""
        self._command(Unload(model), now)

    def probe(self, now: float) -> None:
        """Say EngineAnswered at the next step boundary."""
        self._command(ProbeEngine(), now)

    def die(self, reason: str) -> EngineDied:
        """The engine's thread ends: nothing is reported any more, and commands are ignored."""
        self._dead = True
        self._commands.clear()
        self._models.clear()
        self._kept.clear()
        self._kept_tokens = 0
        return EngineDied(reason)

    def next_time(self) -> float | None:
        """When the planned steps or the load end, None while idle."""
        if self._dead:
            return None
        if self._loading is not None:
            return self._boundary_s + self._load_s
        if self._steps:
            return self._ends_s[self._steps - 1] if self._ends_s else self._boundary_s + self._steps * self._step_s
        return self._boundary_s if self._events or self._refused else None

    def advance(self, now: float) -> list[Event]:
        """Finish what was planned if its end has come, plan on, and say what there is to say, in order."""
        end_s = self.next_time()
        if end_s is None or now < end_s:
            return []
        must_report, finished = False, list[TimedSequence]()
        if self._loading is not None:
            self._end_load(self._loading)
        elif self._steps:
            first, finished = self._run_steps()
            must_report = first or bool(finished) or end_s - self._reported_s >= self._flush_s
        self._boundary_s = end_s
        self._apply_commands()
        events, self._events = self._events, []
        report = None
        if must_report or self._refused or self._loading is not None:
            report = self._report(finished, end_s)
        self._plan()
        return [*events, report] if report is not None else events

    def _command(self, command: Command, now: float) -> None:
        if self._dead:
            return
        self._commands.append(command)
        if self._steps:
            self.repace(now)
        elif self.next_time() is None:
            self._boundary_s = now
            self._reported_s = now
            self._apply_commands()
            self._plan()

    @property
    def computes(self) -> bool:
        """Whether it steps or loads."""
        return not self._dead and (self._steps > 0 or self._loading is not None)

    def repace(self, now: float) -> None:
        """The step that is under way ends as planned; those after it are planned anew."""
        if self._steps == 0:
            return
        if self._ends_s is None:
            under_way = math.floor((now - self._boundary_s) / self._step_s) + 1
        else:
            under_way = bisect_right(self._ends_s, now) + 1
        self._steps = max(1, min(self._steps, under_way))

    def _apply_commands(self) -> None:
        """In order, up to a load: those behind it wait until it has ended."""
        while self._commands and self._loading is None:
            match self._commands.pop(0):
                case Insert() as command:
                    self._insert(command)
                case Remove(number):
                    for model in self._models.values():
                        model.drop(number)
                case DropCache(cache):
                    self._drop(cache)
                case Load(name) if name in self._models:
                    self._events.append(self._loaded(name))
                case Load(name):
                    self._loading = name
                    self._load_s = self._pace() * self.costs.load_s
                case Unload(name):
                    self._unload(name)
                case ProbeEngine():
                    self._events.append(EngineAnswered())

    def _insert(self, command: Insert) -> None:
        model = self._models.get(command.model)
        if model is None or not command.tokens or command.max_tokens < 1:
            self._refused.append(SequenceProgress(command.sequence, (), (), "error"))
            return
        kept = self._kept.get(command.cache) if command.cache is not None else None
        if kept is not None and kept.model != command.model:
            kept = None
        model.prefill.append(TimedSequence(command, kept))

    def _unload(self, name: str) -> None:
        model = self._models.pop(name, None)
        if model is None:
            return
        self._refused += [SequenceProgress(item.number, (), (), "error") for item in model.sequences()]
        for number in [number for number, kept in self._kept.items() if kept.model == name]:
            self._drop(number)

    def _drop(self, cache: int) -> None:
        kept = self._kept.pop(cache, None)
        self._kept_tokens -= len(kept.tokens) if kept is not None else 0

    def _end_load(self, name: str) -> None:
        self._loading = None
        if name in self.broken:
            self._events.append(ModelFailed(name, self.broken[name]))
            return
        self._models[name] = TimedModel(name)
        self._events.append(self._loaded(name))

    def _loaded(self, name: str) -> ModelLoaded:
        costs = self.costs
        first_token_s = min(costs.load_s, costs.step_s + costs.decode_each_s)
        weights_s = costs.load_s - first_token_s
        return ModelLoaded(name, costs.load_s, costs.kv_bytes_per_token, costs.weights_bytes, weights_s, first_token_s)

    def _plan(self) -> None:
        """Decide whose steps come next, how many equal ones, and how long each takes."""
        self._steps = 0
        busy = [model for model in self._models.values() if model.decode or model.prefill]
        if self._loading is not None or not busy:
            return
        model = self._model = busy[0]
        # Whoever has had its turn goes to the end. Another turn of a lone model changes nothing.
        self._models[model.name] = self._models.pop(model.name)
        self._chunks = self._share_budget(model)
        one = bool(self._chunks) or len(busy) > 1 or any(item.is_new for item in model.decode)
        most = 1 if one else min(item.left for item in model.decode)
        if self.costs.even:
            self._plan_even(model, most)
        else:
            self._plan_uneven(model, most)

    def _plan_even(self, model: TimedModel, most: int) -> None:
        """At most so many steps, all alike."""
        batch, pace = len(model.decode), self._pace()
        self._ends_s = None
        self._prefill_step_s = pace * self._chunks_s(alone=not batch)
        decode_s = pace * self.costs.decode_s(batch, 0) if batch else 0.0
        self._step_s = decode_s + self._prefill_step_s
        self._steps = most
        if most > 1:
            to_flush = math.ceil((self._reported_s + self._flush_s - self._boundary_s) / self._step_s)
            self._steps = max(1, min(to_flush, most))

    def _plan_uneven(self, model: TimedModel, most: int) -> None:
        """At most so many steps, each with its own noise and with longer caches than the one before."""
        batch, pace, noise, costs = len(model.decode), self._pace(), self._noise, self.costs
        longest = max((item.held_tokens for item in model.decode), default=0)
        least = min((item.left for item in model.decode), default=0)
        self._prefill_step_s = pace * noise[0] * self._chunks_s(alone=not batch)
        flush_s, end_s = self._reported_s + self._flush_s, self._boundary_s + self._prefill_step_s
        ends_s: list[float] = []
        while len(ends_s) < most:
            step = len(ends_s)
            if batch:
                step_s = costs.decode_s(batch, longest + step)
                if step + 1 == least:
                    ended = [item.keep_as is not None for item in model.decode if item.left == least]
                    step_s += costs.finished_s(len(ended), sum(ended), batch)
                end_s += pace * noise[step] * step_s
            ends_s.append(end_s)
            if end_s >= flush_s:
                break
        self._ends_s, self._steps = ends_s, len(ends_s)

    def _chunks_s(self, *, alone: bool) -> float:
        if not self._chunks:
            return 0.0
        counts = [count for _, count in self._chunks]
        held = max(item.held_tokens for item, _ in self._chunks)
        resumed = sum(bool(item.cached) and item.held_tokens == item.cached for item, _ in self._chunks)
        return self.costs.prefill_s(counts, held, resumed, alone=alone)

    def _pace(self) -> float:
        return self.slowdown if self._contention is None else self.slowdown * self._contention()

    def _share_budget(self, model: TimedModel) -> list[tuple[TimedSequence, int]]:
        """How many tokens of which prompts the next step reads: the budget goes to those that came first."""
        room = min(self._policy.batch_max - len(model.decode), self._policy.prefill_batch_max)
        left, chunks = self._policy.prefill_step_tokens, list[tuple[TimedSequence, int]]()
        for item in model.prefill[: max(0, room)]:
            count = min(item.prompt_left, left)
            if count:
                chunks.append((item, count))
            left -= count
        return chunks

    def _run_steps(self) -> tuple[bool, list[TimedSequence]]:
        """Make the tokens of the planned steps; whether a first token came, and which sequences ended."""
        vocabulary, first, model = self.costs.vocabulary, False, self._model
        times_s = [self._boundary_s + (i + 1) * self._step_s for i in range(self._steps)]
        if self._ends_s is not None:
            times_s = self._ends_s[: self._steps]
            self._noise.passed(self._steps)
        finished: list[TimedSequence] = []
        decoded = bool(model.decode)
        for item in model.decode:
            first = first or item.is_new
            checksum, tokens = item.checksum, item.tokens
            for _ in times_s:
                token = checksum % vocabulary
                checksum = crc32(token.to_bytes(4, "little"), checksum)
                tokens.append(token)
            item.checksum = checksum
            item.times_s += times_s
            item.left -= self._steps
            if item.left == 0:
                finished.append(item)
        for item, count in self._chunks:
            item.prompt_left -= count
        if self._chunks:
            model.decode += [item for item in model.prefill if not item.prompt_left]
            model.prefill = [item for item in model.prefill if item.prompt_left]
        self._count(decoded, times_s[-1] - self._boundary_s if self._ends_s else self._steps * self._step_s)
        return first, finished

    def _count(self, decoded: bool, took_s: float) -> None:
        """Add the planned steps to the work done since the last report."""
        work, prompt_tokens = self._work, sum(count for _, count in self._chunks)
        prefill_s = self._prefill_step_s if prompt_tokens else 0.0
        self._work = EngineReport(
            (),
            work.steps + (self._steps if decoded else 0),
            work.decode_s + took_s - prefill_s,
            work.prefill_tokens + prompt_tokens,
            work.prefill_s + prefill_s,
        )

    def _report(self, finished: list[TimedSequence], now: float) -> EngineReport | None:
        progress, self._refused = self._refused, []
        for model in self._models.values():
            for item in model.decode:
                if item.tokens:
                    progress.append(self._progress(item, item in finished, model))
            model.decode = [item for item in model.decode if item not in finished]
        if not progress:
            return None
        work, self._work, self._reported_s = self._work, EngineReport(()), now
        progress.sort(key=lambda part: part.sequence)
        return msgspec.structs.replace(work, progress=tuple(progress), active_bytes=self._active_bytes())

    def _progress(self, item: TimedSequence, ended: bool, model: TimedModel) -> SequenceProgress:
        cached = item.cached if not item.reported else 0
        tokens, times_s = tuple(item.tokens), tuple(item.times_s)
        item.reported = True
        item.made += item.tokens
        item.tokens, item.times_s = [], []
        if not ended:
            return SequenceProgress(item.number, tokens, times_s, None, cached)
        kept = 0
        if item.keep_as is not None:
            held = item.prompt + array("I", item.made)
            self._drop(item.keep_as)
            self._kept[item.keep_as] = Kept(model.name, held)
            kept = len(held)
            self._kept_tokens += kept
        kept_bytes = kept * self.costs.kv_bytes_per_token
        return SequenceProgress(item.number, tokens, times_s, "length", cached, kept, kept_bytes)

    def _active_bytes(self) -> int:
        costs = self.costs
        running = sum(item.held_tokens for model in self._models.values() for item in model.sequences())
        return len(self._models) * costs.weights_bytes + (running + self._kept_tokens) * costs.kv_bytes_per_token
