"""One toxic as the API knows it: what it is, whom it concerns, and what it may not be."""

import random
import struct
from collections import Counter
from collections.abc import Mapping
from typing import Any, Literal, cast

from chaos.toxiproxy.embedded.body import Fields, clean
from chaos.toxiproxy.embedded.errors import ApiError, BadBody
from chaos.toxiproxy.embedded.frame_stage import FrameStage
from chaos.toxiproxy.embedded.message_toxics import MESSAGE_KINDS, check_message_attributes
from chaos.toxiproxy.embedded.stages import BYTE_ATTRIBUTES, BYTE_STAGES, Stage

Direction = Literal["upstream", "downstream"]
"""upstream: what clients send to the server; downstream: what the server sends to clients."""
DIRECTIONS: tuple[Direction, Direction] = ("upstream", "downstream")
_TTL_MS_MAX = 2**53


class Toxic:
    """A toxic of one proxy.

    stream: the direction as it was written. clients: NATS client names that it concerns, None for everybody.
    ttl_ms: how long it stays, 0 for until it is removed. expires_s: when that is, on the loop's clock.
    """

    def __init__(self, kind: str, name: str, stream: str, direction: Direction) -> None:
        self.kind = kind
        self.name = name
        self.stream = stream
        self.direction = direction
        self.toxicity = 1.0
        self.clients: tuple[str, ...] | None = None
        self.ttl_ms = 0
        self.expires_s = 0.0
        self.attributes: dict[str, Any] = dict.fromkeys(BYTE_ATTRIBUTES.get(kind, ()), 0)
        self.counts: Counter[str] = Counter()
        """Of connections that are gone; message kinds only."""

    @property
    def is_message(self) -> bool:
        """Whether it works on whole NATS messages."""
        return self.kind in MESSAGE_KINDS

    @classmethod
    def parse(cls, value: object) -> "Toxic":
        """What a create call's body says, but for the attributes and limits (see `change`). Raises ApiError."""
        fields = Fields(value, "toxic")
        name, kind, stream = fields.text("name", ""), fields.text("type", ""), fields.text("stream", "downstream")
        # Go decodes the whole body before anybody looks at it: what is of a wrong type is told first.
        fields.number("toxicity", 1.0)
        fields.integer("ttl_ms", 0)
        fields.members("attributes")
        fields.texts("clients")
        if stream.lower() not in DIRECTIONS:
            raise ApiError("stream was invalid, can be either upstream or downstream", 400)
        if kind not in BYTE_STAGES and kind not in MESSAGE_KINDS:
            raise ApiError("invalid toxic type", 400)
        return cls(kind, name or f"{kind}_{stream}", stream, cast(Direction, stream.lower()))

    def change(self, value: object) -> None:
        """Take over attributes, toxicity, clients and ttl_ms from a body, all of them or none. Raises ApiError."""
        fields = Fields(value, "toxic")
        given = fields.members("attributes")
        if self.is_message:
            texts = {key: clean(member) for key, member in given.items() if isinstance(member, str)}
            attributes: dict[str, Any]
            try:
                attributes = check_message_attributes(self.kind, {**self.attributes, **given, **texts})
            except ValueError as error:
                raise BadBody(str(error)) from None
        else:
            attributes = self._byte_attributes(Fields(dict(given), self.kind))
        toxicity = fields.number("toxicity", self.toxicity)
        if not 0 <= toxicity <= 1:
            raise BadBody(f"toxicity: expected a number from 0 to 1, got {toxicity:g}")
        ttl_ms = fields.integer("ttl_ms", self.ttl_ms)
        if not 0 <= ttl_ms <= _TTL_MS_MAX:
            raise BadBody(f"ttl_ms: expected milliseconds, or 0 for no limit, got {ttl_ms}")
        clients = fields.texts("clients")
        self.attributes.clear()
        self.attributes.update(attributes)
        self.toxicity = _single(toxicity)
        self.ttl_ms = ttl_ms
        if clients is not None:
            self.clients = clients or None

    def concerns(self, client: str | None) -> bool:
        """Whether it is meant for a connection whose NATS client name is this; None while it has not said one."""
        return self.clients is None or client in self.clients

    def make_stage(self, seed: str) -> Stage:
        """What it does to one direction of one connection. The seed decides all chance in it."""
        draws = random.Random(seed)
        if self.is_message:
            return FrameStage(self.kind, self.attributes, self.direction, draws)
        return BYTE_STAGES[self.kind](self.attributes, draws)

    def to_json(self, counts: Mapping[str, int], now_s: float) -> dict[str, object]:
        """As the API shows it; what Toxiproxy does not know is there only where it is set.

        counts: of living connections, to be added to those that are gone.
        """
        shown: dict[str, object] = {
            "attributes": dict(self.attributes),
            "name": self.name,
            "type": self.kind,
            "stream": self.stream,
            "toxicity": int(self.toxicity) if self.toxicity.is_integer() else self.toxicity,
        }
        if self.clients is not None:
            shown["clients"] = list(self.clients)
        if self.ttl_ms:
            shown["ttl_ms"] = self.ttl_ms
            shown["remaining_ms"] = max(0, round((self.expires_s - now_s) * 1000))
        if self.is_message:
            shown["counts"] = {"seen": 0, "matched": 0, "affected": 0} | dict(self.counts + Counter(counts))
        return shown

    def _byte_attributes(self, given: Fields) -> dict[str, int]:
        attributes = {key: given.integer(key, value) for key, value in self.attributes.items()}
        if self.kind == "bandwidth" and attributes["rate"] < 0:
            raise BadBody(f"bandwidth.rate: expected KB/s of 0 or more, got {attributes['rate']}")
        if self.kind == "slicer":
            average, variation = attributes["average_size"], attributes["size_variation"]
            if average < 1:
                raise BadBody(f"slicer.average_size: expected bytes of 1 or more, got {average}")
            if not 0 <= variation <= average:
                raise BadBody(f"slicer.size_variation: expected 0 to average_size ({average}), got {variation}")
        return attributes


def _single(value: float) -> float:
    """The number as a float of 32 bits, with the shortest digits that mean it."""
    packed = struct.pack("f", value)
    for digits in range(1, 10):
        short = float(f"{value:.{digits}g}")
        if struct.pack("f", short) == packed:
            return short
    return value
