import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import msgspec
import psutil
import pytest

from chaos import heal
from chaos.healing import heal_all, heal_entry
from chaos.undo import (
    DisabledEntry,
    FrozenEntry,
    ProcessEntry,
    ProxyEntry,
    ToxicEntry,
    UndoError,
    UndoLog,
    is_alive,
    read_log,
    undo_directory,
)
from tests.toxiproxy.stub_server import PROXY, Answer, OneProxy, body, stub_server

NOWHERE = "http://127.0.0.1:1"
TOXIC = ToxicEntry(api_url=NOWHERE, proxy="w", toxic="slow", expires_unix_s=5.0)


@pytest.fixture(autouse=True)
def _own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLX_CHAOS_CACHE", str(tmp_path))


def _start(code: str) -> subprocess.Popen[bytes]:
    process = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, start_new_session=True)
    assert process.stdout is not None
    assert process.stdout.readline() == b"ready\n"
    return process


def _entry(process: subprocess.Popen[bytes], *, group: bool = False) -> ProcessEntry:
    created_s = psutil.Process(process.pid).create_time()
    return ProcessEntry(pid=process.pid, created_s=created_s, name="sleeper", group=group)


SLEEP = "import time; print('ready', flush=True); time.sleep(60)"
STUBBORN = f"import signal; signal.signal(signal.SIGTERM, signal.SIG_IGN); {SLEEP}"


def _frozen(process: subprocess.Popen[bytes], **changes: float) -> FrozenEntry:
    created_s = psutil.Process(process.pid).create_time()
    return FrozenEntry(pid=process.pid, created_s=created_s + changes.get("later_s", 0.0), name="sleeper")


def _freeze(process: subprocess.Popen[bytes]) -> psutil.Process:
    process.send_signal(signal.SIGSTOP)
    seen = psutil.Process(process.pid)
    ends_s = time.monotonic() + 5
    while seen.status() != psutil.STATUS_STOPPED:
        assert time.monotonic() < ends_s
        time.sleep(0.01)
    return seen


def test_a_frozen_process_goes_on_and_so_does_none_that_is_another() -> None:
    process = _start(SLEEP)
    try:
        seen = _freeze(process)
        assert heal_entry(_frozen(process, later_s=60.0)).healed, "another process has that number now"
        assert seen.status() == psutil.STATUS_STOPPED
        result = heal_entry(_frozen(process))
        assert (result.healed, "goes on" in result.text) == (True, True)
        assert seen.status() != psutil.STATUS_STOPPED
        assert heal_entry(_frozen(process)).healed, "twice is as good as once"
    finally:
        process.kill()
        process.wait()
    assert heal_entry(FrozenEntry(pid=process.pid, created_s=time.time(), name="sleeper")).healed


def test_a_frozen_process_is_woken_before_it_is_asked_to_end() -> None:
    process = _start(SLEEP)
    _freeze(process)
    results = heal_all([_entry(process), _frozen(process)])
    assert [(type(each.entry), each.healed) for each in results] == [(FrozenEntry, True), (ProcessEntry, True)]
    assert process.wait(5) == -signal.SIGTERM


def test_entries_are_on_disk_before_add_returns_and_until_done() -> None:
    log = UndoLog.create("run-1")
    first = log.add(TOXIC)
    second = log.add(ProxyEntry(api_url=NOWHERE, proxy="w"))
    content = read_log(log.path)
    assert [(entry.id, type(entry)) for entry in content.entries] == [(first, ToxicEntry), (second, ProxyEntry)]
    assert content.entries[0].expires_unix_s == 5.0
    assert content.runner is not None
    assert is_alive(content.runner.pid, content.runner.created_s)
    assert log.path.stat().st_mode & 0o077 == 0
    log.done(second)
    assert [entry.id for entry in log.open_entries()] == [first]
    assert not log.close()
    assert log.path.exists()


def test_a_clean_log_leaves_no_file() -> None:
    log = UndoLog.create("run-1")
    log.done(log.add(TOXIC))
    assert log.close()
    assert list(undo_directory().iterdir()) == []


def test_a_torn_line_spoils_neither_what_is_before_nor_what_comes_after() -> None:
    log = UndoLog.create("run-1")
    log.add(TOXIC)
    with log.path.open("ab") as file:
        file.write(b'\n{"undo":"toxic","api_ur')
    assert [len(read_log(log.path).entries), read_log(log.path).torn] == [1, 1]
    UndoLog(log.path, "k").add(DisabledEntry(api_url=NOWHERE, proxy="w"))
    assert [entry.id for entry in log.open_entries()] == ["r1", "k1"]


def test_no_entry_can_be_added_to_a_log_that_the_keeper_has_deleted() -> None:
    log = UndoLog.create("run-1")
    UndoLog(log.path, "k").close()
    with pytest.raises(UndoError):
        log.add(TOXIC)


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs a device that is always full")
def test_a_full_disk_forbids_the_injection() -> None:
    with pytest.raises(UndoError, match="No space left"):
        UndoLog(Path("/dev/full"), "r").add(TOXIC)


def test_one_run_has_one_log() -> None:
    UndoLog.create("run-1")
    for name in ("run-1", "../x", ""):
        with pytest.raises(UndoError):
            UndoLog.create(name)


def test_a_server_that_has_ended_has_no_faults_any_more() -> None:
    results = heal_all([TOXIC, DisabledEntry(api_url=NOWHERE, proxy="w"), ProxyEntry(api_url=NOWHERE, proxy="w")])
    assert [result.healed for result in results] == [True, True, True]
    assert [type(result.entry) for result in results] == [ProxyEntry, DisabledEntry, ToxicEntry]
    assert "server has ended" in results[0].text


BORROWED = (
    ToxicEntry(api_url=NOWHERE, proxy="w", toxic="slow", borrowed=True),
    DisabledEntry(api_url=NOWHERE, proxy="w", borrowed=True),
)


def test_a_server_of_somebody_else_that_is_out_of_reach_still_has_its_faults() -> None:
    results = heal_all(BORROWED)
    assert [result.healed for result in results] == [False, False]
    assert all("NOT healed" in result.text and "nothing listens there" in result.text for result in results)


@pytest.mark.parametrize("entry", BORROWED, ids=lambda entry: type(entry).__name__)
def test_what_answers_in_place_of_such_a_server_does_not_heal_it(entry: ToxicEntry | DisabledEntry) -> None:
    """A gateway whose backend is away says 404 to everything; Toxiproxy itself has a list in which the proxy is not."""
    with stub_server(lambda method, path: (404, b"404 page not found")) as (url, _):
        assert not heal_entry(msgspec.structs.replace(entry, api_url=url)).healed
    with stub_server(lambda method, path: (200, b"{}") if path == "/proxies" else (404, b"{}")) as (url, _):
        result = heal_entry(msgspec.structs.replace(entry, api_url=url))
    assert result.healed
    assert "proxy is gone" in result.text


def test_a_log_from_before_is_read_as_about_proxies_of_our_own() -> None:
    log = UndoLog.create("run-1")
    with log.path.open("ab") as file:
        file.write(b'\n{"undo":"disabled","id":"r1","api_url":"http://127.0.0.1:1","proxy":"w"}')
    assert log.open_entries() == [DisabledEntry(id="r1", api_url=NOWHERE, proxy="w")]


def test_what_was_not_verified_is_not_called_healed_and_the_rest_goes_on() -> None:
    def stays(method: str, path: str) -> Answer:
        toxic = {"name": "slow", "type": "latency", "stream": "upstream", "toxicity": 1.0, "attributes": {}}
        return 200, body(PROXY | {"toxics": [toxic]})

    with stub_server(stays) as (url, _):
        results = heal_all([TOXIC, ToxicEntry(api_url=url, proxy="w", toxic="slow")])
    assert {
        result.entry.api_url == url: result.healed for result in results if isinstance(result.entry, ToxicEntry)
    } == {
        True: False,
        False: True,
    }


def test_a_process_is_ended_kindly_or_by_force() -> None:
    kind, stubborn = _start(SLEEP), _start(STUBBORN)
    started = time.monotonic()
    results = heal_all([_entry(kind), _entry(stubborn)])
    assert time.monotonic() - started < 3
    assert all(result.healed for result in results)
    assert [kind.wait(), stubborn.wait()] == [-signal.SIGTERM, -signal.SIGKILL]
    assert heal_entry(results[0].entry).text.endswith("had ended already")


def test_a_stopped_process_is_ended_too() -> None:
    process = _start(SLEEP)
    os.kill(process.pid, signal.SIGSTOP)
    assert heal_entry(_entry(process)).healed
    process.wait()


def test_another_process_with_the_pid_is_never_signalled() -> None:
    process = _start(SLEEP)
    try:
        entry = _entry(process)
        other = ProcessEntry(pid=entry.pid, created_s=entry.created_s - 100, name="old")
        assert heal_entry(other).text.endswith("had ended already")
        assert process.poll() is None
        assert not heal_entry(ProcessEntry(pid=os.getpid(), created_s=psutil.Process().create_time(), name="me")).healed
    finally:
        process.kill()
        process.wait()


def test_a_group_ends_with_its_leader_or_is_left_alone_without_it() -> None:
    parent = (
        f"import subprocess, sys; subprocess.Popen([sys.executable, '-c', {STUBBORN!r}]); import time; time.sleep(60)"
    )
    process = _start(parent)
    child = psutil.Process(process.pid).children()[0]
    entry = _entry(process, group=True)
    assert heal_entry(entry).healed
    assert not child.is_running() or child.status() == psutil.STATUS_ZOMBIE
    process.wait()

    process = _start(parent)
    child = psutil.Process(process.pid).children()[0]
    entry = _entry(process, group=True)
    process.kill()
    process.wait()
    result = heal_entry(entry)
    assert not result.healed
    assert str(child.pid) in result.text
    child.kill()


def _heal(*arguments: str) -> int:
    arguments_before = sys.argv
    sys.argv = ["heal", *arguments]
    try:
        return heal.main()
    finally:
        sys.argv = arguments_before


def test_heal_command_skips_live_runners_and_heals_after_dead_ones(capsys: pytest.CaptureFixture[str]) -> None:
    assert _heal() == 0
    log = UndoLog.create("run-1")
    log.add(TOXIC)
    assert _heal() == 0
    assert "is alive, skipped" in capsys.readouterr().out
    text = log.path.read_text()
    log.path.write_text(text.replace(f'"pid":{os.getpid()}', '"pid":999999999'))
    assert _heal("--list") == 1
    assert "run-1: toxic slow on proxy w" in capsys.readouterr().out
    assert _heal() == 0
    assert "server has ended" in capsys.readouterr().out
    assert not log.path.exists()


def _orphan(log: UndoLog) -> None:
    log.path.write_text(log.path.read_text().replace(f'"pid":{os.getpid()}', '"pid":999999999'))


def test_heal_command_finishes_it_when_the_server_of_somebody_else_answers_again(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(heal, "_TRY_S", 0.1)
    server = OneProxy([])
    server.state["enabled"] = False
    with stub_server(server.answer, server.bodies) as (url, seen):
        log = UndoLog.create("run-1")
        log.add(DisabledEntry(api_url=NOWHERE, proxy="w", borrowed=True))
        _orphan(log)
        assert _heal() == 1
        said = capsys.readouterr().out
        assert "NOT healed" in said
        assert "if it is gone for good, --forget run-1" in said
        assert log.path.exists()
        log.path.write_text(log.path.read_text().replace(NOWHERE, url))
        assert _heal() == 0
        assert "enabled" in capsys.readouterr().out
        assert server.state["enabled"]
        assert "POST /proxies/w" in seen
    assert not log.path.exists()


def test_heal_command_forgets_what_nobody_can_heal_when_it_is_told_to(capsys: pytest.CaptureFixture[str]) -> None:
    log = UndoLog.create("run-1")
    log.add(BORROWED[1])
    for name in ("run-1", "run-2", "../x"):
        assert _heal("--forget", name) == 1, "a run that lives, or none"
    _orphan(log)
    assert log.path.exists()
    assert _heal("--forget", "run-1") == 0
    assert "forgotten: proxy w at http://127.0.0.1:1: disabled, to be enabled" in capsys.readouterr().out
    assert not log.path.exists()


def test_heal_command_says_what_it_could_not_heal(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(heal, "_TRY_S", 0.1)
    with stub_server(lambda method, path: (500, b"broken")) as (url, _):
        log = UndoLog.create("run-1")
        log.add(ToxicEntry(api_url=url, proxy="w", toxic="slow"))
        log.path.write_text(log.path.read_text().replace(f'"pid":{os.getpid()}', '"pid":999999999'))
        assert _heal() == 1
    assert "not healed" in capsys.readouterr().out
    assert log.path.exists()
