"""`python -m chaos.worlds.reviver`: kills the Ray node of its host when told to, and starts it again when told to.

What is told to a host whose Ray node is gone cannot go through Ray, so this process holds a TCP connection to the
runner. When that ends, in whatever way, or nothing was heard over it for the plan's lease, the node is started again:
nobody's cluster stays smaller than it was. The plan, with the connection's secret in it, comes on standard input.
"""

import contextlib
import json
import os
import select
import socket
import subprocess
import sys
import time
from collections.abc import Iterable, Sequence
from pathlib import Path

import msgspec
import psutil

from chaos.undo import RUN_MARK
from chaos.worlds import orphan
from chaos.worlds.trees import kill_tree, runs

_CONNECT_S = 5.0
_START_S_MAX = 60.0
_GONE_S = 5.0
_POLL_S = 0.05
_LINE_BYTES_MAX = 2**16
_ACCOUNTED = ("memory", "object_store_memory", "CPU", "GPU")
_WORK = "ray::"
_NOBODYS = ("ray::IDLE", "ray::DashboardAgent", "ray::RuntimeEnvAgent")
_LOG_MONITOR = "ray/_private/log_monitor.py"


class Plan(msgspec.Struct, frozen=True):
    """What to do. host, port: where the runner listens. secret: what it knows us by. lease_s: its longest silence.

    raylet: pid of the node. spare: what is below it and must live, to heal there. start: the command that starts the
    node again. environment: of that command, which is what the node was started with.
    """

    host: str
    port: int
    secret: str
    lease_s: float
    raylet: int = 0
    spare: tuple[int, ...] = ()
    start: tuple[str, ...] = ()
    environment: dict[str, str] = {}


class Word(msgspec.Struct, frozen=True):
    """From the runner. ask: `kill`, `look` or `start`."""

    ask: str


class Told(msgspec.Struct, frozen=True):
    """To the runner. left: how many processes of the node still run. problem: one line, empty when there is none."""

    secret: str = ""
    killed: int = 0
    left: int = 0
    started: bool = False
    problem: str = ""


def raylet_above() -> psutil.Process:
    """The Ray node that the calling actor belongs to. Raises ValueError."""
    for process in psutil.Process().parents():
        if process.name() == "raylet":
            return process
    raise ValueError("this is no process of a Ray node")


def begin(plan: Plan) -> int:
    """Start a reviver for the Ray node that the calling actor belongs to; its pid. Raises ValueError and OSError."""
    raylet = raylet_above()
    others = strangers(raylet.children(recursive=True), os.environ.get(RUN_MARK, ""))
    if others:
        raise ValueError(f"other work runs on this host, and would die with its Ray node: {', '.join(others[:3])}")
    variables = {name: value for name, value in raylet.environ().items() if name != RUN_MARK}
    start = tuple(start_command(raylet.cmdline()))
    whole = msgspec.structs.replace(plan, raylet=raylet.pid, start=start, environment=variables)
    here = str(Path(__file__).resolve().parents[2])
    # Without the run's mark: it outlives the run's other processes here, and what it starts outlives the run.
    own = variables | {"PYTHONPATH": os.pathsep.join(filter(None, (here, variables.get("PYTHONPATH", ""))))}
    pid, pipe = orphan.start([sys.executable, "-m", "chaos.worlds.reviver"], own)
    with pipe:
        pipe.write(msgspec.json.encode(whole))
    return pid


def strangers(processes: Iterable[psutil.Process], mark: str) -> list[str]:
    """Those of a Ray node's processes that do somebody's work, and are not marked as ours."""
    found = []
    for process in processes:
        with contextlib.suppress(psutil.Error):
            title = (process.cmdline() or [""])[0]
            ours = process.environ().get(RUN_MARK) == mark
            if title.startswith(_WORK) and not title.startswith(_NOBODYS) and not ours:
                found.append(f"{title} (pid {process.pid})")
    return found


def start_command(raylet: Sequence[str]) -> list[str]:
    """`ray start` for a node like the one whose raylet has this command line. Raises ValueError."""
    flags = dict(word[2:].split("=", 1) for word in raylet if word.startswith("--") and "=" in word)
    try:
        resources = _resources(flags["static_resource_list"])
        command = [sys.executable, "-m", "ray.scripts.scripts", "start", f"--address={flags['gcs-address']}"]
        command += [f"--node-ip-address={flags['node_ip_address']}", f"--num-cpus={resources.get('CPU', 0):g}"]
    except (KeyError, ValueError) as error:
        raise ValueError(f"the command of this host's Ray node is not understood: {error}") from error
    if "node:__internal_head__" in resources:
        raise ValueError("this host is the head of the Ray cluster: with its end the whole cluster ends")
    if "GPU" in resources:
        command.append(f"--num-gpus={resources['GPU']:g}")
    if flags.get("object_store_memory"):
        command.append(f"--object-store-memory={flags['object_store_memory']}")
    own = {name: value for name, value in resources.items() if name not in _ACCOUNTED and not name.startswith("node:")}
    return [*command, f"--resources={json.dumps(own)}"]


def _resources(listed: str) -> dict[str, float]:
    words = listed.split(",")
    return {name: float(value) for name, value in zip(words[::2], words[1::2], strict=True)}


class Reviver:
    """One node's death and rebirth."""

    def __init__(self, plan: Plan, line: socket.socket) -> None:
        self._plan = plan
        self._line = line
        self._killed: list[psutil.Process] = []

    def run(self) -> int:
        """Obey, and start again what was killed; the exit code."""
        problem = ""
        try:
            with contextlib.suppress(OSError, msgspec.DecodeError):
                self._say()
                self._obey()
        finally:
            if self._killed:
                problem = self._start()
        with contextlib.suppress(OSError):
            self._say(started=not problem, problem=problem)
        return 1 if problem else 0

    def _kill(self) -> None:
        with contextlib.suppress(psutil.NoSuchProcess):
            self._killed += kill_tree(psutil.Process(self._plan.raylet), self._plan.spare)
        # It is not below the raylet, and without it the next one's would be the second.
        gcs = next(word for word in self._plan.start if word.startswith("--address=")).partition("=")[2]
        for process in psutil.process_iter():
            with contextlib.suppress(psutil.Error):
                words = process.cmdline()
                if any(word.endswith(_LOG_MONITOR) for word in words) and any(gcs in word for word in words):
                    self._killed += kill_tree(process)
        ends_s = time.monotonic() + _GONE_S
        while self._left() and time.monotonic() < ends_s:
            time.sleep(_POLL_S)

    def _left(self) -> int:
        return sum(runs(process) for process in self._killed)

    def _obey(self) -> None:
        """Until the runner says `start`, goes, or is silent for the lease."""
        heard_s, buffer = time.monotonic(), b""
        while time.monotonic() - heard_s < self._plan.lease_s:
            ready, _, _ = select.select([self._line], [], [], 1.0)
            if not ready:
                continue
            data = self._line.recv(4096)
            if not data or len(buffer) > _LINE_BYTES_MAX:
                return
            heard_s = time.monotonic()
            *lines, buffer = (buffer + data).split(b"\n")
            for text in lines:
                match msgspec.json.decode(text, type=Word).ask:
                    case "start":
                        return
                    case "kill":
                        self._kill()
                self._say()

    def _start(self) -> str:
        """Start the node; what went wrong, empty when nothing did."""
        try:
            done = subprocess.run(
                self._plan.start,
                env=self._plan.environment,
                stdin=subprocess.DEVNULL,
                capture_output=True,
                text=True,
                errors="replace",
                timeout=_START_S_MAX,
                check=False,
                cwd="/",
            )
        except (OSError, subprocess.TimeoutExpired) as error:
            return f"ray start: {error}"
        lines = [line.strip() for line in (done.stdout + done.stderr).splitlines() if line.strip()]
        return "" if done.returncode == 0 else f"ray start: {lines[-1][:300] if lines else done.returncode}"

    def _say(self, *, started: bool = False, problem: str = "") -> None:
        told = Told(self._plan.secret, len(self._killed), self._left(), started, problem)
        self._line.sendall(msgspec.json.encode(told) + b"\n")


def main() -> int:
    """Nothing is killed unless the runner can be reached: nobody could say when to start again."""
    plan = msgspec.json.decode(sys.stdin.buffer.read(), type=Plan)
    try:
        line = socket.create_connection((plan.host, plan.port), _CONNECT_S)
    except OSError:
        return 1
    with line:
        line.settimeout(_CONNECT_S)
        return Reviver(plan, line).run()


if __name__ == "__main__":
    sys.exit(main())
