"""A message-level toxic as a stage of a link: the chunks that it is fed are whole NATS frames."""

import random
from collections import Counter, deque
from collections.abc import Mapping

from chaos.toxiproxy.embedded.message_toxics import MessageStage
from chaos.toxiproxy.embedded.nats_frames import FrameKind, Stream, frame_of
from chaos.toxiproxy.embedded.stages import Chunk, Stage

FRAMES_READY_MAX = 1024
READY_BYTES_MAX = 2 * 2**20
"""With more than that waiting for the next stage it takes no further frame, however large the last one was."""


class FrameStage(Stage):
    """Feeds a `MessageStage` and keeps what it has let go until the next stage has room."""

    def __init__(self, kind: str, attributes: Mapping[str, object], stream: Stream, draws: random.Random) -> None:
        super().__init__({}, draws)
        self._kind, self._toxic_attributes, self._stream = kind, attributes, stream
        self._earlier: Counter[str] = Counter()
        self._ready: deque[Chunk] = deque()
        self._ready_bytes = 0
        self._messages = self._make()

    @property
    def counts(self) -> Counter[str]:
        """What it has seen, matched and affected, under earlier attributes too."""
        return self._earlier + Counter(self._messages.counts)

    def has_room(self) -> bool:
        return len(self._ready) < FRAMES_READY_MAX and self._ready_bytes < READY_BYTES_MAX

    def take(self, chunk: Chunk, now_s: float) -> None:
        # Without a frame it comes from another stage, which may have changed the payload but not the frame.
        frame = chunk.frame or frame_of(chunk.data, self._stream)
        if frame.kind is FrameKind.OPAQUE:
            # As it is, so that the next stage does not take a part of something for a frame.
            self._let_go([Chunk(chunk.data, chunk.stamp_s, frame)])
        else:
            self._let_go([Chunk(data, chunk.stamp_s) for data in self._messages.feed(frame, now_s)])

    def end_input(self, now_s: float) -> None:
        super().end_input(now_s)
        if self._messages.due_s() is None:
            # What waits for a later message, and not for a time, would wait for ever.
            self._let_go([Chunk(data, now_s) for data in self._messages.flush()])

    def pop(self, now_s: float) -> Chunk | None:
        if not self._ready and (due_s := self._messages.due_s()) is not None and due_s <= now_s:
            self._let_go([Chunk(data, now_s) for data in self._messages.release(now_s)])
        if not self._ready:
            return None
        chunk = self._ready.popleft()
        self._ready_bytes -= len(chunk.data)
        return chunk

    def due_s(self) -> float | None:
        return self._messages.due_s()

    def is_closed(self, now_s: float) -> bool:
        # What is held still goes out before the end: a delayed message is late, not lost.
        return self.input_ended and not self._ready and self._messages.due_s() is None

    def flush(self) -> list[Chunk]:
        stamp_s = self._ready[-1].stamp_s if self._ready else 0.0
        held = [*self._ready, *(Chunk(data, stamp_s) for data in self._messages.flush())]
        self._ready.clear()
        self._ready_bytes = 0
        return held

    def restart(self, now_s: float) -> list[Chunk]:
        held = self.flush()
        self._earlier = self.counts
        self._messages = self._make()
        return held

    def _let_go(self, chunks: list[Chunk]) -> None:
        self._ready += chunks
        self._ready_bytes += sum(len(chunk.data) for chunk in chunks)

    def _make(self) -> MessageStage:
        return MessageStage(self._kind, dict(self._toxic_attributes), self._stream, self.draws.getrandbits(63))
