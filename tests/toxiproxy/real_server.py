"""A real Toxiproxy that belongs to the test, and stays up whatever happens to a runner."""

import functools
import socket
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager

from chaos.toxiproxy.adapter import Toxiproxy, ToxiproxyError
from chaos.toxiproxy.launcher import find_server


@functools.cache
def server_path() -> str:
    """Found (or built) once, and before a test gives itself a cache of its own."""
    return str(find_server().path)


@contextmanager
def real_server() -> Iterator[Toxiproxy]:
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port = probe.getsockname()[1]
    command = [server_path(), "-host", "127.0.0.1", "-port", str(port)]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        api = Toxiproxy(f"http://127.0.0.1:{port}")
        ends_s = time.monotonic() + 10
        while True:
            try:
                api.version()
                break
            except ToxiproxyError:
                if time.monotonic() > ends_s:
                    raise
                time.sleep(0.02)
        yield api
    finally:
        process.kill()
        process.wait()
