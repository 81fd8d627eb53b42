"""`python -m workloads.nats_roofline`: what a load client of a live run can do, against a stub controller on NATS.

The same code as in a run (ClientNode, its shell, its link, its load, its rows on disk) in this process, a nats-server
and workloads.stub_controller beside it. In a run each client has a process of its own and may have a proxy in front of
it, so this is how far a client can be believed, and not what a cluster does.
"""

import asyncio
import contextlib
import subprocess
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Sequence
from importlib.metadata import version
from pathlib import Path

import msgspec

from analysis.recorder import MetricsCollector
from analysis.schema import RequestRow, Row
from cluster.caller import Source
from cluster.live.broker import Broker, BrokerUnavailable
from cluster.live.children import BrokerChild, environment
from cluster.live.host import NodeHost, NodeSpec
from cluster.live.nats import LinkUnavailable
from cluster.policy import ClientPolicy, Policy
from cluster.protocol import VERSION
from cluster.worker.prewarm import ModelOffer
from workloads import stub_controller
from workloads.roofline import (
    GAP_S,
    MEASURE_S,
    MODEL,
    RATE_PER_S,
    STREAM_TOKENS,
    TIMEOUT_S,
    TOKENS,
    TTFT_S,
    Cache,
    Drive,
    Roofline,
    cache_path,
    cached,
    closed_loop,
    command,
    open_loop,
    summary,
    with_streams,
)
from workloads.stub_controller import Birth, Timing
from workloads.stub_process import StubFailed
from workloads.stub_server import Stats
from workloads.watch import ProbeWatch

IN_FLIGHT = 256
"""A place of a closed loop asks at most a hundred times a second."""
PIECE_TOKENS = 4
"""Of a stream that is gathered for the 50 ms of the policy, at the pace of a small model."""
_CLIENT = "client-0"
_START_S = 20.0
_ANSWER_S = 10.0
_POLL_S = 0.02


class _Rows:
    """A sink that records as in a run, and keeps the requests for us."""

    def __init__(self, folder: Path) -> None:
        self.requests: list[RequestRow] = []
        self._collector = MetricsCollector(folder, _CLIENT, time.time_ns())

    def append(self, row: Row, now: float) -> None:
        """See cluster.live.node.Sink."""
        if isinstance(row, RequestRow):
            self.requests.append(row)
        self._collector.append(row, now)

    def flush(self) -> None:
        """See cluster.live.node.Sink."""
        self._collector.flush()

    def close(self) -> None:
        """See cluster.live.node.Sink."""
        self._collector.close()


class _Stub:
    """The stub controller as a child process. It ends with its standard input, so when we are killed too."""

    def __init__(self, process: asyncio.subprocess.Process) -> None:
        self._process = process

    async def stats(self) -> Stats:
        """What it counted since it was asked last. Raises StubFailed."""
        return msgspec.json.decode(await _told(self._process, b"\n", _ANSWER_S), type=Stats)


async def measure(measure_s: float = MEASURE_S, rate_per_s: float = RATE_PER_S) -> Roofline:
    """Three drives of `measure_s` each: requests/s, tokens/s, and times at a rate. Raises StubFailed."""
    with tempfile.TemporaryDirectory(prefix="mlx-chaos-roofline-") as place:
        folder = Path(place)
        broker = Broker(folder / "nats", (_CLIENT, stub_controller.NAME), controllers=(stub_controller.NAME,))
        server = BrokerChild(broker, folder / "nats.log", environment(), lambda line: None)
        try:
            await server.start()
            whole = await _drive(broker, folder, Timing(0.0, 0.0, TOKENS), measure_s, TOKENS)
            streams = await _drive(broker, folder, Timing(0.0, 0.0, PIECE_TOKENS), measure_s, STREAM_TOKENS)
            paced = await _drive(broker, folder, Timing(TTFT_S, GAP_S), measure_s, TOKENS, rate_per_s)
        except (BrokerUnavailable, LinkUnavailable) as error:
            raise StubFailed(str(error)) from error
        finally:
            await server.stop()
    found = with_streams(summary(whole, paced, rate_per_s, IN_FLIGHT), streams)
    return msgspec.structs.replace(found, client="NATS")


async def _drive(
    broker: Broker, folder: Path, timing: Timing, measure_s: float, tokens: int, rate_per_s: float | None = None
) -> Drive:
    """At a rate, or IN_FLIGHT at once. The connection, and a few requests before, are not measured."""
    rows = _Rows(folder)
    policy = Policy(client=ClientPolicy(deadline_s=TIMEOUT_S))
    spec = NodeSpec("client", _CLIENT, broker.url(_CLIENT), policy, str(folder), (ModelOffer(MODEL),), 1)
    async with _stub(Birth(broker.url(stub_controller.NAME), timing)) as stub:
        host = NodeHost(spec, rows)
        try:
            await host.start(_START_S)
            await _ask(host, closed_loop(IN_FLIGHT, 0.2, tokens, "warm-"), 0.2)
            rows.requests.clear()
            await stub.stats()
            began_s, cpu_s = time.monotonic(), time.process_time()
            source: Source = (
                closed_loop(IN_FLIGHT, measure_s, tokens)
                if rate_per_s is None
                else open_loop(rate_per_s, measure_s, tokens)
            )
            await _ask(host, source, measure_s)
            client_cpu = (time.process_time() - cpu_s) / max(1e-9, time.monotonic() - began_s)
            stats = await stub.stats()
        finally:
            await host.stop()
    return Drive(rows.requests, client_cpu, stats.cpu_s / max(1e-9, stats.elapsed_s), stats.late_p99_s)


async def _ask(host: NodeHost, source: Source, duration_s: float) -> None:
    """Raises StubFailed when it takes far longer than it may: every request has its deadline."""
    ends_s = time.monotonic() + duration_s + 2 * TIMEOUT_S
    host.drive(source, ProbeWatch([], 0.0))
    while not host.idle():
        if time.monotonic() > ends_s:
            raise StubFailed("requests to the stub controller do not end")
        await asyncio.sleep(_POLL_S)


@contextlib.asynccontextmanager
async def _stub(birth: Birth) -> AsyncIterator[_Stub]:
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "workloads.stub_controller"),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        env=environment(),
    )
    try:
        # The URL holds a password, which has no business in a list of processes.
        await _told(process, msgspec.json.encode(birth) + b"\n", _START_S)
        yield _Stub(process)
    finally:
        assert process.stdin is not None
        process.stdin.close()
        try:
            await asyncio.wait_for(process.communicate(), _ANSWER_S)
        except TimeoutError:
            process.kill()
            await process.communicate()


async def _told(process: asyncio.subprocess.Process, line: bytes, limit_s: float) -> bytes:
    """Its answer to a line. Raises StubFailed."""
    assert process.stdin is not None
    assert process.stdout is not None
    try:
        async with asyncio.timeout(limit_s):
            process.stdin.write(line)
            await process.stdin.drain()
            answer = await process.stdout.readline()
    except (TimeoutError, OSError):
        answer = b""
    if not answer:
        raise StubFailed(f"the stub controller does not answer within {limit_s:g} s")
    return answer


def nats_roofline(cache: Cache = "use") -> Roofline:
    """The roofline of this host: the remembered one where it is fresh, else measured now (a few seconds).

    Not for use within a running event loop. Raises StubFailed.
    """
    return cached(_cache_path(), measure, cache)


def _cache_path() -> Path:
    return cache_path(f"nats-py {version('nats-py')}, protocol {VERSION}")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit code."""
    return command("workloads.nats_roofline", __doc__, measure, _cache_path(), arguments)


if __name__ == "__main__":
    sys.exit(main())
