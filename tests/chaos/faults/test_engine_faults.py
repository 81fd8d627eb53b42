"""Engines and clocks hurt in the simulated world: each fault bites, is proved, is healed, and a sham is called so."""

from pathlib import Path
from typing import Any

import msgspec
import pytest

from analysis.history import History
from analysis.judge import judge
from analysis.reader import load_history
from analysis.verdict import Outcome, Verdict
from chaos import faults, run
from chaos.experiment import FaultSpec, find
from chaos.faults.engines import pace_s
from chaos.faults.memory_pressure import MemoryPressure
from chaos.resolve import load
from chaos.results import ResultsDirectory
from chaos.worlds.simulated_engines import SimulatedClock, SimulatedEngine
from chaos.worlds.world import EngineState
from cluster.errors import Code
from tests.chaos.simulated_runs import Quiet
from tests.engine_fault_cases import EXPERIMENT, EXPERIMENTS, FAILS, WAYS

NODES = ("controller", "worker-0", "worker-1", "client-0")


def state(**fields: Any) -> EngineState:
    """A worker's engine of which all counters are zero, but for these."""
    counters = {field.name: 0 for field in msgspec.structs.fields(EngineState)}
    return EngineState(**({**counters, "alive": True, "gaps_s": (), "models": {"m": "warm"}} | fields))


MENDABLE = [way for way in WAYS if way not in FAILS]


def spec(kind: str, **fields: Any) -> FaultSpec:
    whole: dict[str, Any] = {"kind": kind, "phase": "fault", "targets": ("worker-0",), "duration_s": 9.0, "ttl_s": 9.0}
    return FaultSpec(**(whole | fields))


@pytest.mark.parametrize(
    ("kind", "fields", "message"),
    [
        ("slow_down", {"options": {"factor": 1.2}}, "options.factor: expected a number from 1.5 to 50, got 1.2"),
        ("slow_down", {"options": {"factor": 51}}, "options.factor: expected a number from 1.5 to 50, got 51"),
        ("slow_down", {"options": {"speed": 2}}, "options: slow_down has no speed; there is factor"),
        ("slow_down", {"targets": ("controller",)}, "targets: slow_down is for worker, got controller"),
        ("slow_down", {"duration_s": 1.0}, "duration_s: expected at least 3 s, for that long the proof takes"),
        ("engine_dies", {}, "mode: expected one of silent, loud, got None"),
        ("engine_dies", {"mode": "slowly"}, "mode: expected one of silent, loud, got 'slowly'"),
        ("engine_dies", {"mode": "loud", "targets": ("client-0",)}, "targets: engine_dies is for worker, got client-0"),
        ("load_fails", {"mode": "loud"}, "mode: load_fails has no modes, got 'loud'"),
        ("memory_pressure", {}, "options: expected exactly one of bytes, share, room_bytes"),
        ("memory_pressure", {"options": {"bytes": 1, "share": 1}}, "options: expected exactly one of bytes, share, r"),
        ("memory_pressure", {"options": {"share": 1.1}}, "options.share: expected a number from 0.01 to 1, got 1.1"),
        ("memory_pressure", {"options": {"bytes": -1}}, "options.bytes: expected a whole number from 1048576 to "),
        ("wrong_token", {"options": {"share": 0}}, "options.share: expected a number from 0.001 to 1, got 0"),
        ("wrong_token", {"targets": ("broker",)}, "targets: wrong_token is for worker, got broker"),
        ("clock_skew", {}, "options.ahead_s: expected a number from -86400 to 86400, got nothing"),
        (
            "clock_skew",
            {"options": {"ahead_s": 0.5}},
            "options.ahead_s: expected at least 1 s ahead or behind, got 0.5",
        ),
        ("clock_skew", {"options": {"ahead_s": 1e5}}, "options.ahead_s: expected a number from -86400 to 86400, got 1"),
        (
            "clock_skew",
            {"options": {"ahead_s": 9}, "targets": ("client-0",)},
            "targets: clock_skew is for worker and co",
        ),
    ],
)
def test_what_makes_no_sense_is_refused(kind: str, fields: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=f"^{message.replace('.', '[.]')}"):
        faults.make(spec(kind, **fields), NODES)


def test_every_kind_has_a_colour_of_its_own_and_tells_what_it_is() -> None:
    kinds = [faults.KINDS[name] for name in ("slow_down", "engine_dies", "load_fails", "memory_pressure")]
    kinds += [faults.KINDS[name] for name in ("wrong_token", "clock_skew")]
    colours = [kind.COLOUR for kind in faults.KINDS.values()]
    assert all(colours.count(kind.COLOUR) == 1 for kind in kinds)


@pytest.mark.parametrize("targets", [("worker-0",), ("worker-0", "worker-1")])
def test_a_wrong_token_explains_nothing_and_only_a_lack_of_workers_the_lack_of_workers(
    targets: tuple[str, ...],
) -> None:
    assert faults.make(spec("wrong_token", targets=targets), NODES).explains == ()
    for kind, fields in (("slow_down", {}), ("memory_pressure", {"options": {"bytes": 2**20}})):
        explains = faults.make(spec(kind, targets=targets, **fields), NODES).explains
        assert (Code.NO_WORKERS_AVAILABLE in explains) == (len(targets) == 2)
        assert Code.ENGINE_ERROR not in explains


def test_a_pace_is_told_only_of_fresh_and_enough_tokens() -> None:
    def streamed(gaps: int, *gaps_s: float) -> EngineState:
        return state(gaps=gaps, gaps_s=gaps_s)

    slow, quick = (0.8,) * 8, (0.1,) * 8
    assert pace_s(streamed(7, *quick[:7])) is None
    assert pace_s(streamed(16, *quick, *slow), since=8) == 0.8
    assert pace_s(streamed(16, *quick, *slow), since=9) is None
    assert pace_s(streamed(1_000, *slow)) == 0.8


@pytest.mark.parametrize(
    ("options", "limit"),
    [({"bytes": 2**20}, 2**20), ({"share": 0.5}, 75), ({"room_bytes": 20}, 120), ({"room_bytes": 0}, 100)],
)
def test_a_memory_limit_is_told_in_one_of_three_ways(options: dict[str, float], limit: int) -> None:
    fault = MemoryPressure(spec("memory_pressure", options=options), NODES)
    assert fault._limit(state(weights_bytes=100, memory_bytes=150)) == limit


def conduct(out: Path, experiment: Path, *settings: str) -> tuple[Verdict, History]:
    whole = load(experiment, settings)
    results = ResultsDirectory(out, whole, "simulated", 1)
    run._execute(whole, "simulated", 1, results, Quiet(), None)  # type: ignore[arg-type]
    history = load_history(results.path)
    return judge(history), history


def broken(verdict: Verdict) -> list[int]:
    return [each.number for each in verdict.invariants if each.violations]


@pytest.mark.simulated
@pytest.mark.parametrize("way", MENDABLE)
def test_it_bites_is_proved_and_healed_and_nobody_gets_less_than_is_due(tmp_path: Path, way: str) -> None:
    verdict, history = conduct(tmp_path, EXPERIMENT, *WAYS[way])
    assert verdict.verdict is Outcome.PASS, verdict.reasons
    (fault,) = verdict.faults
    assert fault.verified, fault.evidence
    assert history.faults["heal_verified"].all(), fault.evidence
    assert broken(verdict) == []


@pytest.mark.simulated
def test_wrong_tokens_are_seen_by_invariant_three_and_by_nothing_else(tmp_path: Path) -> None:
    verdict, history = conduct(tmp_path, EXPERIMENT, *WAYS["wrong_token"])
    assert verdict.verdict is Outcome.FAIL
    assert broken(verdict) == [3]
    assert verdict.faults[0].verified
    assert history.faults["heal_verified"].all()


@pytest.mark.simulated
@pytest.mark.parametrize("way", list(WAYS))
def test_a_sham_is_called_invalid(tmp_path: Path, way: str, monkeypatch: pytest.MonkeyPatch) -> None:
    async def nothing(handle: object, *arguments: object) -> None:
        """In place of what hurts."""

    monkeypatch.setattr(SimulatedEngine, "impair", nothing)
    monkeypatch.setattr(SimulatedEngine, "limit_memory", nothing)
    monkeypatch.setattr(SimulatedClock, "set_ahead", nothing)
    verdict, _ = conduct(tmp_path, EXPERIMENT, *WAYS[way])
    assert verdict.verdict is Outcome.INVALID, verdict.reasons
    assert [fault.verified for fault in verdict.faults] == [False]


@pytest.mark.simulated
@pytest.mark.parametrize("name", EXPERIMENTS)
def test_the_experiments_of_the_catalogue_pass(tmp_path: Path, name: str) -> None:
    verdict, history = conduct(tmp_path, find(name), "workload.rate=20/s")
    assert verdict.verdict is Outcome.PASS, verdict.reasons
    assert broken(verdict) == []
    opened = set(history.events.loc[history.events["kind"] == "breaker_opened", "subject"])
    if name == "memory_pressure":
        assert not opened, "a lack of memory is nobody's failure"
    if name == "engine_death":
        suspected = history.events[history.events["kind"] == "worker_suspected"]
        assert suspected["detail"].str.contains("its engine is silent").any()


@pytest.mark.simulated
def test_without_a_watch_on_the_engine_a_dead_one_costs_requests_for_as_long_as_it_is_dead(tmp_path: Path) -> None:
    def wasted(*settings: str) -> int:
        _, history = conduct(tmp_path, EXPERIMENT, *WAYS["engine_dies_silent"], *settings)
        attempts = history.attempts[
            (history.attempts["side"] == "controller") & (history.attempts["worker"] == "worker-0")
        ]
        return int((attempts["outcome"] == "failed").sum())

    assert wasted() < wasted("policy.membership.engine_silent_max_s=null")


@pytest.mark.simulated
def test_a_slow_worker_gets_less_work_than_the_others(tmp_path: Path) -> None:
    """With as many open requests as the others and an eighth of their pace it should get one in 17."""
    settings = ("workload.rate=80/s", "phases.recovery.duration_s=3")
    _, history = conduct(tmp_path, EXPERIMENT, *WAYS["slow_down"], *settings)
    (fault,) = history.faults.to_dict("records")
    attempts = history.attempts[history.attempts["side"] == "controller"]
    inside = attempts[attempts["begun_s"].between(fault["injected_s"] + 2.0, fault["healed_s"])]
    assert inside["worker"].value_counts(normalize=True)["worker-0"] < 0.15
