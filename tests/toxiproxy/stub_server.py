"""A tiny HTTP server that answers as a test tells it to, right or wrong."""

import json
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

Answer = tuple[int, bytes]
Answerer = Callable[[str, str], Answer]
"""From method and path to status and body."""

PROXY: dict[str, Any] = {"name": "w", "listen": "127.0.0.1:7", "upstream": "127.0.0.1:8", "enabled": True, "toxics": []}


def body(value: object) -> bytes:
    return json.dumps(value).encode()


class OneProxy:
    """Answers as a server does that has the proxy `w`, for calls that delete it and make it again."""

    def __init__(self, toxics: Sequence[Mapping[str, object]], enabled: bool = True) -> None:
        self.state: dict[str, Any] = {**PROXY, "enabled": enabled, "toxics": list(toxics)}
        self.bodies: list[bytes] = []

    def answer(self, method: str, path: str) -> Answer:
        match method, path:
            case "DELETE", "/proxies/w":
                self.state.clear()
                return 204, b""
            case "POST", "/proxies/w":
                self.state.update(json.loads(self.bodies[-1]))
            case "POST", "/proxies":
                self.state.update({**json.loads(self.bodies[-1]), "toxics": []})
                return 201, body(self.state)
            case "POST", "/proxies/w/toxics":
                self.state["toxics"].append(json.loads(self.bodies[-1]))
                return 200, body(self.state["toxics"][-1])
        return (200, body(self.state)) if self.state else (404, b'{"error": "proxy not found"}')


@contextmanager
def stub_server(answer: Answerer, bodies: list[bytes] | None = None, port: int = 0) -> Iterator[tuple[str, list[str]]]:
    """The server's URL, and the requests (`METHOD path`) it has had. bodies: gets what was sent with each of them."""
    seen: list[str] = []

    class Handler(BaseHTTPRequestHandler):
        def _handle(self) -> None:
            sent = self.rfile.read(int(self.headers.get("Content-Length", 0)))
            if bodies is not None:
                bodies.append(sent)
            seen.append(f"{self.command} {self.path}")
            status, content = answer(self.command, self.path)
            try:
                self.send_response(status)
                self.send_header("Content-Length", str(len(content)))
                self.end_headers()
                self.wfile.write(content)
            except OSError:
                return

        do_GET = do_POST = do_DELETE = _handle

        def log_message(self, format: str, *args: Any) -> None:
            return

    server = ThreadingHTTPServer(("127.0.0.1", port), Handler)
    server.daemon_threads = True
    threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_port}", seen
    finally:
        server.shutdown()
        server.server_close()
