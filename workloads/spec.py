"""What an experiment may say about its load, and how a wrong saying is refused."""

import re
from collections.abc import Callable
from itertools import pairwise
from typing import Annotated, Literal, TypeVar

import msgspec

from workloads.lengths import Lengths, Positive, Times, check_lengths, check_times

__all__ = ["PER_S_MAX", "SHARE_MAX", "Positive", "Rate", "SystemPrompts", "TraceSpec", "WorkloadSpec"]

Factor = Annotated[float, msgspec.Meta(ge=0, le=1_000)]
Offset = Annotated[float, msgspec.Meta(ge=0, le=1_000_000)]
Option = float | int | str | bool | list[float | int | str | bool]
PER_S_MAX = 100_000.0
SHARE_MAX = 10.0
T = TypeVar("T")
_RATE = re.compile(r"^(?P<value>\d+(\.\d+)?)\s*(?P<unit>/s|%)$", re.ASCII)


class Rate(msgspec.Struct, frozen=True):
    """Requests per second, absolute or as a share of measured capacity (0.6 is 60 %); exactly one is set."""

    per_s: float | None = None
    share: float | None = None

    @classmethod
    def parse(cls, text: str) -> "Rate":
        """From `12/s` or `60%`, at most 100000/s or 1000%. Raises ValueError."""
        match = _RATE.match(text.strip())
        if match is None or float(match["value"]) <= 0:
            raise ValueError(f"expected a positive rate such as 12/s or 60%, got {text!r}")
        value = float(match["value"])
        rate = cls(per_s=value) if match["unit"] == "/s" else cls(share=value / 100)
        if (rate.per_s or 0.0) > PER_S_MAX or (rate.share or 0.0) > SHARE_MAX:
            raise ValueError(f"expected at most {PER_S_MAX:.0f}/s or {SHARE_MAX:.0%}, got {text!r}")
        return rate


class SystemPrompts(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Beginnings that chats share: `count` different ones, each as long as `tokens` says.

    share: of the chats that begin with one of them, each as likely as the other. Raises ValueError naming the field.
    """

    count: Annotated[int, msgspec.Meta(ge=1, le=1_000)]
    tokens: Lengths
    share: Annotated[float, msgspec.Meta(gt=0, le=1)] = 1.0

    def __post_init__(self) -> None:
        _check("tokens", check_lengths, self.tokens)


class TraceSpec(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """A recorded load; see workloads.traces for what each format holds and how it is replayed.

    path: relative to the folder of the experiment file, or, if it is not there, to where the command runs. requests:
    only the first so many. speed: 1 as recorded, 10 ten times as fast; None: as fast as the workload's `rate` asks on
    average. repeat: begin again, with other words, when the trace is over and the load is not. scale_tokens: prompts
    and outputs shortened to this part. block_tokens: of a Mooncake trace, as recorded. over_context: whether a request
    that does not fit the context is an error, or is cut. times_only: what is asked comes from the workload's chats.
    """

    path: Annotated[str, msgspec.Meta(min_length=1, max_length=4_096)]
    format: Literal["mooncake", "burstgpt", "azure"]
    requests: Annotated[int, msgspec.Meta(ge=2, le=1_000_000)] = 10_000
    speed: Annotated[float, msgspec.Meta(gt=0, le=1_000_000)] | None = None
    repeat: bool = False
    scale_tokens: Annotated[float, msgspec.Meta(gt=0, le=1)] = 1.0
    block_tokens: Positive = 512
    over_context: Literal["refuse", "cut"] = "refuse"
    times_only: bool = False


class WorkloadSpec(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """An open-loop load. Raises ValueError (msgspec.ValidationError when decoded) naming the wrong field.

    arrivals: how far requests spread about their mean rate; burstiness: of `gamma`, the coefficient of variation of the
    gaps, 1 is Poisson (others call its -2nd power so). rate, rate_min, rate_max: texts for `Rate.parse`. ramp: factors
    of the rate at the load's beginning and end, linear between. steps: [offset in seconds, factor of the rate from then
    on], in order; before the first the factor is 1.

    Chats: sessions run side by side, each of turns_max requests. With think_s (a number, [least, most], or `{kind:
    lognormal, ...}`, seconds) each turn is sent so long after the one before was, chats begin at the rate over
    turns_max, and how many run follows from that. prompt_tokens: length of each new user message; output_tokens: cap of
    each answer (a number, [least, most] inclusive, or `{kind: lognormal | choices, ...}`).

    trace: a recorded load in place of made-up arrivals and chats. plugin: the entry point that makes the load, from
    `options`; see workloads.plugins. generators: processes that share the load.
    """

    arrivals: Literal["poisson", "constant", "gamma", "trace"] = "poisson"
    burstiness: Annotated[float, msgspec.Meta(ge=0.1, le=20)] | None = None
    ramp: tuple[Factor, Factor] | None = None
    steps: Annotated[tuple[tuple[Offset, Factor], ...], msgspec.Meta(max_length=1_000)] = ()
    rate: str = "35%"
    rate_min: str | None = None
    rate_max: str | None = None
    sessions: Positive = 24
    turns_max: Positive = 6
    think_s: Times | None = None
    prompt_tokens: Lengths = (24, 64)
    output_tokens: Lengths = (12, 24)
    system_prompts: SystemPrompts | None = None
    trace: TraceSpec | None = None
    plugin: Annotated[str, msgspec.Meta(min_length=1, max_length=200)] | None = None
    options: dict[str, Option] = {}
    generators: Annotated[int, msgspec.Meta(ge=1, le=64)] = 2

    def __post_init__(self) -> None:
        _check_rates(self)
        for field in ("prompt_tokens", "output_tokens"):
            _check(field, check_lengths, getattr(self, field))
        if self.think_s is not None:
            _check("think_s", check_times, self.think_s)
        _check_arrivals(self)
        _check_source(self)


def _check(field: str, check: Callable[[T], None], value: T) -> None:
    try:
        check(value)
    except ValueError as error:
        raise ValueError(f"{field}: {error}") from None


def _check_rates(spec: WorkloadSpec) -> None:
    parsed: dict[str, Rate] = {}
    for field, text in (("rate", spec.rate), ("rate_min", spec.rate_min), ("rate_max", spec.rate_max)):
        if text is None:
            continue
        try:
            parsed[field] = Rate.parse(text)
        except ValueError as error:
            raise ValueError(f"{field}: {error}") from None
    asked = parsed["rate"].per_s
    least, most = parsed.get("rate_min", Rate()), parsed.get("rate_max", Rate())
    if asked is not None and least.per_s is not None and asked < least.per_s:
        raise ValueError(f"rate: {spec.rate} is less than rate_min, {spec.rate_min}")
    if asked is not None and most.per_s is not None and asked > most.per_s:
        raise ValueError(f"rate: {spec.rate} is more than rate_max, {spec.rate_max}")
    for low, high in ((least.per_s, most.per_s), (least.share, most.share)):
        if low is not None and high is not None and low > high:
            raise ValueError(f"rate_min: {spec.rate_min} is more than rate_max, {spec.rate_max}")


def _check_arrivals(spec: WorkloadSpec) -> None:
    if (spec.arrivals == "gamma") != (spec.burstiness is not None):
        needed = "needs one, say 2.5" if spec.burstiness is None else "alone has one"
        raise ValueError(f"burstiness: `arrivals: gamma` {needed}")
    if spec.ramp is not None and spec.steps:
        raise ValueError("steps: expected a ramp or steps, not both")
    if spec.ramp == (0, 0):
        raise ValueError("ramp: expected a factor above 0 at one end at least")
    offsets = [offset_s for offset_s, _ in spec.steps]
    if any(later <= earlier for earlier, later in pairwise(offsets)):
        raise ValueError("steps: expected offsets in ascending order")
    if spec.steps and offsets[0] == 0 and not any(factor for _, factor in spec.steps):
        raise ValueError("steps: expected a factor above 0")


def _check_source(spec: WorkloadSpec) -> None:
    """Chats, a trace and a plugin each have fields that the others have no use for."""
    if (spec.arrivals == "trace") != (spec.trace is not None):
        raise ValueError(
            "trace: `arrivals: trace` needs a path and a format"
            if spec.trace is None
            else "arrivals: expected trace, beside a trace"
        )
    if spec.options and spec.plugin is None:
        raise ValueError("options: only a plugin has any")
    used: dict[str, object] = {"think_s": spec.think_s, "system_prompts": spec.system_prompts}
    if spec.plugin is not None:
        source = "a plugin"
        used |= {"burstiness": spec.burstiness, "ramp": spec.ramp, "steps": spec.steps or None, "trace": spec.trace}
    elif spec.trace is not None and not spec.trace.times_only:
        source = "a trace (unless it has times_only)"
    else:
        return
    for field, value in used.items():
        if value is not None:
            raise ValueError(f"{field}: {source} has no use for it")
