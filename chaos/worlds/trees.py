"""Processes with all that runs below them."""

import contextlib
from collections.abc import Collection

import psutil

_ROUNDS_MAX = 10


def kill_tree(root: psutil.Process, spare: Collection[int] = ()) -> list[psutil.Process]:
    """SIGKILL a process and all below it but ourselves and those to spare, and return them.

    They are stopped first: what is being born while others die would lose its parent, and not be found any more.
    """
    own = psutil.Process().pid
    members: dict[int, psutil.Process] = {}
    for _ in range(_ROUNDS_MAX):
        with contextlib.suppress(psutil.NoSuchProcess):
            everybody = (root, *root.children(recursive=True))
            found = [process for process in everybody if process.pid not in (own, *spare, *members)]
            for process in found:
                members[process.pid] = process
                with contextlib.suppress(psutil.NoSuchProcess):
                    process.suspend()
            if found:
                continue
        break
    for process in members.values():
        with contextlib.suppress(psutil.NoSuchProcess):
            process.kill()
    return list(members.values())


def runs(process: psutil.Process) -> bool:
    """Whether it is there, and not only waits to be told of."""
    try:
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False
