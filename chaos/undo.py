"""The undo log: what has to be undone if its maker is not there any more to do it.

One JSON-lines file per run in `undo_directory()`. An entry is on disk before the injection it undoes is made, so a
crash at any moment leaves at worst an entry for something that never happened; undoing is therefore idempotent.
"""

import contextlib
import os
import re
import threading
import time
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import msgspec
import psutil

from chaos.toxiproxy.adapter import Toxiproxy, ToxiproxyError, ToxiproxyGone, ToxiproxyRefused
from chaos.toxiproxy.launcher import cache_directory

RUN_MARK = "MLX_CHAOS_RUN"
"""Environment variable that every process below a run inherits: the run's id."""
TERM_S = 1.0
"""How long a process may take to end by itself before it is killed."""
_KILL_S = 2.0
_THAW_S = 1.0
_LOG_BYTES_MAX = 16 * 2**20
_PROXIES_AT_ONCE = 8
_CLOCK_SLACK_S = 1.0
_RUN_ID = re.compile(r"[A-Za-z0-9_.-]{1,128}")


class UndoError(Exception):
    """The log cannot be written or read. Nothing may be injected without it."""


class _Entry(msgspec.Struct, frozen=True, tag_field="undo", kw_only=True):
    id: str = ""
    """Given by the log."""
    expires_unix_s: float | None = None
    """When the keeper undoes it although the run goes on; None: with the run."""


class ToxicEntry(_Entry, frozen=True, tag="toxic", kw_only=True):
    """A toxic that a fault adds: to be removed. borrowed: the proxy is somebody else's and must not be replaced."""

    api_url: str
    proxy: str
    toxic: str
    borrowed: bool = False


class DisabledEntry(_Entry, frozen=True, tag="disabled", kw_only=True):
    """A proxy that a fault disables: to be enabled."""

    api_url: str
    proxy: str


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


_OnProxy = ToxicEntry | DisabledEntry | ProxyEntry
Entry = _OnProxy | ProcessEntry | FrozenEntry


class Runner(msgspec.Struct, frozen=True, tag_field="undo", tag="runner"):
    """The log's first line: whose it is. While this process lives, only it and its keeper undo anything."""

    run_id: str
    pid: int
    created_s: float


class _Done(msgspec.Struct, frozen=True, tag_field="undo", tag="done"):
    id: str


class HealResult(msgspec.Struct, frozen=True):
    """What became of one entry. healed: verified, never assumed. text: one line."""

    entry: Entry
    healed: bool
    text: str


_line_decoder = msgspec.json.Decoder(Runner | _Done | Entry)


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
        self._append(msgspec.structs.replace(entry, id=identifier))
        return identifier

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
            case _:
                entries[record.id] = record
    return LogContent(runner, list(entries.values()), torn)


def is_alive(pid: int, created_s: float) -> bool:
    """Whether this very process runs: same pid and same time of creation, and not a zombie.

    A process that may not be looked at, because it is another user's, counts as alive.
    """
    try:
        return _find(pid, created_s) is not None
    except psutil.AccessDenied:
        return True


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


def heal_entry(entry: Entry) -> HealResult:
    """Undo one entry and verify it. Undoing what is undone already, or was never done, is healed too."""
    return heal_all([entry])[0]


def heal_all(entries: Iterable[Entry]) -> list[HealResult]:
    """Undo everything, going on after an error. Results come in the order of the work.

    Frozen processes go first, so that they can end when they are asked to. Then processes, together (`TERM_S` for all
    of them), then everything else: newest first on each proxy, different proxies side by side, because a proxy can
    keep its caller waiting for seconds. A proxy of ours is deleted before anything else on it: its toxics go with it,
    without flushing what they hold for dead clients.
    """
    newest_first = list(entries)[::-1]
    results = [_thaw(entry) for entry in newest_first if isinstance(entry, FrozenEntry)]
    results += _end_processes([entry for entry in newest_first if isinstance(entry, ProcessEntry)])
    proxies: dict[tuple[str, str], list[_OnProxy]] = {}
    for entry in newest_first:
        if not isinstance(entry, ProcessEntry | FrozenEntry):
            proxies.setdefault((entry.api_url, entry.proxy), []).append(entry)
    if proxies:
        with ThreadPoolExecutor(min(_PROXIES_AT_ONCE, len(proxies)), thread_name_prefix="heal") as pool:
            for part in pool.map(_heal_proxy, proxies.values()):
                results += part
    return results


def _heal_proxy(entries: list[_OnProxy]) -> list[HealResult]:
    toxics = [entry.toxic for entry in entries if isinstance(entry, ToxicEntry)]
    entries.sort(key=lambda entry: not isinstance(entry, ProxyEntry))
    return [_heal_on_proxy(entry, toxics) for entry in entries]


def _heal_on_proxy(entry: _OnProxy, toxics: Sequence[str]) -> HealResult:
    """toxics: all on this proxy that are being healed. If it has to be replaced, the link is dropped once for all."""
    where = f"proxy {entry.proxy} at {entry.api_url}"
    try:
        api = Toxiproxy(entry.api_url)
        match entry:
            case ToxicEntry(borrowed=True):
                text = f"toxic {entry.toxic} on {where}: {api.withdraw_toxic(entry.proxy, entry.toxic)}"
            case ToxicEntry():
                how = api.remove_toxic(entry.proxy, entry.toxic, toxics)
                text = f"toxic {entry.toxic} on {where}: {how}"
            case DisabledEntry():
                api.set_enabled(entry.proxy, True)
                text = f"{where}: enabled"
            case ProxyEntry():
                api.delete_proxy(entry.proxy)
                text = f"{where}: deleted"
    except ToxiproxyGone:
        return HealResult(entry, True, f"{where}: server has ended, and the fault with it")
    except ToxiproxyError as error:
        if isinstance(error, ToxiproxyRefused) and error.status == 404:
            return HealResult(entry, True, f"{where}: proxy is gone, and the fault with it")
        return HealResult(entry, False, f"{where}: not healed: {error}")
    return HealResult(entry, True, text)


def _thaw(entry: FrozenEntry) -> HealResult:
    where = f"process {entry.name} (pid {entry.pid})"
    try:
        process = _find(entry.pid, entry.created_s)
        if process is None:
            return HealResult(entry, True, f"{where}: had ended already")
        process.resume()
        ends_s = time.monotonic() + _THAW_S
        while process.status() == psutil.STATUS_STOPPED:
            if time.monotonic() >= ends_s:
                return HealResult(entry, False, f"{where}: still frozen")
            time.sleep(0.02)
    except psutil.NoSuchProcess:
        return HealResult(entry, True, f"{where}: has ended")
    except (psutil.Error, OSError) as error:
        return HealResult(entry, False, f"{where}: left frozen: {' '.join(str(error).split())}")
    return HealResult(entry, True, f"{where}: goes on")


def _find(pid: int, created_s: float) -> psutil.Process | None:
    try:
        process = psutil.Process(pid)
        if abs(process.create_time() - created_s) > _CLOCK_SLACK_S or process.status() == psutil.STATUS_ZOMBIE:
            return None
    except psutil.NoSuchProcess:
        return None
    return process


def _end_processes(entries: Sequence[ProcessEntry]) -> list[HealResult]:
    """TERM to all, KILL to those that are left after TERM_S. Never signals a process that it has not identified."""
    members: dict[str, list[psutil.Process]] = {}
    refused: dict[str, str] = {}
    for entry in entries:
        try:
            members[_key(entry)] = _members(entry)
        except (psutil.Error, OSError, _NotOurs) as error:
            refused[_key(entry)] = " ".join(str(error).split())
    everything = [process for part in members.values() for process in part]
    problems = _signal(everything, psutil.Process.terminate)
    if everything and _running(everything, TERM_S):
        problems |= _signal(_running(everything, 0.0), psutil.Process.kill)
        _running(everything, _KILL_S)
    results = []
    for entry in entries:
        where = f"process {entry.name} (pid {entry.pid})"
        if _key(entry) in refused:
            results.append(HealResult(entry, False, f"{where}: left alone: {refused[_key(entry)]}"))
            continue
        part = members[_key(entry)]
        running = {process.pid for process in _running(part, 0.0)}
        if entry.group and part:
            # What the group forked after it was looked up.
            running |= {process.pid for process in _group(entry.pid)}
        if running:
            why = "; ".join(problems[pid] for pid in sorted(running) if pid in problems) or "survived SIGKILL"
            results.append(HealResult(entry, False, f"{where}: still running: {sorted(running)}: {why}"))
        else:
            results.append(HealResult(entry, True, f"{where}: {'ended' if part else 'had ended already'}"))
    return results


class _NotOurs(Exception):
    pass


def _key(entry: ProcessEntry) -> str:
    return f"{entry.pid}/{entry.created_s}/{entry.group}"


def _members(entry: ProcessEntry) -> list[psutil.Process]:
    if entry.pid <= 1 or entry.pid == os.getpid():
        raise _NotOurs(f"pid {entry.pid} must not be ended from here")
    leader = _find(entry.pid, entry.created_s)
    if not entry.group:
        return [leader] if leader else []
    group = _group(entry.pid)
    if leader is None:
        # A group whose leader is gone cannot be told from one that got the same number later.
        if group:
            raise _NotOurs(f"its leader is gone, yet group {entry.pid} has {sorted(p.pid for p in group)}")
        return []
    if os.getpgid(0) == entry.pid:
        raise _NotOurs("it is the group of this very process")
    return [leader, *(process for process in group if process.pid != leader.pid)]


def _group(number: int) -> list[psutil.Process]:
    return [process for process in psutil.process_iter() if _group_of(process) == number]


def _group_of(process: psutil.Process) -> int | None:
    try:
        return os.getpgid(process.pid) if process.status() != psutil.STATUS_ZOMBIE else None
    except (psutil.Error, OSError):
        return None


def _signal(processes: Sequence[psutil.Process], send: Callable[[psutil.Process], None]) -> dict[int, str]:
    problems: dict[int, str] = {}
    for process in processes:
        try:
            send(process)
        except psutil.NoSuchProcess:
            continue
        except (psutil.Error, OSError) as error:
            problems[process.pid] = " ".join(str(error).split())
    return problems


def _running(processes: Sequence[psutil.Process], limit_s: float) -> list[psutil.Process]:
    """Those that still run after at most `limit_s`. A zombie has ended; its parent reaps it when it likes."""
    ends_s = time.monotonic() + limit_s
    while True:
        left = [process for process in processes if _runs(process)]
        if not left or time.monotonic() >= ends_s:
            return left
        time.sleep(0.02)


def _runs(process: psutil.Process) -> bool:
    try:
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False
    except psutil.AccessDenied:
        return True
