"""A message fault at work on one sequence of messages, whatever a message is there: a frame, or a simulated one."""

from collections.abc import Callable
from typing import Generic, TypeVar

from chaos.toxiproxy.embedded.held_messages import HeldMessages
from chaos.toxiproxy.embedded.message_choice import Corrupt, Drop, Duplicate, MessageChoice, Pass

T = TypeVar("T")


class MessageFault(Generic[T]):
    """Carries out what `choice` decides.

    with_payload: makes of a message the same one with another payload of equal length. Times are seconds of any one
    clock; whoever feeds it calls `release` at `due_s`.
    """

    def __init__(self, choice: MessageChoice, with_payload: Callable[[T, bytes], T]) -> None:
        self._choice = choice
        self._with_payload = with_payload
        self._held: HeldMessages[T] = HeldMessages()

    @property
    def counts(self) -> dict[str, int]:
        """Messages seen, matched and affected, and overflowed: held ones that went on too early, for want of room."""
        return {**self._choice.counts, "overflowed": self._held.overflowed}

    def feed(self, message: T, subject: str, payload: bytes, size_bytes: int, now_s: float) -> list[T]:
        """What goes on at once, in order: what was due by now, then what becomes of `message`.

        size_bytes: what holding it costs.
        """
        due = self._held.release(now_s)
        verdict = self._choice.decide(subject, payload)
        match verdict:
            case Pass():
                return [*due, message]
            case Drop():
                return due
            case Duplicate():
                return [*due, *[message] * (1 + verdict.copies)]
            case Corrupt():
                return [*due, self._with_payload(message, verdict.payload)]
            case _:
                return [*due, *self._held.hold(message, size_bytes, verdict, now_s)]

    def due_s(self) -> float | None:
        """When `release` has something to give; None if nothing is held."""
        return self._held.due_s()

    def release(self, now_s: float) -> list[T]:
        """What is due by now."""
        return self._held.release(now_s)

    def flush(self) -> list[T]:
        """Everything held, in the order in which it came: the fault is healed."""
        return self._held.flush()
