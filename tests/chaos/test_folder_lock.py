"""A folder has one program at a time, and none beside the run of one that was killed."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from chaos.folder_lock import FolderBusy, alone_in
from tests.processes import ROOT

STARTER = """
import sys
from pathlib import Path
from chaos.children import Children
from chaos.folder_lock import alone_in

folder = Path(sys.argv[1])
with alone_in(folder, "sweep", print) as held:
    Children(held).run([sys.executable, "-c", sys.argv[2]], folder / "log")
"""
RUN = """
import os, signal, sys, time
healing_s, folder = HEALING, FOLDER
def heal(number, frame):
    time.sleep(healing_s)
    open(os.path.join(folder, "healed"), "w").close()
    sys.exit(0)
signal.signal(signal.SIGTERM, heal)
open(os.path.join(folder, "started"), "w").write(str(os.getpid()))
time.sleep(60)
"""


def killed(folder: Path, healing_s: float) -> int:
    """A program that was killed -9 while a run of its own went on; the run's pid."""
    run = RUN.replace("HEALING", repr(healing_s)).replace("FOLDER", repr(str(folder)))
    starter = subprocess.Popen([sys.executable, "-c", STARTER, str(folder), run], cwd=ROOT)
    started = folder / "started"
    while not started.exists() or not started.read_text():
        assert starter.poll() is None
    starter.kill()
    starter.wait()
    return int(started.read_text())


def test_who_comes_next_waits_for_the_run_of_one_that_was_killed(tmp_path: Path) -> None:
    said: list[str] = []
    pid = killed(tmp_path, healing_s=0.5)
    with alone_in(tmp_path, "sweep", said.append):
        assert (tmp_path / "healed").exists()
    assert said == [f"a run (pid {pid}) of a sweep that was killed still ends; waiting for that, 90 s at most"]


def test_a_run_that_does_not_end_is_named_with_what_to_do(tmp_path: Path) -> None:
    pid = killed(tmp_path, healing_s=3.0)
    with (
        pytest.raises(FolderBusy, match=rf"a run \(pid {pid}\) of a sweep .* after 0 s; end it with kill -INT {pid}, "),
        alone_in(tmp_path, "sweep", print, wait_s=0.0),
    ):
        pass
    with alone_in(tmp_path, "sweep", print):
        assert (tmp_path / "healed").exists()


def test_the_second_is_told_of_the_first_and_the_third_finds_nobody(tmp_path: Path) -> None:
    with (
        alone_in(tmp_path, "sweep", print),
        pytest.raises(FolderBusy, match=rf"another sweep \(pid {os.getpid()}\) is at work in this folder; let it end"),
        alone_in(tmp_path, "sweep", print),
    ):
        pass
    with alone_in(tmp_path, "sweep", print):
        pass
