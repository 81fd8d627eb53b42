"""A cluster of somebody else, small enough for unit tests: an endpoint, a bus with monitoring, and a Toxiproxy.

Every part listens for real. The bus greets and counts as NATS does; a node talks to it through its proxy.
"""

import asyncio
import contextlib
import json
import socket
import threading
import time
from collections.abc import Coroutine, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, TypeVar

import requests
import yaml

from chaos.toxiproxy.embedded.server import EmbeddedServer, Settings

T = TypeVar("T")
SERVER_NAME, OWNER = "fake-bus", "fake-owner"
_BEAT_S = 0.1


class FakeBus:
    """Greets, answers PINGs, and counts the lines that begin with PUB, by connection. A login tells the name."""

    def __init__(self) -> None:
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.server_id = "FAKE"
        self.port: int = self._listener.getsockname()[1]
        self.clients: dict[int, dict[str, Any]] = {}
        self._open: list[socket.socket] = []
        threading.Thread(target=self._accept, daemon=True).start()

    def close(self) -> None:
        self._listener.close()
        for connection in self._open:
            connection.close()

    def _accept(self) -> None:
        with contextlib.suppress(OSError):
            for cid in range(1, 10_000):
                connection, _ = self._listener.accept()
                self._open.append(connection)
                threading.Thread(target=self._serve, args=(cid, connection), daemon=True).start()

    def _serve(self, cid: int, connection: socket.socket) -> None:
        client = self.clients[cid] = {"cid": cid, "name": "", "in_msgs": 0}
        try:
            said = {"server_id": self.server_id, "server_name": SERVER_NAME, "pad": "x" * 300}
            connection.sendall(b"INFO " + json.dumps(said).encode() + b" \r\n")
            for line in connection.makefile("rb"):
                if line.startswith(b"PING"):
                    connection.sendall(b"PONG\r\n")
                elif line.startswith(b"PUB"):
                    client["in_msgs"] += 1
                elif line.startswith(b"CONNECT"):
                    client["name"] = json.loads(line.removeprefix(b"CONNECT ")).get("name", "")
        except OSError:
            pass
        finally:
            self.clients.pop(cid, None)
            connection.close()


class FakeNode:
    """Says something through its proxy all the time, and connects again when it has lost its connection."""

    def __init__(self, name: str, port: int) -> None:
        self._name = name
        self._port = port
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._live, daemon=True)
        self._thread.start()

    def close(self) -> None:
        self._ended.set()
        self._thread.join(5)

    def _live(self) -> None:
        while not self._ended.is_set():
            with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", self._port), 1) as connection:
                connection.settimeout(0.5)
                if not connection.recv(65_536):
                    raise OSError
                connection.sendall(b'CONNECT {"name": "' + self._name.encode() + b'"}\r\n')
                connection.setblocking(False)
                while not self._ended.wait(_BEAT_S):
                    connection.sendall(b"PUB x 0\r\n")
                    with contextlib.suppress(BlockingIOError):
                        if not connection.recv(65_536):
                            break
            self._ended.wait(_BEAT_S)


class FakeWeb:
    """Every HTTP part in one server: the OpenAI API, NATS's monitoring, Prometheus and a stop URL."""

    def __init__(self, bus: FakeBus) -> None:
        self.bus = bus
        self.owner = OWNER
        self.routes: list[str] = []
        self.server_name = SERVER_NAME
        self.go_on = 200
        self.value = "1"
        self.status = 200
        self.asked = 0
        fake = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_GET(self) -> None:
                status, body = fake.get(self.path)
                self._send(status, json.dumps(body).encode(), "application/json")

            def do_POST(self) -> None:
                self.rfile.read(int(self.headers["Content-Length"]))
                fake.asked += 1
                if fake.status != 200:
                    return self._send(fake.status, b'{"error": {"message": "sick"}}', "application/json")
                return self._send(200, fake.stream(), "text/event-stream")

            def _send(self, status: int, body: bytes, kind: str) -> None:
                self.send_response(status)
                self.send_header("Content-Type", kind)
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, *arguments: object) -> None:
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self._server.server_port}"
        threading.Thread(target=self._server.serve_forever, args=(0.05,), daemon=True).start()

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()

    def get(self, path: str) -> tuple[int, object]:
        path = path.partition("?")[0]
        if path == "/v1/models":
            return 200, {"data": [{"id": "m", "owned_by": self.owner}]}
        if path == "/varz":
            return 200, {"server_id": "FAKE", "server_name": self.server_name, "version": "2"}
        if path == "/routez":
            return 200, {"server_id": "FAKE", "routes": [{"rid": 1, "remote_id": each} for each in self.routes]}
        if path == "/connz":
            return 200, {"connections": list(self.bus.clients.values())}
        if path == "/api/v1/query":
            result = {"resultType": "vector", "result": [{"metric": {}, "value": [0, self.value]}]}
            return 200, {"status": "success", "data": result}
        return (self.go_on, {}) if path == "/stop" else (404, {})

    def stream(self) -> bytes:
        events: list[dict[str, object]] = [
            {"choices": [{"delta": {"content": "one "}}]},
            {"choices": [{"delta": {"content": "two"}, "finish_reason": "length"}]},
            {"choices": [], "usage": {"prompt_tokens": 3, "completion_tokens": 2}},
        ]
        return b"".join(b"data: " + json.dumps(event).encode() + b"\n\n" for event in events) + b"data: [DONE]\n\n"


class Embedded:
    """The embedded Toxiproxy on a loop of its own in a thread of this process."""

    def __init__(self) -> None:
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True)
        self._thread.start()
        self.server = EmbeddedServer(Settings(port=0))
        self._run(self.server.start())
        self.url = self.server.url

    def close(self) -> None:
        self._run(self.server.close())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(5)
        self._loop.close()

    def _run(self, work: Coroutine[Any, Any, T]) -> T:
        return asyncio.run_coroutine_threadsafe(work, self._loop).result(10)


class FakeCluster:
    """All of it, with a proxy `w0` in front of the bus, a foreign toxic on it, and worker-0 connected through it."""

    def __init__(self, folder: Path, toxiproxy_url: str = "") -> None:
        """toxiproxy_url: of one that runs already; empty for an embedded one."""
        self.folder = folder
        self.bus = FakeBus()
        self.web = FakeWeb(self.bus)
        self._toxiproxy = None if toxiproxy_url else Embedded()
        self.toxiproxy_url = toxiproxy_url or (self._toxiproxy.url if self._toxiproxy is not None else "")
        made = requests.post(
            f"{self.toxiproxy_url}/proxies",
            json={"name": "w0", "listen": "127.0.0.1:0", "upstream": f"127.0.0.1:{self.bus.port}"},
            timeout=5,
        ).json()
        self.foreign("theirs", "latency", "downstream", {"latency": 3})
        self.node = FakeNode("worker-0", int(made["listen"].rpartition(":")[2]))
        ends_s = time.monotonic() + 5
        while not any(client["name"] == "worker-0" for client in self.bus.clients.values()):
            assert time.monotonic() < ends_s
            time.sleep(0.01)

    def close(self) -> None:
        self.node.close()
        if self._toxiproxy is not None:
            self._toxiproxy.close()
        self.web.close()
        self.bus.close()

    def foreign(self, name: str, kind: str, stream: str, attributes: dict[str, int]) -> None:
        """A toxic of somebody else."""
        toxic = {"name": name, "type": kind, "stream": stream, "attributes": attributes}
        assert requests.post(f"{self.toxiproxy_url}/proxies/w0/toxics", json=toxic, timeout=5).status_code == 200

    def mute_proxy(self) -> str:
        """The name of a proxy behind which nobody speaks as NATS does."""
        made = {"name": "mute", "listen": "127.0.0.1:0", "upstream": self.web.url.removeprefix("http://")}
        assert requests.post(f"{self.toxiproxy_url}/proxies", json=made, timeout=5).status_code == 201
        return "mute"

    def proxy(self) -> dict[str, Any]:
        """As its Toxiproxy shows it."""
        shown: dict[str, Any] = requests.get(f"{self.toxiproxy_url}/proxies/w0", timeout=5).json()
        return shown

    def document(self, **changes: Any) -> dict[str, Any]:
        """A target file that allows what the tests do, with changes."""
        return {
            "name": "fake",
            "owner": "somebody",
            "api": {"urls": [f"{self.web.url}/v1"], "model": "m"},
            "workers": 2,
            "toxiproxies": {"all": self.toxiproxy_url},
            "links": {
                "worker-0": {"toxiproxy": "all", "proxy": "w0", "client_name": "worker-0", "speaks_every_s": 0.5}
            },
            "nats_monitoring": self.web.url,
            "fingerprint": {"nats_server_name": SERVER_NAME},
            "faults": ["partition", "latency", "bandwidth", "slicer", "flap"],
            "hours": {"zone": "UTC", "allow": [{"from": "00:00", "to": "00:00"}]},
            "budget": {"failed_requests": 50, "fault_s": 300},
            "load": {"rate_max": "40/s"},
            "stop": {"file": str(self.folder / "stop")},
            "steady": {"requests_min": 8, "window_s": 2},
            **changes,
        }

    def file(self, **changes: Any) -> Path:
        """The same on disk."""
        path = self.folder / "target.yaml"
        path.write_text(yaml.safe_dump(self.document(**changes)))
        return path


@contextmanager
def fake_cluster(folder: Path, toxiproxy_url: str = "") -> Iterator[FakeCluster]:
    """See FakeCluster."""
    cluster = FakeCluster(folder, toxiproxy_url)
    try:
        yield cluster
    finally:
        cluster.close()
