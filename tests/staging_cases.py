"""What tests.verify expects of runs at a cluster that was started by itself: its own NATS, a Toxiproxy in front.

Toxiproxy is the real one, with a toxic of somebody else on the link that is hurt.
"""

import contextlib
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import yaml

from analysis.history import UnreadableError
from analysis.judge import read_verdict
from analysis.verdict import EXIT_CODES, Outcome, Verdict
from chaos.toxiproxy.adapter import Toxic, Toxiproxy
from cluster.live.broker import server_path
from tests.processes import Run
from tests.serving import Serving
from tests.toxiproxy.real_server import real_server

EXPERIMENT = "staging_link"
WORKERS = 2
TTL_S = 30.0
STOP_S_MAX = 1.0
KEEPER_S_MAX = 5.0
"""The keeper hears of its runner's end at once; the rest is for a busy machine."""
_NODES = ("controller-0", *(f"worker-{number}" for number in range(WORKERS)), "gateway")
_FOREIGN = Toxic("theirs", "latency", "downstream", {"latency": 2, "jitter": 1})
_POLL_S = 0.02
_LINE_S = 120.0
_END_S = 240.0
SHORT = (
    "phases.warm_up.duration_s=3",
    "phases.baseline.duration_s=14",
    "phases.fault.duration_s=20",
    "phases.recovery.duration_s=22",
    "faults.cut.start_s=2",
    "faults.cut.duration_s=15",
    f"faults.cut.ttl_s={TTL_S:g}",
)


Play = Callable[[Path, Path], tuple[str, list[str], str]]
"""From a scratch folder and one for results to what a case gave, what is wrong with that, and figures."""


class Staged:
    """The cluster of somebody else. api: of its Toxiproxy. target: the file that its owner has written."""

    def __init__(self, folder: Path, api: Toxiproxy, url: str, monitoring: str) -> None:
        self.api = api
        self.stop = folder / "stop"
        self.target = folder / "target.yaml"
        self._folder = folder
        self._document: dict[str, Any] = {
            "name": f"verify-{os.getpid()}",
            "owner": "tests.verify",
            "api": {"urls": [f"{url}/v1"], "model": "tiny", "session_field": "session_id"},
            "workers": WORKERS,
            "toxiproxies": {"all": api.url},
            "links": {"worker-0": {"toxiproxy": "all", "proxy": "worker-0", "client_name": "worker-0"}},
            "nats_monitoring": monitoring,
            "fingerprint": {"nats_server_name": "staging-verify"},
            "faults": ["partition.stall", "partition.refuse", "latency"],
            "hours": {"zone": "UTC", "allow": [{"from": "00:00", "to": "00:00"}]},
            "budget": {"failed_requests": 100, "fault_s": 600},
            "load": {"rate_max": "12/s"},
            "steady": {"window_s": 10},
            "stop": {"file": str(self.stop)},
        }
        self.write()
        self.before = self.shown()

    def write(self, **changes: Any) -> None:
        """The owner's file, with changes."""
        self.target.write_text(yaml.safe_dump({**self._document, **changes}))

    def shown(self) -> dict[str, dict[str, Any] | None]:
        """All proxies as Toxiproxy shows them."""
        return {name: self.api.show_proxy(name) for name in _NODES}

    def arguments(self, settings: Sequence[str] = SHORT) -> list[str]:
        """Of chaos.run."""
        words = [word for setting in settings for word in ("--set", setting)]
        return [EXPERIMENT, "--world", "staging", "--target", str(self.target), *words]

    def ours(self) -> bool:
        """Whether anything of a run is on the link."""
        state = self.api.show_proxy("worker-0")
        assert state is not None
        return not state["enabled"] or any(toxic["name"].startswith("mlx-chaos-") for toxic in state["toxics"])

    def await_ours(self, there: bool, limit_s: float) -> float | None:
        """Seconds until something of a run is on the link, or nothing is; None when that does not come."""
        began_s = time.monotonic()
        while self.ours() is not there:
            if time.monotonic() - began_s > limit_s:
                return None
            time.sleep(_POLL_S)
        return time.monotonic() - began_s


@contextmanager
def staged(folder: Path) -> Iterator[Staged]:
    """NATS, Toxiproxy with a proxy for every node, and `cluster.serve` behind them, all of which end afterwards."""
    with contextlib.ExitStack() as stack:
        port, monitor = _nats(stack, folder)
        api = stack.enter_context(real_server())
        links = {node: api.create_proxy(node, "127.0.0.1:0", f"127.0.0.1:{port}").listen for node in _NODES}
        api.add_toxic("worker-0", _FOREIGN)
        words = [word for node, address in links.items() for word in ("--link", f"{node}={address}")]
        serving = Serving("--workers", str(WORKERS), "--nats-url", f"nats://127.0.0.1:{port}", *words)
        up = stack.enter_context(serving)
        yield Staged(folder, api, up.url, f"http://127.0.0.1:{monitor}")


def passes(folder: Path, out: Path) -> tuple[str, list[str], str]:
    """A whole run with a stall: what it gave, what is wrong with that, figures."""
    with staged(folder) as there, Run(there.arguments(), out) as run:
        code = run.wait(_END_S)
        verdict = _verdict(run)
        if verdict is None:
            return f"exit {code}", ["no verdict", run.tail()], ""
        problems = [] if code == 0 else [f"exit code {code}", *verdict.reasons[:3]]
        problems += _untouched(there)
        fault = verdict.faults[0] if verdict.faults else None
        if fault is None or not fault.verified or "of the node's own connection" not in str(fault.evidence):
            problems.append("the fault is not proved by the broker's counts of the node's own connection")
        judged = {each.number for each in verdict.invariants if each.verdict is not Outcome.NOT_APPLICABLE}
        if judged != {1, 2, 4, 7, 9}:
            problems.append(f"invariants {sorted(judged)} are judged")
        counts = verdict.counts
        figures = f"{counts.completed} of {counts.offered} completed, {counts.failed} failed, foreign toxic untouched"
        return f"exit {code}, {verdict.verdict}", problems, figures


def is_stopped(folder: Path, out: Path) -> tuple[str, list[str], str]:
    """The stop file in the midst of the fault."""
    with staged(folder) as there, Run(there.arguments(), out) as run:
        if not run.await_line(r"^injected", _LINE_S):
            return "nothing was injected", [run.tail()], ""
        time.sleep(2.0)
        problems = [] if there.ours() else ["the fault was not in force"]
        there.stop.touch()
        healed_s = there.await_ours(False, 10.0)
        code = run.wait(60.0)
        if healed_s is None or healed_s > STOP_S_MAX:
            problems.append(f"healed after {healed_s} s, expected {STOP_S_MAX:g} s")
        verdict = _verdict(run)
        if code != EXIT_CODES[Outcome.INCONCLUSIVE] and not (code == EXIT_CODES[Outcome.INVALID] and _spoilt(verdict)):
            problems.append(f"exit code {code}, though nothing is refuted: {verdict and verdict.reasons[:3]}")
        if verdict is None or "exists" not in " ".join(verdict.reasons):
            problems.append("the verdict does not say that it was stopped by the file")
        problems += _untouched(there)
        return f"exit {code}", problems, f"healed {healed_s or 0.0:.2f} s after the file was there"


def is_killed(folder: Path, out: Path) -> tuple[str, list[str], str]:
    """kill -9 of the runner in the midst of the fault."""
    with staged(folder) as there, Run(there.arguments(), out) as run:
        if not run.await_line(r"^injected", _LINE_S):
            return "nothing was injected", [run.tail()], ""
        time.sleep(2.0)
        problems = [] if there.ours() else ["the fault was not in force"]
        run.kill()
        healed_s = there.await_ours(False, TTL_S)
        if healed_s is None or healed_s > KEEPER_S_MAX:
            problems.append(f"healed after {healed_s} s, expected {KEEPER_S_MAX:g} s, its TTL was {TTL_S:g} s")
        left, _ = run.left()
        problems += [f"left: {line}" for line in left] + _untouched(there)
        return "healed" if healed_s is not None else "not healed", problems, f"healed after {healed_s or 0.0:.2f} s"


PLAYS: dict[Play, str] = {
    passes: "exit 0, pass, foreign toxic untouched",
    is_stopped: f"exit 3, healed within {STOP_S_MAX:g} s",
    is_killed: f"healed within {KEEPER_S_MAX:g} s",
}


def _spoilt(verdict: Verdict | None) -> bool:
    """Whether our own machine stood still, or the like: what a busy one does to any run."""
    criteria = [] if verdict is None else verdict.criteria
    return any(each.verdict is Outcome.INVALID and "self-check" in each.name for each in criteria)


def _untouched(there: Staged) -> list[str]:
    after = there.shown()
    return [] if after == there.before else [f"proxies are not as they were: {there.before} and {after}"]


def _verdict(run: Run) -> Verdict | None:
    if run.results is None:
        return None
    with contextlib.suppress(UnreadableError):
        return read_verdict(run.results)
    return None


def _nats(stack: contextlib.ExitStack, folder: Path) -> tuple[int, int]:
    port, monitor = _free(), _free()
    path = folder / "nats.conf"
    path.write_text(
        f'listen: "127.0.0.1:{port}"\nhttp: "127.0.0.1:{monitor}"\nserver_name: "staging-verify"\n'
        'ping_interval: "2s"\nping_max: 2\n'
    )
    process = subprocess.Popen(
        [str(server_path()), "-c", str(path)], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )

    def end() -> None:
        process.send_signal(signal.SIGTERM)
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(5)
        process.kill()
        process.wait()

    stack.callback(end)
    ends_s = time.monotonic() + 10
    while time.monotonic() < ends_s:
        with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", monitor), 1):
            return port, monitor
        time.sleep(0.05)
    raise AssertionError("nats-server did not start")


def _free() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def main() -> int:
    """Play all three, below a folder: for whoever works on this."""
    base = Path(sys.argv[1])
    for play in PLAYS:
        folder = base / play.__name__
        folder.mkdir(parents=True)
        print(play.__name__, *play(folder, folder / "out"), sep="\n  ", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
