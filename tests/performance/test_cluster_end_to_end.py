"""PRD, cluster end to end: one worker behind client, bus and controller, against the bare engine and mlx_lm.server."""

from pathlib import Path

import msgspec
import pytest

from chaos.baseline_engine import BaselineReport, run

pytestmark = [pytest.mark.verify, pytest.mark.timeout(900)]
RESULTS = Path("results") / "performance" / "baseline_engine"


@pytest.fixture(scope="module")
def report() -> BaselineReport:
    return run("tiny", RESULTS)


def test_every_side_was_measured_in_enough_blocks(report: BaselineReport) -> None:
    assert {row.versus for row in report.rows} == {"BatchGenerator", "mlx_lm.server"}
    assert all(row.comparison is not None and min(row.comparison.blocks) >= 5 for row in report.rows)


def test_distribution_costs_less_than_it_may(report: BaselineReport) -> None:
    assert report.verdict == "pass", report.text()


def test_the_report_is_on_disk(report: BaselineReport) -> None:
    assert msgspec.json.decode((RESULTS / "baseline.json").read_bytes(), type=BaselineReport) == report
