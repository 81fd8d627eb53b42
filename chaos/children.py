"""Programs that we run and wait for: they heal when we are asked to end, and end with us if we are killed."""

import contextlib
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Sequence
from pathlib import Path

from chaos.folder_lock import note_holder

INTERRUPTED = 130
_PATIENCE_S = 60.0
"""How long one has to heal once we are gone."""


class Children:
    """Those that run now; each in a thread of its caller's. Not more than the caller starts at once."""

    def __init__(self, lock: int | None = None) -> None:
        """lock: what each of them holds until it has ended, even after we were killed; see chaos.folder_lock."""
        self._held = lock
        self._lock = threading.Lock()
        self._running: dict[int, int] = {}
        self._interrupted = False

    def run(self, command: Sequence[str], log: Path) -> int:
        """Run a program to its end, its output in `log`; its exit code, 130 once all were told to end.

        It is in a process group of its own, so that what a terminal sends to all reaches it through us, and once. Its
        tether ends it when we are killed.
        """
        tether = [sys.executable, "-m", "cluster.live.tether", "--patience", f"{_PATIENCE_S:g}", *command]
        with log.open("wb") as output, self._lock:
            if self._interrupted:
                return INTERRUPTED
            # Not for long: it only has to start its program and say which.
            process = subprocess.Popen(
                tether,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=output,
                process_group=0,
                pass_fds=() if self._held is None else (self._held,),
            )
            assert process.stdout is not None
            said = process.stdout.readline().strip()
            if said.isdigit():
                self._running[process.pid] = int(said)
                if self._held is not None:
                    note_holder(self._held, int(said))
        try:
            code = process.wait()
        finally:
            with self._lock:
                self._running.pop(process.pid, None)
            for pipe in (process.stdin, process.stdout):
                if pipe is not None:
                    pipe.close()
        return INTERRUPTED if self._interrupted else code

    def interrupt(self) -> None:
        """Tell all of them to end, as Ctrl-C does, and start no other."""
        with self._lock:
            self._interrupted = True
            for pid in self._running.values():
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGINT)
