"""An engine that computes no tokens but takes the time they would take, by the law of mlx-lm's BatchGenerator.

One step is a decode of all running sequences plus at most one prefill chunk; a sequence's first token comes in the
step after the one that ended its prompt; commands apply at step boundaries. Between two changes all steps are alike,
so they are computed in one go up to the next report, and cut short when a command comes earlier.

Tokens are a checksum of everything before them, so that a completion depends on its whole prompt, differs between
prompts, and goes on alike from any prefix.
"""

import math
from array import array
from collections.abc import Sequence
from zlib import crc32

import msgspec

from cluster.node import EngineReport, SequenceProgress
from cluster.protocol import Token


class StepCosts(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Seconds. A step takes `step + decode_each * batch + prefill_each * prompt tokens in the chunk`."""

    load_s: float = 1.0
    step_s: float = 0.0025
    decode_each_s: float = 0.0003
    prefill_each_s: float = 0.00002
    kv_bytes_per_token: int = 4_096
    vocabulary: int = 512


class _Sequence:
    __slots__ = ("checksum", "left", "number", "prompt_left", "reported", "times_s", "tokens")

    def __init__(self, number: int, prompt: Sequence[Token], max_tokens: int) -> None:
        self.number = number
        self.checksum = crc32(array("I", prompt).tobytes())
        self.prompt_left = len(prompt)
        self.left = max_tokens
        self.reported = False
        self.tokens: list[Token] = []
        self.times_s: list[float] = []


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
    """Sans-IO: the shell calls `advance(now)` at `next_time()` and forwards the report it may return.

    `slowdown` multiplies the cost of steps that begin after it is set.
    """

    def __init__(self, costs: StepCosts, batch_max: int, prefill_step_tokens: int, flush_s: float) -> None:
        self.costs = costs
        self._batch_max = batch_max
        self._prefill_step_tokens = prefill_step_tokens
        self._flush_s = flush_s
        self._prefill: list[_Sequence] = []
        self._decode: list[_Sequence] = []
        self._commands: list[tuple[str, _Sequence | int]] = []
        self._boundary_s = 0.0
        self._step_s = 0.0
        self._steps = 0
        self._prefilling = False
        self._reported_s = 0.0
        self._report_steps = 0
        self.slowdown = 1.0

    def insert(self, sequence: int, tokens: Sequence[Token], max_tokens: int, now: float) -> None:
        """Start a sequence at the next step boundary."""
        self._command(("insert", _Sequence(sequence, tokens, max_tokens)), now)

    def remove(self, sequence: int, now: float) -> None:
        """Drop a sequence at the next step boundary."""
        self._command(("remove", sequence), now)

    def next_time(self) -> float | None:
        """When the planned steps end, None while idle."""
        return self._boundary_s + self._steps * self._step_s if self._steps else None

    def advance(self, now: float) -> EngineReport | None:
        """Finish the planned steps if their end has come, plan on, and report when one is due."""
        end_s = self.next_time()
        if end_s is None or now < end_s:
            return None
        first, finished = self._run_steps()
        self._boundary_s = end_s
        self._apply_commands()
        report = None
        if first or finished or end_s - self._reported_s >= self._flush_s:
            report = self._report(finished, end_s)
        self._plan()
        return report

    def _command(self, command: tuple[str, _Sequence | int], now: float) -> None:
        self._commands.append(command)
        if self._steps:
            # The step that is under way ends as planned; those after it are planned anew.
            under_way = math.floor((now - self._boundary_s) / self._step_s) + 1
            self._steps = max(1, min(self._steps, under_way))
            return
        self._boundary_s = now
        self._reported_s = now
        self._apply_commands()
        self._plan()

    def _apply_commands(self) -> None:
        for _, argument in self._commands:
            if isinstance(argument, _Sequence):
                self._prefill.append(argument)
            else:
                self._prefill = [item for item in self._prefill if item.number != argument]
                self._decode = [item for item in self._decode if item.number != argument]
        self._commands.clear()

    def _plan(self) -> None:
        """Decide how many equal steps come next and how long each takes."""
        costs = self.costs
        batch = len(self._decode)
        self._prefilling = bool(self._prefill) and batch < self._batch_max
        if self._prefilling:
            chunk = sum(min(item.prompt_left, self._prefill_step_tokens) for item in self._joining())
            self._steps = 1
            self._step_s = self.slowdown * (costs.step_s + batch * costs.decode_each_s + chunk * costs.prefill_each_s)
        elif batch:
            self._step_s = self.slowdown * (costs.step_s + batch * costs.decode_each_s)
            if any(not item.tokens and not item.reported for item in self._decode):
                self._steps = 1
            else:
                to_flush = math.ceil((self._reported_s + self._flush_s - self._boundary_s) / self._step_s)
                self._steps = max(1, min(to_flush, min(item.left for item in self._decode)))
        else:
            self._steps = 0

    def _joining(self) -> list[_Sequence]:
        return self._prefill[: self._batch_max - len(self._decode)]

    def _run_steps(self) -> tuple[bool, list[_Sequence]]:
        """Make the tokens of the planned steps; whether a first token came, and which sequences ended."""
        vocabulary, first = self.costs.vocabulary, False
        times_s = [self._boundary_s + (i + 1) * self._step_s for i in range(self._steps)]
        finished: list[_Sequence] = []
        for item in self._decode:
            first = first or not (item.tokens or item.reported)
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
        if self._prefilling:
            for item in self._joining():
                item.prompt_left -= min(item.prompt_left, self._prefill_step_tokens)
            self._decode += [item for item in self._prefill if not item.prompt_left]
            self._prefill = [item for item in self._prefill if item.prompt_left]
        self._report_steps += self._steps
        return first, finished

    def _report(self, finished: list[_Sequence], now: float) -> EngineReport | None:
        progress: list[SequenceProgress] = []
        for item in self._decode:
            if item.tokens:
                finish = "length" if item in finished else None
                progress.append(SequenceProgress(item.number, tuple(item.tokens), tuple(item.times_s), finish))
                item.reported = True
                item.tokens, item.times_s = [], []
        self._decode = [item for item in self._decode if item not in finished]
        steps, self._report_steps, self._reported_s = self._report_steps, 0, now
        return EngineReport(tuple(progress), steps) if progress else None
