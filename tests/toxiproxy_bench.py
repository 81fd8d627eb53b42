"""What a proxy of the embedded server costs beside one of the real server: bytes per second, and small round trips.

`python -m tests.toxiproxy_bench` prints it alone. The load comes from this process, the same for both, over loopback.
"""

import socket
import statistics
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress

from chaos.toxiproxy.launcher import ToxiproxyUnavailable
from tests.chaos.toxiproxy.conformance.rig import HOST, ProxyUnderTest, connect, running

Row = tuple[str, str, str, str]
ROUNDS = 3
TRANSFER_S = 0.7
TRIPS = 2000
TRIP_ROUNDS = 6
_PIECE = b"x" * 256 * 1024
_TRIP = b"PUB a.b 64\r\n" + b"y" * 64 + b"\r\n"


def toxiproxy_rows() -> list[Row]:
    """Embedded, real, and the ratio of the two; rounds of both in turn, medians."""
    loads: list[tuple[str, Callable[[ProxyUnderTest], float], str, float]] = [
        ("bytes through a proxy, 1 connection", lambda proxy: _rate(proxy, 1, _PIECE), "MB/s", 1e-6),
        ("bytes through a proxy, 4 connections", lambda proxy: _rate(proxy, 4, _PIECE), "MB/s", 1e-6),
        ("NATS messages of 16 KiB, 1 connection", lambda proxy: _rate(proxy, 1, _messages(16_384)), "MB/s", 1e-6),
        ("NATS messages of 128 bytes, 1 connection", lambda proxy: _rate(proxy, 1, _messages(128)), "MB/s", 1e-6),
        ("the same, held 1 ms by a latency toxic", lambda proxy: _slowed(proxy, _messages(128)), "MB/s", 1e-6),
        ("messages of 96 to 160 bytes, 20 subjects", lambda proxy: _rate(proxy, 1, _mixed_messages()), "MB/s", 1e-6),
        ("the same, held 1 ms by a latency toxic", lambda proxy: _slowed(proxy, _mixed_messages()), "MB/s", 1e-6),
    ]
    rows: list[Row] = []
    try:
        with _sink() as sink, _echo() as echo, running("embedded") as ours, running("real") as theirs:
            pairs = [(ours.proxy(sink), theirs.proxy(sink)), (ours.proxy(echo), theirs.proxy(echo))]
            for name, measure, unit, scale in loads:
                rounds = [tuple(measure(proxy) * scale for proxy in pairs[0]) for _ in range(ROUNDS)]
                rows.append(_row(name, [figures[0] for figures in rounds], [figures[1] for figures in rounds], unit))
            rows.append(("NATS messages of 128 bytes, all looked at by nats_drop", _looked_at(pairs[0][0]), "", ""))
            rows += _trip_rows(echo, *pairs[1])
    except ToxiproxyUnavailable as error:
        return [("embedded Toxiproxy beside the real one", f"not measured: {error}", "", "")]
    return rows


def _trip_rows(echo: str, ours: ProxyUnderTest, theirs: ProxyUnderTest) -> list[Row]:
    """What each adds to a round trip without any proxy, and the ratio of the two."""
    listens = echo, ours.state()["listen"], theirs.state()["listen"]
    trips = [[_trips_us(listen) for listen in listens] for _ in range(TRIP_ROUNDS)]
    rows: list[Row] = []
    # What else runs on the machine shows first of all in the tail, so the least disturbed round is told as well.
    rounds: list[tuple[str, Callable[[list[float]], float]]] = [("median", statistics.median), ("quietest", min)]
    for name, part in (("p50", 0.5), ("p99", 0.99)):
        for which_round, choose in rounds:
            direct_us, our_us, their_us = (
                choose([trip[which][int(len(trip[which]) * part)] for trip in trips]) for which in range(3)
            )
            our_us, their_us = our_us - direct_us, their_us - direct_us
            ratio = f"{our_us / their_us:.2f}" if their_us > 0 else ""
            label = f"{name} of a {len(_TRIP)}-byte round trip, added to {direct_us:.0f} us"
            figures = f"{our_us:.0f} us", f"{their_us:.0f} us (real Toxiproxy)", ratio
            rows.append((f"{label}, {which_round} of {TRIP_ROUNDS} rounds", *figures))
    return rows


def _looked_at(proxy: ProxyUnderTest) -> str:
    proxy.add("nats_drop", "upstream", name="it", subject="nothing")
    try:
        return f"{_rate(proxy, 1, _messages(128)) * 1e-6:.0f} MB/s"
    finally:
        proxy.remove("it")


def _row(name: str, ours: list[float], theirs: list[float], unit: str) -> Row:
    ratio = statistics.median(our / their for our, their in zip(ours, theirs, strict=True))
    return (
        name,
        f"{statistics.median(ours):.0f} {unit}",
        f"{statistics.median(theirs):.0f} {unit} (real Toxiproxy)",
        f"{ratio:.2f}",
    )


def _messages(size: int) -> bytes:
    message = b"PUB some.subject %d\r\n%b\r\n" % (size, b"z" * size)
    return message * max(1, len(_PIECE) // len(message))


def _mixed_messages() -> bytes:
    """No two in a row are of one subject and size, as when many streams of tokens share a connection."""
    sizes = [96 + 13 * index % 65 for index in range(len(_PIECE) // 160)]
    return b"".join(
        b"PUB some.subject.%d %d\r\n%b\r\n" % (index % 20, size, b"z" * size) for index, size in enumerate(sizes)
    )


def _slowed(proxy: ProxyUnderTest, piece: bytes) -> float:
    proxy.add("latency", "upstream", name="it", latency=1)
    try:
        return _rate(proxy, 1, piece)
    finally:
        proxy.remove("it")


def _rate(proxy: ProxyUnderTest, connections: int, piece: bytes) -> float:
    """Bytes per second that arrive at the other end, from all connections together."""
    listen = proxy.state()["listen"]
    sent: list[int] = []
    began_s = time.perf_counter()

    def send() -> None:
        count = 0
        with proxy.dial(listen) as client:
            while time.perf_counter() - began_s < TRANSFER_S:
                client.sendall(piece)
                count += len(piece)
            client.sendall(b"\x04" * 64)
            # The sink answers what it has counted, once it has seen the end mark.
            assert client.recv(16), "the sink has gone"
        sent.append(count)

    threads = [threading.Thread(target=send) for _ in range(connections)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return sum(sent) / (time.perf_counter() - began_s)


def _trips_us(listen: str) -> list[float]:
    host, _, port = listen.rpartition(":")
    taken_us = []
    with connect(host, int(port)) as client:
        for _ in range(TRIPS):
            began_s = time.perf_counter()
            client.sendall(_TRIP)
            missing = len(_TRIP)
            while missing:
                missing -= len(client.recv(missing))
            taken_us.append((time.perf_counter() - began_s) * 1e6)
    return sorted(taken_us[TRIPS // 10 :])


@contextmanager
def _sink() -> Iterator[str]:
    def swallow(end: socket.socket) -> None:
        buffer = bytearray(1 << 18)
        while size := end.recv_into(buffer):
            if buffer[size - 1] == 4:
                end.sendall(b"seen")

    with _serving(swallow) as address:
        yield address


@contextmanager
def _echo() -> Iterator[str]:
    def answer(end: socket.socket) -> None:
        while data := end.recv(65_536):
            end.sendall(data)

    with _serving(answer) as address:
        yield address


@contextmanager
def _serving(serve: Callable[[socket.socket], None]) -> Iterator[str]:
    with socket.create_server((HOST, 0)) as listener:

        def one(end: socket.socket) -> None:
            with end:
                end.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                with suppress(ConnectionError):
                    serve(end)

        def accept() -> None:
            while True:
                try:
                    end, _ = listener.accept()
                except OSError:
                    return
                threading.Thread(target=one, args=(end,), daemon=True).start()

        threading.Thread(target=accept, daemon=True).start()
        yield f"{HOST}:{listener.getsockname()[1]}"


def main() -> None:
    """Print the rows."""
    for row in toxiproxy_rows():
        print(" | ".join(row))


if __name__ == "__main__":
    main()
