"""`--like DIR`: the same experiment, seed and load once more, whatever capacity the simulated workers have."""

import json
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from msgspec.structs import replace

from chaos import run
from chaos.experiment import ExperimentError
from chaos.like import _probed, at_its_speed, read_like
from chaos.worlds.world import InfrastructureError
from workloads.plan import LoadPlan

SHORT = [
    "phases.warm_up.duration_s=1", "phases.baseline.duration_s=6", "phases.fault.duration_s=8",
    "phases.recovery.duration_s=6", "faults.cut.duration_s=5", "workload.rate_min=2/s", "workload.rate_max=15/s",
]  # fmt: skip


def play(out: Path, *arguments: str) -> Path:
    """Run the command line; the results directory."""
    before = set(out.glob("2*")) if out.exists() else set()
    run.main([*arguments, "--world", "simulated", "--out", str(out)])
    (made,) = set(out.glob("2*")) - before
    return made


@pytest.fixture(scope="module")
def recorded(tmp_path_factory: pytest.TempPathFactory) -> Path:
    settings = [f"--set={setting}" for setting in SHORT]
    return play(tmp_path_factory.mktemp("recorded"), "network_partition", "--seed", "5", *settings)


def test_a_run_is_played_again_on_its_own_schedule_with_the_costs_of_its_model(recorded: Path, tmp_path: Path) -> None:
    again = play(tmp_path, "--like", str(recorded))
    first, second = (pq.read_table(each / "schedule.parquet") for each in (recorded, again))
    assert first.num_rows > 50
    assert first.equals(second)
    assert json.loads((again / "run.json").read_bytes())["seed"] == 5
    environment = json.loads((again / "environment.json").read_bytes())
    assert environment["like"] == recorded.name
    assert environment["engine_costs"]["profile"] == "tiny-linux-2-cores"
    # By the calibration the workers can do something else, and yet the rates are those of the recorded run.
    before = json.loads((recorded / "environment.json").read_bytes())["capacity"]["requests_per_s"]
    assert environment["capacity"]["requests_per_s"] != before
    times = [pq.read_table(each / "requests.parquet")["ended_s"].to_pylist() for each in (recorded, again)]
    assert times[0] != times[1]


def test_costs_may_be_others(recorded: Path) -> None:
    like = read_like(recorded, ["cluster.costs.step_s=0.5"])
    assert like.experiment.cluster.costs.step_s == 0.5
    assert like.experiment.cluster.costs.profile == ""


def test_the_capacity_of_an_older_run_is_found_in_what_it_said(recorded: Path, tmp_path: Path) -> None:
    older = tmp_path / recorded.name
    older.mkdir()
    for path in recorded.iterdir():
        if path.is_file():
            (older / path.name).write_bytes(path.read_bytes())
    environment = json.loads((recorded / "environment.json").read_bytes())
    exact = read_like(recorded, []).capacity
    environment.pop("capacity")
    (older / "environment.json").write_text(json.dumps(environment))
    found = read_like(older, []).capacity
    assert (found.requests_per_s, found.completions) == (exact.requests_per_s, exact.completions)


def test_another_load_than_the_recorded_one_is_refused(recorded: Path) -> None:
    like = read_like(recorded, [])
    with pytest.raises(InfrastructureError, match="requests were planned, and 0 are now"):
        like.check(LoadPlan(()))


@pytest.mark.parametrize(
    ("arguments", "why"),
    [(["network_partition", "--like", "X", "--world", "simulated"], "takes the experiment of that run"),
     (["--like", "X"], "goes with --world simulated"),
     (["--like", "X", "--world", "simulated"], "X: no run.json here")],
)  # fmt: skip
def test_wrong_usage_is_told_in_a_line(arguments: list[str], why: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert run.main(arguments) == run.EXIT_USAGE
    said = capsys.readouterr().err
    assert why in said
    assert said.count("\n") == 1


def test_a_model_that_nobody_has_measured_needs_costs(recorded: Path) -> None:
    with pytest.raises(ExperimentError, match=r"no calibration was measured with other; .*cluster\.costs"):
        read_like(recorded, ["cluster.model=other"])


def test_somebody_elses_cluster_is_not_played_again(recorded: Path, tmp_path: Path) -> None:
    info = json.loads((recorded / "run.json").read_bytes()) | {"world": "staging"}
    for name in ("experiment.yaml", "environment.json", "events.parquet"):
        (tmp_path / name).write_bytes((recorded / name).read_bytes())
    (tmp_path / "run.json").write_text(json.dumps(info))
    with pytest.raises(ExperimentError, match="somebody else's cluster"):
        read_like(tmp_path, [])


def test_a_like_run_repeats_itself(recorded: Path, tmp_path: Path) -> None:
    runs = [play(tmp_path / name, "--like", str(recorded)) for name in ("a", "b")]
    tables = [pq.read_table(each / "requests.parquet") for each in runs]
    assert tables[0].equals(tables[1])
    assert replace(read_like(runs[0], []), run_id="", schedule=recorded) == replace(
        read_like(runs[1], []), run_id="", schedule=recorded
    )


def test_at_its_speed_the_simulated_probe_finds_what_the_recorded_one_found(recorded: Path, tmp_path: Path) -> None:
    like = read_like(recorded, [])
    slower = replace(like, capacity=replace(like.capacity, requests_per_s=25.0))
    found = at_its_speed(slower)
    name, _, factor = found.experiment.cluster.costs.profile.partition(" x ")
    assert name == "tiny-linux-2-cores"
    assert float(factor) > 1.5
    assert _probed(found).requests_per_s == pytest.approx(25.0, rel=0.1)
