"""The message faults as toxics: frames of one direction of one connection go in, bytes come out."""

from collections.abc import Mapping

from chaos.toxiproxy.embedded.message_choice import MESSAGE_KINDS, MessageChoice, check_message_attributes
from chaos.toxiproxy.embedded.message_fault import MessageFault
from chaos.toxiproxy.embedded.nats_frames import Frame, FrameKind

__all__ = ["MESSAGE_KINDS", "MessageStage", "check_message_attributes"]

_MESSAGES = {
    "upstream": (FrameKind.PUB, FrameKind.HPUB),
    "downstream": (FrameKind.MSG, FrameKind.HMSG),
}


class MessageStage:
    """One toxic on one direction of one connection. Only messages are touched; other frames pass at once.

    stream: upstream or downstream. Times are seconds of any one clock. Raises ValueError for another stream, and for
    attributes that `check_message_attributes` refuses.
    """

    def __init__(self, kind: str, attributes: Mapping[str, object], stream: str, seed: int) -> None:
        if stream not in _MESSAGES:
            raise ValueError(f"stream: expected upstream or downstream, got {stream!r}")
        self._kinds = _MESSAGES[stream]
        self._fault = MessageFault(MessageChoice(kind, attributes, seed), Frame.with_payload)

    @property
    def counts(self) -> dict[str, int]:
        """Messages seen, matched and affected, and overflowed: held ones that went on too early, for want of room."""
        return self._fault.counts

    def feed(self, frame: Frame, now_s: float) -> list[bytes]:
        """What goes on at once, in order: what was due by now, then what becomes of `frame`."""
        if frame.kind not in self._kinds:
            return [*self.release(now_s), frame.raw]
        return _raws(self._fault.feed(frame, frame.subject or "", frame.payload, len(frame.raw), now_s))

    def due_s(self) -> float | None:
        """When `release` has something to give; None if nothing is held."""
        return self._fault.due_s()

    def release(self, now_s: float) -> list[bytes]:
        """What is due by now."""
        return _raws(self._fault.release(now_s))

    def flush(self) -> list[bytes]:
        """Everything held, in the order in which it came: the toxic is removed."""
        return _raws(self._fault.flush())


def _raws(frames: list[Frame]) -> list[bytes]:
    return [frame.raw for frame in frames]
