"""Rows that nobody fetched do not pile up on a host, and what may be in use is left alone."""

import os
import time
from pathlib import Path

from chaos.worlds.host_agent import prune, rows_directory


def test_the_newest_stay_and_so_does_what_was_just_written(tmp_path: Path) -> None:
    day_s = 86_400.0
    for number in range(9):
        (tmp_path / f"run-{number}").mkdir()
        os.utime(tmp_path / f"run-{number}", times=(time.time() - number * day_s,) * 2)
    prune(tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == [f"run-{number}" for number in range(5)]
    for path in tmp_path.iterdir():
        os.utime(path)
    (tmp_path / "one-more").mkdir()
    prune(tmp_path)
    assert len(list(tmp_path.iterdir())) == 6, "all of them were just written to"
    prune(tmp_path / "nowhere")


def test_all_lives_of_a_host_write_into_one_folder() -> None:
    assert rows_directory("run.host-1.0") == rows_directory("run.host-1.3") != rows_directory("run.host-2.0")
