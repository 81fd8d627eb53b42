"""What an experiment may say about its load, and how a wrong saying is refused."""

import re
from typing import Annotated, Literal

import msgspec

Positive = Annotated[int, msgspec.Meta(ge=1, le=10_000)]
Factor = Annotated[float, msgspec.Meta(ge=0, le=1_000)]
Offset = Annotated[float, msgspec.Meta(ge=0, le=1_000_000)]
PER_S_MAX = 100_000.0
SHARE_MAX = 10.0
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


class WorkloadSpec(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Open-loop chat traffic. Raises ValueError (msgspec.ValidationError when decoded) naming the wrong field.

    rate, rate_min, rate_max: texts for `Rate.parse`. sessions: chats that run side by side. turns_max: requests of one
    chat. prompt_tokens: length of each new user message; output_tokens: cap of each answer; both inclusive
    [least, most]. generators: processes that share the load.
    """

    arrivals: Literal["poisson", "constant", "gamma"] = "poisson"
    burstiness: Annotated[float, msgspec.Meta(ge=0.1, le=20)] | None = None
    ramp: tuple[Factor, Factor] | None = None
    steps: tuple[tuple[Offset, Factor], ...] = ()
    rate: str = "35%"
    rate_min: str | None = None
    rate_max: str | None = None
    sessions: Positive = 24
    turns_max: Positive = 6
    prompt_tokens: tuple[Positive, Positive] = (24, 64)
    output_tokens: tuple[Positive, Positive] = (12, 24)
    generators: Annotated[int, msgspec.Meta(ge=1, le=64)] = 2

    def __post_init__(self) -> None:
        parsed: dict[str, Rate] = {}
        for field, text in (("rate", self.rate), ("rate_min", self.rate_min), ("rate_max", self.rate_max)):
            if text is None:
                continue
            try:
                parsed[field] = Rate.parse(text)
            except ValueError as error:
                raise ValueError(f"{field}: {error}") from None
        asked = parsed["rate"].per_s
        for field, text, bound in (
            ("rate_min", self.rate_min, parsed.get("rate_min", Rate()).per_s),
            ("rate_max", self.rate_max, parsed.get("rate_max", Rate()).per_s),
        ):
            if asked is not None and bound is not None and (asked < bound if field == "rate_min" else asked > bound):
                side = "less" if field == "rate_min" else "more"
                raise ValueError(f"rate: {self.rate} is {side} than {field}, {text}")
        least, most = parsed.get("rate_min", Rate()), parsed.get("rate_max", Rate())
        for low, high in ((least.per_s, most.per_s), (least.share, most.share)):
            if low is not None and high is not None and low > high:
                raise ValueError(f"rate_min: {self.rate_min} is more than rate_max, {self.rate_max}")
        for field, (fewest, longest) in (("prompt_tokens", self.prompt_tokens), ("output_tokens", self.output_tokens)):
            if fewest > longest:
                raise ValueError(f"{field}: expected [least, most], got [{fewest}, {longest}]")
