"""The record of what a node has decided: each event with its time, and the commands that came out.

With what the node was made from, which stands at the beginning, it can be played again: see cluster.replay. A file is a
row of frames: stored and real size, CRC-32, then MessagePack compressed with zstd. Frames are handed to the operating
system whole every half second, so a process that is killed leaves all but the last of them.
"""

import contextlib
import struct
import zlib
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import IO, TypeVar

import msgspec
import pyarrow as pa

from cluster.birth import Birth
from cluster.node import AnyEvent, Command, Event, Node

SUFFIX = ".record"
BYTES_MAX = 64 * 2**20
"""Of one node's file: hours of a usual load. What comes after is not recorded, and the file says so."""
_PREFIX = "decisions"
_FORMAT = 1
_FRAME = struct.Struct("<III")
_WAITING_BYTES_MAX = 2**20
_REAL_BYTES_MAX = 2**30
"""No frame is nearly as large: a damaged size must not ask for all memory."""
Decoded = TypeVar("Decoded")


class _Frame(msgspec.Struct, frozen=True, array_like=True, tag=True):
    pass


class Opening(_Frame, frozen=True):
    """birth: what the node was made from. clock_ahead_s: how far its clock was ahead of its host's."""

    birth: Birth
    clock_ahead_s: float = 0.0
    format: int = _FORMAT


class Steps(_Frame, frozen=True):
    """Some steps, in order; each is a Step."""

    steps: tuple[msgspec.Raw, ...]


class Closing(_Frame, frozen=True):
    """Nothing follows. why: empty when the node ended in an orderly way."""

    why: str = ""


class Step(msgspec.Struct, frozen=True, array_like=True):
    """One event. time_s: of the node's clock. commands: encoded. wake_s: when the node wants a Wake afterwards.

    raised: what the node raised over it, empty as a rule; then it has given no commands, and this is the last step.
    """

    time_s: float
    event: AnyEvent
    commands: msgspec.Raw
    wake_s: float | None
    raised: str = ""


class RecordError(Exception):
    """There is no record, or it is none of ours. One line."""


_encoder = msgspec.msgpack.Encoder()
_frame_decoder: msgspec.msgpack.Decoder[Opening | Steps | Closing] = msgspec.msgpack.Decoder(Opening | Steps | Closing)
_step_decoder = msgspec.msgpack.Decoder(Step)


def encoded(commands: Sequence[Command]) -> bytes:
    """As they stand in a record."""
    return _encoder.encode(commands)


def raised_by(error: Exception) -> str:
    """As it stands in a record."""
    return f"{type(error).__name__}: {error}"


class Recorder:
    """Hands events to a node and writes down what comes of them. Its shell owns it: `close` ends the file.

    Not for use by two threads. A disk that takes no more ends the record and not the node.
    """

    def __init__(self, folder: Path, birth: Birth, clock_ahead_s: float = 0.0, bytes_max: int = BYTES_MAX) -> None:
        """folder: where the node's rows are. The file is there with the first flush."""
        self.path = folder / f"{_PREFIX}.{birth.name}.{birth.incarnation}{SUFFIX}"
        self.told: Callable[[str], None] | None = None
        """Called once, with the reason, where it ends although the node goes on."""
        self._bytes_max = bytes_max
        self._bytes = 0
        self._file: IO[bytes] | None = None
        self._codec = pa.Codec("zstd", compression_level=1)
        self._opening: Opening | None = Opening(birth, clock_ahead_s)
        self._steps: list[msgspec.Raw] = []
        self._steps_bytes = 0
        self._ended = False

    def handle(self, node: Node, event: Event, now: float) -> Sequence[Command]:
        """What the node answers; also what it raises goes on to the caller."""
        try:
            commands = node.handle(event, now)
        except Exception as error:
            self._take((now, event, (), None, raised_by(error)))
            raise
        if not self._ended:
            self._take((now, event, commands, node.next_wake()))
        return commands

    def flush(self) -> None:
        """Hand what waits to the operating system."""
        if self._ended or not self._steps:
            return
        steps, self._steps, self._steps_bytes = tuple(self._steps), [], 0
        try:
            self._append(Steps(steps))
        except OSError as error:
            self._give_up(f"{self.path.name}: cannot record: {error.strerror or error}")
            return
        if self._bytes >= self._bytes_max:
            self._give_up(f"{self.path.name}: {self._bytes_max / 2**20:g} MiB are full, what follows is not recorded")

    def close(self) -> None:
        """End the file, once."""
        self.flush()
        if not self._ended:
            self._end("")

    def _take(self, step: tuple[object, ...]) -> None:
        if self._ended:
            return
        # At once: what a command holds may change before it is written.
        line = _encoder.encode(step)
        self._steps.append(msgspec.Raw(line))
        self._steps_bytes += len(line)
        if self._steps_bytes >= _WAITING_BYTES_MAX:
            self.flush()

    def _append(self, frame: _Frame) -> None:
        """Raises OSError."""
        if self._file is None:
            self._file = open(self.path, "xb", buffering=0)  # noqa: SIM115 - lives as long as the recorder
        if self._opening is not None:
            opening, self._opening = self._opening, None
            self._append(opening)
        real = _encoder.encode(frame)
        stored = self._codec.compress(real, asbytes=True)
        left = memoryview(_FRAME.pack(len(stored), len(real), zlib.crc32(stored)) + stored)
        self._bytes += len(left)
        while left:
            left = left[self._file.write(left) or 0 :]

    def _give_up(self, why: str) -> None:
        self._end(why)
        if self.told is not None:
            self.told(why)

    def _end(self, why: str) -> None:
        self._ended = True
        self._steps = []
        if self._file is not None:
            with contextlib.suppress(OSError):
                self._append(Closing(why))
            self._file.close()


class Record:
    """A file to be read. end: how it ends, one line, known after the last step; empty when its node ended in order."""

    def __init__(self, path: Path) -> None:
        """Raises RecordError."""
        self.path = path
        self.end = ""
        opening = next(self._frames(), None)
        if not isinstance(opening, Opening):
            raise RecordError(f"{path.name}: {self.end or 'it does not begin with what its node was made from'}")
        if opening.format != _FORMAT:
            raise RecordError(f"{path.name}: a record of format {opening.format}, this code reads {_FORMAT}")
        self.opening = opening

    def steps(self) -> Iterator[Step]:
        """From the first to the last that is whole. Raises RecordError."""
        for frame in self._frames():
            if isinstance(frame, Steps):
                for line in frame.steps:
                    yield self._decoded(_step_decoder, line)

    def _frames(self) -> Iterator[Opening | Steps | Closing]:
        self.end = "it has no end: its node was killed, and what it decided last is missing"
        try:
            with open(self.path, "rb") as file:
                size = self.path.stat().st_size
                while head := file.read(_FRAME.size):
                    if (payload := self._payload(file, head, size)) is None:
                        return
                    frame = self._decoded(_frame_decoder, payload)
                    if isinstance(frame, Closing):
                        self.end = frame.why
                    yield frame
        except OSError as error:
            raise RecordError(f"{self.path.name}: cannot be read: {error.strerror or error}") from error

    def _payload(self, file: IO[bytes], head: bytes, size: int) -> bytes | None:
        """The next frame's; None where the file is cut within it."""
        began = file.tell() - len(head)
        self.end = f"its last frame, {size - began} bytes, is cut: its node was killed, and what it decided is missing"
        if len(head) < _FRAME.size:
            return None
        stored_bytes, real_bytes, checksum = _FRAME.unpack(head)
        if max(stored_bytes, real_bytes) > _REAL_BYTES_MAX:
            raise RecordError(f"{self.path.name}: damaged at byte {began}")
        stored = file.read(stored_bytes)
        if len(stored) < stored_bytes:
            return None
        if zlib.crc32(stored) != checksum:
            raise RecordError(f"{self.path.name}: damaged at byte {began}")
        self.end = "it has no end: its node was killed, and what it decided last is missing"
        try:
            real: bytes = pa.Codec("zstd").decompress(stored, real_bytes, asbytes=True)
        except (pa.ArrowInvalid, OSError) as error:
            raise RecordError(f"{self.path.name}: damaged at byte {began}") from error
        return real

    def _decoded(self, decoder: "msgspec.msgpack.Decoder[Decoded]", payload: bytes | msgspec.Raw) -> "Decoded":
        try:
            return decoder.decode(payload)
        except (msgspec.DecodeError, UnicodeDecodeError) as error:
            raise RecordError(f"{self.path.name}: not a record of this code: {error}") from error


def records(folder: Path) -> list[Path]:
    """The records in a folder of rows, by node and incarnation."""
    return sorted(folder.glob(f"{_PREFIX}.*{SUFFIX}"))
