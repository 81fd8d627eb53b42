"""Children that end with their parent, are started again, and leave bounded logs."""

import asyncio
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import msgspec
import psutil
import pytest

from cluster.live import children
from cluster.live.children import BoundedLog, Child, ChildFailed, environment
from cluster.live.host import NodeSpec
from cluster.live.process import BeNode, CountingSink
from cluster.policy import LinkPolicy, Policy
from cluster.profiles import ProfileError, load_policy


def tether(*command: str) -> "subprocess.Popen[str]":
    argv = [sys.executable, "-P", "-m", "cluster.live.tether", *command]
    return subprocess.Popen(
        argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment()
    )


def test_a_tethered_program_ends_when_the_other_end_closes() -> None:
    with tether(sys.executable, "-c", "import time; time.sleep(60)") as holder:
        assert holder.stdout is not None
        child = psutil.Process(int(holder.stdout.readline()))
        assert child.is_running()
        assert holder.stdin is not None
        holder.stdin.close()
        assert holder.wait(10) == 0
        assert not child.is_running()


HEALS = """
import pathlib, signal, sys, time
folder = pathlib.Path(sys.argv[1])
def heal(*_):
    time.sleep(float(sys.argv[2]))
    (folder / "healed").touch()
    sys.exit(0)
signal.signal(signal.SIGTERM, heal)
(folder / "ready").touch()
time.sleep(60)
"""


@pytest.mark.parametrize(("patience_s", "heals_s", "healed"), [(30.0, 0.2, True), (0.1, 60.0, False)])
def test_a_program_may_heal_as_long_as_it_is_told(
    tmp_path: Path, patience_s: float, heals_s: float, healed: bool
) -> None:
    program = (sys.executable, "-c", HEALS, str(tmp_path), str(heals_s))
    with tether("--patience", str(patience_s), *program) as holder:
        assert holder.stdout is not None
        assert holder.stdin is not None
        child = psutil.Process(int(holder.stdout.readline()))
        while not (tmp_path / "ready").exists():
            assert holder.poll() is None
        holder.stdin.close()
        assert holder.wait(40) == 0
        assert not child.is_running()
    assert (tmp_path / "healed").exists() is healed


def test_a_tether_ends_as_its_program_does() -> None:
    with tether(sys.executable, "-c", "raise SystemExit(7)") as holder:
        assert holder.wait(10) == 7
    with tether("/nonexistent/program") as holder:
        assert holder.wait(10) == 127
        assert holder.stderr is not None
        assert "cannot be started" in holder.stderr.read()


def test_a_log_is_bounded_and_keeps_the_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(children, "_LOG_BYTES_MAX", 100)
    log = BoundedLog(tmp_path / "a.log")
    for number in range(100):
        log.write(f"line {number:04d}\n".encode())
    log.close()
    kept = (tmp_path / "a.log.1").read_text() + (tmp_path / "a.log").read_text()
    assert kept.endswith("line 0099\n")
    assert 100 <= len(kept) <= 200


def test_a_child_that_cannot_begin_says_why(tmp_path: Path) -> None:
    policy = Policy(link=LinkPolicy(connect_s=0.1))
    spec = NodeSpec("worker", "worker-0", "nats://u:a-password@127.0.0.1:1", policy, "", (), 1)

    async def begin(birth: BeNode) -> str:
        child = Child("worker-0", lambda: birth, tmp_path / "log", environment(), lambda line: None)
        try:
            with pytest.raises(ChildFailed) as caught:
                await child.start(30)
        finally:
            await child.stop()
        return str(caught.value)

    line = asyncio.run(begin(BeNode(msgspec.structs.replace(spec, role="juggler"))))
    assert "expected controller, worker or client, got 'juggler'" in line
    assert "a-password" not in line


def test_a_child_that_dies_is_started_again_and_later_each_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The child: a program of a few lines that speaks as `cluster.live.process` does."""
    package = tmp_path / "cluster" / "live"
    package.mkdir(parents=True)
    for folder in (package, package.parent):
        (folder / "__init__.py").touch()
    (package / "process.py").write_text(
        "import os, sys\nsys.stdin.readline()\n"
        'print(\'{"type":"ready","pid":%d,"port":0}\' % os.getpid(), flush=True)\nsys.stdin.read()\n'
    )
    said: list[str] = []

    async def play() -> None:
        spec = NodeSpec("worker", "worker-0", "nats://127.0.0.1:1", Policy(), "", (), 1)
        variables = {**environment(), "PYTHONPATH": str(tmp_path)}
        child = Child("worker-0", lambda: BeNode(spec), tmp_path / "log", variables, said.append)
        await child.start(30)
        try:
            for life in range(2):
                assert child.ready is not None
                os.kill(child.ready.pid, 9)
                async with asyncio.timeout(20):
                    while len(said) < 2 * life + 2:  # noqa: ASYNC110 - a list tells nobody
                        await asyncio.sleep(0.01)
                assert child.up
                assert child.restarts == life + 1
        finally:
            await child.stop()
        assert not child.up or child.ready is None or not psutil.pid_exists(child.ready.pid)

    monkeypatch.setattr(children, "_BACKOFF_S", 0.05)
    asyncio.run(asyncio.wait_for(play(), 60))
    waits = [line.rpartition(" in ")[2] for line in said if "starting it again" in line]
    assert waits == ["0.05 s", "0.1 s"]


def test_what_stays_up_keeps_no_rows() -> None:
    sink = CountingSink()
    for _ in range(3):
        sink.append(None, 0.0)  # type: ignore[arg-type]
    sink.flush()
    sink.close()
    assert sink.rows == 3


@pytest.mark.parametrize(
    ("content", "told"),
    [
        ("worker: {batch_max: 0}", "worker.batch_max"),
        ("nonsense: 1", "nonsense"),
        ("[", "not YAML"),
        ("link: {}\nlink: {}", "the key 'link' is there twice"),
        ("- 1", "array"),
    ],
)
def test_a_policy_that_is_none_is_told_in_one_line(tmp_path: Path, content: str, told: str) -> None:
    path = tmp_path / "policy.yaml"
    path.write_text(content)
    with pytest.raises(ProfileError) as caught:
        load_policy(str(path))
    assert told in str(caught.value)
    assert "\n" not in str(caught.value)


def test_policies_are_found_by_name_or_file(tmp_path: Path) -> None:
    assert load_policy("default") == Policy()
    path = tmp_path / "mine.yaml"
    path.write_text("worker: {batch_max: 3}")
    assert load_policy(str(path)).worker.batch_max == 3
    names: Sequence[str] = ("nowhere", str(tmp_path / "nowhere.yaml"))
    for name in names:
        with pytest.raises(ProfileError):
            load_policy(name)
