"""Hosts for tests: network namespaces on one bridge, as Macs on a switch, and as much apart as one kernel allows.

Each host has its own address, processes, /tmp/ray, home, cache of this project and monotonic clock. What it shares is
the rest of the file system, so the folders of whoever must not be seen elsewhere are given by name and hidden.
"""

import contextlib
import os
import secrets
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import msgspec

from chaos.toxiproxy.launcher import cache_directory
from tests.hosts.commands import RayCommands
from tests.processes import ROOT

TOOLS = ("ip", "iptables", "unshare", "nsenter", "mount")
CLOCKS_AHEAD_S = (0, 100_000, 5_000_000)
"""By host, of its monotonic clock: nothing may work only because all hosts have the same."""
_READY_S = 10.0
_COMMAND_S = 60.0
_INIT = """
set -e
mount --make-rprivate /
mount -t tmpfs none /tmp/ray
for folder in $HIDDEN; do mount -t tmpfs none "$folder"; done
ip link set lo up
echo ready
exec cat
"""


class HostsUnavailable(Exception):
    """Why there can be no such hosts here. One line."""


class Host(msgspec.Struct, frozen=True):
    """One of them. pid: of its first process, in the namespaces of whoever asks. home: also of its cache."""

    name: str
    address: str
    namespace: str
    pid: int
    home: Path

    def command(self, argv: Sequence[str]) -> list[str]:
        """The command that runs `argv` there."""
        return ["nsenter", "--target", str(self.pid), "--net", "--pid", "--mount", "--time", "--", *argv]

    def environment(self, more: Mapping[str, str] | None = None) -> dict[str, str]:
        """Of a program there."""
        kept = {name: value for name, value in os.environ.items() if not name.startswith(("RAY_", "MLX_CHAOS_"))}
        cache = {"HOME": str(self.home), "MLX_CHAOS_CACHE": str(self.home / "cache"), "RAY_USAGE_STATS_ENABLED": "0"}
        # The tree that the tests are from, also where another one is installed.
        return {**kept, **cache, "PYTHONPATH": str(ROOT), **(more or {})}

    def run(
        self, argv: Sequence[str], more: Mapping[str, str] | None = None, limit_s: float = _COMMAND_S
    ) -> "subprocess.CompletedProcess[str]":
        """Run a program there to its end. Raises subprocess.TimeoutExpired."""
        return subprocess.run(
            self.command(argv),
            env=self.environment(more),
            capture_output=True,
            text=True,
            errors="replace",
            timeout=limit_s,
            check=False,
        )

    def shell(self, line: str, more: Mapping[str, str] | None = None, limit_s: float = _COMMAND_S) -> str:
        """Run a line of a shell there and return what it says; it must succeed."""
        done = self.run(["/bin/sh", "-c", line], more, limit_s)
        said = (done.stdout + done.stderr)[-2000:]
        assert done.returncode == 0, f"{self.name}: {line}: code {done.returncode}: {said}"
        return done.stdout

    def cut_off(self) -> None:
        """Let its packet filter drop whatever comes or goes, without a word to anybody; its own loopback stays."""
        for chain, way in (("INPUT", "-i"), ("OUTPUT", "-o")):
            _run("ip", "netns", "exec", self.namespace, "iptables", "-I", chain, way, "eth0", "-j", "DROP")

    def let_in(self) -> None:
        """End what `cut_off` and `block` did."""
        _run("ip", "netns", "exec", self.namespace, "iptables", "-F")

    def block(self, port: int) -> None:
        """Drop what goes to a TCP port anywhere else."""
        rule = ("-p", "tcp", "-o", "eth0", "--dport", str(port), "-j", "DROP")
        _run("ip", "netns", "exec", self.namespace, "iptables", "-I", "OUTPUT", *rule)


def why_not() -> str | None:
    """Why there can be no hosts here, None when there can."""
    if sys.platform != "linux":
        return "network namespaces are Linux's"
    if os.geteuid() != 0:
        return "network namespaces need root"
    missing = [tool for tool in TOOLS if shutil.which(tool) is None]
    return f"no {', '.join(missing)} on PATH" if missing else None


@contextlib.contextmanager
def hosts(count: int, hidden: Sequence[Path] = ()) -> Iterator[list[Host]]:
    """So many hosts on a network of their own; all of it is gone afterwards, whatever runs there.

    hidden: folders that only the first one shares with us. Raises HostsUnavailable.
    """
    reason = why_not()
    if reason is not None:
        raise HostsUnavailable(reason)
    mark = secrets.token_hex(3)
    folder = Path(tempfile.mkdtemp(prefix="mch"))
    Path("/tmp/ray").mkdir(exist_ok=True)
    token = secrets.token_hex(32)
    with contextlib.ExitStack() as stack:
        stack.callback(shutil.rmtree, folder, ignore_errors=True)
        bridge, network = f"mb{mark}", f"10.77.{secrets.randbelow(250) + 1}"
        stack.callback(_run, "ip", "link", "delete", bridge, needed=False)
        _run("ip", "link", "add", bridge, "type", "bridge")
        _run("ip", "addr", "add", f"{network}.254/24", "dev", bridge)
        _run("ip", "link", "set", bridge, "up")
        made = []
        for number in range(count):
            address = f"{network}.{number + 1}"
            namespace = _namespace(stack, f"mh{mark}{number}", bridge, address, f"{network}.254")
            home = _home(folder / f"h{number}", token, shares_server=number == 0)
            unseen = () if number == 0 else tuple(hidden)
            pid = _first_process(stack, namespace, CLOCKS_AHEAD_S[number % len(CLOCKS_AHEAD_S)], unseen)
            made.append(Host(f"host-{number}", address, namespace, pid, home))
        yield made


@contextlib.contextmanager
def ray_cluster(
    made: Sequence[Host], commands: RayCommands, planted: Mapping[str, Mapping[str, str]] | None = None
) -> Iterator[str]:
    """Ray on these hosts, the first one being its head, by the documented commands; the head's GCS address.

    planted: by the name of a host, variables that its Ray is started with besides.
    """
    # Whoever ends the hosts ends Ray with them: their processes die with their first one.
    for number, host in enumerate(made):
        for line in commands.head(host.address) if number == 0 else commands.worker(host.address):
            host.shell(line, {"RAY_HEAD_IP": made[0].address, **(planted or {}).get(host.name, {})})
    yield f"{made[0].address}:{commands.port}"


def _namespace(stack: contextlib.ExitStack, name: str, bridge: str, address: str, gateway: str) -> str:
    stack.callback(_run, "ip", "netns", "delete", name, needed=False)
    _run("ip", "netns", "add", name)
    outer = f"v{name}"
    stack.callback(_run, "ip", "link", "delete", outer, needed=False)
    _run("ip", "link", "add", outer, "type", "veth", "peer", "name", "eth0", "netns", name)
    _run("ip", "link", "set", outer, "master", bridge, "up")
    for words in (
        ("addr", "add", f"{address}/24", "dev", "eth0"),
        ("link", "set", "eth0", "up"),
        ("link", "set", "lo", "up"),
        ("route", "add", "default", "via", gateway),
    ):
        _run("ip", "-n", name, *words)
    return name


def _home(home: Path, token: str, *, shares_server: bool) -> Path:
    """A home with the cluster's token, as Ray wants it on every host. shares_server: whether no Toxiproxy is built."""
    (home / ".ray").mkdir(parents=True)
    key = home / ".ray" / "auth_token"
    key.write_text(token)
    key.chmod(0o600)
    (home / "cache").mkdir()
    programs = cache_directory() / "bin"
    if shares_server and programs.is_dir():
        (home / "cache" / "bin").symlink_to(programs)
    return home


def _first_process(stack: contextlib.ExitStack, namespace: str, ahead_s: int, hidden: Sequence[Path]) -> int:
    """Start what the other processes of a host are born below; with its end all of them end. Its pid."""
    clock = ("--time", "--monotonic", str(ahead_s))
    inside = ("unshare", "--mount", "--pid", "--fork", "--mount-proc", "--kill-child", *clock, "/bin/sh", "-c", _INIT)
    process = subprocess.Popen(
        ["ip", "netns", "exec", namespace, *inside],
        # It reads until we end, in whatever way, and everything on its host ends with it.
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "HIDDEN": " ".join(str(folder) for folder in hidden)},
        start_new_session=True,
    )
    stack.callback(process.wait)
    stack.callback(process.kill)
    assert process.stdin is not None
    assert process.stdout is not None
    stack.callback(process.stdin.close)
    said = process.stdout.readline().strip()
    process.stdout.close()
    if said != "ready":
        raise HostsUnavailable(f"{namespace}: this kernel gives no namespaces of processes, mounts and clocks")
    ends_s = time.monotonic() + _READY_S
    children = Path(f"/proc/{process.pid}/task/{process.pid}/children")
    while not (found := children.read_text().split()):
        assert time.monotonic() < ends_s, f"{namespace}: its first process is not to be found"
        time.sleep(0.02)
    return int(found[0])


def _run(*argv: str, needed: bool = True) -> None:
    done = subprocess.run(argv, capture_output=True, text=True, timeout=_COMMAND_S, check=False)
    if needed and done.returncode != 0:
        raise HostsUnavailable(f"{' '.join(argv)}: {' '.join(done.stderr.split())}")
