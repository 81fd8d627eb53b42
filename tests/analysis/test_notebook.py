"""Results as a notebook user gets them."""

import subprocess
import sys
from pathlib import Path

import msgspec
import numpy as np
import pytest

import analysis
from analysis.history import UnreadableError
from analysis.judge import judge, write_verdict
from analysis.reader import load_history
from tests.analysis.histories import Run, clean_run
from tests.analysis.saved_runs import save, save_raw
from tests.analysis.test_aggregate import mixed_run


def test_requests_come_with_their_phase_arm_and_durations(tmp_path: Path) -> None:
    directory = save(tmp_path / "run", mixed_run())
    write_verdict(directory, judge(load_history(directory)))
    run = analysis.load(str(directory))
    requests = run.requests.set_index("request_id")
    assert len(requests) == len(run.schedule)
    assert requests["intended_s"].is_monotonic_increasing
    first = requests.loc["r0"]
    assert (first["phase"], first["arm"], first["token_count"]) == ("warm_up", "sticky", 12)
    assert first["latency_s"] == pytest.approx(0.2)
    assert first["ttft_s"] == pytest.approx(0.1)
    assert first["inter_token_s"] == pytest.approx(0.1 / 11)
    assert first["lag_s"] == pytest.approx(0.001)
    lost = requests.loc["r40"]
    assert (lost["outcome"], lost["arm"], lost["token_count"]) == ("in_flight", "sticky", 0)
    assert np.isnan(lost["latency_s"])
    failed = requests[requests["outcome"] == "failed"]
    assert failed["inter_token_s"].isna().all()
    assert failed["latency_s"].notna().all()
    assert set(requests["phase"]) == {"warm_up", "baseline", "fault", "recovery"}
    workers = run.attempts[run.attempts["side"] == "worker"]
    assert workers["queue_wait_s"].median() == pytest.approx(0.01)
    assert set(run.attempts["arm"]) == {"sticky", "moved"}
    assert run.verdict is not None
    assert run.info.seed == 7
    assert run.experiment["name"] == "network_partition"
    assert "requests" in repr(run)


def test_several_runs_come_together_and_apart(tmp_path: Path) -> None:
    paths = [save(tmp_path / "a"), save_raw(tmp_path / "b", renamed("r2"))]
    both = analysis.load(paths)
    assert both.requests.columns[0] == "run"
    assert both.requests["run"].value_counts().to_dict() == {"r1": 344, "r2": 344}
    assert set(both.faults["run"]) == {"r1", "r2"}
    assert [run.info.run_id for run in both.runs] == ["r1", "r2"]
    assert both.verdict is None
    assert not both.runs[1].info.complete


def renamed(run_id: str) -> Run:
    run = clean_run()
    run.info = msgspec.structs.replace(run.info, run_id=run_id)
    return run


def test_what_is_no_result_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(UnreadableError, match=r"missing|no run\.json"):
        analysis.load(tmp_path)
    with pytest.raises(UnreadableError, match="expected 1 to"):
        analysis.load([])


def test_importing_the_package_and_its_schema_imports_no_pandas() -> None:
    heavy = "('pandas', 'pyarrow', 'numpy')"
    code = f"import sys, analysis, analysis.schema; print([name for name in {heavy} if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
