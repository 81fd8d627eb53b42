"""Bad input and bad days: one clear line, the right exit code, nothing left running, what was recorded readable.

Quick ones stop before Ray is up. Those that start Ray take longer and are part of `make verify`.
"""

import os
import shutil
import socket
import subprocess
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import pytest

from tests import contract
from tests.processes import Run

EXPERIMENT = Path(__file__).with_name("partition_short.yaml")
LIMIT_S = 60.0
EXIT_USAGE, EXIT_INFRASTRUCTURE = 2, 5


def _fails(
    out: Path,
    code: int,
    arguments: Sequence[str],
    environment: Mapping[str, str] | None = None,
    limit_s: float = LIMIT_S,
) -> str:
    """Run, expect this exit code and one line on standard error; returns the line."""
    with Run(arguments, out, environment=environment) as run:
        got = run.wait(limit_s)
        alive, _ = run.left()
    assert got == code, run.tail()
    assert alive == []
    said = [line for line in run.errors if line.strip()]
    assert len(said) == 1, said
    assert said[0].startswith("chaos.run: ")
    return said[0]


@pytest.fixture
def occupied() -> Iterator[int]:
    with socket.create_server(("127.0.0.1", 0)) as occupant:
        yield occupant.getsockname()[1]


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["no_such_experiment"], "network_partition"),
        (["no_such_file.yaml"], "no such file"),
        (["network_partition", "--set", "phases.baseline.durations_s=3"], "did you mean duration_s"),
        (["network_partition", "--set", "cluster.workers=many"], "cluster.workers"),
        (["network_partition", "--set", "workload.rate=-3/s"], "workload"),
        (["network_partition", "--set", "faults.cut.targets=[worker-9]"], "worker-9"),
        (["network_partition", "--policy", "nowhere"], "no policy profile 'nowhere'"),
    ],
)
def test_a_wrong_experiment_is_refused_before_anything_exists(tmp_path: Path, arguments: list[str], told: str) -> None:
    assert told in _fails(tmp_path / "out", EXIT_USAGE, arguments)
    assert not (tmp_path / "out").exists()


@pytest.mark.live
@pytest.mark.parametrize("field", ["cluster.broker_port", "cluster.toxiproxy_port"])
def test_an_occupied_port_is_named(tmp_path: Path, occupied: int, field: str) -> None:
    line = _fails(tmp_path, EXIT_INFRASTRUCTURE, [str(EXPERIMENT), "--set", f"{field}={occupied}"])
    assert field in line
    assert str(occupied) in line
    assert "occupied" in line


@pytest.mark.live
def test_a_named_toxiproxy_that_does_not_run_is_told(tmp_path: Path) -> None:
    environment = {"TOXIPROXY_SERVER": "/nonexistent/toxiproxy-server"}
    line = _fails(tmp_path, EXIT_INFRASTRUCTURE, [str(EXPERIMENT)], environment)
    assert "TOXIPROXY_SERVER=/nonexistent/toxiproxy-server" in line
    assert "fix or unset it" in line


@pytest.mark.verify
def test_a_run_needs_no_toxiproxy_but_ours(tmp_path: Path) -> None:
    """A partition through the embedded server alone, and the report says which one it was."""
    with Run([str(EXPERIMENT)], tmp_path, environment={"TOXIPROXY_SERVER": "embedded"}) as run:
        assert run.wait(240) == 0, run.tail()
        results = run.results
    assert results is not None
    assert "embedded server" in (results / "environment.json").read_text()


@pytest.mark.live
def test_a_toxiproxy_that_does_not_answer_is_told(tmp_path: Path, occupied: int) -> None:
    url = f"cluster.toxiproxy_url=http://127.0.0.1:{occupied}"
    assert str(occupied) in _fails(tmp_path, EXIT_INFRASTRUCTURE, [str(EXPERIMENT), "--set", url])


@pytest.mark.live
def test_a_model_that_is_not_there_is_told(tmp_path: Path) -> None:
    line = _fails(tmp_path, EXIT_INFRASTRUCTURE, [str(EXPERIMENT), "--model", "/nonexistent/model"])
    assert "/nonexistent/model" in line


def test_a_results_folder_that_cannot_be_made_is_told(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    out = tmp_path / "file" / "out"
    assert str(out) in _fails(out, EXIT_USAGE, [str(EXPERIMENT), "--world", "simulated"])


@pytest.fixture
def tiny_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 384 kB."""
    if os.name != "posix" or os.geteuid() != 0 or shutil.which("mount") is None:
        pytest.skip("a full disk needs root, to mount a small file system")
    folder = tmp_path / "disk"
    folder.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=384k", "tmpfs", str(folder)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        pytest.skip(f"a full disk needs a file system of its own: {done.stderr.strip()}")
    yield folder
    subprocess.run(["umount", "-l", str(folder)], check=True)


def _assert_recorded_is_readable(out: Path, scratch: Path) -> None:
    results = (out / "latest").resolve()
    assert not contract.info_of(results).complete
    rows = contract.readable_rows(results, scratch)
    assert rows.foreign == []
    assert rows.rows["events"] > 0
    assert rows.rows["nodes"] > 0


def test_a_full_disk_ends_a_simulated_run_with_one_line(tmp_path: Path, tiny_disk: Path) -> None:
    arguments = ["network_partition", "--world", "simulated", "--set", "phases.baseline.duration_s=120"]
    assert "No space left" in _fails(tiny_disk, EXIT_INFRASTRUCTURE, arguments)
    _assert_recorded_is_readable(tiny_disk, tmp_path / "scratch")


@pytest.mark.live
@pytest.mark.verify
def test_a_full_disk_ends_a_live_run_with_one_line(tmp_path: Path, tiny_disk: Path) -> None:
    arguments = [str(EXPERIMENT), "--set", "phases.baseline.duration_s=60", "--set", "workload.rate=40/s"]
    assert "No space left" in _fails(tiny_disk, EXIT_INFRASTRUCTURE, arguments, limit_s=120)
    _assert_recorded_is_readable(tiny_disk, tmp_path / "scratch")


@pytest.mark.live
@pytest.mark.verify
def test_workers_that_do_not_come_up_in_time_are_told(tmp_path: Path) -> None:
    line = _fails(tmp_path, EXIT_INFRASTRUCTURE, [str(EXPERIMENT), "--set", "cluster.start_limit_s=0.5"])
    assert "cluster.start_limit_s" in line


@pytest.mark.live
def test_a_model_that_does_not_load_is_told(tmp_path: Path) -> None:
    """It has all the files of a model, and the weights are rubbish."""
    from cluster.engine.weights import model_directory

    broken = tmp_path / "broken"
    shutil.copytree(model_directory("tiny"), broken)
    for weights in broken.glob("*.safetensors"):
        weights.write_bytes(b"rubbish" * 100)
    line = _fails(tmp_path / "out", EXIT_INFRASTRUCTURE, [str(EXPERIMENT), "--model", str(broken)])
    assert "does not load" in line
    assert str(broken) in line
