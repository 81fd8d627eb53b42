"""Request bodies, read as Go's JSON decoder reads them into a struct, which is what clients of Toxiproxy rely on."""

import json
from collections.abc import Mapping

from chaos.toxiproxy.embedded.errors import BadBody

BODY_BYTES_MAX = 8 * 1024 * 1024
_INTEGER_MAX = 2**63 - 1
_FLOAT_MAX = 3.4028234663852886e38


def first_value(body: bytes) -> object:
    """The first JSON value in a body, whatever follows it. Raises BadBody."""
    text = body.decode("utf-8", "replace").lstrip(" \t\r\n")
    if not text:
        raise BadBody("EOF")
    try:
        value, _ = json.JSONDecoder(parse_constant=_refuse_constant).raw_decode(text)
    except RecursionError:
        raise BadBody("exceeded max depth") from None
    except ValueError as error:
        raise BadBody(str(error)) from None
    return value


class Fields:
    """A JSON object's members by case-insensitive key; those that are null count as absent.

    Every reader returns `default` for an absent member and raises BadBody for one of another type.
    """

    def __init__(self, value: object, what: str) -> None:
        """value: an object, or null for an empty one. what: whose members these are, for messages."""
        if value is not None and not isinstance(value, dict):
            raise BadBody(f"{what}: expected an object, got {_kind(value)}")
        self._what = what
        self._values: dict[str, object] = {}
        for key, member in (value or {}).items():
            if member is not None:
                self._values[key.lower()] = member

    def __contains__(self, key: str) -> bool:
        return key in self._values

    def text(self, key: str, default: str) -> str:
        """A string."""
        value = self._values.get(key, default)
        if not isinstance(value, str):
            raise self._mismatch(key, "a string", value)
        return clean(value)

    def flag(self, key: str, default: bool) -> bool:
        """A boolean."""
        value = self._values.get(key, default)
        if not isinstance(value, bool):
            raise self._mismatch(key, "a boolean", value)
        return value

    def integer(self, key: str, default: int) -> int:
        """An integer of 64 bits, written as one: 5.0 is none."""
        value = self._values.get(key, default)
        if isinstance(value, bool) or not isinstance(value, int) or not -_INTEGER_MAX - 1 <= value <= _INTEGER_MAX:
            raise self._mismatch(key, "an integer of 64 bits", value)
        return value

    def number(self, key: str, default: float) -> float:
        """A number that a float of 32 bits can hold."""
        value = self._values.get(key, default)
        if isinstance(value, bool) or not isinstance(value, int | float) or not abs(value) <= _FLOAT_MAX:
            raise self._mismatch(key, "a number", value)
        return float(value)

    def texts(self, key: str) -> tuple[str, ...] | None:
        """A list of strings."""
        value = self._values.get(key)
        if value is None:
            return None
        if not isinstance(value, list) or not all(isinstance(item, str) for item in value):
            raise self._mismatch(key, "a list of strings", value)
        return tuple(clean(item) for item in value)

    def members(self, key: str) -> Mapping[str, object]:
        """An object, its keys in lower case and without what is null."""
        return Fields(self._values.get(key), f"{self._what}.{key}")._values

    def _mismatch(self, key: str, expected: str, value: object) -> BadBody:
        return BadBody(f"{self._what}.{key}: expected {expected}, got {_kind(value)}")


def clean(text: str) -> str:
    """The text with what is no character (half a surrogate pair) replaced, so that it can be sent again."""
    return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")


def _refuse_constant(name: str) -> object:
    raise ValueError(f"invalid value {name}")


def _kind(value: object) -> str:
    match value:
        case bool():
            return "a boolean"
        case int() | float():
            return f"the number {value:.40g}" if isinstance(value, float) else "a number"
        case str():
            return "a string"
        case list():
            return "a list"
        case dict():
            return "an object"
    return "null"
