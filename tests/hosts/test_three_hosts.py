"""Three hosts as network namespaces, with Ray started by the documented commands. Skipped where there is no root."""

import contextlib
import re
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import msgspec
import psutil
import pytest

from analysis.verdict import Outcome, Verdict
from tests import contract
from tests.hosts import packet_filter
from tests.hosts.commands import RayCommands
from tests.hosts.harness import CLOCKS_AHEAD_S, Host, HostsUnavailable, hosts, ray_cluster

HERE = Path(__file__).parent
RUN_S_MAX = 280.0
# worker-1 is on another host than those who judge.
ACROSS = ("cluster.hosts=3", "cluster.start_limit_s=120", "faults.cut.targets=[worker-1]")
TRIES_MAX = 2
LEFT_S_MAX = 20.0
TTL_S = 12.0
TTL_SLACK_S = 5.0
LEASE_S = 60.0
"""As chaos.worlds.host_agent has it; to import that costs the whole of Ray."""
pytestmark = [pytest.mark.verify, pytest.mark.live, pytest.mark.timeout(900)]


@contextlib.contextmanager
def three(out: Path) -> Iterator[tuple[list[Host], str]]:
    """The hosts and the address of their Ray cluster. out: not to be seen on any but the first."""
    out.mkdir(exist_ok=True)
    try:
        with hosts(3, hidden=[out]) as made, ray_cluster(made, RayCommands()) as address:
            yield made, address
    except HostsUnavailable as reason:
        pytest.skip(f"no hosts for this test: {reason}")


def play(
    host: Host,
    address: str,
    out: Path,
    experiment: str,
    *settings: str,
    module: str = "chaos.run",
    more: Mapping[str, str] | None = None,
) -> tuple[int, str]:
    """Run an experiment there; its exit code, and the last of what it said. more: variables."""
    argv = [sys.executable, "-m", module, experiment, "--address", address, "--out", str(out)]
    argv += [word for setting in settings for word in ("--set", setting)]
    done = host.run(argv, more, RUN_S_MAX)
    return done.returncode, (done.stdout + done.stderr)[-6000:]


def spoilt(verdict: Verdict) -> bool:
    """Whether the run says of itself that this machine stood still, and nothing else went wrong."""
    bad = [each for each in verdict.criteria if each.verdict is Outcome.INVALID]
    return bool(bad) and all("(self-check)" in each.name for each in bad)


def judged(out: Path, code: int, said: str) -> Verdict:
    latest = (out / "latest").resolve()
    assert latest.exists(), said
    assert contract.missing(latest) == [], said
    verdict = contract.verdict_of(latest)
    told = f"code {code}\n{contract.as_json(verdict)}\n{said}"
    assert verdict.complete, told
    assert verdict.faults, told
    assert all(fault.verified and fault.healed_s is not None for fault in verdict.faults), told
    assert contract.violations(verdict) == 0, told
    kept = {each.number for each in verdict.invariants if each.verdict is Outcome.PASS}
    assert kept == {1, 2, 3, 4, 5, 6, 7, 8, 9}, told
    assert verdict.counts.in_flight == 0
    return verdict


def assert_nothing_is_left(made: Sequence[Host], limit_s: float = LEFT_S_MAX, *, rows_too: bool = True) -> None:
    """No process of a run, no undo log and no rows on any host; Ray itself goes on.

    rows_too: false where nobody is left who could have fetched them.
    """
    ends_s = time.monotonic() + limit_s
    while True:
        left = [line for host in made for line in _left_on(host, ("undo", "runs") if rows_too else ("undo",))]
        if not left:
            return
        assert time.monotonic() < ends_s, left
        time.sleep(0.5)


def _left_on(host: Host, folders: Sequence[str]) -> list[str]:
    found = [f"{host.name}: {path}" for name in folders for path in (host.home / "cache" / name).glob("*")]
    for process in psutil.Process(host.pid).children(recursive=True):
        with contextlib.suppress(psutil.Error):
            if "MLX_CHAOS_RUN" in process.environ():
                found.append(f"{host.name}: {process.pid} {' '.join(process.cmdline())[:120]}")
    return found


def assert_hosts_are_told(out: Path, made: Sequence[Host]) -> None:
    """Every host has its address and its clock in the environment, and the clock is what it was made to be."""
    environment = msgspec.json.decode(((out / "latest").resolve() / "environment.json").read_bytes())
    each = environment["each_host"]
    assert sorted(each[name]["address"] for name in each) == sorted(host.address for host in made)
    for host, ahead_s in zip(made[1:], CLOCKS_AHEAD_S[1:], strict=True):
        (told,) = [each[name] for name in each if each[name]["address"] == host.address]
        assert abs(told["clock_ahead_s"] - ahead_s) <= told["clock_error_s_max"]
        assert told["clock_error_s_max"] < 0.5


def test_a_worker_on_another_host_is_cut_off_and_nobody_suffers(tmp_path: Path) -> None:
    with three(tmp_path / "out") as (made, address):
        for number in range(TRIES_MAX):
            out = tmp_path / "out" / str(number)
            code, said = play(made[0], address, out, "network_partition", *ACROSS)
            verdict = judged(out, code, said)
            if not spoilt(verdict):
                break
        assert (code, verdict.verdict) == (0, Outcome.PASS), f"{contract.as_json(verdict)}\n{said}"
        assert [fault.kind for fault in verdict.faults] == ["partition"]
        assert_hosts_are_told(out, made)
        assert_nothing_is_left(made)


def test_one_host_is_cut_off_by_its_packet_filter_and_another_ones_ray_node_is_killed(tmp_path: Path) -> None:
    out = tmp_path / "out"
    with three(out) as (made, address), packet_filter.serve(made, out / "filters") as variables:
        module = packet_filter.__name__
        code, said = play(made[0], address, out, str(HERE / "hurt_hosts.yaml"), module=module, more=variables)
        verdict = judged(out, code, said)
        assert [fault.kind for fault in verdict.faults] == ["packet_filter", "host_kill"]
        assert_nothing_is_left(made)
        # The cluster that was joined is as large as it was.
        status = made[0].shell(
            f"{Path(sys.executable).parent}/ray status --address {address}", {"RAY_AUTH_MODE": "token"}
        )
        assert len(re.findall("node_[0-9a-f]{8,}", status.partition("Pending")[0])) == 3, status
        assert "3.0 mlx" in status, status


def test_the_nodes_of_one_host_are_cut_off_and_those_of_another_frozen(tmp_path: Path) -> None:
    out = tmp_path / "out"
    with three(out) as (made, address):
        code, said = play(made[0], address, out, str(HERE / "whole_hosts.yaml"))
        verdict = judged(out, code, said)
        assert [fault.kind for fault in verdict.faults] == ["host_cut", "host_freeze"]
        assert [fault.target for fault in verdict.faults] == ["worker-2", "worker-3"]
        assert_nothing_is_left(made)


def test_hosts_that_nobody_has_touched_are_not_called_cut_off_or_frozen(tmp_path: Path) -> None:
    """Both faults are made not to bite, and all else is real."""
    out = tmp_path / "out"
    with three(out) as (made, address):
        code, said = play(made[0], address, out, str(HERE / "whole_hosts.yaml"), module="tests.sabotage")
        latest = (out / "latest").resolve()
        assert latest.exists(), said
        verdict = contract.verdict_of(latest)
        assert (code, verdict.verdict, verdict.complete) == (4, Outcome.INVALID, True), said
        assert [(fault.kind, fault.verified) for fault in verdict.faults] == [
            ("host_cut", False),
            ("host_freeze", False),
        ], said
        assert_nothing_is_left(made)


@contextlib.contextmanager
def frozen(host: Host, address: str, out: Path, *settings: str) -> Iterator["subprocess.Popen[str]"]:
    """A run on `host` that has just frozen worker-1, which is on another host."""
    settings = ("faults.cut.kind=freeze", "faults.cut.mode=null", "phases.baseline.duration_s=4", *settings)
    argv = [sys.executable, "-m", "chaos.run", str(HERE / "spread.yaml"), "--address", address, "--out", str(out)]
    argv += [word for setting in settings for word in ("--set", setting)]
    variables = host.environment({"PYTHONUNBUFFERED": "1"})
    runner = subprocess.Popen(
        host.command(argv), env=variables, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )
    assert runner.stdout is not None
    lines = []
    try:
        for line in runner.stdout:
            lines.append(line)
            if line.startswith("injected freeze worker-1"):
                break
        assert lines, "the run has said nothing"
        assert lines[-1].startswith("injected"), "".join(lines)
        yield runner
    finally:
        for child in (*psutil.Process(runner.pid).children(recursive=True), psutil.Process(runner.pid)):
            with contextlib.suppress(psutil.NoSuchProcess):
                child.kill()
        runner.stdout.close()
        runner.wait()


def standing_still(made: Sequence[Host]) -> list[psutil.Process]:
    found = []
    for host in made:
        for process in psutil.Process(host.pid).children(recursive=True):
            with contextlib.suppress(psutil.Error):
                if process.status() == psutil.STATUS_STOPPED:
                    found.append(process)
    return found


def test_kill_9_of_the_runner_leaves_nothing_on_any_host(tmp_path: Path) -> None:
    out = tmp_path / "out"
    with three(out) as (made, address), frozen(made[0], address, out) as runner:
        assert standing_still(made[1:]), "a frozen process runs on another host"
        (child,) = psutil.Process(runner.pid).children()
        child.kill()
        assert_nothing_is_left(made, rows_too=False)


def test_a_frozen_node_goes_on_and_ends_when_the_runners_host_is_gone(tmp_path: Path) -> None:
    """The host is cut off first, so that its end is no news to anybody: time alone tells the others."""
    out = tmp_path / "out"
    settings = ("faults.cut.duration_s=10", f"faults.cut.ttl_s={TTL_S:g}")
    with three(out) as (made, address), frozen(made[0], address, out, *settings):
        began_s = time.monotonic()
        assert standing_still(made[1:]), "a frozen process runs on another host"
        made[0].cut_off()
        psutil.Process(made[0].pid).kill()
        while standing_still(made[1:]):
            assert time.monotonic() < began_s + TTL_S + TTL_SLACK_S, "its time limit did not let it go on"
            time.sleep(0.2)
        assert_nothing_is_left(made[1:], LEASE_S + LEFT_S_MAX, rows_too=False)
