"""Findings over time: what each history of passes and failures is called, and in which order they come."""

import json
from pathlib import Path

import msgspec
import pytest

from analysis import findings as module
from analysis.findings import State, findings, main, referred, tell
from analysis.history import RunInfo, UnreadableError
from analysis.runs import Slot
from analysis.verdict import Counts, CriterionResult, InvariantResult, Outcome, Verdict


def stands(history: str, versions: str = "") -> State | None:
    """history: p and f, oldest first."""
    story = tell([each == "f" for each in history], versions or "v" * len(history))
    return story.state if story is not None else None


@pytest.mark.parametrize(
    ("history", "state"),
    [
        ("pppp", None),
        ("", None),
        ("pppf", State.NEW),
        ("ppff", State.ONGOING),
        ("f", State.NEW),
        ("fp", State.ONGOING),  # one pass may be luck
        ("fpp", State.ONGOING),
        ("fppp", State.RESOLVED),
        ("ffffffffffp", State.ONGOING),
        ("ffffffffffpp", State.RESOLVED),
        ("fpppf", State.REGRESSED),
        ("fpppff", State.REGRESSED),
        ("fpppfppp", State.FLAKY),
        ("pfpfp", State.FLAKY),
        ("fpf", State.ONGOING),
        ("pfpf" + "p" * 20, State.RESOLVED),
    ],
)
def test_how_a_history_stands(history: str, state: State | None) -> None:
    assert stands(history) is state


def test_what_comes_and_goes_with_versions_is_not_flaky() -> None:
    assert stands("pfpfp") is State.FLAKY
    assert stands("pfpfp", "abcde") is State.ONGOING
    assert stands("pfpfpf", "aabbcc") is State.ONGOING


def test_a_rare_failure_needs_more_passes_than_a_constant_one() -> None:
    rare, constant = tell([True, *[False] * 4, True], "v" * 6), tell([True] * 6, "v" * 6)
    assert rare is not None
    assert constant is not None
    assert rare.passes_needed > constant.passes_needed
    # (1 - p)^k with p = (f + 1) / (n + 2): 0.125^2 < 0.05 < 0.125 for six of six.
    assert constant.passes_needed == 2


def save(folder: Path, number: int, verdict: str, slot: bool = False, **failed: str) -> str:
    """A run with invariants 2 and 7, an expectation and a self-check. failed: inv2, inv7, fast, slate: an outcome."""
    run_id = f"202611{10 + number:02d}T020000-network_partition-live-{number:04x}"
    place = folder / f"202611{10 + number:02d}T020000Z" / run_id if slot else folder / run_id
    place.mkdir(parents=True)

    def outcome(name: str) -> Outcome:
        return Outcome(failed.get(name, "pass"))

    info = RunInfo(
        run_id=run_id,
        experiment="network_partition",
        world="live",
        seed=number,
        complete=True,
        ended_by="",
        invariants=[],
    )
    told = Verdict(
        verdict=Outcome(verdict),
        experiment="network_partition",
        world="live",
        seed=number,
        complete=True,
        reasons=["because"],
        counts=Counts(),
        criteria=[
            CriterionResult("fast", outcome("fast"), 1.0, "<= 2", "s", 9, None, "too slow"),
            CriterionResult(
                "clean slate (self-check)", outcome("slate"), 0.0, "<= 0", "things", 1, None, "left behind"
            ),
        ],
        invariants=[
            InvariantResult(2, "streams are whole", outcome("inv2"), 1, "a gap | here"),
            InvariantResult(7, "healed", outcome("inv7"), 1, "not whole"),
        ],
        faults=[],
    )
    (place / "run.json").write_bytes(msgspec.json.encode(info))
    (place / "verdict.json").write_bytes(msgspec.json.encode(told))
    (place / "environment.json").write_text('{"versions": {"ray": "1"}}')
    (place / "experiment.yaml").write_text("name: network_partition\ncluster: {model: tiny}\n")
    if slot:
        (place.parent / "slot.json").write_bytes(msgspec.json.encode(Slot("nightly", "partition", number)))
    return run_id


def test_what_to_fix_first_is_what_means_most(tmp_path: Path) -> None:
    save(tmp_path, 1, "fail", fast="fail")
    save(tmp_path, 2, "fail", fast="fail", inv7="fail")
    save(tmp_path, 3, "fail", fast="fail", inv7="fail", inv2="fail")
    found = findings(tmp_path)
    assert [(each.name, each.state, f"{each.failed}/{each.judged}") for each in found] == [
        ("invariant 2: streams are whole", State.NEW, "1/3"),
        ("invariant 7: healed", State.ONGOING, "2/3"),
        ("fast", State.ONGOING, "3/3"),
    ]
    assert found[0].why.startswith("answers were wrong; failed in 1 of 3 runs")
    save(tmp_path, 4, "fail", slate="fail")
    assert findings(tmp_path)[0].name == "clean slate (self-check)"


def test_an_invalid_run_says_nothing_of_the_cluster_and_is_a_finding_itself(tmp_path: Path) -> None:
    save(tmp_path, 1, "fail", fast="fail")
    for number in (2, 3, 4):
        save(tmp_path, number, "invalid")
    by_name = {each.name: each for each in findings(tmp_path)}
    assert by_name["fast"].state is State.NEW, "three invalid runs resolve nothing"
    assert by_name["fast"].why.endswith("the last 3 runs could not judge it")
    assert by_name[module.VALID_RUN].failed == 3


def test_the_identity_stays_and_entries_of_a_schedule_are_apart(tmp_path: Path) -> None:
    save(tmp_path / "x", 1, "fail", fast="fail")
    save(tmp_path / "nightly" / "partition", 2, "fail", slot=True, fast="fail")
    first = {each.subject: each.id for each in findings(tmp_path)}
    assert set(first) == {"nightly/partition", "network_partition (live, tiny)"}
    save(tmp_path / "x", 3, "fail", fast="fail")
    assert {each.subject: each.id for each in findings(tmp_path)} == first


def test_the_evidence_is_referred_to(tmp_path: Path) -> None:
    runs = [save(tmp_path, number, "fail" if number in (2, 3) else "pass", fast="fail" if number in (2, 3) else "pass")
            for number in range(1, 9)]  # fmt: skip
    (finding,) = findings(tmp_path)
    assert finding.state is State.RESOLVED
    assert referred(tmp_path) == {runs[1], runs[2], finding.resolved}
    assert finding.resolved in runs[3:]


def test_the_table_and_its_exit_codes(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    save(tmp_path, 1, "pass")
    assert main([str(tmp_path)]) == 0
    assert "Nothing has failed" in capsys.readouterr().out
    save(tmp_path, 2, "fail", inv2="fail")
    assert main([str(tmp_path)]) == 1
    table = capsys.readouterr().out
    assert "| 1 | invariant 2: streams are whole |" in table
    assert "a gap &#124; here" in table, "text of a run must not make columns"
    assert main([str(tmp_path), "--json"]) == 1
    (told,) = json.loads(capsys.readouterr().out)
    assert (told["state"], told["first"], told["severity"]["rank"]) == ("new", told["last"], 1)
    assert main([str(tmp_path / "nowhere")]) == 2
    next(tmp_path.glob("*/verdict.json")).write_text("{")
    # The browser of runs lists it without a verdict; a decision to delete must know better.
    with pytest.raises(UnreadableError):
        referred(tmp_path)
