"""The invariants of the design, each checked over a whole recorded history."""

from collections.abc import Callable
from typing import NamedTuple

from analysis.checkers import (
    bounds,
    conservation,
    content,
    dispatch,
    ending,
    execution,
    explanation,
    recovery,
    stream,
)
from analysis.facts import CannotJudge
from analysis.history import History
from analysis.verdict import InvariantResult, Outcome


class Checker(NamedTuple):
    """A numbered invariant and the function that judges it."""

    number: int
    name: str
    check: Callable[[History], InvariantResult]


_MODULES = (ending, stream, content, conservation, execution, dispatch, recovery, bounds, explanation)
CHECKERS: dict[int, Checker] = {module.NUMBER: Checker(module.NUMBER, module.NAME, module.check) for module in _MODULES}


def run_checkers(history: History) -> list[InvariantResult]:
    """Judge every invariant, by number. Those that the world did not declare are not applicable.

    A declared check that could not run is a failure of a complete run, and inconclusive in one that was cut.
    """
    numbers = sorted({*CHECKERS, *history.info.invariants})
    return [_run(number, history) for number in numbers]


def _run(number: int, history: History) -> InvariantResult:
    checker = CHECKERS.get(number)
    if checker is None:
        return InvariantResult(
            number, "unknown", Outcome.FAIL, 0, f"invariant {number} was declared and has no checker"
        )
    if number not in history.info.invariants:
        text = f"the {history.info.world} world cannot judge it for this experiment"
        return InvariantResult(number, checker.name, Outcome.NOT_APPLICABLE, 0, text)
    try:
        return checker.check(history)
    except CannotJudge as reason:
        outcome = Outcome.FAIL if history.info.complete else Outcome.INCONCLUSIVE
        return InvariantResult(number, checker.name, outcome, 0, f"the check could not run: {reason}")
    except Exception as error:
        # A broken check proves nothing, and must not look like a check that passed.
        text = f"the check itself broke: {type(error).__name__}: {error}"
        return InvariantResult(number, checker.name, Outcome.FAIL, 0, text)
