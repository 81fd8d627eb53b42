"""Handles of processes: what is frozen always goes on again, and what is killed or replaced is known to be away."""

import asyncio
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from chaos.healing import heal_log
from chaos.undo import FrozenEntry, UndoError, UndoLog
from chaos.worlds.processes import ActorProcess, Processes, status
from chaos.worlds.world import HandleError
from tests.processes import Run

EXPERIMENT = Path(__file__).with_name("processes.yaml")
NODE = "worker-0"


class Agent:
    """In place of the host's agent, without Ray."""

    class _Method:
        async def remote(self, pid: int, name: str) -> bool:
            try:
                os.kill(pid, signal.Signals[name])
            except ProcessLookupError:
                return False
            return True

    send_signal = _Method()


@pytest.fixture
def sleeper() -> Iterator[subprocess.Popen[bytes]]:
    process = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
    yield process
    process.kill()
    process.wait()


@pytest.fixture
def undo(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> UndoLog:
    monkeypatch.setenv("MLX_CHAOS_CACHE", str(tmp_path))
    return UndoLog.create("run-1")


def handle(sleeper: subprocess.Popen[bytes], undo: UndoLog) -> tuple[Processes, ActorProcess]:
    processes = Processes(lambda node: None)
    processes._agent = Agent()
    processes._pids = {NODE: sleeper.pid}
    return processes, ActorProcess(NODE, processes, undo, lambda: None, lambda node: {})


def test_a_frozen_process_is_written_down_first_and_thawed(sleeper: subprocess.Popen[bytes], undo: UndoLog) -> None:
    async def freeze_and_thaw() -> None:
        processes, process = handle(sleeper, undo)
        assert await process.alive()
        await process.freeze(30.0)
        assert not await process.alive()
        assert processes.present([NODE, "worker-1"]) == ["worker-1"]
        (entry,) = undo.open_entries()
        assert isinstance(entry, FrozenEntry)
        assert (entry.pid, entry.name) == (sleeper.pid, NODE)
        assert entry.expires_unix_s == pytest.approx(time.time() + 30.0, abs=5.0)
        await process.thaw()
        assert await process.alive()
        assert processes.present([NODE]) == [NODE]
        assert undo.open_entries() == []
        await process.thaw()

    asyncio.run(freeze_and_thaw())


def test_what_cannot_be_written_down_is_not_frozen(
    sleeper: subprocess.Popen[bytes], undo: UndoLog, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(entry: Any) -> str:
        raise UndoError("disk full")

    async def try_to_freeze() -> None:
        processes, process = handle(sleeper, undo)
        monkeypatch.setattr(undo, "add", full)
        with pytest.raises(HandleError, match="worker-0: disk full"):
            await process.freeze(30.0)
        assert await process.alive()
        assert processes.present([NODE]) == [NODE]

    asyncio.run(try_to_freeze())


def test_the_keepers_way_of_healing_lets_a_frozen_process_go_on(
    sleeper: subprocess.Popen[bytes], undo: UndoLog
) -> None:
    async def freeze() -> None:
        await handle(sleeper, undo)[1].freeze(30.0)

    asyncio.run(freeze())
    assert status(sleeper.pid) == psutil.STATUS_STOPPED
    results = heal_log(undo.path, "k", time.monotonic() + 2.0)
    assert [result.healed for result in results] == [True]
    assert status(sleeper.pid) != psutil.STATUS_STOPPED
    assert not undo.path.exists()


def test_a_killed_process_is_away(sleeper: subprocess.Popen[bytes], undo: UndoLog) -> None:
    async def kill() -> None:
        processes, process = handle(sleeper, undo)
        await process.kill()
        assert not await process.alive()
        assert processes.present([NODE]) == []
        with pytest.raises(HandleError, match=r"gone|acted"):
            await process.freeze(5.0)

    asyncio.run(kill())


@pytest.mark.live
@pytest.mark.verify
def test_kill_9_of_the_runner_leaves_no_frozen_process_behind(tmp_path: Path) -> None:
    settings = ("phases.baseline.duration_s=2", "faults.worker_kill.kind=freeze", "faults.worker_kill.duration_s=20")
    arguments = [str(EXPERIMENT), *(word for setting in settings for word in ("--set", setting))]
    with Run(arguments, tmp_path) as run:
        assert run.await_line("^injected process freeze worker-0", 120.0), run.tail()
        run.kill()
        run.wait(30.0)
        alive, _ = run.left()
    assert alive == []
