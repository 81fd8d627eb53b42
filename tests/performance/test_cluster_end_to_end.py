"""PRD, cluster end to end: one worker behind client, bus and controller, against the bare engine and mlx_lm.server."""

from pathlib import Path

import msgspec
import pytest

from analysis.verdict import merge
from chaos.baseline_engine import BaselineReport, run
from tests.performance.suite import FOUND, WORDS, missed

pytestmark = [pytest.mark.verify, pytest.mark.timeout(900)]
RESULTS = Path("results") / "performance" / "baseline_engine"


@pytest.fixture(scope="module")
def report() -> BaselineReport:
    return run("tiny", RESULTS)


def test_every_side_was_measured_in_enough_blocks(report: BaselineReport) -> None:
    assert {row.versus for row in report.rows} == {"BatchGenerator", "mlx_lm.server"}
    assert all(row.comparison is not None and min(row.comparison.blocks) >= 5 for row in report.rows)


def test_distribution_costs_less_than_it_may(report: BaselineReport) -> None:
    for row in report.rows:
        ratio = "too few blocks" if row.comparison is None else f"{row.comparison.ratio:.3f}"
        FOUND.append(
            f"baseline_engine, {row.metric} over {row.versus}: {ratio}, promised {row.limit}, {WORDS[row.verdict]}"
        )
    assert report.verdict == merge([row.verdict for row in report.rows]), report.text()
    assert report.verdict in ("pass", "fail", "inconclusive"), report.text()
    if report.verdict != "pass":
        missed(report.text())


def test_the_report_is_on_disk(report: BaselineReport) -> None:
    assert msgspec.json.decode((RESULTS / "baseline.json").read_bytes(), type=BaselineReport) == report
