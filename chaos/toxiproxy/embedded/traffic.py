"""How many bytes have passed, by direction, proxy and addresses: of living connections and of those that are gone."""

from collections.abc import Iterable, Mapping
from typing import NamedTuple


class TrafficKey(NamedTuple):
    """The labels of a byte counter, in Toxiproxy's order."""

    direction: str
    proxy: str
    listener: str
    upstream: str


class Traffic(NamedTuple):
    """Bytes received from the source and sent to the sink."""

    received_bytes: int
    sent_bytes: int

    def plus(self, other: "Traffic") -> "Traffic":
        """Both together."""
        return Traffic(self.received_bytes + other.received_bytes, self.sent_bytes + other.sent_bytes)


class TrafficBook:
    """What ended connections have moved, so that a counter never falls."""

    def __init__(self) -> None:
        self._ended: dict[TrafficKey, Traffic] = {}

    def add(self, key: TrafficKey, traffic: Traffic) -> None:
        """A connection has ended."""
        self._ended[key] = self._ended.get(key, Traffic(0, 0)).plus(traffic)

    def totals(self, living: Iterable[tuple[TrafficKey, Traffic]]) -> Mapping[TrafficKey, Traffic]:
        """With what living connections have moved so far."""
        totals = dict(self._ended)
        for key, traffic in living:
            totals[key] = totals.get(key, Traffic(0, 0)).plus(traffic)
        return totals
