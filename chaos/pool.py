"""Processes that compute for us, as many as asked for, and that end with us, also when we are killed."""

import multiprocessing
import os
import signal
import threading
from concurrent.futures import ProcessPoolExecutor


def computing_pool(processes: int) -> ProcessPoolExecutor:
    """A pool of fresh processes. Ctrl-C is the caller's alone to act on."""
    return ProcessPoolExecutor(processes, multiprocessing.get_context("spawn"), initializer=_end_with_parent)


def _end_with_parent() -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    parent = multiprocessing.parent_process()
    assert parent is not None

    def watch() -> None:
        parent.join()
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()
