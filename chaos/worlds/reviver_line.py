"""The runner's end of the connection to a reviver on another host; see chaos.worlds.reviver."""

import contextlib
import hmac
import secrets
import socket
import threading
import time

import msgspec

from chaos.worlds.host_agent import LEASE_S
from chaos.worlds.reviver import Plan, Told, Word
from chaos.worlds.world import HandleError

_ACCEPT_S = 20.0
_HELLO_S = 3.0
_KILL_S = 10.0
_ANSWER_S = 3.0
_START_S = 75.0
_LINE_BYTES_MAX = 2**16


class ReviverLine:
    """Listens on the address that the host reaches, for one connection that knows the secret. Its methods block."""

    def __init__(self, address: str) -> None:
        try:
            self._listener = socket.create_server((address, 0), backlog=4)
        except OSError as error:
            raise HandleError(f"no port of {address} can be listened on: {error.strerror}") from error
        self._secret = secrets.token_hex(32)
        self.plan = Plan(address, self._listener.getsockname()[1], self._secret, LEASE_S)
        self._connection: socket.socket | None = None
        self._buffer = b""
        self._lock = threading.Lock()

    def accept(self) -> None:
        """Wait for the reviver. Raises HandleError."""
        ends_s = time.monotonic() + _ACCEPT_S
        while (left_s := ends_s - time.monotonic()) > 0:
            self._listener.settimeout(left_s)
            with contextlib.suppress(OSError, HandleError):
                connection, _ = self._listener.accept()
                self._connection, self._buffer = connection, b""
                self._read(min(left_s, _HELLO_S))
                self._listener.close()
                return
            self._hang_up()
        raise HandleError(f"nobody on the host was ready to kill its Ray node within {_ACCEPT_S:g} s")

    def kill(self) -> Told:
        """Have the node killed, with all that runs below it. Raises HandleError."""
        return self._ask("kill", _KILL_S)

    def look(self) -> Told:
        """What is left of the node. Raises HandleError."""
        return self._ask("look", _ANSWER_S)

    def start(self) -> None:
        """Have the node started again. Raises HandleError."""
        told = self._ask("start", _START_S)
        if not told.started:
            raise HandleError(f"the host's Ray node does not start again: {told.problem or 'it does not say why'}")

    def close(self) -> None:
        """Hang up: the node is started again, if it has not been."""
        self._listener.close()
        self._hang_up()

    def _ask(self, what: str, limit_s: float) -> Told:
        with self._lock:
            if self._connection is None:
                raise HandleError("nobody on the host has killed its Ray node")
            try:
                self._connection.sendall(msgspec.json.encode(Word(what)) + b"\n")
                told = self._read(limit_s)
                while what == "start" and not told.started and not told.problem:
                    # An answer to an earlier question that was not waited for.
                    told = self._read(limit_s)
                return told
            except OSError as error:
                raise HandleError(f"who starts the host's Ray node again does not answer: {error}") from error

    def _read(self, limit_s: float) -> Told:
        assert self._connection is not None
        self._connection.settimeout(limit_s)
        while b"\n" not in self._buffer:
            data = self._connection.recv(4096)
            if not data or len(self._buffer) > _LINE_BYTES_MAX:
                raise HandleError("who starts the host's Ray node again has gone")
            self._buffer += data
        text, _, self._buffer = self._buffer.partition(b"\n")
        try:
            told = msgspec.json.decode(text, type=Told)
        except msgspec.DecodeError as error:
            raise HandleError(f"what came from the host is none of ours: {error}") from error
        if not hmac.compare_digest(told.secret, self._secret):
            raise HandleError("what came from the host does not know the secret")
        return told

    def _hang_up(self) -> None:
        if self._connection is not None:
            self._connection.close()
            self._connection = None
