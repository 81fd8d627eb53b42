"""Dashboard and alerts: their metrics are those of the gateway, their PromQL parses, their limits are the run's."""

import asyncio
import functools
import json
from pathlib import Path

import promql_parser
import pytest
import yaml
from prometheus_client.parser import text_string_to_metric_families

from analysis.dashboards import Norms, alerts, grafana, main, norms, panels, rules
from cluster.live.prometheus import GatewayMetrics, NodeStatus
from tests.analysis.histories import clean_run

NORMS = Norms("baseline", 0.2, 0.1, 0.01)


async def _text() -> str:
    """/metrics of a gateway that has had a request, whose gauges look at the running loop."""
    metrics = GatewayMetrics(lambda: 0.0, lambda: 0.0)
    metrics.cluster.nodes = (
        NodeStatus("controller", True, workers={"worker-0": ("ready", "closed")}),
        NodeStatus("worker-0", True),
    )
    metrics.requests.labels("chat", "ok").inc()
    metrics.ended(1, 1, 1, 0.1)
    return metrics.text().decode()


@functools.cache
def shown() -> dict[str, list[dict[str, str]]]:
    """Every sample name that the gateway's /metrics shows, with the labels of its samples."""
    found: dict[str, list[dict[str, str]]] = {}
    for family in text_string_to_metric_families(asyncio.run(_text())):
        for sample in family.samples:
            found.setdefault(sample.name, []).append(sample.labels)
    return found


def expressions() -> list[str]:
    asked = [expression for panel in panels(NORMS) for expression, _ in panel.queries]
    return [*asked, *(alert.expression for alert in alerts(NORMS, 2.0))]


def selectors(expression: str) -> list[promql_parser.VectorSelector]:
    """Every selector in it. Raises ValueError when it is not PromQL."""
    found: list[promql_parser.VectorSelector] = []

    def look(node: object) -> bool:
        if isinstance(node, promql_parser.VectorSelector):
            found.append(node)
        return True

    promql_parser.walk(promql_parser.parse(expression), look)
    return found


@pytest.mark.parametrize("expression", expressions())
def test_every_expression_parses_and_names_only_what_the_gateway_shows(expression: str) -> None:
    named = selectors(expression)
    assert named
    known = shown()
    for selector in named:
        assert selector.name in known
        for matcher in selector.matchers.matchers:
            assert any(matcher.name in labels for labels in known[selector.name])
            if matcher.name == "state":
                assert matcher.value in {labels["state"] for labels in known[selector.name]}


def test_a_metric_that_nobody_shows_would_be_noticed() -> None:
    (selector,) = selectors("max(mlxc_node_qeue_depth) > 1")
    assert selector.name not in shown()


def test_limits_are_the_baselines_times_the_factor() -> None:
    found = {alert.name: alert.expression for alert in alerts(NORMS, 3.0)}
    assert found["MlxcRequestsSlow"].endswith("> 0.6")
    assert found["MlxcFirstTokenLate"].endswith("> 0.3")
    unknown = {alert.name for alert in alerts(Norms("baseline", None, None, None), 3.0)}
    assert set(found) - unknown == {"MlxcRequestsSlow", "MlxcFirstTokenLate", "MlxcTokensSlow"}


def test_panels_lie_side_by_side_and_draw_the_runs_own_figure() -> None:
    dashboard = grafana(panels(NORMS), "title")
    places = [(panel["gridPos"]["x"], panel["gridPos"]["y"]) for panel in dashboard["panels"]]
    assert len(set(places)) == len(places)
    assert {x for x, _ in places} == {0, 12}
    (latency,) = [panel for panel in dashboard["panels"] if panel["title"] == "Whole requests"]
    assert latency["fieldConfig"]["defaults"]["thresholds"]["steps"][1]["value"] == NORMS.latency_p95_s
    assert dashboard["__inputs"][0]["name"] in latency["datasource"]["uid"]
    assert json.loads(json.dumps(dashboard)) == dashboard


def test_norms_are_of_the_baseline_phase() -> None:
    own = norms(clean_run().history())
    assert own.phase == "baseline"
    assert own.latency_p95_s == pytest.approx(0.2, rel=0.5)


def test_rules_keep_every_alert() -> None:
    watched = alerts(NORMS, 2.0)
    written = yaml.safe_load(yaml.safe_dump(rules(watched)))
    assert [rule["alert"] for rule in written["groups"][0]["rules"]] == [alert.name for alert in watched]
    assert all(rule["annotations"]["summary"] for rule in written["groups"][0]["rules"])


def test_what_cannot_be_read_is_said_in_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([str(tmp_path)]) == 2
    with pytest.raises(SystemExit, match="2"):
        main([str(tmp_path), "--factor", "1"])
    first, *_, second = capsys.readouterr().err.splitlines()
    assert "run.json" in first or "missing" in first
    assert "--factor: expected a number, more than 1" in second
