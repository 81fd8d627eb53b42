"""A Toxiproxy-compatible server under test, ours or the real one, and sockets at both ends of a proxy."""

import http.client
import itertools
import json
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import IO, Any, Literal, NamedTuple
from urllib.parse import quote

from chaos.toxiproxy.launcher import find_server

HOST = "127.0.0.1"
PATIENCE_S = 10.0
"""How long anything may take that should take no time: the machine may be busy."""
_START_S = 20.0
_numbers = itertools.count(1)

Kind = Literal["embedded", "real"]


class Answer(NamedTuple):
    """What the API said. headers: keys in lower case."""

    status: int
    headers: Mapping[str, str]
    text: str

    @property
    def json(self) -> Any:
        """The body."""
        return json.loads(self.text)

    @property
    def kind(self) -> str:
        """Content-Type."""
        return self.headers.get("content-type", "")


class ServerUnderTest:
    """A server's process and its API."""

    def __init__(
        self, kind: Kind, port: int, process: "subprocess.Popen[bytes]", output: IO[bytes] | None = None
    ) -> None:
        self.kind: Kind = kind
        self.port = port
        self.process = process
        self._output = output

    @property
    def embedded(self) -> bool:
        """Whether it is ours."""
        return self.kind == "embedded"

    def call(self, method: str, path: str, body: object = None, **headers: str) -> Answer:
        """One request. body: text or bytes as they are, anything else as JSON; None for no body."""
        if body is not None and not isinstance(body, str | bytes):
            body = json.dumps(body)
        connection = http.client.HTTPConnection(HOST, self.port, timeout=PATIENCE_S + 20)
        try:
            sent = {key.replace("_", "-"): value for key, value in headers.items()}
            connection.request(method, path, body, sent)
            response = connection.getresponse()
            text = response.read().decode()
            return Answer(response.status, {key.lower(): value for key, value in response.getheaders()}, text)
        except OSError as error:
            # Otherwise every case after the one that ended it would only say that nobody answers.
            if self.process.poll() is not None:
                raise AssertionError(self._last_words()) from error
            raise
        finally:
            connection.close()

    def _last_words(self) -> str:
        said = ""
        if self._output is not None:
            self._output.seek(0)
            said = self._output.read().decode("utf-8", "replace")
        at = max(0, said.find("panic:"))
        return f"the {self.kind} server has ended with exit code {self.process.returncode}: {said[at:][:2_000]}"

    def proxy(self, upstream: str = "127.0.0.1:9", **fields: object) -> "ProxyUnderTest":
        """A new proxy on a free port."""
        name = str(fields.pop("name", f"p{next(_numbers)}"))
        answer = self.call("POST", "/proxies", {"name": name, "listen": f"{HOST}:0", "upstream": upstream, **fields})
        assert answer.status == 201, answer
        return ProxyUnderTest(self, name)


class ProxyUnderTest:
    """One proxy of a server, by name."""

    def __init__(self, server: ServerUnderTest, name: str) -> None:
        self.server = server
        self.name = name
        self.path = f"/proxies/{quote(name, safe='')}"

    def state(self) -> Any:
        """As the API shows it."""
        return self.server.call("GET", self.path).json

    def add(self, kind: str, stream: str = "downstream", name: str | None = None, **rest: Any) -> str:
        """A toxic; attributes are the rest, but for those that belong to the toxic itself. Returns its name."""
        own: dict[str, Any] = {key: rest.pop(key) for key in ("toxicity", "ttl_ms", "clients") if key in rest}
        value: dict[str, Any] = {"type": kind, "stream": stream, "attributes": rest, **own}
        if name is not None:
            value["name"] = name
        answer = self.server.call("POST", f"{self.path}/toxics", value)
        assert answer.status == 200, answer
        return str(answer.json["name"])

    def update(self, toxic: str, **value: object) -> Answer:
        """Change a toxic."""
        return self.server.call("PATCH", f"{self.path}/toxics/{toxic}", value)

    def remove(self, toxic: str) -> float:
        """Remove a toxic; how many seconds that took."""
        began_s = time.monotonic()
        answer = self.server.call("DELETE", f"{self.path}/toxics/{toxic}")
        assert answer.status == 204, answer
        return time.monotonic() - began_s

    def enable(self, enabled: bool) -> Answer:
        """Switch it on or off."""
        return self.server.call("PATCH", self.path, {"enabled": enabled})

    def delete(self) -> Answer:
        """Remove it."""
        return self.server.call("DELETE", self.path)

    def dial(self, listen: str | None = None) -> socket.socket:
        """A client's socket. listen: where it listens, if that has been asked for already."""
        host, _, port = (listen or self.state()["listen"]).rpartition(":")
        return connect(host.strip("[]"), int(port))


class Pair(NamedTuple):
    """Both ends of a connection through a proxy."""

    client: socket.socket
    server: socket.socket

    def close(self) -> None:
        """Both."""
        self.client.close()
        self.server.close()


class Upstream:
    """What proxies lead to: it accepts, and the test says and reads what it wants."""

    def __init__(self) -> None:
        self._listener = socket.create_server((HOST, 0), backlog=512)
        self._listener.settimeout(PATIENCE_S)
        self.address = f"{HOST}:{self._listener.getsockname()[1]}"
        self._pairs: list[Pair] = []

    def accept(self) -> socket.socket:
        """The next connection."""
        server, _ = self._listener.accept()
        server.settimeout(PATIENCE_S)
        server.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        return server

    def pair(self, proxy: ProxyUnderTest, listen: str | None = None) -> Pair:
        """A new connection through the proxy."""
        client = proxy.dial(listen)
        pair = Pair(client, self.accept())
        self._pairs.append(pair)
        return pair

    def close(self) -> None:
        """Everything."""
        self._listener.close()
        for pair in self._pairs:
            pair.close()


def connect(host: str, port: int) -> socket.socket:
    """A client's socket whose reads end in time."""
    client = socket.create_connection((host, port), timeout=PATIENCE_S)
    client.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return client


def read(end: socket.socket, size: int) -> bytes:
    """Exactly that many bytes, or fewer where the connection ends first."""
    parts = []
    while size > 0 and (part := end.recv(min(size, 1 << 20))):
        parts.append(part)
        size -= len(part)
    return b"".join(parts)


def read_all(end: socket.socket) -> bytes:
    """Whatever comes until the end, or a reset."""
    parts = []
    try:
        while part := end.recv(1 << 20):
            parts.append(part)
    except ConnectionResetError:
        pass
    return b"".join(parts)


def is_silent(end: socket.socket, seconds: float) -> bool:
    """Whether nothing, not even the end, comes in that time."""
    end.settimeout(seconds)
    try:
        end.recv(1, socket.MSG_PEEK)
    except TimeoutError:
        return True
    finally:
        end.settimeout(PATIENCE_S)
    return False


def how_it_ends(end: socket.socket) -> str:
    """`end`, `reset`, or the data that came instead."""
    try:
        data = end.recv(1 << 16)
    except ConnectionResetError:
        return "reset"
    return f"data {data[:20]!r}" if data else "end"


def free_port() -> int:
    """A port that nobody listens on."""
    with socket.create_server((HOST, 0)) as probe:
        port: int = probe.getsockname()[1]
        return port


def command(kind: Kind, port: int, *flags: str) -> list[str]:
    """How such a server is started."""
    program = [sys.executable, "-m", "chaos.toxiproxy.embedded"] if kind == "embedded" else [str(find_server().path)]
    return [*program, "-host", HOST, "-port", str(port), *flags]


@contextmanager
def running(kind: Kind, *flags: str) -> Iterator[ServerUnderTest]:
    """A server of its own."""
    port = free_port()
    with tempfile.TemporaryFile() as output:
        process = subprocess.Popen(
            command(kind, port, *flags), stdin=subprocess.DEVNULL, stdout=output, stderr=subprocess.STDOUT
        )
        server = ServerUnderTest(kind, port, process, output)
        try:
            await_answer(server)
            yield server
        finally:
            process.kill()
            process.wait()


def await_answer(server: ServerUnderTest) -> None:
    """Until the API answers."""
    ends_s = time.monotonic() + _START_S
    while True:
        try:
            server.call("GET", "/version")
        except OSError:
            assert server.process.poll() is None, "the server has ended"
            assert time.monotonic() < ends_s, "the server does not answer"
            time.sleep(0.02)
        else:
            return


def names(items: Sequence[Mapping[str, Any]]) -> list[str]:
    """Their names."""
    return [str(item["name"]) for item in items]
