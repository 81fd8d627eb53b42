"""What a run leaves behind is found, and what was told to end gets its moment."""

import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from chaos.clean_slate import left_behind
from chaos.undo import RUN_MARK, ProxyEntry, UndoLog

RUN = "a-run-of-this-test"


@contextmanager
def marked(seconds: float) -> Iterator[subprocess.Popen[bytes]]:
    command = [sys.executable, "-c", f"import time; time.sleep({seconds})"]
    process = subprocess.Popen(command, env={**os.environ, RUN_MARK: RUN})
    try:
        yield process
    finally:
        process.kill()
        process.wait()


def test_nothing_is_left_of_a_run_that_left_nothing() -> None:
    assert left_behind("nobody-ever-ran-this", 0.0) == []


def test_a_process_that_bears_the_runs_mark_is_found() -> None:
    with marked(60) as process:
        (line,) = left_behind(RUN, 0.0)
    assert f"pid {process.pid}" in line


def test_a_process_that_is_about_to_end_is_waited_for() -> None:
    with marked(0.3):
        assert left_behind(RUN, 30.0) == []


def test_what_is_not_undone_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLX_CHAOS_CACHE", str(tmp_path))
    log = UndoLog.create(RUN)
    entry = log.add(ProxyEntry(api_url="http://127.0.0.1:9", proxy="worker-0"))
    (line,) = left_behind(RUN, 0.0)
    assert line.startswith("not undone: proxy in ")
    log.done(entry)
    assert left_behind(RUN, 0.0) == []
    log.close()
