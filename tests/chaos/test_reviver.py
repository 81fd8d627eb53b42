"""Who kills a Ray node and starts it again: it does the second whatever becomes of the runner, and the first only once
it is asked to by somebody who knows the secret."""

import json
import os
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, cast

import msgspec
import psutil
import pytest

from chaos.worlds import orphan
from chaos.worlds.reviver import Plan, Told, start_command, strangers
from chaos.worlds.reviver_line import ReviverLine
from chaos.worlds.world import HandleError
from tests.processes import ROOT

RAYLET = [
    "/somewhere/raylet",
    "--raylet_socket_name=/tmp/ray/s/raylet",
    "--node_ip_address=10.77.1.2",
    "--static_resource_list=node:10.77.1.2,1.0,CPU,8,memory,100,object_store_memory,50,mlx,1,GPU,2",
    "--object_store_memory=7390369382",
    "--python_worker_command=python --gcs-address=other",
    "--gcs-address=10.77.1.1:6379",
]
SLEEP = "import time; time.sleep(60)"


def test_a_node_is_started_again_with_what_it_had() -> None:
    command = start_command(RAYLET)
    assert command[:4] == [sys.executable, "-m", "ray.scripts.scripts", "start"]
    assert command[4:9] == [
        "--address=10.77.1.1:6379",
        "--node-ip-address=10.77.1.2",
        "--num-cpus=8",
        "--num-gpus=2",
        "--object-store-memory=7390369382",
    ]
    assert json.loads(command[9].removeprefix("--resources=")) == {"mlx": 1.0}
    assert len(command) == 10


@pytest.mark.parametrize(
    ("raylet", "said"),
    [
        (
            [*RAYLET[:3], "--static_resource_list=CPU,8,node:__internal_head__,1.0", RAYLET[-1]],
            "the whole cluster ends",
        ),
        (RAYLET[:3], "is not understood: 'static_resource_list'"),
        ([*RAYLET[:3], "--static_resource_list=CPU", RAYLET[-1]], "is not understood"),
    ],
)
def test_what_is_no_node_to_be_killed_is_refused(raylet: list[str], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        start_command(raylet)


class Process:
    """In place of one that Ray has started."""

    def __init__(self, pid: int, title: str, mark: str = "") -> None:
        self.pid, self._title, self._mark = pid, title, mark

    def cmdline(self) -> list[str]:
        return [self._title]

    def environ(self) -> dict[str, str]:
        return {"MLX_CHAOS_RUN": self._mark} if self._mark else {}


def test_work_of_others_on_the_host_is_seen() -> None:
    ours = [Process(1, "ray::NodeActor", "run.host-1.0"), Process(2, "ray::OtherHostAgent", "run.host-1.0")]
    nobodys = [Process(3, "ray::IDLE"), Process(4, "ray::DashboardAgent"), Process(5, "ray::RuntimeEnvAgent")]
    theirs = [Process(6, "ray::Trainer"), Process(7, "ray::NodeActor", "other.host-1.0")]
    found = strangers(cast(Any, [*ours, *nobodys, *theirs, Process(8, "/bin/sh")]), "run.host-1.0")
    assert found == ["ray::Trainer (pid 6)", "ray::NodeActor (pid 7)"]


@pytest.fixture
def node(tmp_path: Path) -> Iterator[tuple[subprocess.Popen[bytes], Plan, Path]]:
    """In place of a Ray node: a process with a child, and a command that says that it was started again."""
    tree = f"import subprocess, sys, time; subprocess.Popen([sys.executable, '-c', {SLEEP!r}]); {SLEEP}"
    process = subprocess.Popen([sys.executable, "-c", tree])
    watched = psutil.Process(process.pid)
    while not watched.children():
        time.sleep(0.01)
    started = tmp_path / "started"
    start = (sys.executable, "-c", f"open({str(started)!r}, 'w').close()", "--address=nobody:1")
    yield process, Plan("", 0, "", 30.0, process.pid, (), start, dict(os.environ)), started
    for each in [*watched.children(recursive=True), watched] if watched.is_running() else []:
        each.kill()
    process.wait()


def begin(plan: Plan, line: ReviverLine, lease_s: float = 30.0) -> None:
    told = line.plan
    whole = msgspec.structs.replace(plan, host=told.host, port=told.port, secret=told.secret, lease_s=lease_s)
    _, pipe = orphan.start([sys.executable, "-m", "chaos.worlds.reviver"], os.environ | {"PYTHONPATH": str(ROOT)})
    with pipe:
        pipe.write(msgspec.json.encode(whole))


def await_file(path: Path, limit_s: float = 10.0) -> bool:
    ends_s = time.monotonic() + limit_s
    while not path.exists() and time.monotonic() < ends_s:
        time.sleep(0.02)
    return path.exists()


def test_it_kills_tells_and_starts_again_when_asked(node: tuple[subprocess.Popen[bytes], Plan, Path]) -> None:
    process, plan, started = node
    line = ReviverLine("127.0.0.1")
    begin(plan, line)
    line.accept()
    assert process.poll() is None, "nothing is killed before it is asked for"
    told = line.kill()
    assert (told.killed, told.left) == (2, 0)
    assert process.wait(5) == -9
    assert line.look().left == 0
    assert not started.exists()
    line.start()
    assert started.exists()
    line.close()


@pytest.mark.parametrize("way", ["the runner goes", "the runner is silent"])
def test_a_node_that_was_killed_comes_back_when(way: str, node: tuple[subprocess.Popen[bytes], Plan, Path]) -> None:
    _, plan, started = node
    line = ReviverLine("127.0.0.1")
    begin(plan, line, lease_s=30.0 if way == "the runner goes" else 0.5)
    line.accept()
    line.kill()
    if way == "the runner goes":
        line.close()
    assert await_file(started)
    line.close()


def test_nothing_is_killed_or_started_without_a_runner(node: tuple[subprocess.Popen[bytes], Plan, Path]) -> None:
    process, plan, started = node
    line = ReviverLine("127.0.0.1")
    begin(plan, line)
    line.accept()
    line.close()
    assert not await_file(started, 1.0)
    assert process.poll() is None


def test_who_does_not_know_the_secret_is_not_listened_to(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("chaos.worlds.reviver_line._ACCEPT_S", 1.0)
    line = ReviverLine("127.0.0.1")

    def intrude() -> None:
        with socket.create_connection(("127.0.0.1", line.plan.port)) as stranger:
            stranger.sendall(msgspec.json.encode(Told("guessed")) + b"\n")
            stranger.recv(10)

    thread = threading.Thread(target=intrude)
    thread.start()
    with pytest.raises(HandleError, match="nobody on the host was ready"):
        line.accept()
    line.close()
    thread.join()
