"""The messages on a node's link, behind a proxy of the embedded server, which knows NATS."""

import asyncio
import time
from collections.abc import Callable
from typing import TypeVar

from chaos.toxiproxy.adapter import ToxiproxyError
from chaos.toxiproxy.messages import MessageToxic, MessageToxiproxy
from chaos.undo import ToxicEntry, UndoError, UndoLog
from chaos.worlds.messages import toxic_attributes, toxic_kind, toxic_name
from chaos.worlds.world import HandleError, MessageCounts, MessageRule

T = TypeVar("T")


class ProxiedMessages:
    """See chaos.worlds.world.Messages. Every rule is in the undo log before it is made, and ends there after its TTL.

    The server ends it as well, should nobody be left to ask it.
    """

    def __init__(self, api: MessageToxiproxy, proxy: str, undo: UndoLog, node: str) -> None:
        self._api = api
        self._proxy = proxy
        self._undo = undo
        self._node = node
        self._lock = asyncio.Lock()
        self._open: dict[MessageRule, str] = {}

    async def meddle(self, rule: MessageRule, ttl_s: float) -> None:
        """See Messages. When the undo log cannot be written, nothing is changed."""
        # Shielded: a cancelled caller must not leave a change half made while it goes on to heal.
        await asyncio.shield(self._locked(lambda: self._meddle(rule, ttl_s)))

    async def meddled(self, rule: MessageRule) -> MessageCounts | None:
        """See Messages."""
        counts = await self._locked(lambda: self._api.message_counts(self._proxy, toxic_name(rule)))
        return None if counts is None else MessageCounts(counts["seen"], counts["matched"], counts["affected"])

    async def restore(self, rule: MessageRule) -> None:
        """See Messages."""
        await asyncio.shield(self._locked(lambda: self._restore(rule)))

    def apply(self, toxic: MessageToxic) -> None:
        """Put a toxic in force."""
        self._api.add_message_toxic(self._proxy, toxic)

    def _meddle(self, rule: MessageRule, ttl_s: float) -> None:
        name = toxic_name(rule)
        if name in map(toxic_name, self._open):
            raise HandleError(f"{self._node}: {name} is in force already")
        toxic = MessageToxic(name, toxic_kind(rule), rule.direction, toxic_attributes(rule), round(ttl_s * 1_000))
        entry = ToxicEntry(api_url=self._api.url, proxy=self._proxy, toxic=name, expires_unix_s=time.time() + ttl_s)
        self._open[rule] = self._undo.add(entry)
        self.apply(toxic)

    def _restore(self, rule: MessageRule) -> None:
        if rule in self._open:
            self._api.remove_toxic(self._proxy, toxic_name(rule))
            self._undo.done(self._open[rule])
            del self._open[rule]

    async def _locked(self, work: Callable[[], T]) -> T:
        async with self._lock:
            try:
                return await asyncio.to_thread(work)
            except (ToxiproxyError, UndoError) as error:
                raise HandleError(f"{self._node}: {error}") from error
