"""PRD, stress suite: minutes of load without drift, and the three kinds of trouble that the PRD names."""

import pytest

from tests.performance.suite import assert_passes, assert_shown, played

pytestmark = [pytest.mark.verify, pytest.mark.timeout(1_600)]


def test_ten_minutes_of_load_leave_no_trace() -> None:
    assert_shown(played("sustained_load"), "latency_drift", "throughput_drift", "memory_drift", "queue", "success")


@pytest.mark.parametrize("experiment", ["all_workers_offline", "memory_pressure", "network_partition"])
def test_trouble_is_survived(experiment: str) -> None:
    result = played(experiment)
    assert len(result.judgement.faults) >= 1
    assert_passes(result)
