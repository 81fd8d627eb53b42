"""What a schedule tells Prometheus: over HTTP on loopback, or as a file for a node's exporter."""

from collections.abc import Callable, Iterator

from aiohttp import web
from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from chaos.scheduling.plan import Plan
from chaos.scheduling.records import CRASHED, DEADLINE, State

_VERDICTS = ("pass", "fail", "inconclusive", "invalid", "usage", "infrastructure", DEADLINE, CRASHED)
_LABELS = ("schedule", "entry", "experiment", "world")


class ScheduleMetrics(Collector):
    """The last verdicts and the slots of every entry. coming: when each entry is next due, Unix time, None: never."""

    def __init__(self, plan: Plan, state: State, coming: Callable[[str], float | None]) -> None:
        self._plan = plan
        self._state = state
        self._coming = coming
        self._registry = CollectorRegistry()
        self._registry.register(self)

    def text(self) -> bytes:
        """In Prometheus's text format."""
        return generate_latest(self._registry)

    def collect(self) -> Iterator[Metric]:
        """See prometheus_client."""
        verdict = GaugeMetricFamily(
            "mlxc_schedule_verdict",
            "1 for the last verdict of the entry, or why it has none",
            labels=(*_LABELS, "verdict"),
        )
        slots = CounterMetricFamily("mlxc_schedule_slots", "slots by how they ended", labels=(*_LABELS, "outcome"))
        levels = {
            name: GaugeMetricFamily(f"mlxc_schedule_{name}", meaning, labels=_LABELS)
            for name, meaning in (
                ("last_verdict_timestamp_seconds", "the slot of the last verdict"),
                ("last_pass_timestamp_seconds", "the slot of the last pass"),
                ("next_timestamp_seconds", "when the next slot is due"),
                ("quarantined", "whether it waits for somebody to acknowledge a failure"),
                ("running", "whether it runs now"),
            )
        }
        for name, entry in self._plan.entries.items():
            labels = (self._plan.name, name, entry.experiment, entry.world)
            state = self._state.entries.get(name)
            if state is None:
                continue
            for each in _VERDICTS:
                verdict.add_metric((*labels, each), float(state.standing == each))
            for outcome in ("ran", "interrupted", "missed"):
                slots.add_metric((*labels, outcome), getattr(state, outcome))
            values = {
                "last_verdict_timestamp_seconds": state.standing_slot_s or None,
                "last_pass_timestamp_seconds": state.passed_slot_s or None,
                "next_timestamp_seconds": self._coming(name),
                "quarantined": float(state.quarantined_s is not None),
                "running": float(any(run.entry == name for run in self._state.running)),
            }
            for level, value in values.items():
                if value is not None:
                    levels[level].add_metric(labels, value)
        yield from (verdict, slots, *levels.values())
        whole = (self._plan.name,)
        waiting = GaugeMetricFamily(
            "mlxc_schedule_notifications_waiting", "changes still to be told", labels=("schedule",)
        )
        waiting.add_metric(whole, len(self._state.changes))
        lost = GaugeMetricFamily("mlxc_schedule_notifications_lost", "the last changes given up", labels=("schedule",))
        lost.add_metric(whole, len(self._state.undelivered))
        yield from (waiting, lost)


async def serve(metrics: ScheduleMetrics, port: int) -> web.AppRunner:
    """Answer /metrics on loopback; port 0 for any free one. Raises OSError."""

    async def answer(_: web.Request) -> web.Response:
        return web.Response(body=metrics.text(), headers={"Content-Type": "text/plain; version=0.0.4; charset=utf-8"})

    application = web.Application()
    application.add_routes([web.get("/metrics", answer)])
    runner = web.AppRunner(application, access_log=None)
    await runner.setup()
    try:
        await web.TCPSite(runner, "127.0.0.1", port).start()
    except OSError:
        await runner.cleanup()
        raise
    return runner
