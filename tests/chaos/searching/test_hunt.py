"""A hunt finds a planted violation, makes it small, and comes home with nothing where there is nothing."""

from collections.abc import Callable
from pathlib import Path

import pytest

from chaos.experiment import find
from chaos.resolve import load, refusal
from chaos.searching.findings import Findings, State
from chaos.searching.hunt import CRASH, hunt
from chaos.searching.oracle import Judged, consult
from chaos.searching.plans import Plan

BASE = load(find("network_partition"), (), None)


def kinds_of(plan: Plan) -> list[str]:
    return [fault.kind for fault in plan.experiment.faults.values()]


def broken_by_a_freeze(plan: Plan) -> Judged:
    hurt = [fault for fault in plan.experiment.faults.values() if fault.kind == "freeze"]
    return Judged({5: "planted"} if hurt else {}, "digest")


def collecting(plans: list[Plan]) -> Callable[[Plan], Judged]:
    def play(plan: Plan) -> Judged:
        plans.append(plan)
        return Judged({}, "")

    return play


def test_what_is_planted_is_found_and_made_small() -> None:
    found = hunt(BASE, 400, 1, play=broken_by_a_freeze)
    assert found.prey is not None
    plan = found.prey.plan
    assert kinds_of(plan) == ["freeze"]
    (fault,) = plan.experiment.faults.values()
    assert len(fault.targets) == 1
    assert fault.duration_s == 3
    assert fault.start_s == 0
    assert fault.when is None
    assert (found.prey.invariant, found.prey.what) == (5, "planted")
    assert found.played > found.tried


def test_what_is_known_is_not_found_again() -> None:
    found = hunt(BASE, 40, 1, known=[(5, ("freeze",))], play=broken_by_a_freeze)
    assert found.prey is None or len(set(kinds_of(found.prey.plan))) > 1


def test_where_nothing_is_broken_nothing_is_found_and_every_plan_may_be_run() -> None:
    played: list[Plan] = []

    def whole(plan: Plan) -> Judged:
        played.append(plan)
        return Judged({}, "")

    found = hunt(BASE, 120, 7, play=whole)
    assert found.prey is None
    assert found.tried == len(played) >= 80
    assert all(refusal(plan.experiment) is None for plan in played)
    kinds = {kind for plan in played for kind in kinds_of(plan)}
    assert len(kinds) >= 12
    assert "wrong_token" not in kinds
    assert any(len(plan.experiment.faults) == 3 for plan in played)
    assert any(fault.when is not None for plan in played for fault in plan.experiment.faults.values())


def test_what_our_code_raises_is_a_finding() -> None:
    def raising(plan: Plan) -> Judged:
        raise KeyError("gone")

    prey = hunt(BASE, 5, 1, play=raising).prey
    assert prey is not None
    assert prey.invariant == CRASH
    assert prey.what == "KeyError in raising: 'gone'"


def test_equal_seeds_draw_equal_plans() -> None:
    def drawn(seed: int) -> list[Plan]:
        plans: list[Plan] = []
        hunt(BASE, 20, seed, play=collecting(plans))
        return plans

    assert drawn(3) == drawn(3)
    assert drawn(3) != drawn(4)


@pytest.mark.simulated
def test_a_finding_is_kept_as_a_file_that_plays_the_same_again(tmp_path: Path) -> None:
    plans: list[Plan] = []
    hunt(BASE, 2, 11, play=collecting(plans))
    plan = plans[-1]
    judged = consult(plan)
    findings = Findings(tmp_path)
    finding = findings.add(plan, "default", 5, "planted", judged.digest)
    again = consult(Plan(load(findings.path(finding), (), None), finding.seed))
    assert again == judged
    assert Findings(tmp_path).known == [finding]


def test_a_finding_is_new_then_known_then_fixed_then_regressed(tmp_path: Path) -> None:
    findings = Findings(tmp_path)
    plans: list[Plan] = []
    hunt(BASE, 1, 1, play=collecting(plans))
    finding = findings.add(plans[0], "default", 5, "planted", "")
    states = [finding.state]
    for broken in (True, False, False, True, True):
        finding = findings.retried(finding, broken)
        states.append(finding.state)
    assert states == [State.NEW, State.KNOWN, State.FIXED, State.FIXED, State.REGRESSED, State.KNOWN]
    assert Findings(tmp_path).known == [finding]
