"""The experiments about load, shortened, in the simulated world; and loads that go wrong in ways of their own."""

from pathlib import Path

import pytest

from analysis.history import History
from analysis.judge import judge
from analysis.reader import load_history
from analysis.verdict import Outcome, Verdict
from chaos import run
from chaos.experiment import find
from chaos.resolve import load
from chaos.results import ResultsDirectory
from tests.chaos.simulated_runs import Quiet

SHORT = {
    "high_concurrency": (
        "phases.warm_up.duration_s=1",
        "phases.baseline.duration_s=6",
        "phases.burst_100.duration_s=2",
        "phases.burst_200.duration_s=3",
        "phases.burst_500.duration_s=5",
        "phases.sustained.duration_s=6",
        "phases.drain.duration_s=5",
        "phases.recovery.duration_s=6",
    ),
    "load_spike": (
        "phases.warm_up.duration_s=1",
        "phases.baseline.duration_s=8",
        "phases.spike.duration_s=4",
        "phases.drain.duration_s=8",
        "phases.recovery.duration_s=8",
    ),
    "sustained_load": ("phases.warm_up.duration_s=6", "phases.load.duration_s=60"),
}


class Done:
    def __init__(self, out: Path, name: str, *settings: str, profile: str | None = None) -> None:
        whole = load(find(name), [*SHORT[name], *settings], profile=profile)
        self.results, self.watcher = ResultsDirectory(out, whole, "simulated", 1), Quiet()
        run._execute(whole, "simulated", 1, self.results, self.watcher, None)  # type: ignore[arg-type]
        self.history: History = load_history(self.results.path)
        self.verdict: Verdict = judge(self.history)

    def samples(self, name: str) -> int:
        return next(each.samples for each in self.verdict.criteria if each.name == name)

    def failed(self) -> dict[str, str]:
        """What is not met, apart from what a short run is too small for."""
        criteria = {each.name: each.explanation for each in self.verdict.criteria if each.verdict in BAD}
        return criteria | {each.name: each.explanation for each in self.verdict.invariants if each.verdict in BAD}


BAD = (Outcome.FAIL, Outcome.INVALID)


def test_bursts_and_a_closed_load_are_offered_whole_each_in_its_phase(tmp_path: Path) -> None:
    done = Done(tmp_path, "high_concurrency")
    assert done.verdict.verdict is Outcome.PASS, done.verdict.reasons
    sizes = {size: done.samples(f"success_of_{size}") for size in (100, 200, 500)}
    assert sizes == {100: 100, 200: 200, 500: 500}
    assert done.samples("latency_sustained") >= 662
    schedule, requests = done.history.schedule, done.history.requests
    planned = schedule[schedule["segment"] == "sustained"]
    asked = requests[requests["request_id"].isin(planned["request_id"])]
    assert 662 <= len(asked) < len(planned), "only what was asked was offered"
    assert done.verdict.counts.offered == len(requests)
    # Little's law holds for it, so a hundred really were in flight.
    law = next(each for each in done.verdict.criteria if each.name == "Little's law (self-check)")
    assert law.verdict is Outcome.PASS
    assert any(note.startswith("in burst_500: 500 requests at once") for note in done.watcher.notes)
    begun = done.history.events[done.history.events["kind"] == "phase_started"].set_index("subject")["detail"]
    assert begun["sustained"].startswith("100 in flight (closed loop)")
    assert begun["baseline"] == ""


def test_a_long_line_is_not_submitted_again_because_it_is_long(tmp_path: Path) -> None:
    """On one worker the last of 500 wait longer than client.silence_s, in the knowledge that they do."""
    done = Done(
        tmp_path,
        "high_concurrency",
        "cluster.workers=1",
        "workload.rate=15%",
        "phases.burst_500.duration_s=12",
        "phases.sustained.duration_s=12",
    )
    requests = done.history.requests
    burst = requests[requests["request_id"].str.startswith("burst_500")]
    assert (burst["first_token_s"] - burst["intended_s"]).max() > 5.0
    assert (requests["submissions"] == 1).all()
    assert done.failed() == {}


def test_a_spike_fills_the_batches_and_leaves_nothing_behind(tmp_path: Path) -> None:
    done = Done(tmp_path, "load_spike")
    assert done.failed() == {}
    open_verdicts = [each.name for each in done.verdict.criteria if each.verdict is Outcome.INCONCLUSIVE]
    assert set(open_verdicts) <= {"latency_after"}, "two per cent are more than so short a run can show"
    queue = done.history.nodes.loc[done.history.nodes["role"] == "controller", "queue_depth"]
    assert queue.max() > 100, "it was a spike"
    assert done.samples("success_in_spike") >= 460


def test_twice_the_capacity_for_longer_than_a_deadline_costs_no_goodput(tmp_path: Path) -> None:
    """Then everybody comes to a worker with hardly any time left; what is begun all the same is thrown away."""
    done = Done(
        tmp_path,
        "load_spike",
        "cluster.workers=1",
        "policy.client.deadline_s=3",
        "phases.spike.load.rate=200%",
        "phases.spike.duration_s=14",
        "phases.drain.duration_s=5",
    )
    requests, attempts = done.history.requests, done.history.attempts
    spike = next(phase for phase in done.history.phases() if phase.name == "spike")
    capacity_per_s = len(requests[requests["intended_s"].between(spike.start_s, spike.end_s)]) / 14 / 2
    ended = requests.loc[requests["outcome"] == "completed", "ended_s"]
    late_s = spike.end_s - 8
    assert ended.between(late_s, spike.end_s).sum() / 8 > 0.8 * capacity_per_s
    worked = attempts[attempts["side"] == "worker"]
    assert (worked["outcome"] == "completed").mean() > 0.98
    told = requests[requests["outcome"] == "failed"]
    assert len(told) > 300
    assert (told["code"] == "DEADLINE_EXCEEDED").all()
    assert (told["ended_s"] <= told["deadline_s"]).all(), "they are told before it is too late"
    after = next(each for each in done.verdict.criteria if each.name == "success (recovery)")
    assert after.measured == 1.0, "and the line is gone with the load that made it"


def test_a_minute_of_load_says_as_much_of_ten_minutes_as_a_minute_can(tmp_path: Path) -> None:
    done = Done(tmp_path, "sustained_load")
    assert done.failed() == {}
    drift = {each.name: each for each in done.verdict.criteria if each.name.endswith("_drift")}
    assert set(drift) == {"latency_drift", "throughput_drift", "memory_drift"}
    assert all(each.interval is not None for each in drift.values())
    assert drift["throughput_drift"].verdict is Outcome.INCONCLUSIVE


def test_a_closed_load_that_is_refused_at_once_stays_bounded_and_is_told_of(tmp_path: Path) -> None:
    done = Done(tmp_path, "high_concurrency", "policy.client.open_requests_max=20", "phases.sustained.duration_s=2")
    counts = done.verdict.counts
    assert counts.refused > 300
    assert counts.offered == counts.completed + counts.refused
    asked = done.history.requests["request_id"].str.startswith("sustained").sum()
    assert asked <= (done.history.schedule["segment"] == "sustained").sum()
    law = next(each for each in done.verdict.invariants if each.number == 4)
    assert law.verdict is Outcome.PASS
    assert done.verdict.verdict is Outcome.INVALID
    assert any("requests planned for phase sustained lasted" in reason for reason in done.verdict.reasons)


@pytest.mark.parametrize("name", ["load_spike", "sustained_load"])
def test_what_the_prd_asks_for_is_refused_where_the_cluster_cannot_do_it(
    name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    settings = ["--set", "cluster.workers=1", "--world", "simulated", "--out", str(tmp_path)]
    assert run.main([name, "--profile", "prd", *settings]) == run.EXIT_USAGE
    said = capsys.readouterr().err.strip()
    assert "% of the measured capacity of " in said
    assert "tokens/s)" in said
    assert "\n" not in said
