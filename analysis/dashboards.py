"""`python -m analysis.dashboards DIR`: a Grafana dashboard and Prometheus alert rules whose limits come from a run.

The figures of an undisturbed phase of the run in DIR become the lines of the dashboard and, times a factor, the limits
of the alerts. The metrics are those that the gateway of `python -m cluster.serve` shows under /metrics.
"""

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import msgspec
import yaml

from analysis.arguments import NotWritable, check_writable, path, real_number
from analysis.facts import CannotJudge
from analysis.history import History, UnreadableError
from analysis.metrics import measure
from analysis.reader import load_history

EXIT_USAGE = 2
FACTOR = 2.0
"""How many times the run's own figure an alert allows."""
QUEUE_MAX = 50
"""Waiting requests that are too many, whatever the run had."""
FAILED_SHARE_MAX = 0.01
MEMORY_GROWTH_MAX = 0.1
"""Of the mean, in an hour."""
BREAKER_TRIPS_MAX = 3
"""Of one controller in a minute, from which on a breaker flaps."""
_COLUMNS, _WIDTH, _HEIGHT = 24, 12, 8


class Norms(msgspec.Struct, frozen=True):
    """What the run measured while nothing was wrong, in seconds; None where it had too few requests to say."""

    phase: str
    latency_p95_s: float | None
    ttft_p95_s: float | None
    inter_token_p95_s: float | None


class Panel(msgspec.Struct, frozen=True):
    """A plot: PromQL expressions with their legends. unit: Grafana's name. norm: the run's own figure, as a line."""

    title: str
    queries: tuple[tuple[str, str], ...]
    unit: str = "short"
    norm: float | None = None


class Alert(msgspec.Struct, frozen=True):
    """A rule: it fires when the expression has held for so long. meaning: what that tells, and what to look at."""

    name: str
    expression: str
    lasting: str
    severity: str
    meaning: str


def norms(history: History) -> Norms:
    """Of the run's baseline phase. Raises CannotJudge when it never began."""
    phase = str(history.experiment.get("baseline_phase") or "baseline")
    value = {name: measure(history, name, phase).value for name in Norms.__struct_fields__ if name != "phase"}
    return Norms(phase, **value)


def panels(own: Norms) -> list[Panel]:
    """The dashboard, from what callers see down to what nodes hold."""
    ended = "sum(rate(mlxc_gateway_requests_total[1m]))"
    return [
        Panel("Requests by outcome", (("sum by (code) (rate(mlxc_gateway_requests_total[1m]))", "{{code}}"),), "reqps"),
        Panel("Failed share", ((f'{_failed("1m")} / {ended}', "failed"),), "percentunit", FAILED_SHARE_MAX),
        Panel("Time to first token", _quantiles("mlxc_gateway_time_to_first_token_seconds"), "s", own.ttft_p95_s),
        Panel("Time between tokens", _quantiles("mlxc_gateway_time_between_tokens_seconds"), "s",
              own.inter_token_p95_s),
        Panel("Whole requests", _quantiles("mlxc_gateway_request_seconds"), "s", own.latency_p95_s),
        Panel("Tokens", (("sum by (kind) (rate(mlxc_gateway_tokens_total[1m]))", "{{kind}}"),), "short"),
        Panel("Queue depth", (("mlxc_node_queue_depth", "{{node}}"),), "short", QUEUE_MAX),
        Panel("Batch", (('mlxc_node_active{role="worker"}', "{{node}}"),)),
        Panel("Memory of the ledger", (("mlxc_node_memory_bytes", "{{node}}"),), "bytes"),
        Panel("Kept caches", (("mlxc_node_cache_bytes", "{{node}}"), ("mlxc_node_kv_bytes", "{{node}} running")),
              "bytes"),
        Panel("Sessions that found their cache", ((f"{_hits} / ({_hits} + {_misses})", "share"),), "percentunit"),
        Panel("Workers by state", (("sum by (state) (mlxc_worker_state)", "{{state}}"),)),
        Panel("Breakers by state", (("sum by (state) (mlxc_breaker_state)", "{{state}}"),)),
        Panel("Retries, migrations, breaker trips",
              tuple((f"sum(increase(mlxc_node_{what}[1m]))", what.replace("_", " "))
                    for what in ("retries", "migrations", "breaker_trips"))),
        Panel("Starts after a crash", (("mlxc_node_restarts", "{{node}}"),)),
        Panel("Gateway", (("mlxc_gateway_open_requests", "open requests"), ("mlxc_gateway_connections", "connections"),
                          ("mlxc_gateway_tasks", "tasks"))),
    ]  # fmt: skip


def alerts(own: Norms, factor: float) -> list[Alert]:
    """The rules. A figure that the run could not tell has none."""
    found = [
        Alert("MlxcNodeDown", "mlxc_node_up == 0", "1m", "page", "The process of {{ $labels.node }} does not run."),
        Alert("MlxcNodeRestarts", "increase(mlxc_node_restarts[15m]) > 2", "0m", "page",
              "{{ $labels.node }} was started again more than twice in 15 minutes: read its log."),
        Alert("MlxcNoWorkerReady", 'sum(mlxc_worker_state{state="ready"}) < 1', "30s", "page",
              "No controller calls any worker ready: callers get NO_WORKERS_AVAILABLE."),
        Alert("MlxcRequestsFail",
              f'{_failed("5m")} / sum(rate(mlxc_gateway_requests_total[5m])) > {FAILED_SHARE_MAX:g}',
              "2m", "page", "More than one request in a hundred does not end well: see the codes by outcome."),
        Alert("MlxcQueueDeep", f"max(mlxc_node_queue_depth) > {QUEUE_MAX}", "1m", "ticket",
              "Requests wait: more is asked than can be made. More workers, or a lower rate."),
        Alert("MlxcBreakerFlaps", f"increase(mlxc_node_breaker_trips[1m]) >= {BREAKER_TRIPS_MAX}", "0m", "ticket",
              "A breaker opens again and again: one worker answers some requests and fails others."),
        Alert("MlxcMemoryGrows",
              f"deriv(mlxc_node_memory_bytes[1h]) * 3600 > {MEMORY_GROWTH_MAX:g} * "
              "avg_over_time(mlxc_node_memory_bytes[1h])",
              "1h", "ticket", "{{ $labels.node }} holds more and more, more than a tenth in an hour."),
    ]  # fmt: skip
    for name, metric, norm, what in (
        ("MlxcFirstTokenLate", "time_to_first_token_seconds", own.ttft_p95_s, "first tokens come"),
        ("MlxcTokensSlow", "time_between_tokens_seconds", own.inter_token_p95_s, "tokens follow each other"),
        ("MlxcRequestsSlow", "request_seconds", own.latency_p95_s, "whole requests end"),
    ):
        if norm:
            meaning = f"p95: {what} more than {factor:g} times as late as the {norm:.3g} s of the baseline."
            expression = f"{_quantile(0.95, f'mlxc_gateway_{metric}', '5m')} > {norm * factor:.6g}"
            found.append(Alert(name, expression, "5m", "ticket", meaning))
    return found


def grafana(shown: Sequence[Panel], title: str) -> dict[str, Any]:
    """The dashboard as Grafana imports it; it asks for the Prometheus data source to use."""
    source = {"type": "prometheus", "uid": "${DS_PROMETHEUS}"}
    drawn = []
    for number, panel in enumerate(shown):
        steps: list[dict[str, Any]] = [{"color": "green", "value": None}]
        if panel.norm:
            steps.append({"color": "red", "value": panel.norm})
        column, row = number * _WIDTH % _COLUMNS, number * _WIDTH // _COLUMNS * _HEIGHT
        drawn.append(
            {
                "id": number + 1,
                "title": panel.title,
                "type": "timeseries",
                "datasource": source,
                "gridPos": {"x": column, "y": row, "w": _WIDTH, "h": _HEIGHT},
                "fieldConfig": {
                    "defaults": {
                        "unit": panel.unit,
                        "min": 0,
                        "custom": {"thresholdsStyle": {"mode": "dashed" if panel.norm else "off"}},
                        "thresholds": {"mode": "absolute", "steps": steps},
                    },
                    "overrides": [],
                },
                "targets": [
                    {"refId": chr(ord("A") + place), "expr": expression, "legendFormat": legend, "datasource": source}
                    for place, (expression, legend) in enumerate(panel.queries)
                ],
            }
        )
    asked = {"name": "DS_PROMETHEUS", "label": "Prometheus", "type": "datasource", "pluginId": "prometheus"}
    return {
        "__inputs": [asked | {"pluginName": "Prometheus", "description": ""}],
        "title": title,
        "uid": "mlxc-cluster",
        "schemaVersion": 39,
        "editable": True,
        "refresh": "10s",
        "time": {"from": "now-1h", "to": "now"},
        "tags": ["mlx", "inference"],
        "panels": drawn,
    }


def rules(watched: Sequence[Alert]) -> dict[str, Any]:
    """The alerts as a Prometheus rule file."""
    return {
        "groups": [
            {
                "name": "mlxc",
                "rules": [
                    {
                        "alert": alert.name,
                        "expr": alert.expression,
                        "for": alert.lasting,
                        "labels": {"severity": alert.severity},
                        "annotations": {"summary": alert.meaning},
                    }
                    for alert in watched
                ],
            }
        ]
    }


def _failed(window: str) -> str:
    return f'sum(rate(mlxc_gateway_requests_total{{code!="ok"}}[{window}]))'


def _quantile(share: float, histogram: str, window: str) -> str:
    return f"histogram_quantile({share:g}, sum by (le) (rate({histogram}_bucket[{window}])))"


def _quantiles(histogram: str) -> tuple[tuple[str, str], ...]:
    return tuple((_quantile(share, histogram, "1m"), f"p{share * 100:g}") for share in (0.5, 0.95, 0.99))


_hits, _misses = (f"sum(increase(mlxc_node_session_{what}[5m]))" for what in ("hits", "misses"))


def main(arguments: Sequence[str] | None = None) -> int:
    """Write `grafana.json` and `alerts.yaml`. Returns the exit code."""
    parser = argparse.ArgumentParser(prog="python -m analysis.dashboards", description=__doc__)
    parser.add_argument("directory", type=Path, help="results directory of a run with a baseline phase")
    factor = real_number(1, 100, above=True)
    parser.add_argument("--factor", type=factor, default=FACTOR, help="times the run's p95 that is allowed, default 2")
    parser.add_argument("--out", type=path, default=Path("dashboards"), help="default %(default)s")
    options = parser.parse_args(arguments)
    try:
        check_writable(options.out)
        history = load_history(options.directory)
        own = norms(history)
        options.out.mkdir(parents=True, exist_ok=True)
        title = f"MLX cluster, beside {history.info.run_id}"
        (options.out / "grafana.json").write_text(json.dumps(grafana(panels(own), title), indent=1) + "\n")
        written = yaml.safe_dump(rules(alerts(own, options.factor)), sort_keys=False, width=120)
        (options.out / "alerts.yaml").write_text(written)
    except NotWritable as error:
        return _complain(f"--out {error}")
    except (UnreadableError, OSError) as error:
        return _complain(str(error))
    except CannotJudge as error:
        return _complain(f"{options.directory}: {error}; a run with a baseline phase is needed")
    print(f"{options.out / 'grafana.json'}\n{options.out / 'alerts.yaml'}")
    return 0


def _complain(text: str) -> int:
    print(f"analysis.dashboards: {text}", file=sys.stderr)
    return EXIT_USAGE


if __name__ == "__main__":
    sys.exit(main())
