"""The same faults of processes as live, on the virtual clock."""

from pathlib import Path

import pytest

from chaos.run import main
from tests import contract, serving_cases


@pytest.mark.simulated
@pytest.mark.parametrize(
    ("experiment", "seed"), [(serving_cases.PROCESSES, 1), (serving_cases.PROCESSES, 2), (serving_cases.BROKERS, 1)]
)
def test_every_process_is_hurt_once_and_nobody_suffers(tmp_path: Path, experiment: Path, seed: int) -> None:
    arguments = [str(experiment), "--world", "simulated", "--seed", str(seed), "--out", str(tmp_path)]
    code = main(arguments)
    verdict = contract.verdict_of((tmp_path / "latest").resolve())
    told = contract.as_json(verdict)
    assert serving_cases.hurt_processes(verdict, experiment) == [], told
    assert code == 0, told
    assert contract.violations(verdict) == 0, told
