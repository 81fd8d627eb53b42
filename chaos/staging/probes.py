"""Prometheus queries as probes: each gives one number, which has to keep its limits."""

import math
from typing import Any

import msgspec

from chaos.staging.ask import AskError, ask_json
from chaos.target import Probe, Target


class _Data(msgspec.Struct, frozen=True):
    resultType: str
    result: Any


class _Result(msgspec.Struct, frozen=True):
    status: str
    data: _Data | None = None
    error: str = ""


def read_probe(url: str, query: str) -> float:
    """The number that an instant query gives: a scalar, or a vector of one. Raises AskError."""
    result = ask_json(f"{url.rstrip('/')}/api/v1/query", _Result, params={"query": query})
    if result.status != "success" or result.data is None:
        raise AskError(f"{url}: {result.error or 'no result'}"[:300])
    try:
        match result.data.resultType, result.data.result:
            case "scalar", [_, value]:
                return float(value)
            case "vector", [{"value": [_, value]}]:
                return float(value)
            case "vector", [*series]:
                raise AskError(f"{url}: {query!r} gives {len(series)} series, expected one number")
    except (TypeError, ValueError):
        pass
    raise AskError(f"{url}: {query!r} gives no number")


def judge_probe(name: str, probe: Probe, value: float) -> str:
    """How a value breaks a probe's limits; empty when it keeps them. Not a number keeps none."""
    high = probe.at_most is not None and not value <= probe.at_most
    low = probe.at_least is not None and not value >= probe.at_least
    if not (high or low or math.isnan(value)):
        return ""
    limit = f"at most {probe.at_most:g}" if high else f"at least {probe.at_least:g}"
    return f"probe {name}: {value:g}, expected {limit}"


def ask_probes(target: Target) -> list[str]:
    """Ask all probes of a target; a line for each that does not hold. Raises AskError when one cannot be had."""
    if target.prometheus is None:
        return []
    url = target.prometheus.url
    judged = [
        judge_probe(name, probe, read_probe(url, probe.query)) for name, probe in target.prometheus.probes.items()
    ]
    return [line for line in judged if line]
