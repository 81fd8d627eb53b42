"""Calibrations by name: what is shipped, what is saved and read again, and how an experiment takes one."""

import re
from pathlib import Path

import msgspec
import pytest
from msgspec.structs import replace

from chaos.experiment import ExperimentError, find
from chaos.resolve import load
from cluster import calibrate
from cluster.calibration import (
    Calibration,
    CalibrationError,
    calibration_names,
    load_calibration,
    measured_for,
    save_calibration,
)
from cluster.engine.costs import StepCosts
from cluster.simulation.condition import NetworkCosts

MADE = Calibration("tiny", "measured", "a test", 2, StepCosts(step_s=0.003, contention=(1.0, 1.4)), NetworkCosts(0.001))


@pytest.mark.parametrize("name", calibration_names())
def test_what_is_shipped_says_where_it_comes_from_and_names_no_place(name: str) -> None:
    found = load_calibration(name)
    assert found.costs.profile == name
    assert len(found.source) > 20
    text = msgspec.json.encode(found).decode()
    assert not re.search(r"/(home|root|tmp|work|usr|Users)/", text)
    if found.kind == "published":
        assert "not measured by this project" in found.source
        assert not found.fits
        assert name.endswith("-published")
    else:
        assert {"cpu", "cores", "mlx", "mlx-lm", "blas"} <= set(found.environment)
        assert {"decode", "prefill"} <= set(found.fits)
        assert found.costs.noise
        assert len(found.costs.contention) == found.workers


def test_there_is_a_measured_one_for_both_models_of_ours() -> None:
    assert measured_for("tiny") == "tiny-linux-2-cores"
    assert measured_for("smollm2-135m") == "smollm2-135m-linux-2-cores"
    assert measured_for("Llama-3.2-3B-Instruct-4bit") is None


def test_what_is_saved_is_read_again(tmp_path: Path) -> None:
    path = tmp_path / "mine.json"
    save_calibration(MADE, path)
    assert load_calibration(str(path)) == replace(MADE, costs=replace(MADE.costs, profile="mine"))


def test_an_experiment_takes_costs_and_bus_by_name_and_says_so(tmp_path: Path) -> None:
    path = tmp_path / "mine.json"
    save_calibration(MADE, path)
    cluster = load(find("network_partition"), [f"cluster.costs={path}"]).cluster
    assert (cluster.costs.step_s, cluster.costs.profile, cluster.bus) == (0.003, "mine", NetworkCosts(0.001))


def test_a_bus_that_somebody_chose_stays(tmp_path: Path) -> None:
    path = tmp_path / "mine.json"
    save_calibration(MADE, path)
    cluster = load(find("network_partition"), ["cluster.bus.latency_s=0.02", f"cluster.costs={path}"]).cluster
    assert cluster.bus.latency_s == 0.02


@pytest.mark.parametrize(
    ("content", "why"),
    [(None, "cannot be read"), ("{", "no calibration"), ("{}", "no calibration"),
     ('{"model":"m","kind":"guessed","source":"","workers":1,"costs":{},"bus":{}}', "kind"),
     ('{"model":"m","kind":"measured","source":"","workers":1,"costs":{"noise":[0]},"bus":{}}', "noise")],
)  # fmt: skip
def test_what_is_no_calibration_is_refused_in_a_line(content: str | None, why: str, tmp_path: Path) -> None:
    path = tmp_path / "bad.json"
    if content is not None:
        path.write_text(content)
    with pytest.raises(CalibrationError, match=why):
        load_calibration(str(path))
    with pytest.raises(ExperimentError, match=r"network_partition.yaml: cluster.costs: .*bad.json") as refused:
        load(find("network_partition"), [f"cluster.costs={path}"])
    assert "\n" not in str(refused.value)


def test_an_unknown_name_is_answered_with_those_there_are() -> None:
    with pytest.raises(ExperimentError, match=r"cluster\.costs: no calibration 'tinny'; there is .*tiny-linux-2-cores"):
        load(find("network_partition"), ["cluster.costs=tinny"])


@pytest.mark.parametrize(
    ("arguments", "why"),
    [(["--workers", "0"], "--workers: expected 1 to"), (["--out", "x.yaml"], "--out: expected a name that ends")],
)
def test_a_wrong_option_is_told_at_once(arguments: list[str], why: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert calibrate.main(arguments) == calibrate.EXIT_USAGE
    said = capsys.readouterr().err
    assert why in said
    assert said.count("\n") == 1


def test_a_summary_has_an_error_for_each_estimate() -> None:
    lines = calibrate.summary(load_calibration("tiny-linux-2-cores"))
    assert any(line.startswith("decode: step ") and "+-" in line for line in lines)
    assert any("side by side, 1 to 3" in line for line in lines)
