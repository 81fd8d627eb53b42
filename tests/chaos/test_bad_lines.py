"""Bad, flapping and hardly read lines in the simulated world: proved, healed, and invalid when nothing was done."""

from pathlib import Path
from typing import Any

import pytest

from analysis.judge import judge
from analysis.reader import load_history
from analysis.verdict import Outcome
from chaos import run
from chaos.experiment import find
from chaos.resolve import load
from chaos.results import ResultsDirectory
from cluster.simulation.line import Shaping
from cluster.simulation.network import Condition, Link
from tests.chaos.simulated_runs import Quiet, Run, conduct

pytestmark = pytest.mark.simulated

FAULTS: dict[str, str] = {
    "latency": "kind: latency, targets: [worker-0, worker-1], options: {latency_ms: 100, jitter_ms: 30}",
    "latency_of_the_controller": "kind: latency, targets: [controller], options: {latency_ms: 200}",
    "latency_one_way": "kind: latency, targets: [worker-0], options: {latency_ms: 300, direction: downstream}",
    "bandwidth": "kind: bandwidth, targets: [worker-0], options: {kb_per_s: 40}",
    "bandwidth_too_little": "kind: bandwidth, targets: [worker-0], options: {kb_per_s: 1}",
    "slicer": "kind: slicer, targets: [worker-0], options: {average_bytes: 100, variation_bytes: 20, delay_us: 2000}",
    "flap_refuse": "kind: flap, targets: [worker-0], mode: refuse, options: {up_s: 2, down_s: 1}",
    "flap_reset": "kind: flap, targets: [worker-0], mode: reset, options: {up_s: 2, down_s: 1}",
    "flap_stall": "kind: flap, targets: [worker-0], mode: stall, options: {up_s: 2, down_s: 3}",
    "flap_black_hole": "kind: flap, targets: [worker-0], mode: black_hole, options: {up_s: 2, down_s: 4}",
    "slow_consumer": "kind: slow_consumer, targets: [worker-0]",
    "slow_consuming_controller": "kind: slow_consumer, targets: [controller]",
}
KINDS = ("latency", "bandwidth", "slicer", "flap_refuse", "flap_black_hole", "slow_consumer")
EXPERIMENTS = ("slow_network", "flapping_link")


def hurt(out: Path, fault: str) -> Run:
    brief = ("phases.baseline.duration_s=4", "phases.fault.duration_s=14", "phases.recovery.duration_s=14")
    fields = f"{FAULTS[fault]}, phase: fault, start_s: 1, duration_s: 12, ttl_s: 30"
    return conduct(out, "workload.rate=20/s", *brief, f"faults.cut={{{fields}}}")


@pytest.mark.parametrize("fault", FAULTS)
def test_each_fault_is_proved_and_healed_and_breaks_no_invariant(tmp_path: Path, fault: str) -> None:
    done = hurt(tmp_path, fault)
    told = done.history.faults.iloc[0]
    assert bool(told["verified"]), told["evidence"]
    assert bool(told["heal_verified"]), told["evidence"]
    assert [each for each in done.verdict.invariants if each.verdict is Outcome.FAIL] == []
    assert done.verdict.counts.in_flight == 0
    return_s = next(each for each in done.verdict.criteria if each.name == "return_to_steady")
    assert return_s.verdict is Outcome.PASS, return_s


@pytest.mark.parametrize("fault", KINDS)
def test_a_line_that_nothing_was_done_to_makes_the_run_invalid(
    tmp_path: Path, fault: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def nothing(link: Link, *arguments: object) -> None:
        """In place of what the proxy does to a line."""

    monkeypatch.setattr(Link, "shape", nothing)
    monkeypatch.setattr(Link, "set_condition", nothing)
    done = hurt(tmp_path, fault)
    assert done.verdict.verdict is Outcome.INVALID
    assert [each.verified for each in done.verdict.faults] == [False]
    assert "did not prove" in done.verdict.reasons[0]
    assert done.verdict.counts.failed == 0


@pytest.mark.parametrize("fault", ["latency", "bandwidth", "slicer"])
def test_a_line_that_gets_good_by_itself_was_not_bad_until_the_end(
    tmp_path: Path, fault: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    shape = Link.shape

    def for_a_while(link: Link, up: Shaping | None, down: Shaping | None) -> None:
        shape(link, up, down)
        if up is not None:
            link._kernel.at(link._kernel.now + 5.0, lambda: shape(link, None, None))

    monkeypatch.setattr(Link, "shape", for_a_while)
    done = hurt(tmp_path, fault)
    assert done.verdict.verdict is Outcome.INVALID
    assert any("NOT IN FORCE" in note for note in done.watcher.notes)


def test_a_flap_of_which_one_strike_misses_is_invalid(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cut, strikes = Link.set_condition, 0

    def third_misses(link: Link, condition: Condition) -> None:
        nonlocal strikes
        strikes += condition.refused
        if not (condition.refused and strikes == 3):
            cut(link, condition)

    monkeypatch.setattr(Link, "set_condition", third_misses)
    done = hurt(tmp_path, "flap_refuse")
    assert strikes >= 4
    assert done.verdict.verdict is Outcome.INVALID
    assert "strike 3: the node is still connected" in done.verdict.reasons[0]


def test_every_strike_of_a_flap_but_the_first_is_an_event(tmp_path: Path) -> None:
    done = hurt(tmp_path, "flap_refuse")
    repeated = done.history.events[done.history.events["kind"] == "fault_repeated"]
    end: Any = done.verdict.faults[0].evidence["end"]
    assert set(repeated["subject"]) == {"worker-0"}
    assert len(repeated) == end["strikes"] - 1 == end["bit"] - 1 >= 2


def test_a_slow_consumer_is_dropped_by_the_broker_again_and_again(tmp_path: Path) -> None:
    done = hurt(tmp_path, "slow_consumer")
    end: Any = done.verdict.faults[0].evidence["end"]
    told = end["worker-0"]["connections"]
    assert len(told) >= 2
    assert any("Slow Consumer (Write Deadline)" in text for text in told.values())


@pytest.mark.parametrize("name", EXPERIMENTS)
def test_the_catalogue_passes(tmp_path: Path, name: str) -> None:
    whole = load(find(name), ["workload.rate=20/s"])
    results = ResultsDirectory(tmp_path, whole, "simulated", 1)
    run._execute(whole, "simulated", 1, results, Quiet(), None)  # type: ignore[arg-type]
    verdict = judge(load_history(results.path))
    assert verdict.verdict is Outcome.PASS, verdict.reasons
    assert all(fault.verified for fault in verdict.faults)
