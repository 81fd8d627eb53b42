"""A scout sees what is planted, a chase makes it small, and where there is nothing both come home with nothing."""

import subprocess
import sys
from pathlib import Path

import pytest

from chaos.experiment import find
from chaos.resolve import load, refusal
from chaos.searching.breach import CRASH, Breach
from chaos.searching.findings import Findings, State
from chaos.searching.hunt import Prey, Sighting, Signature, attempt, chase, scout
from chaos.searching.oracle import Judged, consult
from chaos.searching.plans import Plan
from tests.chaos.searching.drawn import collecting, drawn

BASE = load(find("network_partition"), (), None)
FREEZE = Signature(22)


def kinds_of(plan: Plan) -> list[str]:
    return [fault.kind for fault in plan.experiment.faults.values()]


def hung_by_a_freeze(plan: Plan) -> Judged:
    hurt = [fault for fault in plan.experiment.faults.values() if fault.kind == "freeze"]
    return Judged((Breach("hung", "planted", ("freeze",)),) if hurt else (), "digest")


def prey_of(plan: Plan, digest: str = "", breach: Breach | None = None) -> Prey:
    breach = breach or Breach("hung", "planted", ("freeze",))
    return Prey(plan, Signature.of(breach), breach, digest, 3)


def test_what_is_planted_is_seen_and_made_small() -> None:
    scouted = scout(BASE, 4, 200, hung_by_a_freeze)
    assert scouted.tried == 200
    ((signature, nth),) = [(one.signature, one.nth) for one in scouted.sightings]
    assert signature == FREEZE
    prey = chase(BASE, 4, 200, scouted.sightings[0], hung_by_a_freeze)
    assert prey is not None
    plan = prey.plan
    assert kinds_of(plan) == ["freeze"]
    (fault,) = plan.experiment.faults.values()
    assert len(fault.targets) == 1
    assert (fault.duration_s, fault.start_s, fault.when) == (3, 0, None)
    assert (prey.breach.what, prey.digest) == ("planted", "digest")
    assert 1 < prey.plays <= 160
    assert nth > 1


def test_a_chase_plays_none_of_the_plans_before_the_one_it_is_after() -> None:
    (sighting,) = scout(BASE, 4, 200, hung_by_a_freeze).sightings
    played: list[Plan] = []

    def play(plan: Plan) -> Judged:
        played.append(plan)
        return hung_by_a_freeze(plan)

    chase(BASE, 4, 200, sighting, play)
    assert "freeze" in kinds_of(played[0])


def test_what_does_not_show_again_is_no_prey() -> None:
    assert chase(BASE, 1, 20, Sighting(FREEZE, 3), collecting([])) is None


def test_made_small_a_plan_may_need_fewer_kinds_but_shows_the_same() -> None:
    wide = Signature.of(Breach("invariant 9", "said", ("freeze", "kill")))
    assert wide == Signature(None, "invariant 9", ("freeze", "kill"))
    assert wide.is_like(Signature(None, "invariant 9", ("kill",)))
    assert not wide.is_like(Signature(None, "invariant 9", ("flap",)))
    assert not wide.is_like(Signature(None, "invariant 6", ("kill",)))
    assert not wide.is_like(FREEZE)


def test_where_nothing_is_broken_nothing_is_found_and_every_plan_may_be_run() -> None:
    played: list[Plan] = []
    scouted = scout(BASE, 7, 120, collecting(played))
    assert scouted.sightings == ()
    assert scouted.tried == len(played) >= 80
    assert all(refusal(plan.experiment) is None for plan in played)
    kinds = {kind for plan in played for kind in kinds_of(plan)}
    assert len(kinds) >= 12
    assert "wrong_token" not in kinds
    faults = [fault for plan in played for fault in plan.experiment.faults.values()]
    assert any(len(plan.experiment.faults) == 3 for plan in played)
    assert any(fault.when is not None for fault in faults)
    assert any(fault.duration_s > 20 for fault in faults)
    assert any(plan.experiment.workload.steps for plan in played)
    assert len({plan.experiment.cluster.costs for plan in played}) > 1


def test_what_our_code_raises_is_a_finding() -> None:
    def raising(plan: Plan) -> Judged:
        raise KeyError("gone")

    played: list[Plan] = []
    scout(BASE, 1, 1, collecting(played))
    (breach,) = attempt(played[0], raising).breaches
    assert (breach.by, breach.what) == (CRASH, "KeyError in raising: 'gone'")
    assert scout(BASE, 1, 5, raising).sightings[0].signature.by == CRASH


def test_equal_seeds_draw_equal_plans() -> None:
    assert drawn(BASE, 3, 20) == drawn(BASE, 3, 20)
    assert drawn(BASE, 3, 20) != drawn(BASE, 4, 20)


_DRAWN = """
import hashlib
import msgspec
{imports}
from tests.chaos.searching.drawn import drawn
from tests.chaos.searching.test_hunt import BASE
print(hashlib.sha256(msgspec.json.encode(drawn(BASE, 3, 40))).hexdigest())
"""


def test_plans_do_not_depend_on_what_code_is_loaded() -> None:
    # Hypothesis would draw constants that stand in it.
    loaded = ("", "import tests.chaos.test_director, tests.analysis.test_compare, tests.cluster.test_client")
    found = [
        subprocess.run(
            [sys.executable, "-c", _DRAWN.format(imports=imports)], check=True, capture_output=True, text=True
        ).stdout
        for imports in loaded
    ]
    assert found[0] == found[1] != ""


@pytest.mark.simulated
def test_a_finding_is_kept_as_a_file_that_plays_the_same_again_and_names_its_class(tmp_path: Path) -> None:
    plans: list[Plan] = []
    scout(BASE, 11, 2, collecting(plans))
    plan = plans[-1]
    judged = consult(plan)
    findings = Findings(tmp_path)
    finding = findings.add(prey_of(plan, judged.digest), "default", 7)
    kept = load(findings.path(finding), (), None)
    assert kept.robustness == (22,)
    assert findings.path(finding).read_text().startswith("# class 22, a frozen worker looks alive")
    again = consult(Plan(kept, finding.seed))
    assert again == judged
    assert Findings(tmp_path).known == [finding]


def test_a_finding_is_new_then_known_then_fixed_then_regressed(tmp_path: Path) -> None:
    findings = Findings(tmp_path)
    plans: list[Plan] = []
    scout(BASE, 1, 1, collecting(plans))
    finding = findings.add(prey_of(plans[0]), "default", 1)
    states = [finding.state]
    for broken in (True, False, False, True, True):
        shown = (Breach("fed", "planted", ("freeze",)),) if broken else (Breach("storm", "another"),)
        finding = findings.retried(finding, Judged(shown, ""))
        states.append(finding.state)
    assert states == [State.NEW, State.KNOWN, State.FIXED, State.FIXED, State.REGRESSED, State.KNOWN]
    assert Findings(tmp_path).known == [finding]


def test_files_of_findings_of_one_class_have_names_of_their_own(tmp_path: Path) -> None:
    plans: list[Plan] = []
    scout(BASE, 1, 1, collecting(plans))
    findings = Findings(tmp_path)
    files = [findings.add(prey_of(plans[0]), "default", 1).file for _ in range(3)]
    assert len(set(files)) == 3
    assert files[0] == "found_default_22_frozen_looks_alive.yaml"
