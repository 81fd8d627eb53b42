"""The main job in the simulated world, through the real director, recorder, checkers and judge."""

import hashlib
import os
import subprocess
import sys
from pathlib import Path

import pyarrow as pa
import pytest

from analysis.executions import late_starts, repeated_starts
from analysis.facts import segments
from analysis.recorder import END_OF_STREAM
from analysis.verdict import EXIT_CODES, Outcome
from chaos import run
from chaos.worlds.world import Cut
from cluster.simulation.network import Condition, Link
from tests.chaos.simulated_runs import SHORT, Run, conduct

pytestmark = pytest.mark.simulated

FILES = (
    *(f"{table}.parquet" for table in ("requests", "attempts", "faults", "nodes", "events")),
    *("experiment.yaml", "environment.json", "verdict.json", "report.md", "report.html", "junit.xml"),
)
MODES = [cut.value for cut in Cut]
WEAK = ("policy.retry.max_attempts=1", "policy.breaker.enabled=false", "policy.timeout.first_token_s=30")


def assert_nothing_ran_late_or_twice(done: Run) -> None:
    """From the workers' own rows and the client's, without the checkers' help."""
    history = done.history
    assert late_starts(history).empty
    assert repeated_starts(history).empty
    worker = history.attempts[history.attempts["side"] == "worker"]
    started = worker[worker["started_s"].notna()]
    assert len(started) > 500
    assert (started["started_s"] < started["deadline_s"]).all()
    assert not started.duplicated(["request_id", "submission", "attempt"]).any()
    parts = segments(history.requests)
    before = parts.groupby("row")[["submission", "attempt"]].shift(1).fillna(0)
    newer = (parts["submission"] > before["submission"]) | (
        (parts["submission"] == before["submission"]) & (parts["attempt"] >= before["attempt"])
    )
    assert newer.all(), "a token of a superseded attempt was delivered"


@pytest.mark.parametrize("target", ["worker-0", "controller"])
@pytest.mark.parametrize("mode", MODES)
def test_every_mode_and_target_passes(tmp_path: Path, mode: str, target: str) -> None:
    done = conduct(tmp_path, f"faults.cut.mode={mode}", f"faults.cut.targets=[{target}]")
    assert done.verdict.verdict is Outcome.PASS, done.verdict.reasons
    assert [fault.verified for fault in done.verdict.faults] == [True]
    assert [invariant.number for invariant in done.verdict.invariants] == list(range(1, 10))
    assert all(invariant.violations == 0 for invariant in done.verdict.invariants)
    assert not any(criterion.verdict is Outcome.INCONCLUSIVE for criterion in done.verdict.criteria)
    applicable = {each.name for each in done.verdict.criteria if each.verdict is not Outcome.NOT_APPLICABLE}
    assert ("told_in_time" in applicable) == (target == "controller")
    assert ("success_during_fault" in applicable) == (target == "worker-0")
    if mode in ("stall", "black_hole"):
        assert_nothing_ran_late_or_twice(done)
    assert (done.history.attempts["outcome"] != "completed").any(), "the cut has cost something, or it was none"


def test_two_workers_may_go_at_once(tmp_path: Path) -> None:
    done = conduct(tmp_path, "faults.cut.targets=[worker-0, worker-2]", "workload.rate=30/s", "cluster.workers=4")
    bites = done.verdict.faults[0].evidence["bite"]
    assert isinstance(bites, dict)
    assert sorted(bites) == ["worker-0", "worker-2"]
    assert done.verdict.faults[0].verified
    assert all(invariant.violations == 0 for invariant in done.verdict.invariants)


def test_a_cluster_of_one_does_not_pass_and_says_why_in_one_sentence(tmp_path: Path) -> None:
    done = conduct(tmp_path, "cluster.workers=1", "guard.last_worker=true")
    assert done.verdict.verdict is Outcome.FAIL
    first = done.verdict.reasons[0]
    assert first.startswith("success rate of requests met by a fault in phase fault is")
    assert first.endswith("; the faults hit every worker of the cluster, so nobody was left to take over")
    assert "\n" not in first
    assert done.verdict.suffered
    assert all(invariant.violations == 0 for invariant in done.verdict.invariants), "it fails honestly"


def test_a_weakened_policy_fails_and_names_who_suffered(tmp_path: Path) -> None:
    done = conduct(tmp_path, *WEAK)
    assert done.verdict.verdict is Outcome.FAIL
    assert EXIT_CODES[done.verdict.verdict] == 1
    lost = done.history.requests[done.history.requests["outcome"] != "completed"]
    assert len(lost) > 0
    assert set(done.verdict.suffered) >= set(lost["request_id"])


@pytest.mark.parametrize("mode", MODES)
def test_a_sabotaged_injection_is_invalid_whatever_the_mode(
    tmp_path: Path, mode: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def nothing(link: Link, condition: Condition) -> None:
        """In place of Link.set_condition: the proxy is never told."""

    monkeypatch.setattr(Link, "set_condition", nothing)
    brief = [f"phases.{phase}.duration_s=4" for phase in ("baseline", "fault", "recovery")]
    done = conduct(tmp_path, f"faults.cut.mode={mode}", *brief, "faults.cut.duration_s=3")
    assert done.verdict.verdict is Outcome.INVALID
    assert [fault.verified for fault in done.verdict.faults] == [False]
    assert "did not prove" in done.verdict.reasons[0]
    assert any("NOT PROVED" in note for note in done.watcher.notes)
    assert done.verdict.counts.failed == 0


@pytest.mark.parametrize("mode", [cut.value for cut in Cut])
def test_a_fault_that_goes_away_by_itself_is_invalid_although_it_had_bitten(
    tmp_path: Path, mode: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    cut, strikes = Link.set_condition, []

    def for_a_moment(link: Link, condition: Condition) -> None:
        """Link.set_condition, undone by somebody else two seconds later; a reset strikes once and never again."""
        strikes.append(condition)
        if mode != Cut.RESET or len(strikes) <= 2:
            cut(link, condition)
        if mode != Cut.RESET and not condition.clear:
            link._kernel.at(link._kernel.now + 2.0, lambda: cut(link, Condition()))

    monkeypatch.setattr(Link, "set_condition", for_a_moment)
    brief = [f"phases.{phase}.duration_s=4" for phase in ("baseline", "recovery")]
    done = conduct(tmp_path, f"faults.cut.mode={mode}", *brief, "phases.fault.duration_s=9", "faults.cut.duration_s=7")
    assert done.verdict.verdict is Outcome.INVALID
    assert [fault.verified for fault in done.verdict.faults] == [False]
    assert any("NOT IN FORCE" in note for note in done.watcher.notes)


def test_the_capacity_probe_sets_the_rate_and_leaves_no_rows(tmp_path: Path) -> None:
    done = conduct(tmp_path, "workload.rate=20%", "workload.rate_max=1000/s")
    assert done.verdict.verdict is Outcome.PASS, done.verdict.reasons
    assert "capacity probe" in done.watcher.phases
    assert any("20% of the measured capacity" in note for note in done.watcher.notes)
    assert not done.history.requests["request_id"].str.startswith("probe").any()


def test_the_watcher_sees_the_phases_the_fault_and_the_counts(tmp_path: Path) -> None:
    done = conduct(tmp_path)
    phases = [
        "start",
        "capacity probe",
        "warm_up",
        "baseline",
        "fault",
        "recovery",
        "drain",
        "stop",
        "reference completions",
    ]
    assert done.watcher.phases == phases
    faulty = [snapshot for snapshot in done.watcher.snapshots if snapshot.faults]
    assert 24 <= len(faulty) <= 26
    assert any(snapshot.workers["worker-0"] == "dead" for snapshot in faulty)
    assert any(snapshot.breakers["worker-0"] != "closed" for snapshot in faulty)
    last = done.watcher.snapshots[-1]
    assert last.workers == dict.fromkeys(("worker-0", "worker-1", "worker-2"), "ready")
    assert last.offered == last.completed + last.failed + last.refused + last.in_flight
    assert [snapshot.offered for snapshot in done.watcher.snapshots] == sorted(
        snapshot.offered for snapshot in done.watcher.snapshots
    )


def digest(raw: Path) -> str:
    """Of every value of every row, whatever the layout of the files that hold them."""
    whole = hashlib.sha256()
    for path in sorted(raw.glob("*.arrow")):
        table = pa.ipc.open_stream(path.read_bytes()).read_all()
        whole.update(path.name.encode())
        whole.update(repr(table.to_pylist()).encode())
    return whole.hexdigest()


_TWIN = """
import sys
from pathlib import Path
from tests.chaos.simulated_runs import conduct
print(conduct(Path(sys.argv[1]), seed=int(sys.argv[2])).path)
"""


def twin(out: Path, seed: int, hash_seed: str) -> Path:
    environment = {**os.environ, "PYTHONHASHSEED": hash_seed, "PYTHONPATH": os.pathsep.join(sys.path)}
    ended = subprocess.run(
        [sys.executable, "-c", _TWIN, str(out), str(seed)],
        capture_output=True,
        text=True,
        env=environment,
        check=False,
        timeout=120,
    )
    assert ended.returncode == 0, ended.stderr
    return Path(ended.stdout.strip().splitlines()[-1])


def test_one_seed_makes_one_history_to_the_byte_whatever_the_hash_seed(tmp_path: Path) -> None:
    first, second = (twin(tmp_path / hash_seed, 3, hash_seed) for hash_seed in ("1", "4242"))
    other = conduct(tmp_path, seed=4).path
    assert digest(first / "raw") == digest(second / "raw")
    assert digest(first / "raw") != digest(other / "raw")
    raw = [sorted((path / "raw").glob("*.arrow")) for path in (first, second)]
    assert [path.name for path in raw[0]] == [path.name for path in raw[1]]
    assert [path.read_bytes() for path in raw[0]] == [path.read_bytes() for path in raw[1]]
    for table in ("requests", "attempts", "events", "nodes", "faults"):
        assert (first / f"{table}.parquet").read_bytes() == (second / f"{table}.parquet").read_bytes()


def test_the_command_passes_and_leaves_every_file_of_the_contract(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    settings = [part for setting in SHORT for part in ("--set", setting)]
    assert run.main(["network_partition", "--world", "simulated", "--out", str(tmp_path), *settings]) == 0
    left = tmp_path / "latest"
    for name in FILES:
        assert (left / name).stat().st_size > 0, name
    assert "verdict: PASS" in capsys.readouterr().out
    assert all(path.read_bytes().endswith(END_OF_STREAM) for path in (left / "raw").glob("*.arrow"))
