"""The doctor in a real cluster of three hosts finds what was planted on each, and nothing else; it starts nothing."""

import os
import sys
from pathlib import Path

import pytest

from cluster.engine.weights import SMOLLM2, SMOLLM2_VERSION
from tests.hosts.commands import RayCommands
from tests.hosts.harness import Host, HostsUnavailable, hosts, ray_cluster
from tests.processes import ROOT

PORT = 7422
pytestmark = [pytest.mark.verify, pytest.mark.live]


def ask(host: Host, address: str, *more: str) -> tuple[int, str]:
    command = [sys.executable, "-m", "cluster.doctor", "--address", address, "--port", str(PORT), *more]
    done = host.run(command, limit_s=120.0)
    assert done.returncode in (0, 1), done.stderr
    return done.returncode, done.stdout


def pretend(host: Host) -> None:
    """Let a host have a model, by the name of its folder."""
    (host.home / "cache" / "models" / f"{SMOLLM2}-{SMOLLM2_VERSION}").mkdir(parents=True)


def test_it_finds_an_old_mlx_a_blocked_port_and_a_missing_model(tmp_path: Path) -> None:
    metadata = tmp_path / "mlx-0.0.1.dist-info"
    metadata.mkdir()
    (metadata / "METADATA").write_text("Metadata-Version: 2.1\nName: mlx\nVersion: 0.0.1\n")
    planted = {"host-1": {"PYTHONPATH": os.pathsep.join((str(tmp_path), str(ROOT)))}}
    try:
        with hosts(3) as made, ray_cluster(made, RayCommands(), planted) as address:
            pretend(made[0])
            pretend(made[1])
            code, said = ask(made[0], address, "--model", SMOLLM2)
            bad = [line for line in said.splitlines() if line.startswith("FIX")]
            assert code == 1, said
            assert len(bad) == 2, said
            assert f"host-1 ({made[1].address})  version of mlx: 0.0.1 there" in bad[0]
            assert f"host-2 ({made[2].address})  model: {SMOLLM2}: {SMOLLM2} is not there yet" in bad[1]
            made[2].block(PORT)
            code, said = ask(made[0], address)
            bad = [line for line in said.splitlines() if line.startswith("FIX")]
            assert code == 1, said
            assert len(bad) == 2, said
            assert f"host-2 ({made[2].address})  reaches {made[0].address}:{PORT}: timed out" in bad[1]
            assert f"let TCP through from {made[2].address} to {made[0].address}" in said
            made[2].let_in()
            _, said = ask(made[0], address, "--all")
            assert said.count(f"reaches {made[0].address}:{PORT}: yes") == 2
            assert said.count("n/a ") == 9, "sleep, firewall and Ray on Macs are not applicable on each of three"
    except HostsUnavailable as reason:
        pytest.skip(f"no hosts for this test: {reason}")
