"""Server-sent events, read from bytes that come in pieces of any size (WHATWG HTML, section 9.2.6)."""

from typing import NamedTuple

EVENT_BYTES_MAX = 2**20
_MARK = b"\xef\xbb\xbf"


class EventStreamError(ValueError):
    """The stream is none that can be read. The message is one line."""


class ServerEvent(NamedTuple):
    """kind: `message` unless the server names another. data: its lines, joined by line feeds."""

    kind: str
    data: bytes


class EventStreamDecoder:
    """Takes bytes, gives whole events; holds at most one event of `event_bytes_max` bytes.

    Lines end with LF, CR or CRLF, also where a CRLF is cut in two. Comments, ids and retry times are left out, and so
    is an event that its empty line does not end: the specification says so.
    """

    def __init__(self, event_bytes_max: int = EVENT_BYTES_MAX) -> None:
        self._event_bytes_max = event_bytes_max
        self._parts: list[bytes] = []
        """Of a line that has not ended."""
        self._held = 0
        self._kind = ""
        self._data: list[bytes] = []
        self._begun = False
        self._after_return = False

    def feed(self, piece: bytes) -> list[ServerEvent]:
        """The events that end in this piece. Raises EventStreamError when one grows too large."""
        if self._after_return and piece.startswith(b"\n"):
            piece = piece[1:]
            self._after_return = False
        if not piece:
            return []
        self._after_return = piece.endswith(b"\r")
        if b"\r" in piece:
            piece = piece.replace(b"\r\n", b"\n").replace(b"\r", b"\n")
        first, *rest = piece.split(b"\n")
        self._parts.append(first)
        self._held += len(first)
        found: list[ServerEvent] = []
        for text in rest:
            line = b"".join(self._parts) if len(self._parts) > 1 else self._parts[0]
            self._parts = [text]
            self._held += len(text)
            self._take(line, found)
        if self._held > self._event_bytes_max:
            raise EventStreamError(f"an event is longer than {self._event_bytes_max} bytes")
        return found

    def _take(self, line: bytes, found: list[ServerEvent]) -> None:
        if not self._begun:
            self._begun = True
            line = line.removeprefix(_MARK)
        if not line:
            if self._data:
                found.append(ServerEvent(self._kind or "message", b"\n".join(self._data)))
                self._data = []
            self._kind = ""
            self._held = len(self._parts[0])
            return
        field, _, value = line.partition(b":")
        value = value.removeprefix(b" ")
        if field == b"data":
            self._data.append(value)
        elif field == b"event":
            self._kind = value.decode("utf-8", "replace")
        elif not self._data:
            # What is left out, comments above all, must not add up.
            self._held = len(self._parts[0])
