"""What a step of an engine takes: the law that calibration fits and the timed engine obeys."""

import math
from collections.abc import Callable, Sequence
from random import Random

import msgspec

NOISE_MAX = 256
CONTENTION_MAX = 1024
_NOT_NEGATIVE = (
    *("context_each_s", "prefill_step_s", "prefill_prompt_s", "prefill_context_each_s"),
    *("resume_s", "finish_s", "finish_each_s", "keep_s"),
)


class StepCosts(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Seconds and bytes. Raises ValueError naming the field.

    A step that decodes takes `step_s + decode_each_s * batch + context_each_s * batch * longest`, where longest is how
    many tokens the longest cache of the batch holds; mlx-lm pads the others to it. A chunk of prompts adds
    `prefill_step_s + prefill_prompt_s * prompts + prefill_each_s * tokens + prefill_context_each_s * looks`: each token
    looks at all of its prompt up to the chunk's end, and tokens and looks are those of the longest prompt times the
    number of prompts. Where prefill_step_s is None it adds `step_s` if nothing decodes, else nothing, and for the
    tokens, without padding, `prefill_each_s` each. A prompt that goes on from a kept cache adds `resume_s` to its first
    chunk; a sequence that ends adds `finish_s + finish_each_s * batch` to its last step, for the caches of the others
    are put together anew, and `keep_s` if its own is kept.

    All of it is multiplied by a factor of `noise`, each as likely as any other and kept for `noise_steps` steps, and by
    `contention[k - 1]` while k engines of the host compute, this one included. With more of them than it has factors
    the cores are shared out: the last factor grows as their number does. Empty: neither. The factors of noise need not
    have a mean of 1: the other numbers are what a step takes when nothing comes between.

    profile: by which calibration, for people; empty for numbers that somebody chose.
    """

    load_s: float = 1.0
    step_s: float = 0.0025
    decode_each_s: float = 0.0003
    prefill_each_s: float = 0.00002
    kv_bytes_per_token: int = 4_096
    vocabulary: int = 512
    weights_bytes: int = 8 * 2**20
    context_each_s: float = 0.0
    prefill_step_s: float | None = None
    prefill_prompt_s: float = 0.0
    prefill_context_each_s: float = 0.0
    resume_s: float = 0.0
    finish_s: float = 0.0
    finish_each_s: float = 0.0
    keep_s: float = 0.0
    noise: tuple[float, ...] = ()
    noise_steps: int = 1
    contention: tuple[float, ...] = ()
    profile: str = ""

    def __post_init__(self) -> None:
        for name in _NOT_NEGATIVE:
            value = getattr(self, name)
            if value is not None and not 0 <= value < math.inf:
                raise ValueError(f"{name}: expected 0 or more seconds, got {value}")
        if self.noise_steps < 1:
            raise ValueError(f"noise_steps: expected at least 1, got {self.noise_steps}")
        for name, most, least in (("noise", NOISE_MAX, 0.01), ("contention", CONTENTION_MAX, 1.0)):
            factors = getattr(self, name)
            if len(factors) > most or not all(least <= factor < math.inf for factor in factors):
                raise ValueError(f"{name}: expected at most {most} factors of {least:g} or more")

    @property
    def even(self) -> bool:
        """Whether equal steps take equally long."""
        return not (self.noise or self.context_each_s or self.finish_s or self.finish_each_s or self.keep_s)

    def decode_s(self, batch: int, longest: int) -> float:
        """A step that decodes so many sequences, the longest of them with so many tokens, and nothing else."""
        return self.step_s + batch * self.decode_each_s + self.context_each_s * batch * longest

    def prefill_s(self, counts: Sequence[int], held: int, resumed: int, *, alone: bool) -> float:
        """What a chunk adds to a step: so many tokens of each prompt, of which the longest has `held` in its cache.

        resumed: how many of them have just been given a kept cache. alone: the step decodes nothing.
        """
        if self.prefill_step_s is None:
            return sum(counts) * self.prefill_each_s + ((self.step_s if alone else 0) + resumed * self.resume_s)
        prompts, longest = len(counts), max(counts)
        each_s = self.prefill_each_s + self.prefill_context_each_s * (held + longest)
        more_s = resumed * self.resume_s
        return self.prefill_step_s + prompts * (self.prefill_prompt_s + longest * each_s) + more_s

    def finished_s(self, ended: int, kept: int, batch: int) -> float:
        """What it adds to a step that so many of its sequences end with it, and the caches of so many are kept."""
        return ended * (self.finish_s + self.finish_each_s * batch) + kept * self.keep_s

    def contended(self, engines: int) -> float:
        """By how much everything takes longer while so many engines of a host compute."""
        if not self.contention or engines < 1:
            return 1.0
        known = len(self.contention)
        return self.contention[min(engines, known) - 1] * max(1.0, engines / known)


class Noise:
    """The factors of an engine's steps to come. What is looked at in advance stays what it is until it is passed."""

    def __init__(self, costs: StepCosts, random: Random) -> None:
        self._factors = costs.noise
        self._steps = costs.noise_steps
        self._random = random
        self._next: list[float] = []

    def __getitem__(self, step: int) -> float:
        """Of the step so many after the next one."""
        if not self._factors:
            return 1.0
        while len(self._next) <= step:
            self._next += [self._random.choice(self._factors)] * self._steps
        return self._next[step]

    def passed(self, steps: int) -> None:
        """So many steps have been made."""
        del self._next[:steps]


class SharedHost:
    """Which engines of a host compute, and who has to hear of it when that changes how long their steps take."""

    def __init__(self, costs: StepCosts) -> None:
        self._costs = costs
        self._repace: dict[str, Callable[[], None]] = {}
        self._busy: dict[str, None] = {}

    def join(self, name: str, repace: Callable[[], None]) -> None:
        """An engine of a node, in place of an earlier one of it. repace: plan anew what is not under way."""
        self.computes(name, False)
        self._repace[name] = repace

    def factor(self, name: str) -> float:
        """Of the steps of an engine that computes."""
        return self._costs.contended(len(self._busy) + (name not in self._busy))

    def computes(self, name: str, busy: bool) -> None:
        """An engine begins to compute, or ends; nothing if it has been so before."""
        if busy == (name in self._busy):
            return
        before = self._costs.contended(len(self._busy))
        if busy:
            self._busy[name] = None
        else:
            del self._busy[name]
        if self._costs.contended(len(self._busy)) != before:
            for other in list(self._busy):
                if other != name:
                    self._repace[other]()
