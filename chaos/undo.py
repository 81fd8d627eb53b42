"""The undo log: what has to be undone if its maker is not there any more to do it.

One JSON-lines file per run in `undo_directory()`. An entry is on disk before the injection it undoes is made, so a
crash at any moment leaves at worst an entry for something that never happened; undoing is therefore idempotent.
"""

import contextlib
import os
import re
import threading
import time
from pathlib import Path

import msgspec
import psutil

from chaos.toxiproxy.launcher import cache_directory

RUN_MARK = "MLX_CHAOS_RUN"
"""Environment variable that every process below a run inherits: the run's id."""
LATE_S = 60.0
"""For so long at least a request that nobody has answered may still be delivered, by a tunnel or the system."""
_LOG_BYTES_MAX = 16 * 2**20
_CLOCK_SLACK_S = 1.0
_RUN_ID = re.compile(r"[A-Za-z0-9_.-]{1,128}")


class UndoError(Exception):
    """The log cannot be written or read. Nothing may be injected without it."""


class _Entry(msgspec.Struct, frozen=True, tag_field="undo", kw_only=True):
    id: str = ""
    """Given by the log."""
    expires_unix_s: float | None = None
    """When the keeper undoes it although the run goes on; None: with the run."""
    made_unix_s: float = 0.0
    """When it was written, given by the log."""
    settled: bool = False
    """Whether somebody has said for certain what became of the request that it announces: none is under way."""


class ToxicEntry(_Entry, frozen=True, tag="toxic", kw_only=True):
    """A toxic that a fault adds: to be removed. borrowed: see is_borrowed."""

    api_url: str
    proxy: str
    toxic: str
    borrowed: bool = False


class DisabledEntry(_Entry, frozen=True, tag="disabled", kw_only=True):
    """A proxy that a fault disables: to be enabled. borrowed: see is_borrowed."""

    api_url: str
    proxy: str
    borrowed: bool = False


class ProxyEntry(_Entry, frozen=True, tag="proxy", kw_only=True):
    """A proxy that the run creates: to be deleted."""

    api_url: str
    proxy: str


class ProcessEntry(_Entry, frozen=True, tag="process", kw_only=True):
    """A process that the run starts: to be ended. group: and the process group that it leads.

    created_s: `psutil.Process(pid).create_time()`, Unix time. A pid alone names another process sooner or later.
    """

    pid: int
    created_s: float
    name: str
    group: bool = False


class FrozenEntry(_Entry, frozen=True, tag="frozen", kw_only=True):
    """A process that a fault stops with a signal: to go on. pid and created_s as in ProcessEntry."""

    pid: int
    created_s: float
    name: str


OnProxy = ToxicEntry | DisabledEntry | ProxyEntry
Entry = OnProxy | ProcessEntry | FrozenEntry


class Runner(msgspec.Struct, frozen=True, tag_field="undo", tag="runner"):
    """The log's first line: whose it is. While this process lives, only it and its keeper undo anything."""

    run_id: str
    pid: int
    created_s: float


class _Done(msgspec.Struct, frozen=True, tag_field="undo", tag="done"):
    id: str


class _Settled(msgspec.Struct, frozen=True, tag_field="undo", tag="settled"):
    id: str


_line_decoder = msgspec.json.Decoder(Runner | _Done | _Settled | Entry)


def undo_directory() -> Path:
    """Where undo logs are: `undo` in the cache folder of this project."""
    return cache_directory() / "undo"


class UndoLog:
    """One run's log, open for writing. Runner and keeper both append to it. Safe to use from several threads.

    writer: distinguishes the ids that two processes give out at the same time.
    """

    def __init__(self, path: Path, writer: str, *, create: bool = False) -> None:
        flags = os.O_WRONLY | os.O_APPEND | (os.O_CREAT | os.O_EXCL if create else 0)
        self.path = path
        self._writer = writer
        self._count = 0
        self._lock = threading.Lock()
        try:
            self._file = os.open(path, flags, 0o600)
        except OSError as error:
            raise UndoError(f"undo log {path}: {error.strerror}") from error

    @classmethod
    def create(cls, run_id: str) -> "UndoLog":
        """A new log of this process. Raises UndoError, also when the run has a log already."""
        if not _RUN_ID.fullmatch(run_id):
            raise UndoError(f"run id {run_id!r}: only letters, digits and _ . - are allowed")
        folder = undo_directory()
        try:
            folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        except OSError as error:
            raise UndoError(f"undo log folder {folder}: {error.strerror}") from error
        log = cls(folder / f"{run_id}.jsonl", "r", create=True)
        log._append(Runner(run_id, os.getpid(), psutil.Process().create_time()))
        # A new file survives a crash of the machine only with its folder's entry on disk as well.
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
        return log

    def add(self, entry: Entry) -> str:
        """Write `entry` to disk and return the id it got. Raises UndoError: then do not inject."""
        with self._lock:
            self._count += 1
            identifier = f"{self._writer}{self._count}"
        self._append(msgspec.structs.replace(entry, id=identifier, made_unix_s=time.time()))
        return identifier

    def settle(self, identifier: str) -> None:
        """Note that the request has been answered: what is not there now does not come any more."""
        self._append(_Settled(identifier))

    def done(self, identifier: str) -> None:
        """Note that the entry has been undone, and verified so."""
        self._append(_Done(identifier))

    def open_entries(self) -> list[Entry]:
        """Entries that are not done, oldest first, of all writers."""
        return read_log(self.path).entries if self.path.exists() else []

    def close(self) -> bool:
        """Close the log; delete the file if nothing is open. Says whether nothing was."""
        clean = not self.open_entries()
        with self._lock:
            if self._file >= 0:
                os.close(self._file)
                self._file = -1
        if clean:
            self.path.unlink(missing_ok=True)
        return clean

    def _append(self, record: msgspec.Struct) -> None:
        # The line break comes first, so that a line torn by a full disk or a crash never spoils the one after it.
        data = b"\n" + msgspec.json.encode(record)
        with self._lock:
            try:
                if os.fstat(self._file).st_nlink == 0:
                    raise UndoError(f"undo log {self.path}: already closed by the keeper")
                written = os.write(self._file, data)
                os.fsync(self._file)
            except OSError as error:
                raise UndoError(f"undo log {self.path}: {error.strerror}") from error
        if written != len(data):
            raise UndoError(f"undo log {self.path}: only {written} of {len(data)} bytes could be written")


class LogContent(msgspec.Struct, frozen=True):
    """A log as read. runner: None if its line is unreadable. torn: lines that were never written completely."""

    runner: Runner | None
    entries: list[Entry]
    torn: int


def read_log(path: Path) -> LogContent:
    """The open entries of a log, oldest first. A torn line is skipped: what it announces was never made."""
    try:
        with path.open("rb") as file:
            data = file.read(_LOG_BYTES_MAX + 1)
    except OSError as error:
        raise UndoError(f"undo log {path}: {error.strerror}") from error
    if len(data) > _LOG_BYTES_MAX:
        raise UndoError(f"undo log {path}: larger than {_LOG_BYTES_MAX} bytes")
    runner: Runner | None = None
    entries: dict[str, Entry] = {}
    torn = 0
    for line in data.split(b"\n"):
        if not line.strip():
            continue
        try:
            record = _line_decoder.decode(line)
        except msgspec.DecodeError:
            torn += 1
            continue
        match record:
            case Runner():
                runner = record
            case _Done():
                entries.pop(record.id, None)
            case _Settled():
                if record.id in entries:
                    entries[record.id] = msgspec.structs.replace(entries[record.id], settled=True)
            case _:
                entries[record.id] = record
    return LogContent(runner, list(entries.values()), torn)


def is_borrowed(entry: Entry) -> bool:
    """Whether it is about a proxy of somebody else's, at a server that the run has not started.

    Such a proxy is never replaced, and the fault in it does not end because its server cannot be reached.
    """
    return isinstance(entry, ToxicEntry | DisabledEntry) and entry.borrowed


def comes_late_until(entry: Entry) -> float | None:
    """Until when (Unix time) a change of somebody else's proxy may still be made by a request that nobody has answered.

    A call is given up after seconds, and what carries it may deliver it after that; None where it was answered.
    """
    if not is_borrowed(entry) or entry.settled:
        return None
    return max(entry.made_unix_s + LATE_S, entry.expires_unix_s or 0.0)


def is_alive(pid: int, created_s: float) -> bool:
    """Whether this very process runs: same pid and same time of creation, and not a zombie.

    A process that may not be looked at, because it is another user's, counts as alive.
    """
    try:
        return find_process(pid, created_s) is not None
    except psutil.AccessDenied:
        return True


def find_process(pid: int, created_s: float) -> psutil.Process | None:
    """This very process, None when it has ended. Raises psutil.AccessDenied where it must not be looked at."""
    try:
        process = psutil.Process(pid)
        if abs(process.create_time() - created_s) > _CLOCK_SLACK_S or process.status() == psutil.STATUS_ZOMBIE:
            return None
    except psutil.NoSuchProcess:
        return None
    return process


def marked_processes(run_id: str) -> list[ProcessEntry]:
    """Processes of this user that inherited the run's mark, ourselves left out; the runner itself was born without it.

    What was started in the moment before the runner's death is in no log, and its parents may be gone.
    """
    found: list[ProcessEntry] = []
    for process in psutil.process_iter(["name", "create_time"]):
        # Processes that end meanwhile, and those of other users.
        with contextlib.suppress(psutil.Error, OSError):
            if process.pid != os.getpid() and process.environ().get(RUN_MARK) == run_id:
                found.append(
                    ProcessEntry(pid=process.pid, created_s=process.create_time(), name=process.info["name"] or "?")
                )
    return found
