"""The main job on the real NATS, Toxiproxy, Ray and MLX, once in every `make test`; about 45 s."""

from pathlib import Path

import pytest

from analysis.verdict import Outcome, Verdict
from tests import contract
from tests.processes import Run

EXPERIMENT = Path(__file__).with_name("partition_short.yaml")
TRIES_MAX = 2
RUN_S_MAX = 140.0


def _spoilt_by_this_machine(verdict: Verdict) -> bool:
    """The run itself says that our machine stood still, and nothing else went wrong."""
    bad = [criterion for criterion in verdict.criteria if criterion.verdict is Outcome.INVALID]
    return bool(bad) and all("(self-check)" in criterion.name for criterion in bad)


@pytest.mark.live
def test_a_worker_is_cut_off_and_the_report_proves_that_nobody_suffered(tmp_path: Path) -> None:
    for number in range(TRIES_MAX):
        with Run([str(EXPERIMENT)], tmp_path / str(number)) as run:
            code = run.wait(RUN_S_MAX)
            alive, _ = run.left()
        assert code is not None, run.tail()
        assert run.results is not None, run.tail()
        assert contract.missing(run.results) == [], run.tail()
        verdict = contract.verdict_of(run.results)
        if not _spoilt_by_this_machine(verdict):
            break
    told = f"{contract.as_json(verdict)}\n{run.tail()}"
    assert code == 0, told
    assert verdict.verdict is Outcome.PASS
    assert verdict.complete
    assert [(fault.kind, fault.verified) for fault in verdict.faults] == [("partition", True)]
    assert verdict.faults[0].healed_s is not None
    # Every invariant that this world can judge was judged, and kept.
    assert contract.violations(verdict) == 0
    kept = {each.number for each in verdict.invariants if each.verdict is Outcome.PASS}
    assert kept == {1, 2, 3, 4, 5, 6, 7, 8, 9}
    assert verdict.counts.offered > 200
    assert verdict.counts.in_flight == 0
    assert alive == []
