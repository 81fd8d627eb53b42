"""PRD, stress suite: minutes of load without drift, and the three kinds of trouble that the PRD names."""

import pytest

from tests.performance.suite import assert_kept, assert_shown, played

pytestmark = [pytest.mark.verify, pytest.mark.timeout(1_600)]


def test_ten_minutes_of_load_leave_no_trace() -> None:
    result = played("sustained_load")
    for criterion in ("latency_drift", "throughput_drift", "memory_drift", "queue", "success"):
        assert_shown(result, criterion)
    assert_kept(result)


@pytest.mark.parametrize("experiment", ["all_workers_offline", "memory_pressure", "network_partition"])
def test_trouble_is_survived(experiment: str) -> None:
    result = played(experiment)
    assert_kept(result)
    assert result.verdict == "pass", result.explanation
    assert all(fault.verified for fault in result.judgement.faults)
