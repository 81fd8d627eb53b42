"""Which messages a message fault hits, and what it does to each: decided from seed and ordinal alone.

Used on real NATS frames and on the messages of the simulated network, so it knows neither bytes on a wire nor a clock.
"""

import re
from collections.abc import Mapping
from typing import Any

import msgspec

PPM = 1_000_000
_WAIT_MS_MAX = 600_000
_SUBJECT_CHARACTERS_MAX = 1_024
_TAG_BYTES_MAX = 255
_TAG_FIELD = "type"
_BITS_64 = 2**64 - 1
_ORDINAL_STEP = 0x9E3779B97F4A7C15
_PURPOSE_STEP = 0xD1342543DE82EF95
# What a draw is for: each message has one of each, whatever the others were used for.
_SHARE, _AMOUNT, _PLACES = 0, 1, 2


class _Integer(msgspec.Struct, frozen=True):
    default: int
    low: int
    high: int


_WAIT = _Integer(100, 0, _WAIT_MS_MAX)
_OWN_ATTRIBUTES: dict[str, dict[str, _Integer]] = {
    "nats_drop": {},
    "nats_delay": {"delay": _WAIT, "jitter": _Integer(0, 0, _WAIT_MS_MAX)},
    "nats_duplicate": {"copies": _Integer(1, 1, 10)},
    "nats_reorder": {"window": _Integer(8, 2, 64), "hold": _Integer(100, 1, _WAIT_MS_MAX)},
    "nats_corrupt": {"bytes": _Integer(1, 1, 64)},
}
_INTEGERS = {kind: {"share_ppm": _Integer(PPM, 0, PPM), **own} for kind, own in _OWN_ATTRIBUTES.items()}
MESSAGE_KINDS: Mapping[str, Mapping[str, object]] = {
    kind: {"subject": ">", "message": "", **{name: integer.default for name, integer in integers.items()}}
    for kind, integers in _INTEGERS.items()
}
"""The kinds of message fault, each with its attributes and their defaults.

subject: a NATS pattern. message: the tag of a message of our own protocol, empty for any. share_ppm: how many of a
million matching messages are hit. delay, jitter: ms; a message waits `delay` more or less up to `jitter`. copies:
besides the message itself. window: how many messages are shuffled; hold: ms that the first of them waits at most.
bytes: how many of the payload are changed.
"""


class Pass(msgspec.Struct, frozen=True):
    """The message goes on as it is."""


class Drop(msgspec.Struct, frozen=True):
    """The message is lost."""


class Duplicate(msgspec.Struct, frozen=True):
    """The message goes on, and `copies` more of it right behind."""

    copies: int


class Delay(msgspec.Struct, frozen=True):
    """The message goes on `delay_s` seconds later; others may overtake it."""

    delay_s: float


class Corrupt(msgspec.Struct, frozen=True):
    """The message goes on with this payload of the same length."""

    payload: bytes


class Hold(msgspec.Struct, frozen=True):
    """The message waits until `window` messages wait or the first has for `hold_s` seconds; they go on by `rank`."""

    rank: int
    window: int
    hold_s: float


Verdict = Pass | Drop | Duplicate | Delay | Corrupt | Hold
_PASS, _DROP = Pass(), Drop()


def check_message_attributes(kind: str, attributes: Mapping[str, object]) -> dict[str, object]:
    """All attributes of a fault of this kind, with the defaults of those not given (see `MESSAGE_KINDS`).

    Raises ValueError, one line: `attribute NAME: expected ..., got ...`.
    """
    if kind not in MESSAGE_KINDS:
        raise ValueError(f"kind: expected one of {', '.join(MESSAGE_KINDS)}, got {_shown(kind)}")
    complete = dict(MESSAGE_KINDS[kind])
    for name, value in attributes.items():
        if name not in complete:
            # A name from outside, made fit for one line.
            raise ValueError(
                f"attribute {_shown(name)[1:-1]}: expected one of {', '.join(complete)}, got {_shown(name)}"
            )
        expected = _expected(name, value, _INTEGERS[kind].get(name))
        if expected:
            raise ValueError(f"attribute {name}: expected {expected}, got {_shown(value)}")
        complete[name] = value
    return complete


class MessageChoice:
    """The decisions of one fault about one sequence of messages.

    The n-th matching message meets the same fate under the same seed, whatever came between. Raises ValueError for
    attributes that `check_message_attributes` refuses.
    """

    def __init__(self, kind: str, attributes: Mapping[str, object], seed: int) -> None:
        checked: dict[str, Any] = check_message_attributes(kind, attributes)
        self.kind = kind
        self.counts = {"seen": 0, "matched": 0, "affected": 0}
        """seen: all messages. matched: by subject and tag. affected: what did not simply pass."""
        self._attributes = checked
        self._pattern = None if checked["subject"] == ">" else _compiled(checked["subject"])
        self._message: str = checked["message"]
        self._share_ppm: int = checked["share_ppm"]
        self._base = _mixed(seed)

    def decide(self, subject: str, payload: bytes) -> Verdict:
        """What becomes of the next message."""
        counts = self.counts
        counts["seen"] += 1
        if not self._matches(subject, payload):
            return _PASS
        ordinal = counts["matched"]
        counts["matched"] += 1
        if self._draw(ordinal, _SHARE) % PPM >= self._share_ppm:
            return _PASS
        verdict = self._verdict(ordinal, payload)
        counts["affected"] += verdict is not _PASS
        return verdict

    def _matches(self, subject: str, payload: bytes) -> bool:
        if self._pattern is not None and not self._pattern.fullmatch(subject):
            return False
        return not self._message or message_tag(payload) == self._message

    def _verdict(self, ordinal: int, payload: bytes) -> Verdict:
        attributes = self._attributes
        match self.kind:
            case "nats_drop":
                return _DROP
            case "nats_duplicate":
                return Duplicate(attributes["copies"])
            case "nats_delay":
                jitter_us = attributes["jitter"] * 1_000
                shift_us = self._draw(ordinal, _AMOUNT) % (2 * jitter_us + 1) - jitter_us
                return Delay(max(0, attributes["delay"] * 1_000 + shift_us) / 1e6)
            case "nats_reorder":
                return Hold(self._draw(ordinal, _AMOUNT), attributes["window"], attributes["hold"] / 1e3)
            case _:
                return Corrupt(self._corrupted(ordinal, payload, attributes["bytes"])) if payload else _PASS

    def _corrupted(self, ordinal: int, payload: bytes, count: int) -> bytes:
        corrupted = bytearray(payload)
        size = len(corrupted)
        # Floyd's sampling: as many draws as places, however short the payload is, and no place twice.
        places: set[int] = set()
        for step, last in enumerate(range(max(0, size - count), size)):
            draw = self._draw(ordinal, _PLACES + step)
            place = (draw >> 8) % (last + 1)
            place = last if place in places else place
            places.add(place)
            corrupted[place] ^= 1 + draw % 255
        return bytes(corrupted)

    def _draw(self, ordinal: int, purpose: int) -> int:
        """64 random bits that depend on nothing else."""
        return _mixed(self._base + ordinal * _ORDINAL_STEP + purpose * _PURPOSE_STEP)


def message_tag(payload: bytes) -> str | None:
    """The tag of a MessagePack array or map as msgspec writes it (its first element, or a first field `type`).

    None if there is none, whatever the bytes are.
    """
    first = payload[0] if payload else 0
    if 0x91 <= first <= 0x9F:
        return _string(payload, 1)[0]
    if first in (0xDC, 0xDD):
        return _string(payload, 3 if first == 0xDC else 5)[0]
    if 0x81 <= first <= 0x8F:
        field, end = _string(payload, 1)
    elif first in (0xDE, 0xDF):
        field, end = _string(payload, 3 if first == 0xDE else 5)
    else:
        return None
    return _string(payload, end)[0] if field == _TAG_FIELD else None


def _string(payload: bytes, at: int) -> tuple[str | None, int]:
    """The short MessagePack string at a place, and where it ends."""
    head = payload[at : at + 2]
    if not head:
        return None, at
    if 0xA0 <= head[0] <= 0xBF:
        start, size = at + 1, head[0] - 0xA0
    elif head[0] == 0xD9 and len(head) == 2:
        start, size = at + 2, head[1]
    else:
        return None, at
    text = payload[start : start + size]
    if len(text) != size:
        return None, at
    try:
        return text.decode(), start + size
    except UnicodeDecodeError:
        return None, at


def _mixed(value: int) -> int:
    """The finalizer of SplitMix64: neighbouring values become independent bits."""
    value &= _BITS_64
    value = (value ^ (value >> 30)) * 0xBF58476D1CE4E5B9 & _BITS_64
    value = (value ^ (value >> 27)) * 0x94D049BB133111EB & _BITS_64
    return value ^ (value >> 31)


def _expected(name: str, value: object, integer: _Integer | None) -> str:
    """What it should have been; empty if it is."""
    if integer is not None:
        # bool is a subclass of int.
        good = type(value) is int and integer.low <= value <= integer.high
        return "" if good else f"an integer in {integer.low}..{integer.high}"
    if name == "message":
        good = isinstance(value, str) and len(value.encode("utf-8", "replace")) <= _TAG_BYTES_MAX
        return "" if good else f"the name of a message, or empty, at most {_TAG_BYTES_MAX} bytes"
    good = isinstance(value, str) and len(value) <= _SUBJECT_CHARACTERS_MAX and _is_pattern(value)
    return "" if good else "a NATS subject, * for one token, > for all that follow"


def _is_pattern(text: str) -> bool:
    *leading, last = text.split(".")
    return all(_is_token(token) for token in leading) and (last == ">" or _is_token(last))


def _is_token(token: str) -> bool:
    # NATS takes a wildcard within a token literally; nobody means that here.
    return token == "*" or re.fullmatch(r"[^\s*>]+", token) is not None


def _compiled(pattern: str) -> re.Pattern[str]:
    wild = {"*": r"[^.]+", ">": r".+"}
    return re.compile(r"\.".join(wild.get(token, re.escape(token)) for token in pattern.split(".")))


def _shown(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 100 else f"{text[:100]}..."
