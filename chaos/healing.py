"""Undoing what an undo log announces: each entry by itself, a whole log, and those whose time limit has passed."""

import contextlib
import os
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import msgspec
import psutil

from chaos.toxiproxy.adapter import Toxiproxy, ToxiproxyError, ToxiproxyGone, ToxiproxyRefused, ToxiproxyUnverified
from chaos.toxiproxy.errors import ToxiproxyUnsafe
from chaos.undo import (
    DisabledEntry,
    Entry,
    FrozenEntry,
    OnProxy,
    ProcessEntry,
    ProxyEntry,
    ToxicEntry,
    UndoError,
    UndoLog,
    comes_late_until,
    find_process,
    is_borrowed,
    marked_processes,
)

TERM_S = 1.0
"""How long a process may take to end by itself before it is killed."""
RETRY_S = 1.0
"""Between two tries of something that could not be healed."""
_SERVER_ERROR = 500
_KILL_S = 2.0
_THAW_S = 1.0
_WATCH_S = 0.2
_SWEEPS_MAX = 3
_PROXIES_AT_ONCE = 8


class HealResult(msgspec.Struct, frozen=True):
    """What became of one entry. healed: verified, never assumed. text: one line."""

    entry: Entry
    healed: bool
    text: str


def heal_log(path: Path, writer: str, ends_s: float) -> list[HealResult]:
    """Heal everything open in a log, again and again until `ends_s` (monotonic) for what fails; mark it, close it.

    Then end whatever else carries the run's mark.
    """
    return [*heal_entries(path, writer, ends_s), *_end_marked(path.stem)]


def heal_entries(path: Path, writer: str, ends_s: float) -> list[HealResult]:
    """As heal_log, but only what is in the log. Raises UndoError, also when somebody else has closed it."""
    log = UndoLog(path, writer)
    results: dict[str, HealResult] = {}
    while True:
        still_open = [entry for entry in log.open_entries() if not _is_healed(results.get(entry.id))]
        for result in heal_all(still_open):
            results[result.entry.id] = result
            # What is healed stays so when the disk is full: then it is only not written down.
            with contextlib.suppress(UndoError):
                if result.healed:
                    log.done(result.entry.id)
        if all(_is_healed(results.get(entry.id)) for entry in log.open_entries()):
            path.unlink(missing_ok=True)
            break
        if time.monotonic() >= ends_s:
            break
        time.sleep(RETRY_S)
    log.close()
    return list(results.values())


def _end_marked(run_id: str) -> list[HealResult]:
    """End what carries the run's mark; several times, because what is ended may just have started something."""
    ended: list[HealResult] = []
    for _ in range(_SWEEPS_MAX):
        found = marked_processes(run_id)
        if not found:
            break
        ended += heal_all(found)
    return ended


def _is_healed(result: HealResult | None) -> bool:
    return result is not None and result.healed


class Watch(threading.Thread):
    """Heals entries whose time limit has passed, although the runner lives: it may hang.

    They stay open and are healed again every `RETRY_S`: a runner that was suspended between writing the entry and
    injecting injects after all when it goes on. Not so a proxy of somebody else's that was switched on again: from then
    on whether it is on is its owner's business, and a runner that comes too late sees that itself.
    """

    def __init__(self, log: UndoLog, say: Callable[[str], None]) -> None:
        """say: told of each result that is news."""
        super().__init__(name="ttl", daemon=True)
        self._log = log
        self._say = say
        self._ended = threading.Event()
        self._said: dict[str, str] = {}

    def end(self) -> None:
        """Look no more."""
        self._ended.set()

    def run(self) -> None:
        """See Thread."""
        while not self._ended.wait(_WATCH_S):
            try:
                now = time.time()
                expired = [
                    e for e in self._log.open_entries() if e.expires_unix_s is not None and e.expires_unix_s < now
                ]
            except UndoError as error:
                self._say(str(error))
                expired = []
            for result in heal_all(expired):
                if self._said.get(result.entry.id) != result.text:
                    self._said[result.entry.id] = result.text
                    self._say(f"time limit passed: {result.text}")
                if result.healed and isinstance(result.entry, DisabledEntry) and result.entry.borrowed:
                    with contextlib.suppress(UndoError):
                        self._log.done(result.entry.id)
            if expired:
                self._ended.wait(RETRY_S)


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
    proxies: dict[tuple[str, str], list[OnProxy]] = {}
    for entry in newest_first:
        if not isinstance(entry, ProcessEntry | FrozenEntry):
            proxies.setdefault((entry.api_url, entry.proxy), []).append(entry)
    if proxies:
        with ThreadPoolExecutor(min(_PROXIES_AT_ONCE, len(proxies)), thread_name_prefix="heal") as pool:
            for part in pool.map(_heal_proxy, proxies.values()):
                results += part
    return results


def _heal_proxy(entries: list[OnProxy]) -> list[HealResult]:
    toxics = [entry.toxic for entry in entries if isinstance(entry, ToxicEntry)]
    entries.sort(key=lambda entry: not isinstance(entry, ProxyEntry))
    return [_heal_on_proxy(entry, toxics) for entry in entries]


def _heal_on_proxy(entry: OnProxy, toxics: Sequence[str]) -> HealResult:
    """toxics: all on this proxy that are being healed. If it has to be replaced, the link is dropped once for all."""
    where = _where(entry)
    try:
        api = Toxiproxy(entry.api_url)
        if is_borrowed(entry):
            return HealResult(entry, True, _give_back(api, entry, where))
        match entry:
            case ToxicEntry():
                how = api.remove_toxic(entry.proxy, entry.toxic, toxics)
                text = f"toxic {entry.toxic} on {where}: {how}"
            case DisabledEntry():
                api.set_enabled(entry.proxy, True)
                text = f"{where}: enabled"
            case ProxyEntry():
                api.delete_proxy(entry.proxy)
                text = f"{where}: deleted"
    except ToxiproxyError as error:
        # A server that a run has started takes its proxies with it. One of somebody else's is perhaps only out of
        # reach, behind a tunnel or a firewall, and then what was done to it is still in force.
        if is_borrowed(entry):
            return HealResult(entry, False, f"{where}: NOT healed: {error}")
        if isinstance(error, ToxiproxyGone):
            return HealResult(entry, True, f"{where}: server has ended, and the fault with it")
        if isinstance(error, ToxiproxyRefused) and error.status == 404:
            return HealResult(entry, True, f"{where}: proxy is gone, and the fault with it")
        return HealResult(entry, False, f"{where}: not healed: {error}")
    return HealResult(entry, True, text)


def _where(entry: OnProxy) -> str:
    return f"proxy {entry.proxy} at {entry.api_url}"


def give_back(api: Toxiproxy, log: UndoLog, identifier: str) -> None:
    """Undo what was done to a proxy of somebody else's, and mark it so. Raises ToxiproxyError, UndoError.

    Nothing where the keeper has done so at the time limit: how the proxy is since then is its owner's business.
    """
    for entry in log.open_entries():
        if entry.id == identifier and not isinstance(entry, ProcessEntry | FrozenEntry):
            _give_back(api, entry, _where(entry))
            log.done(identifier)


def _give_back(api: Toxiproxy, entry: OnProxy, where: str) -> str:
    """Take what is ours from a proxy of somebody else's; how that went. Raises ToxiproxyError."""
    # Asked first, for that is over in seconds where nobody answers; a removal may take half a minute.
    state = api.proxy(entry.proxy)
    if state is None:
        # Whatever stands before a server that is away may say 404 as well, but it has no list of proxies.
        if entry.proxy in api.proxies():
            raise ToxiproxyUnverified(f"toxiproxy {api.url}: lists the proxy, yet does not show it")
        return f"{where}: proxy is gone, and the fault with it"
    if isinstance(entry, ToxicEntry):
        removal = api.withdraw_toxic(entry.proxy, entry.toxic)
        if removal == "missing":
            _demand_no_latecomer(entry)
        return f"toxic {entry.toxic} on {where}: {removal}"
    if state.enabled:
        _demand_no_latecomer(entry)
        return f"{where}: enabled already"
    api.set_enabled(entry.proxy, True)
    return f"{where}: enabled"


@contextlib.contextmanager
def settling(log: UndoLog, identifier: str) -> Iterator[None]:
    """Round the request that an entry announces: note the answer, if there is a definite one."""
    try:
        yield
    except ToxiproxyUnsafe:
        # It was never sent.
        log.settle(identifier)
        raise
    except ToxiproxyRefused as error:
        # What the server could not do in time it may still be doing.
        if error.status < _SERVER_ERROR:
            log.settle(identifier)
        raise
    log.settle(identifier)


def _demand_no_latecomer(entry: Entry) -> None:
    """Of a change that is not there: that it does not come any more. Raises ToxiproxyUnverified while it may."""
    until_s = comes_late_until(entry)
    if until_s is not None and (left_s := until_s - time.time()) > 0:
        what = "the request that hurts it was never answered and may still arrive"
        raise ToxiproxyUnverified(f"{what}: to be looked at again for {left_s:.0f} s")


def _thaw(entry: FrozenEntry) -> HealResult:
    where = f"process {entry.name} (pid {entry.pid})"
    try:
        process = find_process(entry.pid, entry.created_s)
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
    leader = find_process(entry.pid, entry.created_s)
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
