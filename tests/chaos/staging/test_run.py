"""Whole runs at a small cluster of somebody else, in this process."""

import json
import threading
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

from chaos.run import main
from tests.chaos.staging.fakes import FakeCluster, FakeNode, fake_cluster

SETTINGS = (
    "phases.warm_up.duration_s=0.5",
    "phases.baseline.duration_s=6",
    "phases.fault.duration_s=10",
    "phases.recovery.duration_s=10",
    "faults.cut.start_s=1",
    "faults.cut.duration_s=8",
    "recovery_limit_s=4",
    "workload.rate_max=40/s",
)


@pytest.fixture
def cluster(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeCluster]:
    monkeypatch.setenv("MLX_CHAOS_CACHE", str(tmp_path / "cache"))
    with fake_cluster(tmp_path) as found:
        yield found


def run(cluster: FakeCluster, settings: Sequence[str] = (), **changes: Any) -> tuple[int, dict[str, Any]]:
    """The exit code and the verdict."""
    words = [word for setting in (*SETTINGS, *settings) for word in ("--set", setting)]
    target, out = str(cluster.file(**changes)), cluster.folder / "out"
    code = main(["staging_link", "--world", "staging", "--target", target, "--out", str(out), *words])
    return code, json.loads((out / "latest" / "verdict.json").read_bytes())


def test_a_cluster_that_is_sick_at_once_is_left_alone(cluster: FakeCluster) -> None:
    before = cluster.proxy()
    cluster.web.status = 503
    code, verdict = run(cluster)
    assert (code, verdict["verdict"]) == (4, "invalid")
    assert "the cluster is sick already, nothing was done to it" in verdict["reasons"][0]
    assert "HTTP_503: sick" in verdict["reasons"][0]
    assert (verdict["counts"]["offered"], verdict["faults"]) == (0, [])
    assert cluster.proxy() == before
    assert cluster.web.asked <= 3


def test_a_cluster_that_is_sick_in_the_baseline_is_not_hurt(
    cluster: FakeCluster, capsys: pytest.CaptureFixture[str]
) -> None:
    before = cluster.proxy()

    def sicken() -> None:
        while cluster.web.asked < 10:
            time.sleep(0.01)
        cluster.web.status = 500

    threading.Thread(target=sicken, daemon=True).start()
    # The budget must be larger than what fails until then, or it would end the run before.
    code, verdict = run(cluster, budget={"failed_requests": 5_000, "fault_s": 300})
    assert (code, verdict["verdict"]) == (4, "invalid")
    assert any("nothing was injected: the cluster is sick already" in reason for reason in verdict["reasons"])
    assert all(fault["injected_s"] is None for fault in verdict["faults"])
    assert "injected partition" not in capsys.readouterr().out
    assert cluster.proxy() == before


@pytest.mark.verify
@pytest.mark.parametrize(
    "settings",
    [
        (),
        ("faults.cut.mode=black_hole",),
        ("faults.cut.mode=refuse",),
        ("faults.cut.mode=reset", "phases.fault.duration_s=14", "faults.cut.duration_s=12"),
        (
            *("faults.cut.kind=latency", "faults.cut.mode=null", "faults.cut.options={latency_ms: 150}"),
            *("phases.fault.duration_s=35", "faults.cut.duration_s=32"),
        ),
    ],
    ids=["stall", "black_hole", "refuse", "reset", "latency"],
)
def test_a_whole_run(cluster: FakeCluster, settings: Sequence[str]) -> None:
    before = cluster.proxy()
    probes = {"value": {"query": "v", "at_most": 1}}
    code, verdict = run(
        cluster,
        settings,
        stop={"url": f"{cluster.web.url}/stop"},
        prometheus={"url": cluster.web.url, "probes": probes},
    )
    assert (code, verdict["verdict"]) == (0, "pass"), verdict["reasons"]
    assert [fault["verified"] for fault in verdict["faults"]] == [True]
    judged = {each["number"]: each["verdict"] for each in verdict["invariants"]}
    assert {number for number, told in judged.items() if told == "pass"} == {1, 2, 4, 7, 9}
    assert {number for number, told in judged.items() if told == "not_applicable"} == {3, 5, 6, 8}
    assert cluster.proxy() == before


@pytest.mark.verify
def test_a_node_that_goes_another_way_is_no_proof(cluster: FakeCluster) -> None:
    """The proxy is cut, but the broker still hears somebody of the node's name."""
    around = FakeNode("worker-0", cluster.bus.port)
    code, verdict = run(cluster)
    around.close()
    assert (code, verdict["verdict"]) == (4, "invalid")
    assert "did not prove that it took effect" in " ".join(verdict["reasons"])
