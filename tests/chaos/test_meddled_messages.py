"""Faults on single messages in the simulated world: proved, healed, invalid when nothing was done, and survived."""

from collections.abc import Iterator, Sequence
from pathlib import Path
from random import Random

import pytest

from analysis.judge import judge
from analysis.reader import load_history
from analysis.verdict import Outcome
from chaos import run
from chaos.experiment import find
from chaos.faults.messages import RECEIVED, SENT
from chaos.resolve import load
from chaos.results import ResultsDirectory
from chaos.worlds.messages import KINDS
from chaos.worlds.simulated_messages import SimulatedMessages
from chaos.worlds.world import MessageRule
from tests.chaos.simulated_runs import Quiet, Run, conduct

pytestmark = pytest.mark.simulated

OPTIONS = {
    "drop_messages": {},
    "delay_messages": {"delay_ms": 700, "jitter_ms": 600},
    "duplicate_messages": {"copies": 2},
    "reorder_messages": {"window": 6, "hold_ms": 800},
    "corrupt_messages": {"bytes": 3},
}
TARGETS = {"worker": "worker-0", "controller": "controller", "client": "client-0"}
RARE = ("drain", "evict", "prewarm", "cancel", "withdraw")
"""Nobody sends these as long as nothing else happens."""


def ways() -> Iterator[tuple[str, str, str]]:
    for direction, of in (("upstream", SENT), ("downstream", RECEIVED)):
        for role, messages in of.items():
            for message in messages:
                yield role, direction, message


def meddled(
    out: Path, kind: str, target: str, message: str, share: float, *, seed: int = 1, duration_s: float = 8
) -> Run:
    options = {"message": message, "share": share, **OPTIONS[kind]}
    said = ", ".join(f"{name}: {value}" for name, value in options.items())
    fields = f"kind: {kind}, targets: [{target}], options: {{{said}}}, duration_s: {duration_s}, ttl_s: 30"
    brief = ("phases.baseline.duration_s=3", "phases.fault.duration_s=10", "phases.recovery.duration_s=10")
    return conduct(out, "workload.rate=25/s", *brief, f"faults.cut={{{fields}, phase: fault, start_s: 1}}", seed=seed)


def kept(done: Run) -> None:
    """All that must hold whatever becomes of messages; 7 and 9 too, as far as they can be judged."""
    assert [each for each in done.verdict.invariants if each.verdict is Outcome.FAIL] == []
    assert done.verdict.counts.in_flight == 0


@pytest.mark.parametrize(
    ("target", "message", "share"),
    [("worker-0", "report", 0.3), ("worker-0", "dispatch", 1.0), ("client-0", "delivery", 0.3)],
)
@pytest.mark.parametrize("kind", KINDS)
def test_each_kind_is_proved_and_healed_and_breaks_no_invariant(
    tmp_path: Path, kind: str, target: str, message: str, share: float
) -> None:
    done = meddled(tmp_path, kind, target, message, share)
    told = done.history.faults.iloc[0]
    assert bool(told["verified"]), told["evidence"]
    assert bool(told["heal_verified"]), told["evidence"]
    kept(done)


def survived(out: Path, kind: str, random: Random, chosen: Sequence[tuple[str, str, str]]) -> None:
    """Each of these messages under a seed and a share of its own."""
    for number, (role, direction, message) in enumerate(chosen):
        share, seed = random.choice([0.05, 0.3, 1.0]), random.randrange(10**6)
        done = meddled(out / str(number), kind, TARGETS[role], message, share, seed=seed)
        said = f"{kind} {share:g} of {message} {direction} of {role}, seed {seed}"
        broken = [each for each in done.verdict.invariants if each.verdict is Outcome.FAIL]
        assert broken == [], said
        assert done.verdict.counts.in_flight == 0, said
        told = done.history.faults.iloc[0]
        assert bool(told["heal_verified"]), said
        assert bool(told["verified"]) or message in RARE or share < 1, said


@pytest.mark.parametrize("kind", KINDS)
def test_whatever_becomes_of_some_messages_no_invariant_breaks(tmp_path: Path, kind: str) -> None:
    random = Random(kind)
    survived(tmp_path, kind, random, random.sample(list(ways()), 4))


@pytest.mark.verify
@pytest.mark.parametrize("seed", [1, 2])
@pytest.mark.parametrize("kind", KINDS)
def test_whatever_becomes_of_any_message_no_invariant_breaks(tmp_path: Path, kind: str, seed: int) -> None:
    survived(tmp_path, kind, Random(f"{kind}/{seed}"), list(ways()))


def test_a_report_that_always_comes_twice_costs_no_attempt(tmp_path: Path) -> None:
    done = meddled(tmp_path, "duplicate_messages", "worker-0", "report", 1.0)
    kept(done)
    assert (done.history.attempts["outcome"] == "completed").all()
    assert not (done.history.events["kind"] == "breaker_opened").any()


def test_no_damaged_message_is_taken_for_another(tmp_path: Path) -> None:
    done = meddled(tmp_path, "corrupt_messages", "worker-0", "report", 0.5)
    content = next(each for each in done.verdict.invariants if each.number == 3)
    assert content.verdict is Outcome.PASS, content.explanation


@pytest.mark.parametrize("kind", KINDS)
def test_a_sabotaged_injection_is_invalid(tmp_path: Path, kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def nothing(messages: SimulatedMessages, rule: MessageRule, meddler: object) -> None:
        """In place of SimulatedMessages.apply: nobody on the way is told."""

    monkeypatch.setattr(SimulatedMessages, "apply", nothing)
    done = meddled(tmp_path, kind, "worker-0", "report", 1.0, duration_s=4)
    assert done.verdict.verdict is Outcome.INVALID
    assert [fault.verified for fault in done.verdict.faults] == [False]
    assert "did not prove" in done.verdict.reasons[0]


@pytest.mark.parametrize("kind", KINDS)
def test_a_rule_that_goes_away_by_itself_is_invalid_although_it_had_bitten(
    tmp_path: Path, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    meddle = SimulatedMessages.meddle

    async def for_a_moment(messages: SimulatedMessages, rule: MessageRule, ttl_s: float) -> None:
        """SimulatedMessages.meddle, ended by somebody else after four seconds."""
        await meddle(messages, rule, 4.0)

    monkeypatch.setattr(SimulatedMessages, "meddle", for_a_moment)
    done = meddled(tmp_path, kind, "worker-0", "report", 1.0)
    assert done.verdict.verdict is Outcome.INVALID
    assert any("NOT IN FORCE" in note for note in done.watcher.notes)


def test_where_no_such_message_passes_nothing_is_proved(tmp_path: Path) -> None:
    done = meddled(tmp_path, "drop_messages", "worker-0", "prewarm", 1.0)
    assert done.verdict.verdict is Outcome.INVALID
    assert "no prewarm passed" in done.history.faults.iloc[0]["evidence"]
    kept(done)


@pytest.mark.parametrize("seed", [1, 2])
def test_message_loss_passes(tmp_path: Path, seed: int) -> None:
    whole = load(find("message_loss"), ["workload.rate=25/s"])
    results, watcher = ResultsDirectory(tmp_path, whole, "simulated", seed), Quiet()
    run._execute(whole, "simulated", seed, results, watcher, None)  # type: ignore[arg-type]
    verdict = judge(load_history(results.path))
    assert verdict.verdict is Outcome.PASS, verdict.reasons
    assert all(fault.verified for fault in verdict.faults)
    assert len(verdict.faults) == 5
