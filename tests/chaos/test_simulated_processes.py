"""The same faults of processes as live, on the virtual clock."""

from pathlib import Path

import pytest

from chaos import faults
from chaos.run import main
from tests import contract, serving_cases
from tests.serving_soak import ProcessFault


@pytest.fixture(autouse=True)
def _kind(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(faults.KINDS, ProcessFault.KIND, ProcessFault)


@pytest.mark.simulated
@pytest.mark.parametrize("seed", [1, 2])
def test_every_process_is_hurt_once_and_nobody_suffers(tmp_path: Path, seed: int) -> None:
    arguments = [str(serving_cases.PROCESSES), "--world", "simulated", "--seed", str(seed), "--out", str(tmp_path)]
    code = main(arguments)
    verdict = contract.verdict_of((tmp_path / "latest").resolve())
    told = contract.as_json(verdict)
    assert serving_cases.hurt_processes(verdict) == [], told
    assert code == 0, told
    assert contract.violations(verdict) == 0, told
