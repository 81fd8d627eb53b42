"""The records on disk: one JSON line each, appended and on the disk before what it announces is done."""

import contextlib
import fcntl
import os
import time
from pathlib import Path

import msgspec

from chaos.scheduling.records import JournalDamaged, Record, State

FOLDER = ".schedule"
"""Below the schedule's results; a browser of runs passes over names with a dot."""
BYTES_MAX = 8 * 2**20
"""At this size the journal is replaced by what it amounts to."""
_READ_MAX = 64 * 2**20
_LOCK_S = 2.0
_lines = msgspec.json.Decoder(State | Record)


class JournalError(Exception):
    """The journal cannot be read or written, so nothing may be started. The message is one line."""


class JournalBusy(JournalError):
    """Another scheduler has it."""


def read(folder: Path) -> State:
    """What the journal in a schedule's state folder amounts to. Raises JournalDamaged, JournalError."""
    path = folder / "journal.jsonl"
    try:
        with path.open("rb") as file:
            data = file.read(_READ_MAX + 1)
    except FileNotFoundError:
        return State()
    except OSError as error:
        raise JournalError(f"{path}: cannot be read: {error.strerror}") from None
    if len(data) > _READ_MAX:
        raise JournalDamaged(f"{path}: larger than any journal")
    return _fold(path, data)


def _fold(path: Path, data: bytes) -> State:
    # What follows the last line end was never reported as written, so nothing was done upon it.
    whole = data[: data.rfind(b"\n") + 1]
    state = State()
    for number, line in enumerate(whole.splitlines(), 1):
        try:
            record = _lines.decode(line)
            if isinstance(record, State):
                if number > 1:
                    raise JournalDamaged("a second beginning")
                state = record
            else:
                state.apply(record)
        except (msgspec.DecodeError, UnicodeDecodeError, JournalDamaged) as error:
            said = " ".join(str(error).split())[:200]
            raise JournalDamaged(
                f"{path}: line {number}: {said}; nothing is started while it is unclear what was: look at the file, "
                "and move it away to begin anew"
            ) from None
    return state


class Journal:
    """The journal of a schedule, open for this process alone. Raises JournalError (JournalBusy), JournalDamaged."""

    def __init__(self, folder: Path) -> None:
        self._path = folder / "journal.jsonl"
        try:
            folder.mkdir(parents=True, exist_ok=True)
            self._lock = os.open(folder / "lock", os.O_RDWR | os.O_CREAT, 0o600)
        except OSError as error:
            raise JournalError(f"{folder}: cannot be used: {error.strerror}") from None
        try:
            _take(self._lock)
        except OSError:
            os.close(self._lock)
            raise JournalBusy(f"{folder}: another scheduler runs this schedule") from None
        try:
            self.state = read(folder)
            self._file = os.open(self._path, os.O_RDWR | os.O_CREAT, 0o600)
            self._size = _whole(self._file)
            os.ftruncate(self._file, self._size)
            _sync_folder(folder)
        except OSError as error:
            os.close(self._lock)
            raise JournalError(f"{self._path}: {error.strerror}") from None
        except (JournalDamaged, JournalError):
            os.close(self._lock)
            raise

    def write(self, record: Record | State) -> None:
        """Append and wait for the disk. A line that did not get there wholly is taken back. Raises JournalError."""
        line = msgspec.json.encode(record) + b"\n"
        try:
            written = 0
            while written < len(line):
                written += os.pwrite(self._file, line[written:], self._size + written)
            _sync(self._file)
        except OSError as error:
            with contextlib.suppress(OSError):
                os.ftruncate(self._file, self._size)
            raise JournalError(f"{self._path}: cannot be written: {error.strerror}") from None
        self._size += len(line)

    def shorten(self, state: State) -> None:
        """Replace the journal by what it amounts to, where it has grown large. Raises JournalError."""
        if self._size < BYTES_MAX:
            return
        part = self._path.with_suffix(".part")
        try:
            with part.open("wb") as file:
                file.write(msgspec.json.encode(state) + b"\n")
                file.flush()
                _sync(file.fileno())
                size = file.tell()
            os.replace(part, self._path)
            _sync_folder(self._path.parent)
            os.close(self._file)
            self._file, self._size = os.open(self._path, os.O_RDWR), size
        except OSError as error:
            raise JournalError(f"{self._path}: cannot be made shorter: {error.strerror}") from None

    def close(self) -> None:
        """Let another process have it."""
        os.close(self._file)
        os.close(self._lock)


def _take(lock: int) -> None:
    """Raises OSError when somebody keeps it; who only looks whether somebody does has it for a moment."""
    ends_s = time.monotonic() + _LOCK_S
    while True:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return
        except OSError:
            if time.monotonic() >= ends_s:
                raise
            time.sleep(0.05)


def _whole(file: int) -> int:
    """The length up to the last line end."""
    size = os.fstat(file).st_size
    end = size
    while end > 0:
        begin = max(0, end - 65_536)
        found = os.pread(file, end - begin, begin).rfind(b"\n")
        if found >= 0:
            return begin + found + 1
        end = begin
    return 0


def _sync(file: int) -> None:
    """Wait until it is on the disk; what macOS calls so leaves it in the disk's own cache."""
    full = getattr(fcntl, "F_FULLFSYNC", None)
    if full is None:
        os.fsync(file)
    else:
        fcntl.fcntl(file, full)


def _sync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
