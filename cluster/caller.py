"""Who stands behind a client: where its requests come from, and who is told what became of them.

`workloads` has both; the shells of a client drive them.
"""

from typing import Protocol

from cluster.node import Ask, Deliver


class Source(Protocol):
    """Where requests come from. Times are in the client's clock, seconds."""

    def due(self, now: float) -> list[Ask]:
        """Requests whose time has come, in order; each comes out once."""

    def next_time(self) -> float | None:
        """When the next request is due, None when that depends on an answer or there is none."""

    def ended(self, request_id: str, now: float) -> list[Ask]:
        """A request has ended; what the caller asks next because of it."""

    @property
    def finished(self) -> bool:
        """Whether nothing more will be asked."""


class Observer(Protocol):
    """Who is told."""

    def asked(self, ask: Ask) -> None:
        """A request was handed to the client."""

    def ended(self, ask: Ask, end: Deliver, now: float) -> None:
        """It has ended."""
