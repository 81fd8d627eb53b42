"""The NATS client protocol cut into frames, while its bytes pass.

Whatever is not understood passes unchanged: a connection that turns out not to speak plain NATS (TLS, HTTP, a
malformed line) is `opaque` from the first frame that is not one, for good. White space as nats-py takes it.
"""

from collections.abc import Mapping
from enum import StrEnum
from typing import Literal, NamedTuple

import msgspec

LINE_BYTES_MAX = 64 * 2**10
"""Of a control line, its end included. The server's own default is 4 KiB."""
PAYLOAD_BYTES_MAX = 64 * 2**20
"""Headers included. The default of our own broker is 1 MiB."""
_VERB_BYTES_MAX = len(b"CONNECT")
# The server reads no longer number either.
_SIZE_DIGITS_MAX = 9
_KEPT_LINES_MAX = 2_048
_KEPT_LINE_BYTES_MAX = 512

Stream = Literal["upstream", "downstream"]
"""upstream: from the client to the server."""


class FrameKind(StrEnum):
    """What a frame is; OPAQUE are bytes that are no whole frame."""

    INFO = "INFO"
    CONNECT = "CONNECT"
    PING = "PING"
    PONG = "PONG"
    PUB = "PUB"
    HPUB = "HPUB"
    MSG = "MSG"
    HMSG = "HMSG"
    SUB = "SUB"
    UNSUB = "UNSUB"
    OK = "+OK"
    ERR = "-ERR"
    OPAQUE = "OPAQUE"


class _Verb(NamedTuple):
    """words_min..words_max: words of the control line of a message, the verb included; 0 for other lines."""

    kind: FrameKind
    words_min: int = 0
    words_max: int = 0
    headers: bool = False


def _verbs(*verbs: _Verb) -> dict[bytes, _Verb]:
    return {verb.kind.value.encode(): verb for verb in verbs}


_BOTH = (_Verb(FrameKind.PING), _Verb(FrameKind.PONG))
_VERBS: Mapping[str, dict[bytes, _Verb]] = {
    "upstream": _verbs(
        _Verb(FrameKind.PUB, 3, 4),
        _Verb(FrameKind.HPUB, 4, 5, True),
        _Verb(FrameKind.CONNECT),
        _Verb(FrameKind.SUB),
        _Verb(FrameKind.UNSUB),
        *_BOTH,
    ),
    "downstream": _verbs(
        _Verb(FrameKind.MSG, 4, 5),
        _Verb(FrameKind.HMSG, 5, 6, True),
        _Verb(FrameKind.INFO),
        _Verb(FrameKind.OK),
        _Verb(FrameKind.ERR),
        *_BOTH,
    ),
}
_WITH_SUBJECT = (FrameKind.PUB, FrameKind.HPUB, FrameKind.MSG, FrameKind.HMSG, FrameKind.SUB)
_REPLY_AT = {FrameKind.PUB: (4, 2), FrameKind.HPUB: (5, 2), FrameKind.MSG: (5, 3), FrameKind.HMSG: (6, 3)}
"""Of how many words the control line consists if it names a reply subject, and which of them that is."""


class _NotNats(Exception):
    """Why these bytes are no frame."""


class Frame:
    """One frame, `raw` as it came. Everything else is taken from `raw` when asked for."""

    __slots__ = ("_header_bytes", "_line_bytes", "kind", "raw")

    def __init__(self, raw: bytes, kind: FrameKind, line_bytes: int = 0, header_bytes: int = 0) -> None:
        """line_bytes: of the control line, its end included; header_bytes: of the NATS headers that follow it."""
        self.raw = raw
        self.kind = kind
        self._line_bytes = line_bytes
        self._header_bytes = header_bytes

    def __repr__(self) -> str:
        return f"Frame({self.raw[:80]!r}, {self.kind.value}, {len(self.raw)} bytes)"

    @property
    def subject(self) -> str | None:
        """Of a message or a subscription."""
        if self.kind not in _WITH_SUBJECT:
            return None
        words = self._words()
        return _text(words[1]) if len(words) > 1 else None

    @property
    def reply(self) -> str | None:
        """Where a message wants its answer."""
        count, at = _REPLY_AT.get(self.kind, (0, 0))
        words = self._words() if count else []
        return _text(words[at]) if count and len(words) == count else None

    @property
    def header(self) -> bytes:
        """The NATS headers of a message, the empty line at their end included."""
        return self.raw[self._line_bytes : self._line_bytes + self._header_bytes]

    @property
    def payload(self) -> bytes:
        """Of a message, without its headers."""
        return self.raw[self._line_bytes + self._header_bytes : -2] if self.kind in _REPLY_AT else b""

    def with_payload(self, payload: bytes) -> "Frame":
        """The same message with another payload. Raises ValueError when its length is not the same."""
        start = self._line_bytes + self._header_bytes
        if self.kind not in _REPLY_AT or len(payload) != len(self.raw) - 2 - start:
            raise ValueError(f"payload: expected the length of that of {self!r}, got {len(payload)} bytes")
        raw = self.raw[:start] + payload + self.raw[-2:]
        return Frame(raw, self.kind, self._line_bytes, self._header_bytes)

    def _words(self) -> list[bytes]:
        return self.raw[: self._line_bytes].split()


class FrameParser:
    """Cuts one direction of one connection into frames, however it is chunked.

    `resume_after` and `skip_bytes` are for a start in the middle of a connection, see `ConnectionTap.parser`: the
    part of a control line that has passed already, or how many bytes are left of the message that is passing.
    """

    def __init__(self, stream: Stream, resume_after: bytes = b"", skip_bytes: int = 0) -> None:
        self.pending = 0
        """Bytes held of an incomplete frame."""
        self.why = ""
        """Why it is opaque, one line."""
        self._verbs = _VERBS[stream]
        self._held: list[bytes] = []
        self._needed = 0
        self._resume_after = resume_after
        self._skip_bytes = skip_bytes

    @property
    def opaque(self) -> bool:
        """Whether everything passes as it comes."""
        return bool(self.why)

    def feed(self, chunk: bytes) -> list[Frame]:
        """The frames that `chunk` completes. The raws of all frames so far, and what is pending, are the input."""
        if not chunk:
            return []
        if self.why:
            return [Frame(chunk, FrameKind.OPAQUE)]
        if self._skip_bytes or self._resume_after:
            return self._resume(chunk)
        if self._held:
            return self._continue(chunk)
        return self._cut(chunk)

    def flush(self) -> bytes:
        """Gives up what is pending: for the end of the connection, or when nobody looks at frames any more."""
        held = b"".join(self._held)
        self._hold(b"", 0)
        return held

    def _continue(self, chunk: bytes) -> list[Frame]:
        """Joins only when that may complete something: a payload in many chunks is not copied with each of them."""
        verb_settled = self.pending > _VERB_BYTES_MAX
        self._held.append(chunk)
        self.pending += len(chunk)
        if self._needed:
            waits = self.pending < self._needed
        else:
            waits = verb_settled and self.pending < LINE_BYTES_MAX and b"\n" not in chunk
        return [] if waits else self._cut(self.flush())

    def _cut(self, data: bytes) -> list[Frame]:
        frames: list[Frame] = []
        verbs = self._verbs
        at, size = 0, len(data)
        try:
            while at < size:
                line_end = data.find(b"\n", at, at + LINE_BYTES_MAX) + 1
                if not line_end:
                    _check_beginning(data[at : at + LINE_BYTES_MAX], verbs)
                    self._hold(data[at:], 0)
                    break
                kind, header_bytes, body_bytes = _read_line(data[at:line_end], verbs)
                end = line_end + body_bytes
                if end > size:
                    self._hold(data[at:], end - at)
                    break
                if body_bytes and not data.endswith(b"\r\n", line_end, end):
                    raise _NotNats(f"{kind.value}: no line end after the payload")
                frames.append(Frame(data[at:end], kind, line_end - at, header_bytes))
                at = end
        except _NotNats as error:
            self.why = str(error)
            frames.append(Frame(data[at:], FrameKind.OPAQUE))
        return frames

    def _hold(self, data: bytes, needed: int) -> None:
        """needed: bytes of the whole frame, 0 while that is not known."""
        self._held = [data] if data else []
        self.pending = len(data)
        self._needed = needed

    def _resume(self, chunk: bytes) -> list[Frame]:
        """Lets the rest of a frame pass that had begun before."""
        passing = self._skip_bytes
        if not passing:
            line_end = chunk.find(b"\n") + 1
            line = self._resume_after + (chunk[:line_end] if line_end else chunk)
            try:
                if line_end:
                    passing = line_end + _read_line(line, self._verbs)[2]
                else:
                    _check_beginning(line, self._verbs)
            except _NotNats as error:
                self.why = str(error)
            self._resume_after = b"" if line_end else line
        if self.why or not passing:
            return [Frame(chunk, FrameKind.OPAQUE)]
        self._skip_bytes = max(0, passing - len(chunk))
        return [Frame(chunk[:passing], FrameKind.OPAQUE), *(self._cut(chunk[passing:]) if len(chunk) > passing else ())]


def frame_of(raw: bytes, stream: Stream) -> Frame:
    """`raw` as one frame, OPAQUE if it is not exactly one."""
    frames = FrameParser(stream).feed(raw)
    return frames[0] if len(frames) == 1 and len(frames[0].raw) == len(raw) else Frame(raw, FrameKind.OPAQUE)


class ConnectionTap:
    """Watches one direction of a connection; of what passes it holds at most the beginning of a control line."""

    def __init__(self, stream: Stream) -> None:
        self.messages = 0
        """Messages that have passed whole."""
        self.client_name: str | None = None
        """The name with which the client has connected (upstream)."""
        self.why = ""
        """Why it has stopped to understand, one line; empty as long as it does."""
        self._stream = stream
        self._verbs = _VERBS[stream]
        self._line = b""
        self._skip_bytes = 0
        self._body_bytes: dict[bytes, int] = {}
        """By control line of a message."""

    def feed(self, chunk: bytes) -> None:
        """Sees `chunk` pass."""
        if self.why:
            return
        try:
            self._follow(chunk)
        except _NotNats as error:
            self.why = str(error)
            self._line = b""

    def parser(self) -> FrameParser:
        """A parser for what follows: the rest of a frame of which a part has passed comes out as OPAQUE."""
        parser = FrameParser(self._stream, self._line, self._skip_bytes)
        parser.why = self.why
        return parser

    def _follow(self, chunk: bytes) -> None:
        at = min(self._skip_bytes, len(chunk))
        if at:
            self._skip_bytes -= at
            self.messages += not self._skip_bytes
        if self._line:
            chunk, self._line = self._line + chunk, b""
        size, find, bodies = len(chunk), chunk.find, self._body_bytes
        while at < size:
            line_end = find(b"\n", at) + 1
            line = chunk[at:line_end]
            # Lines repeat, as subjects and sizes do: most messages take this short way.
            if line in bodies:
                at = line_end + bodies[line]
                self.messages += 1
            elif line_end:
                body_bytes = self._read(line)
                at = line_end + body_bytes
                self.messages += body_bytes > 0
            else:
                self._line = chunk[at : at + LINE_BYTES_MAX]
                _check_beginning(self._line, self._verbs)
                return
        if at > size:
            self._skip_bytes = at - size
            self.messages -= 1

    def _read(self, line: bytes) -> int:
        """Bytes of what follows a control line, kept for when the line comes again."""
        if len(line) > LINE_BYTES_MAX:
            raise _NotNats(f"control line longer than {LINE_BYTES_MAX} bytes")
        kind, _, body_bytes = _read_line(line, self._verbs)
        if kind is FrameKind.CONNECT:
            self.client_name = _client_name(line)
        elif body_bytes and len(line) <= _KEPT_LINE_BYTES_MAX:
            if len(self._body_bytes) >= _KEPT_LINES_MAX:
                self._body_bytes.clear()
            self._body_bytes[line] = body_bytes
        return body_bytes


class _Connect(msgspec.Struct):
    name: str | None = None


def _client_name(line: bytes) -> str | None:
    try:
        return msgspec.json.decode(line[_VERB_BYTES_MAX:], type=_Connect).name
    except (msgspec.MsgspecError, UnicodeDecodeError):
        return None


def _read_line(line: bytes, verbs: dict[bytes, _Verb]) -> tuple[FrameKind, int, int]:
    """Kind, bytes of headers, and bytes of all that follows, 0 for a line on its own. Raises _NotNats."""
    words = line.split()
    if not words or line[0] <= 32:
        raise _NotNats("control line without a verb")
    verb = verbs.get(words[0]) or verbs.get(words[0].upper())
    if verb is None:
        raise _NotNats(_stranger(line))
    kind, words_min, words_max, headers = verb
    if not words_max:
        return kind, 0, 0
    if not words_min <= len(words) <= words_max:
        raise _NotNats(f"{kind.value}: control line of {len(words)} words")
    body_bytes = _size(words[-1], kind)
    header_bytes = _size(words[-2], kind) if headers else 0
    if header_bytes > body_bytes:
        raise _NotNats(f"{kind.value}: headers of {header_bytes} bytes in {body_bytes}")
    return kind, header_bytes, body_bytes + 2


def _size(word: bytes, kind: FrameKind) -> int:
    if not word.isdigit() or len(word) > _SIZE_DIGITS_MAX:
        raise _NotNats(f"{kind.value}: size {word[:20]!r} is no number")
    size = int(word)
    if size > PAYLOAD_BYTES_MAX:
        raise _NotNats(f"{kind.value}: payload of {size} bytes is above {PAYLOAD_BYTES_MAX}")
    return size


def _check_beginning(line: bytes, verbs: dict[bytes, _Verb]) -> None:
    """Raises _NotNats if no control line begins like this: a stranger is let go at once, not at its line's end."""
    if len(line) >= LINE_BYTES_MAX:
        raise _NotNats(f"control line longer than {LINE_BYTES_MAX} bytes")
    head = line[: _VERB_BYTES_MAX + 1]
    word = head.split(None, 1)[0].upper() if head.strip() else b""
    if head[0] <= 32 or not (word in verbs if len(word) < len(head) else any(verb.startswith(word) for verb in verbs)):
        raise _NotNats(_stranger(line))


def _stranger(line: bytes) -> str:
    return "TLS handshake" if line[:2] in (b"\x16", b"\x16\x03") else f"not NATS: begins with {line[:16]!r}"


def _text(word: bytes) -> str:
    # Subjects are UTF-8 by custom only; nothing may fail here.
    return word.decode("utf-8", "surrogateescape")
