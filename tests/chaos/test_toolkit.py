"""The bridge to Chaos Toolkit: what it hurts is undone in every case, and the shipped example runs."""

import contextlib
import json
import os
import re
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from chaos import toolkit
from chaos.toolkit import ToolkitError
from chaos.toxiproxy.adapter import Toxic, Toxiproxy
from chaos.undo import undo_directory
from tests.chaos.toxiproxy.conformance.rig import free_port, running
from tests.processes import ROOT
from tests.toxiproxy.real_server import real_server, server_path
from tests.toxiproxy.stub_server import OneProxy, stub_server

EXAMPLE = ROOT / "chaos" / "examples" / "chaostoolkit.json"
FOREIGN = Toxic("theirs", "latency", "upstream", {"latency": 7, "jitter": 0})


@pytest.fixture(scope="module")
def server() -> Iterator[Toxiproxy]:
    with running("embedded") as started:
        yield Toxiproxy(f"http://127.0.0.1:{started.port}")


@pytest.fixture
def proxy(server: Toxiproxy, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """With a toxic of somebody else."""
    monkeypatch.setenv("MLX_CHAOS_CACHE", str(tmp_path / "cache"))
    server.create_proxy("link", "127.0.0.1:0", "127.0.0.1:9")
    server.add_toxic("link", FOREIGN)
    yield "link"
    while toolkit._links:
        toolkit._links.pop().close()
    server.delete_proxy("link")


def left(server: Toxiproxy) -> tuple[bool, list[str]]:
    state = server.proxy("link")
    assert state is not None
    return state.enabled, [toxic.name for toxic in state.toxics]


@pytest.mark.parametrize("mode", ["black_hole", "stall", "refuse", "upstream", "downstream"])
def test_a_cut_is_healed_and_what_others_did_to_the_link_stays(server: Toxiproxy, proxy: str, mode: str) -> None:
    assert toolkit.cut_link(server.url, proxy, mode=mode)
    enabled, toxics = left(server)
    assert enabled is (mode != "refuse")
    assert mode == "refuse" or len(toxics) > 1
    assert not toolkit.link_is_whole(server.url, proxy)
    assert toolkit.heal_links()
    assert left(server) == (True, ["theirs"])
    assert toolkit.heal_links() == []


@pytest.mark.parametrize("kind", ["embedded", "real"])
def test_a_borrowed_proxy_is_never_made_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str) -> None:
    """What goes through it lives on, and arrives: also with the cut that is made unless another is asked for."""
    monkeypatch.setenv("MLX_CHAOS_CACHE", str(tmp_path / "cache"))
    if kind == "real":
        monkeypatch.setenv("TOXIPROXY_SERVER", server_path())
    with contextlib.ExitStack() as stack:
        if kind == "real":
            api = stack.enter_context(real_server())
        else:
            api = Toxiproxy(f"http://127.0.0.1:{stack.enter_context(running('embedded')).port}")
        listener = stack.enter_context(socket.create_server(("127.0.0.1", 0)))
        listener.settimeout(10)
        made = api.create_proxy("link", "127.0.0.1:0", f"127.0.0.1:{listener.getsockname()[1]}")
        api.add_toxic("link", FOREIGN)
        address = ("127.0.0.1", int(made.listen.rpartition(":")[2]))
        client = stack.enter_context(socket.create_connection(address, 10))
        end = stack.enter_context(listener.accept()[0])
        end.settimeout(10)
        try:
            for hurt in (toolkit.cut_link, toolkit.slow_link):
                hurt(api.url, "link", **({"latency_ms": 20} if hurt is toolkit.slow_link else {}))
                client.sendall(b"x")
                assert toolkit.heal_links()
                client.sendall(b"y")
                assert end.recv(1) + end.recv(1) == b"xy"
                assert left(api) == (True, ["theirs"])
            if kind == "real":
                with pytest.raises(ToolkitError, match="mode: black_hole needs the toxic `timeout`"):
                    toolkit.cut_link(api.url, "link", mode="black_hole")
        finally:
            toolkit._links.pop().close()


def test_what_its_owner_has_switched_off_since_the_time_limit_stays_off(server: Toxiproxy, proxy: str) -> None:
    toolkit.cut_link(server.url, proxy, mode="refuse", ttl_s=0.5)
    assert _soon(lambda: toolkit._links[0]._log.open_entries() == [])
    assert left(server)[0] is True
    server.set_enabled(proxy, False)
    toolkit.heal_links()
    assert left(server)[0] is False


def test_a_server_that_is_out_of_reach_is_not_called_healed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("MLX_CHAOS_CACHE", str(tmp_path / "cache"))
    one = OneProxy([])
    with stub_server(
        lambda method, path: (200, b'{"version": "2.12.0"}') if path == "/version" else one.answer(method, path),
        one.bodies,
    ) as (url, _):
        toolkit.cut_link(url, "w", mode="refuse")
    links = toolkit._links.pop()
    try:
        with pytest.raises(ToolkitError, match=r"1 of 1 NOT healed, tried again later: .*nothing listens there"):
            links.heal()
        links._keeper._process.kill()
        links._keeper._process.wait()
        links.close()
        assert "goes on trying" in capsys.readouterr().err, "a new one does the work of one that was killed"
        assert len(list(undo_directory().glob("*.jsonl"))) == 1
    finally:
        links._keeper._process.kill()
        links._keeper._process.wait()


def test_an_argument_of_another_type_is_told_in_a_line(server: Toxiproxy, proxy: str) -> None:
    """As they come from JSON, YAML and environment variables."""
    calls: list[tuple[str, Callable[..., object], dict[str, object]]] = [
        ("latency_ms: expected `float`, got `str`", toolkit.slow_link, {"latency_ms": "x"}),
        ("latency_ms: expected `float` >= 0.0", toolkit.slow_link, {"latency_ms": -5}),
        ("jitter_ms: expected `float`", toolkit.slow_link, {"jitter_ms": float("nan")}),
        ("bytes_per_s: expected `int | null`", toolkit.slow_link, {"bytes_per_s": "fast"}),
        ("slow_link: 7 bytes/s", toolkit.slow_link, {"bytes_per_s": 7}),
        ("ttl_s: expected `float`, got `str`, given '60'", toolkit.cut_link, {"ttl_s": "60"}),
        ("ttl_s: expected `float` <= 3600.0", toolkit.cut_link, {"ttl_s": 1e9}),
        ("allow_public: expected `bool`", toolkit.cut_link, {"allow_public": "false"}),
        ("mode: expected `str`", toolkit.cut_link, {"mode": None}),
        ("cut_link: got an unexpected keyword argument 'tll_s'", toolkit.cut_link, {"tll_s": 5}),
    ]
    for wrong, call, arguments in calls:
        with pytest.raises(ToolkitError, match=re.escape(wrong)) as caught:
            call(server.url, proxy, **arguments)
        assert "\n" not in str(caught.value)
    assert left(server) == (True, ["theirs"])
    for wrong, call, arguments in (
        ("toxiproxy_url: expected `str`", toolkit.link_is_whole, {"toxiproxy_url": 5, "proxy": proxy}),
        ("link_is_whole: missing a required argument: 'proxy'", toolkit.link_is_whole, {"toxiproxy_url": server.url}),
        ("duration_s: expected `float`", toolkit.endpoint_metric, {"url": "u", "model": "m", "duration_s": "1"}),
        ("seed: expected `int`", toolkit.run_experiment, {"experiment": "network_partition", "seed": "1"}),
        ("settings: expected `object | null`", toolkit.experiment_verdict, {"experiment": "x", "settings": [1]}),
        ("experiment_verdict: missing", toolkit.experiment_verdict, {}),
        ("nobody_knows", toolkit.experiment_verdict, {"experiment": "nobody_knows"}),
    ):
        with pytest.raises(ToolkitError, match=re.escape(wrong)):
            call(**arguments)


def test_a_slow_link_is_slow_both_ways(server: Toxiproxy, proxy: str) -> None:
    toolkit.slow_link(server.url, proxy, latency_ms=200, bytes_per_s=50_000)
    state = server.proxy(proxy)
    assert state is not None
    ours = {(toxic.type, toxic.stream) for toxic in state.toxics if toxic.name != "theirs"}
    assert ours == {(kind, way) for kind in ("latency", "bandwidth") for way in ("upstream", "downstream")}
    toolkit.heal_links()
    assert left(server) == (True, ["theirs"])


def test_a_time_limit_heals_although_nobody_asks(server: Toxiproxy, proxy: str) -> None:
    toolkit.cut_link(server.url, proxy, mode="refuse", ttl_s=0.5)
    assert _soon(lambda: left(server) == (True, ["theirs"]))
    toolkit.heal_links()


def test_killed_it_leaves_nothing_behind(server: Toxiproxy, proxy: str) -> None:
    code = f"from chaos.toolkit import cut_link; print(cut_link({server.url!r}, 'link'), flush=True); input()"
    with subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert process.stdout.readline()
        assert len(left(server)[1]) > 1
        process.kill()
    assert _soon(lambda: left(server) == (True, ["theirs"]))
    assert _soon(lambda: not list(undo_directory().glob("*.jsonl")))


def test_what_it_will_not_do_is_said_in_a_line(server: Toxiproxy, proxy: str) -> None:
    for wrong, call in (
        ("expected one of", lambda: toolkit.cut_link(server.url, proxy, mode="reset")),
        ("no such proxy", lambda: toolkit.cut_link(server.url, "nobody")),
        ("neither loopback nor private", lambda: toolkit.cut_link("http://8.8.8.8:8474", proxy)),
        ("ttl_s", lambda: toolkit.slow_link(server.url, proxy, ttl_s=0, latency_ms=1)),
        ("expected latency_ms", lambda: toolkit.slow_link(server.url, proxy)),
        ("no such metric", lambda: toolkit.endpoint_metric("http://127.0.0.1:1/v1", "m", metric="speed")),
    ):
        with pytest.raises(ToolkitError, match=wrong):
            call()
    server.set_enabled(proxy, False)
    with pytest.raises(ToolkitError, match="disabled already"):
        toolkit.cut_link(server.url, proxy, mode="refuse")
    assert left(server) == (False, ["theirs"]), "it must not be switched on by a heal either"


def test_every_function_of_the_example_is_there_and_takes_its_arguments() -> None:
    text = json.loads(EXAMPLE.read_text())
    activities = [*text["steady-state-hypothesis"]["probes"], *text["method"], *text["rollbacks"]]
    for activity in activities:
        provider = activity["provider"]
        assert provider["module"] == "chaos.toolkit"
        assert provider["func"] in toolkit.__all__
    names = {activity["provider"]["func"] for activity in activities}
    assert names >= {"endpoint_metric", "link_is_whole", "slow_link", "heal_links", "experiment_verdict"}
    from chaoslib.experiment import ensure_experiment_is_valid

    ensure_experiment_is_valid(text)


@pytest.mark.verify
@pytest.mark.parametrize("hurt", [False, True])
def test_the_shipped_example_runs(server: Toxiproxy, tmp_path: Path, hurt: bool) -> None:
    """hurt: the endpoint's link was hurt before by somebody else, so the steady state must not hold."""
    port = free_port()
    stub = subprocess.Popen(
        [sys.executable, "-m", "workloads.stub_server", "--port", str(port), "--ends-with-stdin"],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE,
    )  # fmt: skip
    assert stub.stdout is not None
    assert stub.stdout.readline()
    state = server.create_proxy("endpoint", "127.0.0.1:0", f"127.0.0.1:{port}")
    try:
        if hurt:
            server.add_toxic("endpoint", FOREIGN)
        environment = {
            **os.environ,
            "TOXIPROXY_URL": server.url,
            "PROXY": "endpoint",
            "ENDPOINT_URL": f"http://{state.listen}/v1",
            "MODEL": "stub",
            "MLX_CHAOS_CACHE": str(tmp_path / "cache"),
        }
        command = [str(Path(sys.executable).with_name("chaos")), "run", str(EXAMPLE)]
        done = subprocess.run(
            command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=280, check=False
        )
        journal = json.loads((tmp_path / "journal.json").read_text())
        if hurt:
            assert not journal["steady_states"]["before"]["steady_state_met"], done.stderr[-2_000:]
            assert not journal["run"]
        else:
            assert journal["status"] == "completed", done.stderr[-2_000:]
            assert not journal["deviated"]
            values = {run["activity"]["name"]: run["output"] for run in journal["run"]}
            assert values["callers-meanwhile-recorded-but-not-judged"] == 1.0
            for when in ("before", "after"):
                probes = {each["activity"]["name"]: each["output"] for each in journal["steady_states"][when]["probes"]}
                assert probes["decisions-survive-a-partition"] == "pass"
                assert probes["callers-are-served"] == 1.0
        after = server.proxy("endpoint")
        assert after is not None
        assert [toxic.name for toxic in after.toxics] == (["theirs"] if hurt else [])
    finally:
        stub.kill()
        stub.wait()
        server.delete_proxy("endpoint")


def _soon(true: Callable[[], object], limit_s: float = 15.0) -> bool:
    ends_s = time.monotonic() + limit_s
    while not true():
        if time.monotonic() > ends_s:
            return False
        time.sleep(0.05)
    return True
