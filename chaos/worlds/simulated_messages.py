"""The messages on a simulated node's link, under the same faults as real NATS frames."""

from collections.abc import Sequence
from random import Random

import msgspec
from msgspec.structs import replace

from chaos.toxiproxy.embedded.message_choice import MessageChoice
from chaos.toxiproxy.embedded.message_fault import MessageFault
from chaos.worlds.messages import toxic_attributes, toxic_kind, toxic_name
from chaos.worlds.world import HandleError, MessageCounts, MessageRule
from cluster.protocol import Subject, decode, encode
from cluster.simulation.cluster import SimulatedCluster
from cluster.simulation.meddling import Meddlers, Parcel

_TRAVEL_S = 0.001


class _Meddler:
    """A message fault at work on parcels; see cluster.simulation.meddling.Meddler."""

    def __init__(self, choice: MessageChoice) -> None:
        self._fault: MessageFault[Parcel] = MessageFault(choice, _with_payload)

    @property
    def counts(self) -> dict[str, int]:
        return self._fault.counts

    def feed(self, parcel: Parcel, now_s: float) -> Sequence[Parcel]:
        if parcel.message is None:
            # Garbled once, it is whatever its bytes happen to be.
            return [parcel]
        payload = encode(parcel.message)
        return self._fault.feed(parcel, Subject.of(parcel.to), payload, len(payload), now_s)

    def due_s(self) -> float | None:
        return self._fault.due_s()

    def release(self, now_s: float) -> Sequence[Parcel]:
        return self._fault.release(now_s)

    def flush(self) -> Sequence[Parcel]:
        return self._fault.flush()


class SimulatedMessages:
    """See chaos.worlds.world.Messages. A rule ends by itself after its TTL, as it does in a live world."""

    def __init__(self, cluster: SimulatedCluster, node: str, seed: int) -> None:
        self._cluster = cluster
        self._node = node
        self._seed = seed
        self._rules: dict[MessageRule, _Meddler] = {}

    async def meddle(self, rule: MessageRule, ttl_s: float) -> None:
        """See Messages."""
        kernel = self._cluster.kernel
        await kernel.sleep(_TRAVEL_S)
        name = toxic_name(rule)
        if name in map(toxic_name, self._rules):
            raise HandleError(f"{self._node}: {name} is in force already")
        # Of its own, so that one rule more changes nothing about the others.
        seed = Random(f"{self._seed}/{self._node}/{name}").getrandbits(63)
        try:
            meddler = _Meddler(MessageChoice(toxic_kind(rule), toxic_attributes(rule), seed))
        except ValueError as error:
            raise HandleError(f"{self._node}: {error}") from error
        self._rules[rule] = meddler
        self.apply(rule, meddler)
        kernel.at(kernel.now + ttl_s, lambda: self._expire(rule, meddler))

    def apply(self, rule: MessageRule, meddler: _Meddler) -> None:
        """Put a rule to work."""
        self._way(rule).add(meddler)

    async def meddled(self, rule: MessageRule) -> MessageCounts | None:
        """See Messages."""
        await self._cluster.kernel.sleep(_TRAVEL_S)
        meddler = self._rules.get(rule)
        if meddler is None:
            return None
        counts = meddler.counts
        return MessageCounts(counts["seen"], counts["matched"], counts["affected"])

    async def restore(self, rule: MessageRule) -> None:
        """See Messages."""
        await self._cluster.kernel.sleep(_TRAVEL_S)
        meddler = self._rules.get(rule)
        if meddler is not None:
            self._expire(rule, meddler)

    def _expire(self, rule: MessageRule, meddler: _Meddler) -> None:
        if self._rules.get(rule) is meddler:
            del self._rules[rule]
            self._way(rule).remove(meddler)

    def _way(self, rule: MessageRule) -> Meddlers:
        # Each incarnation of the node has its own link, with the same meddlers on it.
        link = self._cluster.nodes[self._node].link
        return link.up if rule.direction == "upstream" else link.down


def _with_payload(parcel: Parcel, payload: bytes) -> Parcel:
    try:
        return replace(parcel, message=decode(payload))
    except msgspec.DecodeError:
        return replace(parcel, message=None)
