"""The run of a slot as a process that lives no longer than the scheduler, and what came of it."""

import asyncio
import contextlib
import fcntl
import os
import sys
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path

import msgspec
import pyarrow as pa
import pyarrow.parquet as pq

from analysis.history import UnreadableError
from analysis.judge import read_verdict
from analysis.runs import SLOT_FILE, Slot
from analysis.verdict import EXIT_CODES
from analysis.whole_file import write_whole
from chaos.playing import NO_VERDICT
from chaos.scheduling.journal import FOLDER
from chaos.scheduling.machine import Finish
from chaos.scheduling.plan import Plan
from chaos.scheduling.records import CRASHED, Started

RUN = (sys.executable, "-m", "chaos.run")
PATIENCE_S = 60.0
"""How long a run that is told to end may heal and report before it is killed; its keeper heals then."""
OUTPUT = "output.log"
_OUTPUT_BYTES_MAX = 2**20
_POLL_S = 0.2
_REASON_MAX = 300


def stamp(slot_s: int) -> str:
    """A slot as the name of its folder."""
    return datetime.fromtimestamp(slot_s, UTC).strftime("%Y%m%dT%H%M%SZ")


def slot_of(name: str) -> int | None:
    """The slot of a folder of that name; None when it is no such folder."""
    try:
        slot_s = int(datetime.strptime(name, "%Y%m%dT%H%M%SZ").replace(tzinfo=UTC).timestamp())
    except ValueError:
        return None
    return slot_s if stamp(slot_s) == name else None


class Runner:
    """Runs one slot at a time. command: what takes the arguments of chaos.run."""

    def __init__(self, plan: Plan, command: Sequence[str] = RUN) -> None:
        self._plan = plan
        self._command = tuple(command)
        self._process: asyncio.subprocess.Process | None = None

    async def run(self, entry: str, slot_s: int) -> Finish:
        """Run the slot to its end. When this is cancelled, the run is told to end and not waited for."""
        folder = self._plan.folder / entry / stamp(slot_s)
        try:
            self._prepare(entry, slot_s, folder)
            self._process = await self._start(entry, slot_s, folder)
        except OSError as error:
            reason = f"{folder}: the run cannot be started: {error.strerror}"
            return Finish(complete=True, verdict="infrastructure", reason=reason, results="", started=False)
        try:
            code = await self._process.wait()
        finally:
            self.end()
            self._process = None
        return await asyncio.to_thread(self._finish, folder, code)

    async def inherited(self, run: Started) -> Finish:
        """Wait until a run of an earlier scheduler has ended; what came of it."""
        while True:
            lock = self._lock()
            if lock is not None:
                os.close(lock)
                break
            await asyncio.sleep(_POLL_S)
        folder = self._plan.folder / run.entry / stamp(run.slot_s)
        return await asyncio.to_thread(self._finish, folder, None)

    def end(self) -> None:
        """Tell the run to end, if there is one."""
        if self._process is not None and self._process.stdin is not None:
            self._process.stdin.close()

    async def _start(self, entry: str, slot_s: int, folder: Path) -> asyncio.subprocess.Process:
        command = [sys.executable, "-m", "cluster.live.tether", "--patience", f"{PATIENCE_S:g}", *self._command]
        command += [*self._plan.entries[entry].arguments(slot_s), "--out", str(folder)]
        lock = self._lock()
        if lock is None:
            raise OSError(None, "another run of this schedule is still going on")
        try:
            with (folder / OUTPUT).open("ab") as output:
                return await asyncio.create_subprocess_exec(
                    *command,
                    stdin=asyncio.subprocess.PIPE,
                    stdout=asyncio.subprocess.DEVNULL,
                    stderr=output,
                    # Ctrl-C is for the scheduler, which then tells the run.
                    start_new_session=True,
                    # Held as long as the run lives, so that the next scheduler does not start one beside it.
                    pass_fds=(lock,),
                    env=self._environment(),
                )
        finally:
            os.close(lock)

    def _prepare(self, entry: str, slot_s: int, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        slot = Slot(self._plan.name, entry, slot_s)
        write_whole(folder / SLOT_FILE, msgspec.json.encode(slot) + b"\n")

    def _environment(self) -> dict[str, str]:
        """Of a run, which has no use for the webhook."""
        hidden = self._plan.notify.webhook_env
        kept = {name: value for name, value in os.environ.items() if name != hidden}
        return {**kept, "PYTHONUNBUFFERED": "1"}

    def _lock(self) -> int | None:
        """A descriptor that holds the lock of runs; None while a run has it."""
        descriptor = os.open(self._plan.folder / FOLDER / "run.lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            os.close(descriptor)
            return None
        return descriptor

    def _finish(self, folder: Path, code: int | None) -> Finish:
        """code: None when nobody saw it."""
        said = _shorten(folder / OUTPUT)
        latest = folder / "latest"
        results = ""
        with contextlib.suppress(OSError, ValueError):
            results = str(latest.resolve(strict=True).relative_to(self._plan.folder.resolve()))
        with contextlib.suppress(UnreadableError):
            verdict = read_verdict(latest)
            # A run that its guard has stopped is not complete, and has its verdict all the same.
            if verdict.complete or (code in EXIT_CODES.values() and code != 0):
                reason = verdict.reasons[0] if verdict.reasons else ""
                return Finish(True, verdict.verdict.value, reason[:_REASON_MAX], results)
        if code in (2, 5):
            return Finish(True, NO_VERDICT[code], said, results, started=_began(latest))
        if code in (0, 130, None):
            return Finish(False, "", "the run was interrupted", results)
        return Finish(False, CRASHED, f"exit code {code}; {said}", results)


def _began(run: Path) -> bool:
    """Whether a run came as far as its first phase, by its rows; one that was refused has not even a folder.

    Where the rows cannot be read something may have been done, so it has begun.
    """
    if not run.is_dir():
        return False
    try:
        kinds = pq.read_table(run / "events.parquet", columns=["kind"])["kind"]
    except (OSError, pa.ArrowException):
        return True
    return "phase_started" in kinds.to_pylist()


def _shorten(output: Path) -> str:
    """Keep the end of what a run has printed; its last line."""
    try:
        size = output.stat().st_size
        with output.open("rb") as file:
            file.seek(max(0, size - _OUTPUT_BYTES_MAX))
            data = file.read(_OUTPUT_BYTES_MAX)
        if size > _OUTPUT_BYTES_MAX:
            write_whole(output, data)
    except OSError:
        return "what it printed cannot be read"
    lines = [line for line in data.decode(errors="replace").splitlines() if line.strip()]
    complaint = [line for line in lines if line.startswith("chaos.run: ")]
    return (complaint or lines or ["it said nothing"])[-1].removeprefix("chaos.run: ")[:_REASON_MAX]
