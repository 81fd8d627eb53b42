"""What `/metrics` says, in Prometheus' text format: live byte counters, and figures of this process."""

from collections.abc import Callable, Iterator, Mapping

from prometheus_client import CollectorRegistry, GCCollector, PlatformCollector, ProcessCollector, generate_latest
from prometheus_client.core import CounterMetricFamily
from prometheus_client.registry import Collector

from chaos.toxiproxy.embedded.traffic import Traffic, TrafficKey

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"


class Metrics:
    """traffic: asked for the byte counters, None to leave them out. runtime: whether to tell of the process."""

    def __init__(self, traffic: Callable[[], Mapping[TrafficKey, Traffic]] | None, runtime: bool) -> None:
        self._registry = CollectorRegistry()
        if runtime:
            ProcessCollector(registry=self._registry)
            PlatformCollector(registry=self._registry)
            GCCollector(registry=self._registry)
        if traffic is not None:
            self._registry.register(_TrafficCollector(traffic))

    def text(self) -> bytes:
        """All of it."""
        return generate_latest(self._registry)


class _TrafficCollector(Collector):
    def __init__(self, traffic: Callable[[], Mapping[TrafficKey, Traffic]]) -> None:
        self._traffic = traffic

    def collect(self) -> Iterator[CounterMetricFamily]:
        received = CounterMetricFamily("toxiproxy_proxy_received_bytes", "Bytes read", labels=TrafficKey._fields)
        sent = CounterMetricFamily("toxiproxy_proxy_sent_bytes", "Bytes passed on", labels=TrafficKey._fields)
        for key, traffic in sorted(self._traffic().items()):
            received.add_metric(key, traffic.received_bytes)
            sent.add_metric(key, traffic.sent_bytes)
        yield received
        yield sent

    def describe(self) -> Iterator[CounterMetricFamily]:
        return self.collect()
