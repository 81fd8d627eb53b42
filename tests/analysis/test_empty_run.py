"""A run that was interrupted before anything happened has a verdict, and it is neither pass nor fail."""

from pathlib import Path

import msgspec
import pyarrow.parquet as pq
import pytest
import yaml

from analysis.checkers import CHECKERS, run_checkers
from analysis.history import RunInfo
from analysis.judge import judge
from analysis.merge import merge
from analysis.reader import load_history
from analysis.report import write_report
from analysis.tables import SCHEDULE_SCHEMA
from analysis.verdict import Outcome
from chaos.experiment import find


@pytest.fixture
def empty_run(tmp_path: Path) -> Path:
    (tmp_path / "raw").mkdir()
    merge(tmp_path / "raw", tmp_path, 0.0, {})
    pq.write_table(SCHEDULE_SCHEMA.empty_table(), tmp_path / "schedule.parquet")
    (tmp_path / "experiment.yaml").write_text(yaml.safe_dump(yaml.safe_load(find("network_partition").read_text())))
    info = RunInfo(
        run_id="empty",
        experiment="network_partition",
        world="live",
        seed=1,
        complete=False,
        ended_by="interrupted",
        invariants=[1, 2, 3, 4, 5, 6, 7, 8, 9],
    )
    (tmp_path / "run.json").write_bytes(msgspec.json.encode(info))
    return tmp_path


def test_no_checker_breaks(empty_run: Path) -> None:
    results = run_checkers(load_history(empty_run))
    assert len(results) == len(CHECKERS)
    assert not [result.explanation for result in results if "broke" in result.explanation]


def test_the_verdict_claims_nothing(empty_run: Path) -> None:
    history = load_history(empty_run)
    verdict = judge(history)
    assert verdict.verdict is Outcome.INCONCLUSIVE
    assert "interrupted" in verdict.reasons[0]
    write_report(empty_run, history, verdict, {})
    assert "interrupted" in (empty_run / "report.md").read_text()
