"""The keeper against runners that end in every way. Tests marked `live` use a real Toxiproxy; each takes seconds."""

import contextlib
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import msgspec
import psutil
import pytest

from chaos import keeper as keeping
from chaos.keeper import Keeper, KeeperError
from chaos.toxiproxy.adapter import Toxic, Toxiproxy
from chaos.undo import RUN_MARK, DisabledEntry, ProcessEntry, ToxicEntry, UndoLog, is_alive, undo_directory
from chaos.worlds.proxied import toxics
from chaos.worlds.world import Cut
from tests.chaos.toxiproxy.conformance.rig import free_port
from tests.toxiproxy.real_server import real_server, server_path
from tests.toxiproxy.stub_server import OneProxy, stub_server

SERVER = [sys.executable, "-c", "import time; print('serving', flush=True); time.sleep(60)"]

# A runner as the real one: log first, then inject. Other children of every kind must not keep the pipe open.
RUNNER = """
import multiprocessing, os, subprocess, sys, time
from pathlib import Path
import psutil
from chaos.keeper import Keeper
from chaos.toxiproxy.adapter import Toxic, Toxiproxy
from chaos.undo import ProcessEntry, ProxyEntry, ToxicEntry, UndoLog

def main(url, folder, ttl_s):
    log = UndoLog.create("test-run")
    keeper = Keeper.start(log.path, Path(folder))
    server = keeper.spawn("server", [sys.executable, "-c", "import time; time.sleep(60)"])
    plain = subprocess.Popen(["sleep", "60"], start_new_session=True)
    forked = multiprocessing.get_context("fork").Process(target=time.sleep, args=(60,))
    forked.start()
    log.add(ProcessEntry(pid=plain.pid, created_s=psutil.Process(plain.pid).create_time(), name="plain"))
    if url:
        api = Toxiproxy(url)
        log.add(ProxyEntry(api_url=url, proxy="w"))
        api.create_proxy("w", "127.0.0.1:0", "127.0.0.1:9")
        log.add(ToxicEntry(api_url=url, proxy="w", toxic="t", expires_unix_s=time.time() + ttl_s))
        api.add_toxic("w", Toxic("t", "timeout", "upstream", {"timeout": 0}))
    print(keeper.pid, server, plain.pid, forked.pid, flush=True)
    time.sleep(60)

main(sys.argv[1], sys.argv[2], float(sys.argv[3]))
"""


@pytest.fixture(autouse=True)
def _own_cache(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    if request.node.get_closest_marker("live"):
        server_path()
    monkeypatch.setenv("MLX_CHAOS_CACHE", str(tmp_path / "cache"))


@pytest.fixture
def keeper(tmp_path: Path) -> Iterator[tuple[Keeper, UndoLog]]:
    log = UndoLog.create("run-1")
    started = Keeper.start(log.path, tmp_path)
    yield started, log
    started.close()


def _eventually(condition: Callable[[], bool], limit_s: float) -> bool:
    ends_s = time.monotonic() + limit_s
    while not condition():
        if time.monotonic() > ends_s:
            return False
        time.sleep(0.05)
    return True


def _gone(pid: int) -> bool:
    try:
        return psutil.Process(pid).status() == psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return True


@contextlib.contextmanager
def _runner(folder: Path, url: str = "", ttl_s: float = 60.0) -> Iterator[tuple[int, list[int]]]:
    """A runner in a process of its own: its pid, and those of keeper, server, plain and forked child."""
    process = subprocess.Popen([sys.executable, "-c", RUNNER, url, str(folder), str(ttl_s)], stdout=subprocess.PIPE)
    pids: list[int] = []
    try:
        assert process.stdout is not None
        pids = [int(word) for word in process.stdout.readline().split()]
        assert len(pids) == 4
        yield process.pid, pids
    finally:
        process.kill()
        process.wait()
        for pid in pids[3:]:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        assert _eventually(lambda: all(_gone(pid) for pid in pids), 8.0)


def test_servers_start_write_their_output_and_stop(keeper: tuple[Keeper, UndoLog], tmp_path: Path) -> None:
    started, log = keeper
    pid = started.spawn("server", SERVER, {"SOME": "thing"})
    assert started.children() == {"server": None}
    # A session of their own: Ctrl-C in the runner's terminal reaches neither.
    assert os.getsid(pid) == os.getsid(started.pid) == started.pid
    assert _eventually(lambda: (tmp_path / "server.log").read_text() == "serving\n", 5.0)
    # In the log too: if the keeper itself is killed, somebody can still end its servers.
    assert [entry.pid for entry in log.open_entries() if isinstance(entry, ProcessEntry)] == [pid]
    with pytest.raises(KeeperError, match="runs already"):
        started.spawn("server", SERVER)
    started.stop_child("server")
    assert _gone(pid)
    assert log.open_entries() == []
    with pytest.raises(KeeperError, match="unknown"):
        started.stop_child("server")
    with pytest.raises(KeeperError, match="No such file"):
        started.spawn("nothing", ["/nowhere/at/all"])
    assert started.spawn("server", SERVER) != pid


def test_close_heals_ends_and_tells(keeper: tuple[Keeper, UndoLog]) -> None:
    started, log = keeper
    pid = started.spawn("server", SERVER)
    log.add(ToxicEntry(api_url="http://127.0.0.1:1", proxy="w", toxic="t"))
    healed = started.close()
    assert sorted(type(result.entry).__name__ for result in healed) == ["ProcessEntry", "ToxicEntry"]
    assert all(result.healed for result in healed)
    assert _gone(pid)
    assert not started.alive()
    assert not log.path.exists()
    assert started.close() == []


def test_a_dead_keeper_is_noticed_and_its_work_is_done_by_the_runner(keeper: tuple[Keeper, UndoLog]) -> None:
    started, log = keeper
    pid = started.spawn("server", SERVER)
    os.kill(started.pid, signal.SIGKILL)
    assert _eventually(lambda: not started.alive(), 2.0)
    with pytest.raises(KeeperError):
        started.children()
    assert [result.healed for result in started.close()] == [True]
    assert _gone(pid)
    assert not log.path.exists()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGHUP])
def test_signals_for_the_runner_do_not_end_the_keeper(keeper: tuple[Keeper, UndoLog], number: signal.Signals) -> None:
    os.kill(keeper[0].pid, number)
    time.sleep(0.1)
    assert keeper[0].children() == {}


def test_sigterm_is_an_orderly_end(keeper: tuple[Keeper, UndoLog]) -> None:
    started, log = keeper
    pid = started.spawn("server", SERVER)
    os.kill(started.pid, signal.SIGTERM)
    assert _eventually(lambda: not started.alive(), 20.0)
    assert _gone(pid)
    assert not log.path.exists()


def test_a_keeper_without_its_log_says_so(tmp_path: Path) -> None:
    with pytest.raises(KeeperError, match=r"keeper\.log"):
        Keeper.start(tmp_path / "missing.jsonl", tmp_path)
    assert "missing.jsonl" in (tmp_path / "keeper.log").read_text()


def test_kill_9_of_the_runner_ends_everything_although_other_children_live_on(tmp_path: Path) -> None:
    with _runner(tmp_path) as (runner, (keeper, server, plain, forked)):
        os.kill(runner, signal.SIGKILL)
        assert _eventually(lambda: all(_gone(pid) for pid in (keeper, server, plain)), 5.0)
        # Not recorded, so not ended; it inherited the runner's descriptors, yet did not hide the runner's end.
        assert not _gone(forked)
    assert list(undo_directory().iterdir()) == []


@pytest.mark.live
def test_kill_9_heals_a_toxiproxy_that_stays_up(tmp_path: Path) -> None:
    with real_server() as api, _runner(tmp_path, api.url) as (runner, _):
        assert [toxic.name for toxic in api.proxies()["w"].toxics] == ["t"]
        os.kill(runner, signal.SIGKILL)
        assert _eventually(lambda: api.proxies() == {}, 5.0)


@pytest.mark.live
def test_the_time_limit_heals_while_the_runner_hangs(tmp_path: Path) -> None:
    with real_server() as api, _runner(tmp_path, api.url, ttl_s=1.0) as (runner, (keeper, *_)):
        os.kill(runner, signal.SIGSTOP)
        assert _eventually(lambda: _toxics(api) == [], 4.0)
        assert not _gone(keeper)
        assert is_alive(runner, psutil.Process(runner).create_time())


def test_both_toxics_of_a_black_hole_go_in_one_replacement_and_what_is_healed_is_left_alone(
    keeper: tuple[Keeper, UndoLog],
) -> None:
    _, log = keeper
    server = OneProxy(
        [
            {"name": "hole_up", "type": "timeout", "stream": "upstream", "toxicity": 1.0, "attributes": {"timeout": 0}},
            {"name": "slow", "type": "latency", "stream": "upstream", "toxicity": 0.5, "attributes": {"latency": 7}},
            {"name": "hole_down", "type": "timeout", "stream": "downstream", "toxicity": 1.0, "attributes": {}},
        ]
    )
    with stub_server(server.answer, server.bodies) as (url, seen):
        for name, left_s in (("hole_up", -1), ("slow", 600), ("hole_down", -1)):
            log.add(ToxicEntry(api_url=url, proxy="w", toxic=name, expires_unix_s=time.time() + left_s))
        # They stay open, so the keeper looks after them again and again.
        assert _eventually(lambda: len(seen) >= 8, 8.0)
        changes = [request for request in seen if not request.startswith("GET ")]
    assert changes == ["DELETE /proxies/w", "POST /proxies", "POST /proxies/w/toxics"]
    assert [toxic["name"] for toxic in server.state["toxics"]] == ["slow"]


def _told(folder: Path, text: str) -> bool:
    return text in (folder / "keeper.log").read_text()


def test_a_borrowed_proxy_is_given_back_once_and_as_soon_as_its_server_answers_again(
    keeper: tuple[Keeper, UndoLog], tmp_path: Path
) -> None:
    """At the time limit nothing listens there. Afterwards its owner disables it, which is none of our business."""
    started, log = keeper
    port, server = free_port(), OneProxy([], enabled=False)
    url = f"http://127.0.0.1:{port}"
    log.add(DisabledEntry(api_url=url, proxy="w", borrowed=True, expires_unix_s=time.time() - 1))
    assert _eventually(lambda: _told(tmp_path, "NOT healed"), 10.0)
    assert len(log.open_entries()) == 1
    with stub_server(server.answer, server.bodies, port):
        assert _eventually(lambda: server.state["enabled"] is True, 10.0)
        assert _eventually(lambda: log.open_entries() == [], 5.0)
        server.state["enabled"] = False
        assert not _eventually(lambda: server.state["enabled"] is True, 1.5)
        assert [result.healed for result in started.close()] == []
        assert server.state["enabled"] is False


def test_a_keeper_stays_for_a_borrowed_proxy_until_it_is_healed_or_told_to_end(tmp_path: Path) -> None:
    """Both at once, for each takes seconds: one whose runner closes, and one whose runner is gone."""
    port, server = free_port(), OneProxy([], enabled=False)
    url = f"http://127.0.0.1:{port}"
    log, orphaned = UndoLog.create("run-1"), UndoLog.create("run-2")
    log.add(DisabledEntry(api_url=url, proxy="w", borrowed=True))
    orphaned.add(ToxicEntry(api_url=url, proxy="w", toxic="t", borrowed=True))
    (tmp_path / "orphan").mkdir()
    started, orphan = Keeper.start(log.path, tmp_path), Keeper.start(orphaned.path, tmp_path / "orphan")
    try:
        orphan._close_pipes()
        (result,) = started.close()
        assert not result.healed
        assert f"the keeper (pid {started.pid}) goes on trying" in result.text
        assert started.close() == [], "asked twice, it is not ended either"
        assert not log.close()
        assert started.alive()
        assert _eventually(lambda: _told(tmp_path / "orphan", "staying"), 15.0)
        assert orphan.alive()
        os.kill(orphan.pid, signal.SIGTERM)
        assert orphan._process.wait(10) == 1
        assert _told(tmp_path / "orphan", "NOT everything is healed: python -m chaos.heal")
        assert len(orphaned.open_entries()) == 1
        with stub_server(server.answer, server.bodies, port):
            assert started._process.wait(15) == 0
        assert server.state["enabled"] is True
        assert not log.path.exists()
    finally:
        for left in (started, orphan):
            left._process.kill()


def test_a_keeper_stays_for_nothing_that_is_forgotten_and_not_for_ever(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(keeping, "RETRY_S", 0.01)
    log = UndoLog.create("run-1")
    log.add(ToxicEntry(api_url="http://127.0.0.1:1", proxy="w", toxic="t", borrowed=True))
    reading, writing = os.pipe()
    monkeypatch.setattr(keeping, "_STAY_S_MAX", 0.2)
    assert keeping._stay(log.path, reading) is False
    said = capsys.readouterr().err
    assert said.count("nothing listens there") == 1, "what is said already is not said again"
    assert "NOT everything is healed" in said
    monkeypatch.setattr(keeping, "_STAY_S_MAX", 60.0)
    log.path.unlink()
    assert keeping._stay(log.path, reading) is True
    for end in (reading, writing):
        os.close(end)


@pytest.mark.live
@pytest.mark.verify
def test_black_holes_whose_node_has_left_are_healed_in_mid_run_again_and_again(
    keeper: tuple[Keeper, UndoLog],
) -> None:
    """Were their toxics removed one by one, the server (2.12) would crash at the next toxic."""
    _, log = keeper
    with real_server() as api, socket.create_server(("127.0.0.1", 0)) as listener:
        listener.settimeout(5)
        made = api.create_proxy("w", "127.0.0.1:0", f"127.0.0.1:{listener.getsockname()[1]}")
        slow = api.add_toxic("w", Toxic("slow", "latency", "upstream", {"latency": 7}, 0.5))
        log.add(ToxicEntry(api_url=api.url, proxy="w", toxic="slow", expires_unix_s=time.time() + 600))
        servers = []
        for _ in range(3):
            with socket.create_connection(("127.0.0.1", int(made.listen.rpartition(":")[2])), timeout=5) as client:
                servers.append(listener.accept()[0])
                client.sendall(b"x")
                assert servers[-1].recv(1) == b"x"
                entries = _cut(api, log)
                client.sendall(b"lost")
            # Same address, and what another fault has done there is still done.
            assert _eventually(lambda: api.proxy("w") == msgspec.structs.replace(made, toxics=(slow,)), 10.0)
            for entry in entries:
                log.done(entry)
        for server in servers:
            server.close()


def _cut(api: Toxiproxy, log: UndoLog) -> list[str]:
    """As a runner does that hangs afterwards; ids of the entries."""
    entries = []
    for toxic in toxics(Cut.BLACK_HOLE):
        entry = ToxicEntry(api_url=api.url, proxy="w", toxic=toxic.name, expires_unix_s=time.time() + 0.5)
        entries.append(log.add(entry))
        api.add_toxic("w", toxic)
    return entries


def _toxics(api: Toxiproxy) -> list[str] | None:
    """None in the moment in which the proxy is being replaced."""
    found = api.proxy("w")
    return None if found is None else [toxic.name for toxic in found.toxics]


def test_what_is_in_no_log_is_found_by_the_run_s_mark(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLX_CHAOS_CACHE", str(tmp_path))
    log = UndoLog.create("marked-run")
    keeper = Keeper.start(log.path, tmp_path)
    orphans = [
        subprocess.Popen(["sleep", "60"], env={**os.environ, RUN_MARK: run}, start_new_session=True)
        for run in ("marked-run", "another-run")
    ]
    try:
        healed = keeper.close()
        assert any(result.healed and f"pid {orphans[0].pid}" in result.text for result in healed)
        assert orphans[0].wait(5) != 0
        assert orphans[1].poll() is None
    finally:
        for orphan in orphans:
            orphan.kill()
            orphan.wait()
