"""A handful of planted bugs is caught in every test run; all of them by `python -m tests.mutants` (`make verify`)."""

import pytest

from analysis.verdict import Outcome
from cluster.worker.worker import WorkerNode
from tests.mutants import canary
from tests.mutants.mutant import DoesNotApply, in_place
from tests.mutants.plants import MUTANTS
from tests.mutants.play import hunt, play
from tests.mutants.scenarios import SCENARIOS

pytestmark = pytest.mark.simulated

MUTANTS_MIN = 30


def test_there_are_enough_of_them_and_each_is_looked_for_somewhere() -> None:
    assert len(MUTANTS) >= MUTANTS_MIN
    assert all(mutant.scenarios and set(mutant.scenarios) <= SCENARIOS.keys() for mutant in MUTANTS.values())


@pytest.mark.parametrize("mutant", MUTANTS.values(), ids=MUTANTS.keys())
def test_what_a_mutant_changes_is_there_and_is_as_before_afterwards(mutant: object) -> None:
    with in_place(mutant) as reached:  # type: ignore[arg-type]
        assert not reached.names
        changed = {(patch.owner, patch.name): vars(patch.owner)[patch.name] for patch in mutant.patches}  # type: ignore[attr-defined]
    assert all(vars(owner)[name] is not value for (owner, name), value in changed.items())


@pytest.mark.parametrize("name", ["cache_of_another_session", "last_tokens_lost", "caches_unbounded"])
def test_a_bug_of_a_calm_day_is_caught(name: str) -> None:
    caught = hunt(MUTANTS[name])
    assert caught.fine, caught


def test_the_sound_cluster_passes_and_a_mutant_that_does_nothing_is_not_caught() -> None:
    assert play(canary.SCENARIO).verdict.verdict is Outcome.PASS
    caught = hunt(canary.HARMLESS)
    assert (caught.by, caught.problem) == ("", "")


def test_a_mutant_of_code_that_is_gone_is_an_error_and_no_catch() -> None:
    caught = hunt(canary.MISSING)
    assert not caught.fine
    assert "has no _gone" in caught.problem
    with pytest.raises(DoesNotApply), in_place(canary.MISSING):
        pass
    assert not hasattr(WorkerNode, "_gone")


def test_a_checker_that_is_gone_or_cannot_run_fails_a_sound_run() -> None:
    assert canary._without_checker() == ""
    assert canary._with_blind_checker() == ""
