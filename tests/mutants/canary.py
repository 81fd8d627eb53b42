"""Canaries: what must not be called caught, and what must fail a run although nothing is wrong with the cluster."""

from collections.abc import Iterator
from unittest.mock import patch

from analysis import checkers
from analysis.facts import CannotJudge
from analysis.history import History
from analysis.verdict import InvariantResult, Outcome
from cluster.worker.worker import WorkerNode
from tests.mutants.mutant import Mutant, Patch
from tests.mutants.play import hunt, play

SCENARIO = "calm"
NUMBER = 5
HARMLESS = Mutant(
    "harmless",
    "nothing is changed",
    (Patch(WorkerNode, "_react", lambda original, *args: original(*args)),),
    (SCENARIO,),
)
MISSING = Mutant(
    "missing", "changes what is not there", (Patch(WorkerNode, "_gone", lambda original: None),), (SCENARIO,)
)
IDLE = Mutant(
    "idle", "changes what nobody calls", (Patch(WorkerNode, "_engine_died", lambda original: None),), (SCENARIO,)
)


def canaries() -> Iterator[tuple[str, str]]:
    """Name of each, and what is wrong with what came of it; empty when nothing is."""
    caught = hunt(HARMLESS)
    yield "a mutant that does nothing is not caught", caught.by or caught.problem
    for mutant in (MISSING, IDLE):
        caught = hunt(mutant)
        wrong = "" if caught.problem and not caught.fine else "it was taken for a mutant that applies"
        yield f"a mutant that {mutant.what} is an error", wrong
    yield "a checker that is gone fails the run", _without_checker()
    yield "a checker that cannot run fails the run", _with_blind_checker()


def _without_checker() -> str:
    rest = {number: checker for number, checker in checkers.CHECKERS.items() if number != NUMBER}
    with patch.object(checkers, "CHECKERS", rest):
        return _refused("has no checker")


def _with_blind_checker() -> str:
    def blind(history: History) -> InvariantResult:
        raise CannotJudge("it was blindfolded")

    blinded = checkers.CHECKERS[NUMBER]._replace(check=blind)
    with patch.object(checkers, "CHECKERS", {**checkers.CHECKERS, NUMBER: blinded}):
        return _refused("could not run")


def _refused(words: str) -> str:
    """Whether a sound run fails, and says so in these words."""
    verdict = play(SCENARIO).verdict
    result = next((each for each in verdict.invariants if each.number == NUMBER), None)
    if verdict.verdict is not Outcome.FAIL or result is None or words not in result.explanation:
        return f"the verdict is {verdict.verdict}"
    return ""
