"""What each byte-level toxic does to one direction of one connection, as plain objects without I/O.

A stage is told the time (seconds of any monotonic clock) and never waits: the link feeds it chunks, asks what is ready
now, and when to ask again. The attributes are those of the toxic itself, which a stage reads and never changes.
"""

import random
from collections import deque
from collections.abc import Mapping
from typing import NamedTuple

from chaos.toxiproxy.embedded.nats_frames import Frame

CHUNK_BYTES_MAX = 32 * 1024
"""What stages are fed at a time, as in Toxiproxy, whose reads are that large."""
_LATENCY_CHUNKS_MAX = 1024
_PIECE_S = 0.1
_CREDIT_S_MAX = 0.05
"""How much oversleeping a bandwidth stage makes good, so that its rate does not depend on the timer."""


class Chunk(NamedTuple):
    """Bytes on their way. stamp_s: when they arrived, later by what latency they have served.

    frame: the NATS frame that the bytes are, where that is known.
    """

    data: bytes
    stamp_s: float
    frame: Frame | None = None


class Stage:
    """Passes everything on at once, as the toxic `noop` does.

    capacity: how many chunks it holds before its input has to wait.
    """

    capacity = 1

    def __init__(self, attributes: Mapping[str, int], draws: random.Random) -> None:
        self.attributes = attributes
        self.draws = draws
        self.input_ended = False
        self.end_passed = False
        """Whether the link has told the next stage that this one's output is closed."""
        self._inbox: deque[Chunk] = deque()

    def begin(self, now_s: float) -> None:
        """The toxic takes hold of the connection."""

    def has_room(self) -> bool:
        """Whether it takes another chunk."""
        return len(self._inbox) < self.capacity

    def take(self, chunk: Chunk, now_s: float) -> None:
        """Accept a chunk. Also beyond its capacity: what a removed stage held goes on whatever there is room for."""
        self._inbox.append(chunk)

    def end_input(self, now_s: float) -> None:
        """Nothing will follow."""
        self.input_ended = True

    def pop(self, now_s: float) -> Chunk | None:
        """The next chunk that may go on by now, None if there is none."""
        return self._inbox.popleft() if self._inbox else None

    def due_s(self) -> float | None:
        """When to ask again although nothing arrives; None for not at all."""
        return None

    def is_closed(self, now_s: float) -> bool:
        """Whether the output has ended: nothing comes any more."""
        return self.input_ended and not self._inbox

    def must_close(self) -> bool:
        """Whether taking the toxic away ends the connection."""
        return False

    def flush(self) -> list[Chunk]:
        """Everything held, to be passed on by the stage's successor: the toxic goes, or spares this connection now."""
        held = list(self._inbox)
        self._inbox.clear()
        return held

    def restart(self, now_s: float) -> list[Chunk]:
        """The attributes have changed. Returns what goes on at once, as it was being worked on under the old ones."""
        return []


class LatencyStage(Stage):
    """Holds each chunk for `latency` ms, give or take up to `jitter` ms, in order."""

    capacity = _LATENCY_CHUNKS_MAX
    _head_due_s: float | None = None

    def pop(self, now_s: float) -> Chunk | None:
        due_s = self.due_s()
        if due_s is None or due_s > now_s:
            return None
        self._head_due_s = None
        return Chunk(self._inbox.popleft().data, due_s)

    def due_s(self) -> float | None:
        if not self._inbox:
            return None
        if self._head_due_s is None:
            delay_ms, jitter_ms = self.attributes["latency"], self.attributes["jitter"]
            if jitter_ms > 0:
                delay_ms += self.draws.randrange(-jitter_ms, jitter_ms)
            self._head_due_s = self._inbox[0].stamp_s + delay_ms / 1000
        return self._head_due_s

    def flush(self) -> list[Chunk]:
        self._head_due_s = None
        return super().flush()

    def restart(self, now_s: float) -> list[Chunk]:
        self._head_due_s = None
        return [self._inbox.popleft()] if self._inbox else []


class BandwidthStage(Stage):
    """Lets `rate` KB/s through (1 KB is 1000 bytes), in pieces every 100 ms where chunks are longer; 0 holds all."""

    _begun_s: float | None = None
    """When the line began to carry the chunk at the head."""
    _credit_s = 0.0

    def take(self, chunk: Chunk, now_s: float) -> None:
        super().take(chunk, now_s)
        if self._begun_s is None:
            self._begin(now_s)

    def pop(self, now_s: float) -> Chunk | None:
        due_s = self.due_s()
        if due_s is None or due_s > now_s:
            return None
        head = self._inbox.popleft()
        piece_bytes = self._piece_bytes()
        if len(head.data) > piece_bytes:
            self._inbox.appendleft(Chunk(head.data[piece_bytes:], head.stamp_s))
            self._begun_s = due_s
            return Chunk(head.data[:piece_bytes], head.stamp_s)
        self._begun_s = None
        self._credit_s = min(now_s - due_s, _CREDIT_S_MAX)
        if self._inbox:
            self._begin(now_s)
        return head

    def due_s(self) -> float | None:
        if self._begun_s is None or self.attributes["rate"] <= 0:
            return None
        length = min(len(self._inbox[0].data), self._piece_bytes())
        return self._begun_s + length / (self.attributes["rate"] * 1000)

    def flush(self) -> list[Chunk]:
        self._begun_s = None
        return super().flush()

    def restart(self, now_s: float) -> list[Chunk]:
        self._credit_s = 0.0
        return self.flush()

    def _begin(self, now_s: float) -> None:
        self._begun_s = now_s - self._credit_s
        self._credit_s = 0.0

    def _piece_bytes(self) -> int:
        return int(self.attributes["rate"] * 1000 * _PIECE_S)


class SlowCloseStage(Stage):
    """Passes data on, and holds the close for `delay` ms."""

    _ended_s = 0.0

    def end_input(self, now_s: float) -> None:
        super().end_input(now_s)
        self._ended_s = now_s

    def due_s(self) -> float | None:
        if not self.input_ended or self.end_passed:
            return None
        return self._ended_s + self.attributes["delay"] / 1000

    def is_closed(self, now_s: float) -> bool:
        due_s = self.due_s()
        return super().is_closed(now_s) and due_s is not None and due_s <= now_s

    def restart(self, now_s: float) -> list[Chunk]:
        self._ended_s = now_s
        return []


class TimeoutStage(Stage):
    """Drops everything; closes when nothing has arrived for `timeout` ms, with 0 never."""

    _quiet_since_s: float | None = None

    def take(self, chunk: Chunk, now_s: float) -> None:
        self._quiet_since_s = now_s

    def begin(self, now_s: float) -> None:
        self._quiet_since_s = now_s

    def must_close(self) -> bool:
        return True

    def due_s(self) -> float | None:
        if self._quiet_since_s is None or self.attributes["timeout"] <= 0 or self.end_passed:
            return None
        return self._quiet_since_s + self.attributes["timeout"] / 1000

    def is_closed(self, now_s: float) -> bool:
        due_s = self.due_s()
        return self.input_ended or (due_s is not None and due_s <= now_s)

    def restart(self, now_s: float) -> list[Chunk]:
        self._quiet_since_s = now_s
        return []


class ResetPeerStage(Stage):
    """After the first chunk, or the end, waits `timeout` ms and closes; on a connection opened under it, with RST."""

    _begun_s: float | None = None

    def must_close(self) -> bool:
        # It has swallowed a chunk, so nothing but closing can follow.
        return self._begun_s is not None

    def has_room(self) -> bool:
        return self._begun_s is None

    def take(self, chunk: Chunk, now_s: float) -> None:
        if self._begun_s is None:
            self._begun_s = now_s

    def end_input(self, now_s: float) -> None:
        super().end_input(now_s)
        if self._begun_s is None:
            self._begun_s = now_s

    def due_s(self) -> float | None:
        if self._begun_s is None or self.end_passed:
            return None
        return self._begun_s + self.attributes["timeout"] / 1000

    def is_closed(self, now_s: float) -> bool:
        due_s = self.due_s()
        return due_s is not None and due_s <= now_s


class SlicerStage(Stage):
    """Cuts chunks into pieces of `average_size` bytes, give or take `size_variation`, `delay` microseconds apart."""

    _next_s = float("-inf")

    def __init__(self, attributes: Mapping[str, int], draws: random.Random) -> None:
        super().__init__(attributes, draws)
        self._pieces: deque[Chunk] = deque()

    def pop(self, now_s: float) -> Chunk | None:
        if self._next_s > now_s or not (self._pieces or self._inbox):
            return None
        if not self._pieces:
            # Pieces are counted from the first on: a timer of a millisecond still lets a thousand of 1 us each pass.
            self._next_s = now_s
            self._cut(self._inbox.popleft())
        self._next_s += self.attributes["delay"] / 1_000_000
        return self._pieces.popleft()

    def has_room(self) -> bool:
        return not self._pieces and super().has_room()

    def due_s(self) -> float | None:
        return self._next_s if self._pieces or self._inbox else None

    def is_closed(self, now_s: float) -> bool:
        return super().is_closed(now_s) and not self._pieces

    def flush(self) -> list[Chunk]:
        return self.restart(0.0) + super().flush()

    def restart(self, now_s: float) -> list[Chunk]:
        """The rest of the chunk that was being cut, whole."""
        rest = [Chunk(b"".join(piece.data for piece in self._pieces), self._pieces[0].stamp_s)] if self._pieces else []
        self._pieces.clear()
        self._next_s = float("-inf")
        return rest

    def _cut(self, chunk: Chunk) -> None:
        average, variation = self.attributes["average_size"], self.attributes["size_variation"]
        waiting = [(0, len(chunk.data))]
        while waiting:
            start, end = waiting.pop()
            if end - start <= average + variation:
                self._pieces.append(Chunk(chunk.data[start:end], chunk.stamp_s))
                continue
            middle = start + (end - start) // 2
            if variation > 0:
                middle += self.draws.randrange(-variation, variation)
            # The left half is worked on first. A variation of the average's size may ask for a cut at the very end.
            middle = min(max(middle, start + 1), end - 1)
            waiting += [(middle, end), (start, middle)]


class LimitDataStage(Stage):
    """Forwards `bytes` bytes in all and closes; what it has let through counts on when the attribute changes."""

    _sent_bytes = 0
    _full = False

    def pop(self, now_s: float) -> Chunk | None:
        if self._full or not self._inbox:
            return None
        head = self._inbox.popleft()
        data = head.data[: max(0, self.attributes["bytes"] - self._sent_bytes)]
        self._sent_bytes += len(data)
        self._full = self._sent_bytes >= self.attributes["bytes"]
        return Chunk(data, head.stamp_s) if data else None

    def has_room(self) -> bool:
        return self._full or super().has_room()

    def take(self, chunk: Chunk, now_s: float) -> None:
        # After its end it swallows, so that whoever feeds it gets to see the end of the connection.
        if not self._full:
            super().take(chunk, now_s)

    def is_closed(self, now_s: float) -> bool:
        return self._full or super().is_closed(now_s)


BYTE_STAGES: Mapping[str, type[Stage]] = {
    "bandwidth": BandwidthStage,
    "latency": LatencyStage,
    "limit_data": LimitDataStage,
    "noop": Stage,
    "reset_peer": ResetPeerStage,
    "slicer": SlicerStage,
    "slow_close": SlowCloseStage,
    "timeout": TimeoutStage,
}
BYTE_ATTRIBUTES: Mapping[str, tuple[str, ...]] = {
    "bandwidth": ("rate",),
    "latency": ("latency", "jitter"),
    "limit_data": ("bytes",),
    "noop": (),
    "reset_peer": ("timeout",),
    "slicer": ("average_size", "size_variation", "delay"),
    "slow_close": ("delay",),
    "timeout": ("timeout",),
}
"""The attributes of each type, all of them integers that default to 0."""
