"""Whole runs at a small cluster of somebody else, in this process."""

import contextlib
import json
import socket
import threading
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

from chaos.run import main
from tests.chaos.staging.fakes import OWNER, FakeCluster, FakeNode, fake_cluster
from tests.processes import Run
from tests.toxiproxy.real_server import real_server, server_path

SETTINGS = (
    "phases.warm_up.duration_s=0.5",
    "phases.baseline.duration_s=6",
    "phases.fault.duration_s=10",
    "phases.recovery.duration_s=10",
    "faults.cut.start_s=1",
    "faults.cut.duration_s=8",
    "recovery_limit_s=4",
    "workload.rate=10/s",
    "workload.rate_max=40/s",
)


@pytest.fixture
def cluster(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeCluster]:
    monkeypatch.setenv("MLX_CHAOS_CACHE", str(tmp_path / "cache"))
    with fake_cluster(tmp_path) as found:
        yield found


TTL_S = 40.0
"""As the experiment has it."""
PATIENT = {"requests_min": 5, "window_s": 5, "success_min": 0.5}
"""A host that stands still for seconds must not make it look as if the cluster were sick."""


def run(cluster: FakeCluster, settings: Sequence[str] = (), **changes: Any) -> tuple[int, dict[str, Any]]:
    """The exit code and the verdict."""
    words = [word for setting in (*SETTINGS, *settings) for word in ("--set", setting)]
    target, out = str(cluster.file(**changes)), cluster.folder / "out"
    code = main(["staging_link", "--world", "staging", "--target", target, "--out", str(out), *words])
    return code, json.loads((out / "latest" / "verdict.json").read_bytes())


def demand(verdict: dict[str, Any], proof: str) -> None:
    """What must be so however slow the host is: proved, undone, judged as far as can be seen, and nothing broken."""
    assert [fault["verified"] for fault in verdict["faults"]] == [True], verdict["faults"]
    assert proof in json.dumps(verdict["faults"])
    judged = {each["number"]: each["verdict"] for each in verdict["invariants"]}
    assert {number for number, told in judged.items() if told == "not_applicable"} == {3, 5, 6, 8}
    assert [judged[number] for number in (1, 2, 4, 9)] == ["pass"] * 4
    assert verdict["counts"]["completed"] == verdict["counts"]["offered"] > 50
    clean = [each for each in verdict["criteria"] if each["name"].startswith("clean slate")]
    assert [each["verdict"] for each in clean] == ["pass"]


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
    assert any("the run was stopped: nothing was injected: " in reason for reason in verdict["reasons"])
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
    _, verdict = run(
        cluster,
        settings,
        stop={"url": f"{cluster.web.url}/stop"},
        prometheus={"url": cluster.web.url, "probes": probes},
        steady=PATIENT,
    )
    demand(verdict, "of the node's own connection" if "partition" in str(verdict["faults"]) else "a connection of ours")
    assert cluster.proxy() == before


@pytest.mark.verify
@pytest.mark.parametrize(
    "settings",
    [
        ("faults.cut.mode=stall",),
        ("faults.cut.mode=refuse",),
        ("faults.cut.mode=reset", "phases.fault.duration_s=14", "faults.cut.duration_s=12"),
        (
            *("faults.cut.kind=slicer", "faults.cut.mode=null"),
            "faults.cut.options={average_bytes: 100, delay_us: 10000}",
            *("phases.fault.duration_s=35", "faults.cut.duration_s=32"),
        ),
        (
            *("faults.cut.kind=bandwidth", "faults.cut.mode=null", "faults.cut.options={kb_per_s: 10}"),
            *("phases.fault.duration_s=35", "faults.cut.duration_s=32"),
        ),
        (
            *("faults.cut.kind=flap", "faults.cut.options={up_s: 2, down_s: 5}"),
            *("phases.fault.duration_s=32", "faults.cut.duration_s=30"),
        ),
    ],
    ids=["stall", "refuse", "reset", "slicer", "bandwidth", "flap"],
)
def test_a_whole_run_at_the_real_toxiproxy(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, settings: Sequence[str]
) -> None:
    """Without a monitoring endpoint as well: the witness is a connection of ours."""
    path = server_path()
    monkeypatch.setenv("MLX_CHAOS_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("TOXIPROXY_SERVER", path)
    with real_server() as api, fake_cluster(tmp_path, api.url) as cluster:
        before = cluster.proxy()
        link = {"toxiproxy": "all", "proxy": "w0", "upstream": before["upstream"], "speaks_every_s": 0.5}
        links = {"worker-0": link}
        fingerprint = {"models_owner": OWNER}
        _, verdict = run(cluster, settings, nats_monitoring=None, links=links, fingerprint=fingerprint, steady=PATIENT)
        over_and_over = {"reset": "every reset broke", "flap": "each of which bit"}
        proofs = [proof for name, proof in over_and_over.items() if name in str(settings)]
        demand(verdict, next(iter(proofs), "a connection of ours"))
        assert cluster.proxy() == before


@pytest.mark.verify
def test_a_node_that_goes_another_way_is_no_proof(cluster: FakeCluster) -> None:
    """The proxy is cut, but the broker still hears somebody of the node's name."""
    around = FakeNode("worker-0", cluster.bus.port)
    code, verdict = run(cluster, steady=PATIENT)
    around.close()
    assert (code, verdict["verdict"]) == (4, "invalid")
    assert "did not prove that it took effect" in " ".join(verdict["reasons"])


@pytest.mark.verify
@pytest.mark.parametrize("end", ["killed", "stopped", "interrupted"])
def test_a_run_that_ends_in_the_midst_of_a_fault_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, end: str
) -> None:
    """At the real Toxiproxy, whose toxics do not end by themselves: kill -9, the stop file, Ctrl-C."""
    path = server_path()
    monkeypatch.setenv("MLX_CHAOS_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("TOXIPROXY_SERVER", path)
    words = [word for setting in SETTINGS for word in ("--set", setting)]
    with real_server() as api, fake_cluster(tmp_path, api.url) as cluster:
        before = cluster.proxy()
        target = str(cluster.file(steady=PATIENT))
        with Run(["staging_link", "--world", "staging", "--target", target, *words], tmp_path / "out") as child:
            assert child.await_line("^injected", 60), child.tail()
            assert cluster.proxy() != before
            began_s = time.monotonic()
            match end:
                case "killed":
                    child.kill()
                case "stopped":
                    (tmp_path / "stop").touch()
                case _:
                    child.interrupt()
            while cluster.proxy() != before:
                assert time.monotonic() < began_s + TTL_S, "its time limit has passed"
                time.sleep(0.02)
            print(f"{end}: healed after {time.monotonic() - began_s:.2f} s")
            if end != "killed":
                # Inconclusive, also where it was stopped before its proof; invalid where this machine stood still.
                code = child.wait(60)
                said = " ".join(json.loads((tmp_path / "out/latest/verdict.json").read_bytes())["reasons"])
                spoilt = code == 4 and "the fault" not in said
                assert spoilt or code == {"stopped": 3, "interrupted": 130}[end], said
            assert child.left()[0] == []
        assert cluster.proxy() == before


@pytest.mark.verify
def test_a_fault_that_nobody_can_reach_any_more_is_said_to_be_there_and_healed_later(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The way to the API of the real Toxiproxy is lost in the midst of the fault, and is there again after the run."""
    path = server_path()
    monkeypatch.setenv("MLX_CHAOS_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("TOXIPROXY_SERVER", path)
    words = [word for setting in (*SETTINGS, "faults.cut.mode=refuse") for word in ("--set", setting)]
    with real_server() as api, fake_cluster(tmp_path, api.url) as cluster:
        before = cluster.proxy()
        port = int(api.url.rpartition(":")[2])
        with contextlib.ExitStack() as stack:
            way = stack.enter_context(Tunnel(port))
            target = str(cluster.file(steady=PATIENT, toxiproxies={"all": f"http://127.0.0.1:{way.port}"}))
            child = Run(["staging_link", "--world", "staging", "--target", target, *words], tmp_path / "out")
            stack.enter_context(child)
            assert child.await_line("^injected", 90), child.tail()
            way.close()
            (tmp_path / "stop").touch()
            code = child.wait(120)
            assert code == 1, child.tail()
            assert any("LEFT BEHIND" in line and "goes on trying" in line for line in child.lines), child.tail()
            assert "left behind" in " ".join(
                json.loads((tmp_path / "out/latest/verdict.json").read_bytes())["reasons"]
            )
            assert cluster.proxy()["enabled"] is False
            with Tunnel(port, way.port):
                ends_s = time.monotonic() + 20
                while cluster.proxy() != before:
                    assert time.monotonic() < ends_s, "the keeper has given up"
                    time.sleep(0.05)
                assert child.left()[0] == [], "it has nothing more to do"
        assert list((tmp_path / "cache" / "undo").iterdir()) == []


class Tunnel:
    """A port of its own that leads to another one, until it is closed."""

    def __init__(self, to: int, port: int = 0) -> None:
        self._to = to
        self._listener = socket.create_server(("127.0.0.1", port))
        self.port: int = self._listener.getsockname()[1]
        threading.Thread(target=self._accept, daemon=True).start()

    def __enter__(self) -> "Tunnel":
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def close(self) -> None:
        """New connections are refused from now on."""
        with contextlib.suppress(OSError):
            # On Linux a listener that is only closed goes on while somebody waits in accept.
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()

    def _accept(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                one, _ = self._listener.accept()
                other = socket.create_connection(("127.0.0.1", self._to))
                for source, sink in ((one, other), (other, one)):
                    threading.Thread(target=_pump, args=(source, sink), daemon=True).start()


def _pump(source: socket.socket, sink: socket.socket) -> None:
    with contextlib.suppress(OSError):
        while data := source.recv(65_536):
            sink.sendall(data)
    with contextlib.suppress(OSError):
        sink.shutdown(socket.SHUT_RDWR)
