"""The sweep: resumed where it stopped, told in one report, and honest about what has no verdict."""

import json
import os
import signal
import sys
import threading
import time
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from chaos import sweep
from chaos.children import INTERRUPTED, Children
from chaos.folder_lock import alone_in
from chaos.sweep import EXIT_MORE, main
from chaos.sweeping import Clock, NoVerdict

SHORT = (
    *("phases.warm_up.duration_s=1", "phases.weak.duration_s=2", "phases.strong.duration_s=2"),
    *("phases.recovery.duration_s=1", "expectations={}", "steady_state={}"),
)


def arguments(out: Path, *more: str) -> list[str]:
    given = ["scalability", "--world", "simulated", "--settle", "0.5", "--out", str(out), *more]
    return given + [part for setting in SHORT for part in ("--set", setting)]


def folders(out: Path) -> dict[str, float]:
    return {path.parents[2].name: path.stat().st_mtime for path in out.glob("points/*/run/*/verdict.json")
            if not path.parent.is_symlink()}  # fmt: skip


def test_it_goes_on_where_it_stopped_and_repeats_nothing(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    asked = ("--over", "cluster.workers=1,2")
    assert main(arguments(tmp_path, *asked, "--limit", "1")) == EXIT_MORE
    assert "not run yet" in capfd.readouterr().out
    first = folders(tmp_path)
    assert len(first) == 1
    assert main(arguments(tmp_path, *asked)) == 0
    told = capfd.readouterr().out
    assert "2 runs, 1 of them have their verdict" in told
    assert "left)" in told
    both = folders(tmp_path)
    assert len(both) == 2
    assert first.items() <= both.items()
    # What is measured in another way is measured from the same runs, and a wider grid has only more to run.
    assert main(arguments(tmp_path, *asked, "--phase", "strong")) == 0
    assert main(arguments(tmp_path, "--over", "cluster.workers=1,2,3", "--limit", "0")) == EXIT_MORE
    assert folders(tmp_path) == both
    report = json.loads((tmp_path / "sweep.json").read_text())
    assert (report["planned"], report["done"], len(report["missing"])) == (3, 2, 1)
    assert [each["kind"] for each in report["series"]] == ["weak", "strong"]
    assert "3 numbers of workers" not in (tmp_path / "sweep.md").read_text()
    table = pq.read_table(tmp_path / "points.parquet")
    assert sorted(table["cluster.workers"].to_pylist()) == [1, 1, 2, 2]
    assert all((tmp_path / run / "report.html").is_file() for run in table["run"].to_pylist())


def test_what_comes_to_no_verdict_is_missing_and_run_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    played = []

    def fail(trial: object, *rest: object) -> object:
        played.append(trial)
        raise NoVerdict("exit code 5: no room")

    monkeypatch.setattr(sweep, "play", fail)
    for _ in range(2):
        assert main(arguments(tmp_path, "--over", "cluster.workers=1,2")) == 5
    assert len(played) == 4
    assert "missing: cluster.workers=1, repeat 1: exit code 5: no room" in capfd.readouterr().out
    assert "no room" in (tmp_path / "sweep.html").read_text()


@pytest.mark.parametrize(
    ("more", "said"),
    [
        (("--over", "cluster.workers=1,0"), "point cluster.workers=0: cluster.workers: "),
        (("--over", "cluster.workers=1", "--phase", "nosuch"), "--phase nosuch: point cluster.workers=1 has no such"),
        (("--over", "cluster.workers=1", "--settle", "2"), "--settle 2: nothing would be left to measure, weak lasts"),
        (("--over", "cluster.workers=1", "--world", "live", "--parallel", "2"), "--parallel 2: expected 1"),
        (("--over", "cluster.workers=1", "--profile", "nosuch"), "no profile 'nosuch'"),
    ],
)
def test_a_mistake_costs_one_line_and_starts_nothing(
    more: tuple[str, ...], said: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    assert main(arguments(tmp_path / "none", *more)) == 2
    told = capfd.readouterr().err
    assert said in told
    assert told.count("\n") == 1
    assert not (tmp_path / "none").exists()


@pytest.mark.parametrize(
    "wrong", [("--repeats", "0"), ("--limit", "-1"), ("--parallel", "0"), ("--settle", "nan"), ("--seed", "-1")]
)
def test_a_number_that_is_none_is_told_by_its_option(
    wrong: tuple[str, str], capsys: pytest.CaptureFixture[str]
) -> None:
    given = ["scalability", "--over", "cluster.workers=1", "--world", "simulated", *wrong]
    with pytest.raises(SystemExit, match="2"):
        main(given)
    assert f"argument {wrong[0]}: expected a " in capsys.readouterr().err.splitlines()[-1]


def test_two_sweeps_do_not_share_a_folder(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    with alone_in(tmp_path, "sweep", print):
        assert main(arguments(tmp_path, "--over", "cluster.workers=1")) == 2
    assert f"another sweep (pid {os.getpid()}) is at work in this folder" in capfd.readouterr().err


def test_a_run_that_ended_unheard_is_taken_as_it_is(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """As after a kill -9 of the sweep in the last moment of a run: its verdict is there, its rows are not."""
    assert main(arguments(tmp_path, "--over", "cluster.workers=1")) == 0
    (rows,) = tmp_path.glob("points/*/rows.json")
    before, measured = folders(tmp_path), json.loads(rows.read_bytes())
    rows.unlink()
    capfd.readouterr()
    assert main(arguments(tmp_path, "--over", "cluster.workers=1")) == 0
    assert "1 runs, 1 of them have their verdict" in capfd.readouterr().out
    assert folders(tmp_path) == before
    again = json.loads(rows.read_bytes())
    assert abs(again["took_s"] - measured["took_s"]) < 5
    assert [row["figures"] for row in again["rows"]] == [row["figures"] for row in measured["rows"]]


def test_a_run_that_was_cut_short_is_not_taken(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    assert main(arguments(tmp_path, "--over", "cluster.workers=1")) == 0
    (rows,) = tmp_path.glob("points/*/rows.json")
    (verdict,) = (path for path in tmp_path.glob("points/*/run/*/verdict.json") if not path.parent.is_symlink())
    rows.unlink()
    verdict.write_text(json.dumps({**json.loads(verdict.read_text()), "complete": False}))
    assert main(arguments(tmp_path, "--over", "cluster.workers=1", "--limit", "0")) == EXIT_MORE
    assert "1 runs, 0 of them have their verdict" in capfd.readouterr().out


def test_all_runs_can_be_listed_without_running_any(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    assert main(arguments(tmp_path / "none", "--over", "cluster.workers=1..3", "--repeats", "2", "--dry-run")) == 0
    assert len(capfd.readouterr().out.splitlines()) == 6
    assert not (tmp_path / "none").exists()


def test_what_is_left_is_estimated_from_what_was_done() -> None:
    clock = Clock(left=5, parallel=2)
    assert clock.left_s() is None
    clock.done(10.0)
    assert clock.left_s() == 20.0
    assert Clock(left=3, parallel=1, known_s=[4.0, 8.0]).left_s() == 18.0


def test_a_program_is_told_to_end_once_and_waited_for(tmp_path: Path) -> None:
    script = (
        "import signal, time\n"
        "def heal(number, frame):\n    time.sleep(0.3); print('healed', flush=True); raise SystemExit(7)\n"
        f"signal.signal({int(signal.SIGINT)}, heal)\n"
        "print('ready', flush=True)\ntime.sleep(60)\n"
    )
    children, codes = Children(), list[int]()
    log = tmp_path / "log"
    thread = threading.Thread(target=lambda: codes.append(children.run([sys.executable, "-c", script], log)))
    thread.start()
    while not log.exists() or "ready" not in log.read_text():
        time.sleep(0.02)
    children.interrupt()
    thread.join()
    assert codes == [INTERRUPTED]
    assert "healed" in log.read_text()
    assert children.run([sys.executable, "-c", "pass"], log) == INTERRUPTED


def test_the_exit_code_of_a_program_is_that_of_its_run(tmp_path: Path) -> None:
    assert Children().run([sys.executable, "-c", "raise SystemExit(4)"], tmp_path / "log") == 4
