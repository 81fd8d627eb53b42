"""A folder for one program at a time, and for no other while a run that a killed one has started still ends."""

import contextlib
import fcntl
import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil

from chaos.undo import is_alive

WAIT_S = 90.0
"""More than a run has to heal once its starter is gone, see chaos.children."""
_POLL_S = 0.2
_READ_MAX = 65_536
_NAMED_MAX = 8
Say = Callable[[str], None]


class FolderBusy(Exception):
    """Somebody else is at work there. The message is one line: who, and what to do."""


@contextlib.contextmanager
def alone_in(folder: Path, what: str, say: Say, wait_s: float = WAIT_S) -> Iterator[int]:
    """In the block nobody else works in the folder, which must be there. what: our kind, such as `sweep`.

    Yields the descriptor of a lock for the runs that we start to hold: when we are killed, who comes next waits until
    the last of them has ended. Raises FolderBusy, OSError.
    """
    with _opened(folder / ".lock") as own:
        if not _take(own):
            pids = _alive(own)
            who = f"another {what}{_named(pids)}"
            raise FolderBusy(f"{folder}: {who} is at work in this folder; let it end, or end it{_with(pids)}")
        _forget(own)
        note_holder(own, os.getpid())
        with _opened(folder / ".runs.lock") as runs:
            _wait(runs, folder, what, say, wait_s)
            _forget(runs)
            yield runs


def note_holder(lock: int, pid: int) -> None:
    """Write down who holds a lock, for whoever wants it. It only helps people: what cannot be written is left out."""
    with contextlib.suppress(psutil.Error, OSError):
        os.write(lock, f"{pid} {psutil.Process(pid).create_time()!r}\n".encode())


def _wait(runs: int, folder: Path, what: str, say: Say, wait_s: float) -> None:
    ends_s = time.monotonic() + wait_s
    said = False
    while not _take(runs):
        pids = _alive(runs)
        if time.monotonic() >= ends_s:
            raise FolderBusy(
                f"{folder}: a run{_named(pids)} of a {what} that was killed still goes on after {wait_s:g} s; "
                f"end it{_with(pids)}, then start again"
            )
        if not said:
            said = True
            say(f"a run{_named(pids)} of a {what} that was killed still ends; waiting for that, {wait_s:g} s at most")
        time.sleep(_POLL_S)


def _take(lock: int) -> bool:
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _alive(lock: int) -> list[int]:
    """Which of those that were noted still run."""
    found = []
    for line in os.pread(lock, _READ_MAX, 0).decode(errors="replace").splitlines():
        pid, _, created_s = line.partition(" ")
        with contextlib.suppress(ValueError, psutil.Error):
            if is_alive(int(pid), float(created_s)):
                found.append(int(pid))
    return found


def _named(pids: list[int]) -> str:
    return f" (pid {', '.join(map(str, pids[:_NAMED_MAX]))})" if pids else ""


def _with(pids: list[int]) -> str:
    return f" with kill -INT {' '.join(map(str, pids[:_NAMED_MAX]))}" if pids else ""


def _forget(lock: int) -> None:
    os.ftruncate(lock, 0)


@contextlib.contextmanager
def _opened(path: Path) -> Iterator[int]:
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)
    try:
        yield descriptor
    finally:
        os.close(descriptor)
