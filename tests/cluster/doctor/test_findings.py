"""Each check of the doctor says yes to a fit host, and names what is wrong with another one, and how it is mended."""

import subprocess
import sys
from typing import Any

import pytest
from msgspec.structs import replace

from cluster.doctor import probe
from cluster.doctor.findings import Facts, Finding, examine, facts_of, problems
from tests.processes import ROOT

MAC = Facts(
    address="10.77.1.2",
    interface="en0",
    system="Darwin",
    machine="arm64",
    python="3.11",
    versions={"ray": "2.60.0", "mlx": "0.32.4"},
    project="abc",
    project_at="/somewhere/mlx-chaos",
    model="",
    memory_available_bytes=8 * 10**9,
    disk_free_bytes=50 * 10**9,
    reach={"10.77.1.1:6379": "", "10.77.1.1:4222": ""},
    ray_cluster_allowed="1",
    sleep="0",
    firewall="off",
    unix_s=0.0,
)
LINUX = replace(MAC, system="Linux", machine="x86_64", sleep="", firewall="", ray_cluster_allowed="")


def found(there: Facts, here: Facts = MAC, nodes: int = 2, weights_bytes: int = 10**9) -> list[Finding]:
    return examine("host-1", here, there, model="smollm2-135m", weights_bytes=weights_bytes, nodes=nodes)


@pytest.mark.parametrize("facts", [MAC, LINUX])
def test_a_host_that_is_fit_has_nothing_to_mend(facts: Facts) -> None:
    assert problems(found(facts)) == []
    assert [each.fix for each in found(facts) if each.fix] == []


def test_what_is_only_on_macs_is_said_to_be_not_applicable_elsewhere() -> None:
    absent = {each.check for each in found(LINUX) if not each.applies}
    assert absent == {"sleep", "firewall", "Ray on several Macs"}
    assert all(each.applies for each in found(MAC))


@pytest.mark.parametrize(
    ("change", "check", "said", "fix"),
    [
        ({"python": "3.12"}, "version of python", "3.12 there, 3.11 where", "requirements.lock"),
        ({"versions": {"ray": "2.60.0", "mlx": "0.31.0"}}, "version of mlx", "0.31.0 there, 0.32.4", "requirements"),
        ({"versions": {"ray": "2.60.0"}}, "version of mlx", "not installed there", "requirements.lock"),
        ({"versions": {"ray": "2.59.0", "mlx": "0.32.4"}}, "version of ray", "2.59.0 there", "requirements.lock"),
        ({"project": "def"}, "project", "sources def in /somewhere/mlx-chaos, abc", "the same commit"),
        ({"project": ""}, "project", "not installed there", "make setup"),
        ({"reach": {"10.77.1.1:4222": "timed out"}}, "reaches 10.77.1.1:4222", "timed out", "let TCP through"),
        ({"reach": {"10.77.1.1:1": "no route to host"}}, "reaches 10.77.1.1:1", "no route", "Local Network"),
        ({"address": "127.0.0.1"}, "address", "from that host alone", "--node-ip-address"),
        ({"interface": ""}, "address", "no interface there has 10.77.1.2", "--node-ip-address"),
        ({"memory_available_bytes": 10**9}, "memory", "1.0 GB free, 2 workers need 3.1 GB", "fewer workers"),
        ({"memory_available_bytes": None}, "memory", "unknown", "requirements.lock"),
        ({"disk_free_bytes": 10**9}, "disk", "1.0 GB free", "MLX_CHAOS_CACHE"),
        ({"model": "is not there yet"}, "model", "smollm2-135m: is not there yet", "cluster.models pull smollm2-135m"),
        ({"sleep": "10"}, "sleep", "sleeps after 10 minutes", "pmset -a sleep 0"),
        ({"sleep": "unknown"}, "sleep", "does not say", "pmset -a sleep 0"),
        ({"ray_cluster_allowed": ""}, "Ray on several Macs", "is not 1", "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER=1"),
    ],
)
def test_what_is_wrong_is_named_with_its_fix(change: dict[str, Any], check: str, said: str, fix: str) -> None:
    bad = [each for each in found(replace(MAC, **change)) if not each.good]
    assert [each.check for each in bad] == [check]
    assert said in bad[0].said
    assert fix in bad[0].fix
    (line,) = problems(bad)
    assert line.startswith("host-1: ")
    assert "\n" not in line


def test_a_firewall_that_lets_us_through_is_no_reason_to_open_it() -> None:
    assert problems(found(replace(MAC, firewall="on"))) == []
    blocked = replace(MAC, firewall="on", reach={"10.77.1.1:4222": "timed out"})
    assert [each.check for each in found(blocked) if not each.good] == ["reaches 10.77.1.1:4222", "firewall"]


def test_this_very_host_tells_all_that_is_asked() -> None:
    facts = facts_of(probe.look("tiny", (), "127.0.0.1"))
    assert facts.project
    assert facts.versions["ray"]
    assert facts.interface.startswith("lo")
    assert facts.memory_available_bytes


def test_a_host_without_the_project_is_told_apart(tmp_path: Any) -> None:
    """The probe's source alone runs in a Python that has nothing of ours; -S hides what is installed."""
    code = f"exec(open({probe.__file__!r}).read()); print(look('smollm2-135m', [('127.0.0.1', 1)], '10.0.0.1'))"
    done = subprocess.run(
        [sys.executable, "-I", "-S", "-c", code], capture_output=True, text=True, cwd=tmp_path, check=True, timeout=30
    )
    facts = facts_of(eval(done.stdout))
    assert (facts.project, facts.versions["ray"]) == ("", "")
    checks = [each.check for each in found(facts, LINUX) if not each.good]
    assert {"project", "model", "memory", "reaches 127.0.0.1:1"} <= set(checks)


def test_alone_the_command_says_what_it_has_looked_at() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "cluster.doctor", "--all", "--model", "no-such-model"],
        capture_output=True,
        text=True,
        cwd=ROOT,
        check=False,
        timeout=60,
    )
    assert done.returncode == 1, done.stderr
    assert "FIX host-0  model: no-such-model: no model 'no-such-model'" in done.stdout
    assert "ok  host-0  version of ray" in done.stdout
    assert done.stdout.splitlines()[-1].startswith("1 host, ")
