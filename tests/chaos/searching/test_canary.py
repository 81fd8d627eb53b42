"""What a search must call broken: a bug that is planted, a checker that could not run, one that is gone."""

from unittest.mock import patch

import pytest

from analysis import checkers
from analysis.facts import CannotJudge
from analysis.history import History
from analysis.verdict import InvariantResult
from chaos.experiment import find
from chaos.resolve import load
from chaos.searching.oracle import consult
from tests.chaos.searching.drawn import drawn
from tests.mutants.mutant import in_place
from tests.mutants.plants import MUTANTS

pytestmark = pytest.mark.simulated

BASE = load(find("network_partition"), (), None)


PLAN = drawn(BASE, 1, 1)[0]


def shown() -> list[str]:
    return [breach.by for breach in consult(PLAN).breaches]


def test_the_sound_cluster_shows_nothing() -> None:
    assert shown() == []


def test_a_planted_bug_is_seen() -> None:
    with in_place(MUTANTS["last_tokens_lost"]) as reached:
        seen = shown()
    assert reached.names
    assert seen


def test_a_checker_that_is_gone_or_could_not_run_is_a_finding() -> None:
    def blind(history: History) -> InvariantResult:
        raise CannotJudge("it was blindfolded")

    rest = {number: checker for number, checker in checkers.CHECKERS.items() if number != 5}
    with patch.object(checkers, "CHECKERS", rest):
        assert shown() == ["invariant 5"]
    with patch.object(checkers, "CHECKERS", {**rest, 5: checkers.CHECKERS[5]._replace(check=blind)}):
        assert shown() == ["invariant 5"]
