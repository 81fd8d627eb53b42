"""A run that is there is looked at as a search would."""

from pathlib import Path

import pytest

from chaos.experiment import find
from chaos.resolve import load
from chaos.results import ResultsDirectory
from chaos.searching.look import main
from chaos.session import play_simulated
from tests.chaos.simulated_runs import SHORT, Quiet

pytestmark = pytest.mark.simulated


@pytest.mark.parametrize(
    ("policy", "code", "said"), [("default", 0, "nothing is broken"), ("mlx_serving", 1, "class 1")]
)
def test_signs_of_a_kept_run(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], policy: str, code: int, said: str
) -> None:
    experiment = load(find("network_partition"), SHORT, policy)
    results = ResultsDirectory(tmp_path, experiment, "simulated", 1)
    play_simulated(experiment, 1, results, Quiet())
    assert main([str(results.path)]) == code
    assert said in capsys.readouterr().out


def test_a_folder_without_a_run_is_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([str(tmp_path)]) == 2
    assert capsys.readouterr().err.count("\n") == 1
