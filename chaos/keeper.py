"""The process that outlives the runner, heals what it left behind, and ends the servers it used.

Its only tie to the runner is a pipe: when the runner ends, in whatever way, the system closes the write end and the
keeper reads end of file. That is the same on Linux and macOS and needs no help from the runner. Requests and replies
are JSON lines on the keeper's stdin and stdout.

It ends when everything is healed, or cannot be. One thing it does not give up: a proxy of somebody else's, whose
server it cannot reach for the moment. See `_stay`.
"""

import argparse
import contextlib
import enum
import os
import select
import signal
import subprocess
import sys
import threading
import time
import weakref
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import FrameType

import msgspec
import psutil

from chaos.healing import RETRY_S, HealResult, Watch, heal_entries, heal_entry, heal_log
from chaos.undo import ProcessEntry, UndoError, UndoLog, is_alive, is_borrowed, read_log

_LINE_BYTES_MAX = 1 << 20
_CHILDREN_MAX = 16
_FINAL_S = 4.0
"""For how long a heal that failed is tried again after the runner has gone."""
_PAUSE_S_MAX = 5.0
_STAY_S_MAX = 7 * 86_400.0
_START_S_MAX = 20.0
_CALL_S_MAX = 10.0
_END_S_MAX = 20.0
_CLOSE_S_MAX = 50.0
"""A heal goes on for `_FINAL_S`, and the last withdrawal of a toxic may take half a minute more."""


class KeeperError(Exception):
    """The keeper does not run, or could not do what it was asked. One line."""


class Spawn(msgspec.Struct, frozen=True, tag_field="ask", tag="spawn"):
    """Start a server that ends with the keeper, with its process group if `group`. env: added to the keeper's own."""

    name: str
    argv: tuple[str, ...]
    env: dict[str, str]
    output: str
    group: bool = False


class Stop(msgspec.Struct, frozen=True, tag_field="ask", tag="stop"):
    """End a server."""

    name: str


class Status(msgspec.Struct, frozen=True, tag_field="ask", tag="status"):
    """How are the servers?"""


class Close(msgspec.Struct, frozen=True, tag_field="ask", tag="close"):
    """Heal everything that is open, end the servers, reply, exit."""


class Reply(msgspec.Struct, frozen=True):
    """Answer to any request. problem: one line, empty when it was done. ended: exit codes of servers, None: runs.

    stays: the keeper goes on healing, see `_stay`.
    """

    problem: str = ""
    pid: int = 0
    ended: dict[str, int | None] = {}
    healed: tuple[HealResult, ...] = ()
    stays: bool = False


_requests = msgspec.json.Decoder(Spawn | Stop | Status | Close)
_replies = msgspec.json.Decoder(Reply)


class Keeper:
    """The runner's handle of its keeper. Methods block for bounded times; call them in a thread from asyncio.

    Do not fork without exec while it lives, other than through Python's own `os.fork` and `multiprocessing`: the
    copy of the pipe in such a process would hide the runner's end from the keeper.
    """

    def __init__(self, process: subprocess.Popen[bytes], log_path: Path, log_dir: Path) -> None:
        self._process = process
        self._log_path = log_path
        self._log_dir = log_dir
        self._buffer = b""
        self._lock = threading.Lock()
        self._stays = False
        reference = weakref.ref(self)
        # A forked copy of the runner would keep the pipe open after the runner has gone.
        os.register_at_fork(after_in_child=lambda: _forget_pipe(reference))

    @classmethod
    def start(cls, log_path: Path, log_dir: Path) -> "Keeper":
        """Start a keeper for this process' undo log; its messages go to `log_dir/keeper.log`. Raises KeeperError."""
        log_dir.mkdir(parents=True, exist_ok=True)
        command = [sys.executable, "-m", "chaos.keeper", "--log", str(log_path.resolve())]
        with (log_dir / "keeper.log").open("ab") as messages:
            # Its own session: Ctrl-C in the terminal reaches neither the keeper nor the servers it starts.
            process = subprocess.Popen(
                command,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=messages,
                bufsize=0,
                start_new_session=True,
                env=os.environ | {"PYTHONPATH": _import_path()},
            )
        keeper = cls(process, log_path, log_dir)
        try:
            keeper._ask(Status(), _START_S_MAX)
        except KeeperError:
            keeper._end_keeper()
            raise
        return keeper

    @property
    def pid(self) -> int:
        """The keeper's process id."""
        return self._process.pid

    def alive(self) -> bool:
        """Whether the keeper runs. Without it nothing may be injected any more."""
        return self._process.poll() is None

    def spawn(self, name: str, argv: Sequence[str], env: Mapping[str, str] | None = None, group: bool = False) -> int:
        """Start a server (see Spawn), return its pid; output goes to `log_dir/<name>.log`. Raises KeeperError."""
        output = str((self._log_dir / f"{name}.log").resolve())
        return self._ask(Spawn(name, tuple(argv), dict(env or {}), output, group), _CALL_S_MAX).pid

    def stop_child(self, name: str) -> None:
        """End a server and wait for its end. Raises KeeperError, also for an unknown name."""
        self._ask(Stop(name), _CALL_S_MAX)

    def children(self) -> dict[str, int | None]:
        """Servers by name: None while it runs, else its exit code."""
        return self._ask(Status(), _CALL_S_MAX).ended

    def close(self) -> list[HealResult]:
        """Heal what is open, end the servers and the keeper; returns what was healed. Harmless when called twice.

        If the keeper has died, its work is done from here. It does not end while a proxy of somebody else's is not
        healed, but tries on by itself; the result says so.
        """
        healed: list[HealResult] = []
        if self._stays:
            return healed
        try:
            reply = self._ask(Close(), _CLOSE_S_MAX)
            if reply.stays:
                self._stays = True
                self._close_pipes()
                return [self._tried_on(result) for result in reply.healed]
            healed += reply.healed
        except KeeperError:
            self._end_keeper()
            if self._log_path.exists():
                healed += heal_log(self._log_path, "c", time.monotonic() + _FINAL_S)
        self._end_keeper()
        return healed

    def _tried_on(self, result: HealResult) -> HealResult:
        if result.healed or not is_borrowed(result.entry):
            return result
        text = f"{result.text}; the keeper (pid {self.pid}) goes on trying, see {self._log_dir}/keeper.log"
        return msgspec.structs.replace(result, text=text)

    def _close_pipes(self) -> None:
        with self._lock, contextlib.suppress(OSError):
            for pipe in (self._process.stdin, self._process.stdout):
                if pipe is not None:
                    pipe.close()

    def _end_keeper(self) -> None:
        self._close_pipes()
        try:
            self._process.wait(_END_S_MAX)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()

    def _ask(self, request: Spawn | Stop | Status | Close, limit_s: float) -> Reply:
        with self._lock:
            stdin, stdout = self._process.stdin, self._process.stdout
            if stdin is None or stdout is None or stdin.closed or stdout.closed:
                raise KeeperError("keeper: closed")
            try:
                data = msgspec.json.encode(request) + b"\n"
                while data:
                    data = data[os.write(stdin.fileno(), data) :]
                reply = self._read_reply(stdout.fileno(), time.monotonic() + limit_s)
            except OSError as error:
                raise KeeperError(f"keeper (pid {self.pid}): {error.strerror}; see {self._log_dir}") from error
        if reply is None:
            raise KeeperError(f"keeper (pid {self.pid}): no reply within {limit_s:g} s; see {self._log_dir}/keeper.log")
        if reply.problem:
            raise KeeperError(reply.problem)
        return reply

    def _read_reply(self, descriptor: int, ends_s: float) -> Reply | None:
        while b"\n" not in self._buffer:
            ready, _, _ = select.select([descriptor], [], [], max(0.0, ends_s - time.monotonic()))
            if not ready:
                # A late reply would be taken for the answer to the next request: this keeper is of no use any more.
                self._process.kill()
                return None
            data = os.read(descriptor, 1 << 16)
            if not data or len(self._buffer) > _LINE_BYTES_MAX:
                raise KeeperError(f"keeper (pid {self.pid}): has ended; see {self._log_dir}/keeper.log")
            self._buffer += data
        line, _, self._buffer = self._buffer.partition(b"\n")
        try:
            return _replies.decode(line)
        except msgspec.DecodeError as error:
            raise KeeperError(f"keeper (pid {self.pid}): unreadable reply: {error}") from error


def _forget_pipe(reference: "weakref.ref[Keeper]") -> None:
    keeper = reference()
    if keeper is not None and keeper._process.stdin is not None:
        with contextlib.suppress(OSError):
            keeper._process.stdin.close()


def _import_path() -> str:
    """So that `-m chaos.keeper` is found wherever the runner was started from."""
    here = str(Path(__file__).resolve().parent.parent)
    return os.pathsep.join(part for part in (here, os.environ.get("PYTHONPATH", "")) if part)


class _Servers:
    """The keeper's children. Each is in the undo log too, in case that the keeper itself is killed."""

    def __init__(self, log: UndoLog) -> None:
        self._log = log
        self._running: dict[str, subprocess.Popen[bytes]] = {}
        self._entries: dict[str, ProcessEntry] = {}

    def spawn(self, request: Spawn) -> Reply:
        old = self._running.get(request.name)
        if old is not None and old.poll() is None:
            return Reply(f"server {request.name}: runs already")
        if old is None and len(self._running) >= _CHILDREN_MAX:
            return Reply(f"server {request.name}: there are {_CHILDREN_MAX} already")
        try:
            with open(request.output, "ab") as output:
                process = subprocess.Popen(
                    request.argv,
                    stdin=subprocess.DEVNULL,
                    stdout=output,
                    stderr=subprocess.STDOUT,
                    env=os.environ | request.env,
                    process_group=0 if request.group else None,
                )
        except (OSError, ValueError) as error:
            return Reply(f"server {request.name}: {error}")
        self._forget(request.name)
        self._running[request.name] = process
        try:
            created_s = psutil.Process(process.pid).create_time()
            entry = ProcessEntry(pid=process.pid, created_s=created_s, name=request.name, group=request.group)
            self._entries[request.name] = msgspec.structs.replace(entry, id=self._log.add(entry))
        except psutil.NoSuchProcess:
            return Reply(f"server {request.name}: ended at once; see {request.output}")
        except UndoError as error:
            process.kill()
            return Reply(str(error))
        return Reply(pid=process.pid)

    def stop(self, request: Stop) -> Reply:
        entry = self._entries.get(request.name)
        if entry is None:
            return Reply(f"server {request.name}: unknown")
        result = heal_entry(entry)
        if result.healed:
            self._running[request.name].wait()
            self._forget(request.name)
        return Reply("" if result.healed else result.text)

    def status(self) -> Reply:
        return Reply(ended={name: process.poll() for name, process in self._running.items()})

    def _forget(self, name: str) -> None:
        self._running.pop(name, None)
        entry = self._entries.pop(name, None)
        if entry is not None:
            self._log.done(entry.id)


def _say(text: str) -> None:
    # A full disk must not keep the keeper from healing.
    with contextlib.suppress(OSError):
        print(f"{time.strftime('%H:%M:%S')} {text}", file=sys.stderr, flush=True)


class _End(enum.Enum):
    """Why no more requests are answered: the runner has asked to close, or has gone; or somebody has sent SIGTERM."""

    ASKED = enum.auto()
    GONE = enum.auto()
    TOLD = enum.auto()


def _serve(log: UndoLog, wake: int) -> _End:
    """Answer requests until the end."""
    servers = _Servers(log)
    stdin = sys.stdin.fileno()
    buffer = b""
    while True:
        ready, _, _ = select.select([stdin, wake], [], [])
        if wake in ready:
            return _End.TOLD
        data = os.read(stdin, 1 << 16)
        if not data:
            return _End.GONE
        buffer += data
        if len(buffer) > _LINE_BYTES_MAX:
            _reply(Reply("keeper: request is too long"))
            return _End.GONE
        *lines, buffer = buffer.split(b"\n")
        for line in lines:
            try:
                match _requests.decode(line):
                    case Spawn() as request:
                        _reply(servers.spawn(request))
                    case Stop() as request:
                        _reply(servers.stop(request))
                    case Status():
                        _reply(servers.status())
                    case Close():
                        return _End.ASKED
            except (msgspec.DecodeError, UndoError) as error:
                _reply(Reply(f"keeper: {error}"))


def _reply(reply: Reply) -> None:
    # The runner may have gone meanwhile; the end of the other pipe then says so.
    with contextlib.suppress(BrokenPipeError):
        sys.stdout.buffer.write(msgspec.json.encode(reply) + b"\n")
        sys.stdout.buffer.flush()


def _wake_on_term() -> int:
    """A descriptor that becomes readable at SIGTERM. SIGINT and SIGHUP are for the runner."""
    reading, writing = os.pipe()

    def wake(number: int, frame: FrameType | None) -> None:
        os.write(writing, b"!")

    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, wake)
    return reading


def main() -> int:
    """Keep a runner's promises. Exit code 1 when something could not be healed; it stays in the log."""
    parser = argparse.ArgumentParser(prog="python -m chaos.keeper", description="Started by the runner, not by people.")
    parser.add_argument("--log", type=Path, required=True, help="the runner's undo log")
    path: Path = parser.parse_args().log
    wake = _wake_on_term()
    try:
        log = UndoLog(path, f"k{os.getpid()}-")
        runner = read_log(path).runner
    except UndoError as error:
        _say(str(error))
        return 2
    if runner is None or not is_alive(runner.pid, runner.created_s):
        _say("the runner has gone already")
    watch = Watch(log, _say)
    watch.start()
    end = _serve(log, wake)
    watch.end()
    if end is not _End.ASKED:
        _say("told to end: healing" if end is _End.TOLD else "runner has gone: healing")
    healed = heal_log(path, f"f{os.getpid()}-", time.monotonic() + _FINAL_S)
    for result in healed:
        _say(result.text)
    stays = end is not _End.TOLD and any(is_borrowed(result.entry) for result in healed if not result.healed)
    if end is _End.ASKED:
        _reply(Reply(healed=tuple(healed), stays=stays))
    if stays:
        return 0 if _stay(path, wake) else 1
    return 0 if all(result.healed for result in healed) else 1


def _stay(path: Path, wake: int) -> bool:
    """Go on healing, whether everything is healed at the end: nobody else knows what was done to somebody's cluster.

    That ends when it is healed, by us or by chaos.heal, or when somebody tells us to end. Not to be here for ever where
    a server has been given up, it also ends after `_STAY_S_MAX`. The undo log stays for chaos.heal then.
    """
    _say(
        f"staying (pid {os.getpid()}): trying again every {_PAUSE_S_MAX:g} s until it is healed, or for "
        f"{_STAY_S_MAX / 86_400:g} days; kill {os.getpid()} ends this, python -m chaos.heal does it later"
    )
    ends_s = time.monotonic() + _STAY_S_MAX
    said: dict[str, str] = {}
    pause_s = RETRY_S
    while time.monotonic() < ends_s:
        if select.select([wake], [], [], pause_s)[0]:
            _say("told to end")
            break
        pause_s = min(1.1 * pause_s, _PAUSE_S_MAX)
        try:
            for result in heal_entries(path, f"s{os.getpid()}-", time.monotonic()):
                if said.get(result.entry.id) != result.text:
                    said[result.entry.id] = result.text
                    _say(result.text)
        except UndoError as error:
            if path.exists():
                _say(str(error))
        if not path.exists():
            _say("nothing is left to heal")
            return True
    _say(f"NOT everything is healed: python -m chaos.heal, when its server can be reached again; see {path}")
    return False


if __name__ == "__main__":
    sys.exit(main())
