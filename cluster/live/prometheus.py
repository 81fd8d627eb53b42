"""What the gateway measures, and what it is told of the cluster's nodes, as Prometheus metrics."""

import asyncio
from collections.abc import Callable, Iterator, Sequence

import msgspec
from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, ProcessCollector
from prometheus_client.core import GaugeMetricFamily
from prometheus_client.exposition import generate_latest
from prometheus_client.registry import Collector

from analysis.schema import Gauges
from cluster.controller.breaker import BreakerState
from cluster.controller.membership import Liveness

_FIRST_TOKEN_S = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0)
_BETWEEN_TOKENS_S = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5)
_DURATION_S = (0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0, 600.0)
_LEVELS: dict[str, str] = {
    "queue_depth": "requests that wait",
    "active": "sequences in the batch",
    "active_max": "the largest batch, -1: no bound",
    "open_requests": "requests that have not ended",
    "kv_bytes": "reserved for running requests",
    "cache_bytes": "kept for prompts to come",
    "memory_bytes": "weights, reservations and kept caches",
    "sessions": "sessions that are remembered",
    "tokens_made": "tokens since the node began",
    "session_hits": "requests since the node began that found their session's cache",
    "session_misses": "requests since the node began that did not",
    "retries": "retries since the node began",
    "migrations": "streams since the node began that went on elsewhere",
    "breaker_trips": "times since the node began that a breaker opened",
}


class NodeStatus(msgspec.Struct, frozen=True):
    """A node as whoever started it sees it. workers: for a controller, liveness and breaker of each worker."""

    name: str
    up: bool
    restarts: int = 0
    gauges: Gauges = Gauges()
    workers: dict[str, tuple[str, str]] = {}
    models: dict[str, str] = {}


class ClusterCollector(Collector):
    """The nodes' levels, as last told."""

    def __init__(self) -> None:
        self.nodes: Sequence[NodeStatus] = ()

    def collect(self) -> Iterator[GaugeMetricFamily]:
        """See prometheus_client."""
        up = GaugeMetricFamily("mlxc_node_up", "whether the node's process runs", labels=("node", "role"))
        restarts = GaugeMetricFamily("mlxc_node_restarts", "how often it was started again", labels=("node", "role"))
        for node in self.nodes:
            labels = (node.name, node.gauges.role)
            up.add_metric(labels, float(node.up))
            restarts.add_metric(labels, node.restarts)
        yield from (up, restarts)
        for level, meaning in _LEVELS.items():
            family = GaugeMetricFamily(f"mlxc_node_{level}", meaning, labels=("node", "role"))
            for node in self.nodes:
                if node.up:
                    family.add_metric((node.name, node.gauges.role), getattr(node.gauges, level))
            yield family
        yield from self._workers()

    def _workers(self) -> Iterator[GaugeMetricFamily]:
        """One series for each state, of which one is 1: what changes between two looks is then a change of values."""
        names = ("controller", "worker", "state")
        liveness = GaugeMetricFamily("mlxc_worker_state", "1 for the state of the worker", labels=names)
        breaker = GaugeMetricFamily("mlxc_breaker_state", "1 for the state of the worker's breaker", labels=names)
        for node in self.nodes:
            for worker, (alive, circuit) in node.workers.items():
                for family, present, states in ((liveness, alive, Liveness), (breaker, circuit, BreakerState)):
                    for state in states:
                        family.add_metric((node.name, worker, state), float(state == present))
        yield from (liveness, breaker)


class GatewayMetrics:
    """Everything that /metrics shows. code: `ok`, or why a request ended otherwise."""

    def __init__(self, open_requests: Callable[[], float], connections: Callable[[], float]) -> None:
        registry = self._registry = CollectorRegistry()
        self.cluster = ClusterCollector()
        registry.register(self.cluster)
        ProcessCollector(registry=registry)
        self.requests = Counter(
            "mlxc_gateway_requests", "HTTP requests that have ended", ("endpoint", "code"), registry=registry
        )
        self.tokens = Counter("mlxc_gateway_tokens", "tokens of requests that have ended", ("kind",), registry=registry)
        self._first = Histogram(
            "mlxc_gateway_time_to_first_token_seconds",
            "from the arrival of the request",
            buckets=_FIRST_TOKEN_S,
            registry=registry,
        )
        self._between = Histogram(
            "mlxc_gateway_time_between_tokens_seconds",
            "tokens that arrive together share the time since the last ones",
            buckets=_BETWEEN_TOKENS_S,
            registry=registry,
        )
        self._duration = Histogram(
            "mlxc_gateway_request_seconds", "completed requests as a whole", buckets=_DURATION_S, registry=registry
        )
        levels: tuple[tuple[str, str, Callable[[], float]], ...] = (
            ("open_requests", "requests that wait for tokens", open_requests),
            ("connections", "open HTTP connections", connections),
            ("tasks", "asyncio tasks of the process", lambda: float(len(asyncio.all_tasks()))),
        )
        for name, meaning, level in levels:
            Gauge(f"mlxc_gateway_{name}", meaning, registry=registry).set_function(level)

    def first_token(self, seconds: float) -> None:
        """A request's first token has come."""
        self._first.observe(seconds)

    def more_tokens(self, count: int, seconds: float) -> None:
        """`count` tokens came together, `seconds` after those before."""
        for _ in range(count):
            self._between.observe(seconds / count)

    def ended(self, prompt: int, completion: int, cached: int, seconds: float) -> None:
        """A request is complete."""
        for kind, count in (("prompt", prompt), ("completion", completion), ("cached", cached)):
            self.tokens.labels(kind).inc(count)
        self._duration.observe(seconds)

    def text(self) -> bytes:
        """In Prometheus's text format."""
        return generate_latest(self._registry)
