"""What is deleted of a schedule's results, and above all what is not."""

from pathlib import Path

import msgspec
import pytest

from analysis import baselines
from analysis.baselines import RunSummary, Side
from chaos.scheduling.plan import Entry, Plan, Retention
from chaos.scheduling.retention import tidy
from tests.analysis.test_findings import save

NOW_S = 1_795_000_000.0  # 2026-11-18


def made(tmp_path: Path, runs: int, days: float, failed: tuple[int, ...] = ()) -> tuple[Plan, list[Path]]:
    """Slots of 11 to 18 November."""
    entry = Entry(experiment="network_partition", cron="0 2 * * *", retention=Retention(runs=runs, days=days))
    plan = Plan(
        name="nightly", entries={"partition": entry}, results=str(tmp_path / "r"), baselines=str(tmp_path / "b")
    )
    root = plan.folder / "partition"
    for number in range(1, 9):
        bad = number in failed
        save(root, number, "fail" if bad else "pass", slot=True, fast="fail" if bad else "pass")
    return plan, sorted(root.iterdir())


def test_the_newest_stay_by_count_and_by_age(tmp_path: Path) -> None:
    plan, slots = made(tmp_path, runs=3, days=365)
    tidy(plan, "partition", NOW_S)
    assert [slot.exists() for slot in slots] == [False] * 5 + [True] * 3
    plan, slots = made(tmp_path / "age", runs=100, days=2.0)
    tidy(plan, "partition", NOW_S)
    assert [slot.exists() for slot in slots] == [False] * 6 + [True] * 2
    tidy(plan, "partition", NOW_S + 10**8)
    assert [slot.exists() for slot in slots] == [False] * 7 + [True], "the last one stays"


def test_what_a_finding_or_a_baseline_refers_to_stays(tmp_path: Path) -> None:
    plan, slots = made(tmp_path, runs=1, days=365, failed=(2, 3))
    run_id = next(path.name for path in slots[0].iterdir() if path.is_dir())
    kept = RunSummary(
        run_id=run_id, experiment="x", world="live", model="", seed=1, complete=True, verdict="pass", measured={}
    )
    baselines.save(Side(name="good", runs=[kept]), "good", Path(plan.baselines))
    tidy(plan, "partition", NOW_S)
    left = [number for number, slot in enumerate(slots, 1) if slot.exists()]
    # 1: the baseline. 2, 3: first and last failure. 6: what resolved it. 8: the newest.
    assert left == [1, 2, 3, 6, 8]


def test_while_a_baseline_cannot_be_read_nothing_goes(tmp_path: Path) -> None:
    plan, slots = made(tmp_path, runs=1, days=365)
    Path(plan.baselines).mkdir()
    (Path(plan.baselines) / "good.json").write_text("{")
    (line,) = tidy(plan, "partition", NOW_S)
    assert "nothing is deleted" in line
    assert all(slot.exists() for slot in slots)


def test_what_the_schedule_has_not_made_is_not_touched(tmp_path: Path) -> None:
    plan, slots = made(tmp_path, runs=1, days=365)
    mine = plan.folder / "partition" / "my notes"
    mine.mkdir()
    (slots[1] / "slot.json").unlink()
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    (elsewhere / "slot.json").write_bytes(msgspec.json.encode({}))
    (plan.folder / "partition" / "20200101T000000Z").symlink_to(elsewhere)
    tidy(plan, "partition", NOW_S)
    assert mine.exists()
    assert slots[1].exists()
    assert (elsewhere / "slot.json").exists()
    assert not slots[0].exists()


@pytest.mark.parametrize("name", ["partition", "other"])
def test_an_entry_without_results_is_fine(tmp_path: Path, name: str) -> None:
    entry = Entry(experiment="network_partition", cron="0 2 * * *")
    plan = Plan(name="nightly", entries={name: entry}, results=str(tmp_path / "nothing"))
    assert tidy(plan, name, NOW_S) == []
