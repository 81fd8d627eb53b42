"""A stall whose ends have both gone, at the real Toxiproxy: it must be given back at once, and go on working."""

import contextlib
import socket
import threading
import time

import pytest

from chaos.toxiproxy.adapter import Toxic
from tests.toxiproxy.real_server import real_server

DAY_MS = 24 * 3_600_000
FLUSH_S = 5.0
"""For so long the server waits for each connection whose end has gone, where what it holds cannot flow off."""


def impatient_server() -> int:
    """Greets, and gives up who says nothing."""
    listener = socket.create_server(("127.0.0.1", 0))

    def serve(connection: socket.socket) -> None:
        with contextlib.suppress(OSError), connection:
            connection.sendall(b"INFO {}\r\n")
            connection.settimeout(0.3)
            while connection.recv(65_536):
                pass

    def accept() -> None:
        while True:
            threading.Thread(target=serve, args=(listener.accept()[0],), daemon=True).start()

    threading.Thread(target=accept, daemon=True).start()
    port: int = listener.getsockname()[1]
    return port


@pytest.mark.verify
def test_what_is_held_for_nobody_keeps_nobody_waiting() -> None:
    with real_server() as api:
        listen = api.create_proxy("w", "127.0.0.1:0", f"127.0.0.1:{impatient_server()}").listen
        address = ("127.0.0.1", int(listen.rpartition(":")[2]))
        api.add_toxic("w", Toxic("theirs", "latency", "downstream", {"latency": 1}))
        before = api.show_proxy("w")
        for _ in range(2):
            with socket.create_connection(address) as first:
                assert first.recv(100).startswith(b"INFO")
                for way in ("upstream", "downstream"):
                    api.add_toxic("w", Toxic(f"ours_{way}", "latency", way, {"latency": DAY_MS}))  # type: ignore[arg-type]
            # As a node does that hears nothing: it connects, says something, gives up, and so on.
            for _ in range(3):
                with socket.create_connection(address) as again:
                    for _ in range(4):
                        again.sendall(b"PUB x 0\r\n")
                        time.sleep(0.05)
                    time.sleep(0.3)
            began_s = time.monotonic()
            assert [api.withdraw_toxic("w", f"ours_{way}") for way in ("upstream", "downstream")] == ["removed"] * 2
            assert time.monotonic() - began_s < FLUSH_S
            assert api.show_proxy("w") == before
            with socket.create_connection(address) as fresh:
                assert fresh.recv(100).startswith(b"INFO")
