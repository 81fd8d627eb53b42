"""A message-level toxic as a stage of a link: the chunks that it is fed are whole NATS frames."""

import random
from collections import Counter, deque
from collections.abc import Mapping

from chaos.toxiproxy.embedded.message_toxics import MessageStage
from chaos.toxiproxy.embedded.nats_frames import Frame, FrameKind, FrameParser, Stream
from chaos.toxiproxy.embedded.stages import Chunk, Stage

_FRAMES_READY_MAX = 1024


class FrameStage(Stage):
    """Feeds a `MessageStage` and keeps what it has let go until the next stage has room."""

    def __init__(self, kind: str, attributes: Mapping[str, object], stream: Stream, draws: random.Random) -> None:
        super().__init__({}, draws)
        self._kind, self._now_attributes, self._stream = kind, attributes, stream
        self._earlier: Counter[str] = Counter()
        self._ready: deque[Chunk] = deque()
        self._messages = self._make()

    @property
    def counts(self) -> Counter[str]:
        """What it has seen, matched and affected, under earlier attributes too."""
        return self._earlier + Counter(self._messages.counts)

    def has_room(self) -> bool:
        return len(self._ready) < _FRAMES_READY_MAX

    def take(self, chunk: Chunk, now_s: float) -> None:
        frame = chunk.frame or self._frame(chunk.data)
        if frame.kind is FrameKind.OPAQUE:
            self._ready.append(chunk)
        else:
            self._ready += [Chunk(data, chunk.stamp_s) for data in self._messages.feed(frame, now_s)]

    def end_input(self, now_s: float) -> None:
        super().end_input(now_s)
        if self._messages.due_s() is None:
            # What waits for a later message, and not for a time, would wait for ever.
            self._ready += [Chunk(data, now_s) for data in self._messages.flush()]

    def pop(self, now_s: float) -> Chunk | None:
        if not self._ready and (due_s := self._messages.due_s()) is not None and due_s <= now_s:
            self._ready += [Chunk(data, now_s) for data in self._messages.release(now_s)]
        return self._ready.popleft() if self._ready else None

    def due_s(self) -> float | None:
        return self._messages.due_s()

    def is_closed(self, now_s: float) -> bool:
        # What is held still goes out before the end: a delayed message is late, not lost.
        return self.input_ended and not self._ready and self._messages.due_s() is None

    def flush(self) -> list[Chunk]:
        stamp_s = self._ready[-1].stamp_s if self._ready else 0.0
        held = [*self._ready, *(Chunk(data, stamp_s) for data in self._messages.flush())]
        self._ready.clear()
        return held

    def restart(self, now_s: float) -> list[Chunk]:
        held = self.flush()
        self._earlier = self.counts
        self._messages = self._make()
        return held

    def _frame(self, data: bytes) -> Frame:
        """What another stage has let go, which may have changed the payload but not the frame."""
        frames = FrameParser(self._stream).feed(data)
        return frames[0] if len(frames) == 1 and len(frames[0].raw) == len(data) else Frame(data, FrameKind.OPAQUE)

    def _make(self) -> MessageStage:
        return MessageStage(self._kind, dict(self._now_attributes), self._stream, self.draws.getrandbits(63))
