"""What the embedded server has beside Toxiproxy's API: toxics on whole NATS messages, with a time limit and counts."""

from typing import Literal

import msgspec

from chaos.toxiproxy.adapter import Toxiproxy
from chaos.toxiproxy.consumer import decode
from chaos.toxiproxy.embedded.message_choice import check_message_attributes
from chaos.toxiproxy.errors import ToxiproxyRefused, ToxiproxyUnsafe, ToxiproxyUnverified


class MessageToxic(msgspec.Struct, frozen=True):
    """A toxic on messages; type and attributes as in chaos.toxiproxy.embedded.message_choice.MESSAGE_KINDS.

    ttl_ms: the server removes it by itself after this time.
    """

    name: str
    type: str
    stream: Literal["upstream", "downstream"]
    attributes: dict[str, object]
    ttl_ms: int


class _Shown(msgspec.Struct, frozen=True):
    type: str
    stream: str
    attributes: dict[str, object]
    toxicity: float
    counts: dict[str, int]
    ttl_ms: int = 0


class MessageToxiproxy(Toxiproxy):
    """An embedded server's control API. See Toxiproxy; it raises the same errors."""

    def add_message_toxic(self, proxy: str, toxic: MessageToxic) -> None:
        """Add a toxic to existing and new connections, and read it back. An equal name is refused (409)."""
        try:
            wanted = check_message_attributes(toxic.type, toxic.attributes)
        except ValueError as error:
            raise ToxiproxyUnsafe(f"toxic {toxic.name!r}: {error}") from error

        def add() -> None:
            self._consumer.post(f"/proxies/{proxy}/toxics", json=msgspec.to_builtins(toxic))
            found = self._shown_toxic(proxy, toxic.name)
            if found is None or found.attributes != wanted or found.toxicity != 1.0 or found.ttl_ms != toxic.ttl_ms:
                raise ToxiproxyUnverified(f"server agreed, yet reads back {found!r}"[:300])

        call = f"add toxic {toxic.name!r}"
        with self._changes(proxy, call):
            self._call(call, proxy, add)

    def message_counts(self, proxy: str, name: str) -> dict[str, int] | None:
        """Messages that a toxic has `seen`, `matched` and `affected`, on all connections; None when it is not there."""

        def ask() -> dict[str, int] | None:
            found = self._shown_toxic(proxy, name)
            return None if found is None else found.counts

        return self._call(f"read toxic {name!r}", proxy, ask)

    def _shown_toxic(self, proxy: str, name: str) -> _Shown | None:
        try:
            return decode(self._consumer.get(f"/proxies/{proxy}/toxics/{name}").content, _Shown)
        except ToxiproxyRefused as refusal:
            if refusal.status == 404:
                return None
            raise
