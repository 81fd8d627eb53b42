"""`python -m workloads.roofline`: what our own HTTP client can do, measured against a stub of known timing.

A number that a load driver prints is bounded by the driver: it sends late when it is busy, and what it reads late looks
like a slow server. So the driver is asked for three things here: requests per second when nothing else limits it, how
late it sends at a given rate, and how far its times lie from a truth that is known. The stub tells how late it was
itself, which is no error of the client. workloads.nats_roofline asks the same of the clients of our own cluster.
"""

import argparse
import asyncio
import contextlib
import hashlib
import math
import os
import platform
import sys
import tempfile
import time
from collections.abc import Callable, Coroutine, Iterable, Sequence
from pathlib import Path
from typing import Any, Literal

import aiohttp
import msgspec
import numpy as np

from analysis.schema import RequestRow
from analysis.statistics import percentile
from analysis.whole_file import write_whole
from cluster.caller import Source
from workloads.http import HttpDriver, HttpTarget
from workloads.load import ClosedLoop, OpenLoop
from workloads.schedule import build_schedule
from workloads.spec import WorkloadSpec
from workloads.stub_process import StubFailed, StubProcess, running_stub
from workloads.words import WordVocabulary

TTFT_S = 0.05
GAP_S = 0.01
TOKENS = 16
RATE_PER_S = 200.0
IN_FLIGHT = 64
STREAM_TOKENS = 128
STREAM_GAP_S = 0.001
"""64 streams then offer more tokens than anybody reads."""
SHARE_FULL = 0.8
"""Of a core: who takes more has no time left."""
SHARE_BUSY = 0.5
"""Of the roofline: a client with more to do than that measures itself as well."""
MEASURE_S = 1.5
LEAD_S = 0.2
TIMEOUT_S = 10.0
CACHED_S = 3600.0
"""A figure of this host is believed for an hour."""
MODEL = "stub"

Cache = Literal["use", "renew", "none"]


class Roofline(msgspec.Struct, frozen=True):
    """What the driver does on this host. Times in seconds.

    requests_per_s: the most it completes, `in_flight` at once, answers of `tokens` tokens in one piece; its process and
    the stub then took these shares of a core. At `rate_per_s` with paced tokens: lag_*: sent minus intended; ttft_*:
    error of the time to the first token against the stub's plan; gap_*: error of the mean time between tokens of a
    request; stub_late_p99_s: of the stub against its own plan, which is part of the errors and not the client's fault.
    failed: requests that did not complete; anything but 0 spoils the rest. tokens_per_s: the most it reads, where that
    was asked for. client: which of ours.
    """

    requests_per_s: float
    in_flight: int
    tokens: int
    client_cpu: float
    stub_cpu: float
    rate_per_s: float
    samples: int
    lag_p99_s: float | None
    ttft_error_p50_s: float
    ttft_error_p99_s: float | None
    gap_error_p50_s: float
    gap_error_p99_s: float | None
    stub_late_p99_s: float | None
    failed: int
    measured_at: float = 0.0
    """Seconds since the epoch."""
    tokens_per_s: float | None = None
    client: str = "HTTP"

    @property
    def limit(self) -> str:
        """What kept the rate from being higher."""
        if max(self.stub_cpu, self.client_cpu) < SHARE_FULL:
            return "neither had all of one, so the host or what is between them is the limit"
        return "the stub is the limit" if self.stub_cpu > self.client_cpu else "this client is the limit"

    def share(self, per_s: float, tokens_per_s: float) -> float:
        """Of the roofline, that so much takes of one client."""
        share = per_s / self.requests_per_s if self.requests_per_s > 0 else math.inf
        return max(share, tokens_per_s / self.tokens_per_s) if self.tokens_per_s else share

    def beside(self, per_s: float, tokens_per_s: float, clients: int = 1) -> str:
        """What a load is for as many such clients, in a line. tokens_per_s: that they read, at most."""
        share = self.share(per_s / clients, tokens_per_s / clients)
        over = "1 client" if clients == 1 else f"{clients} clients"
        text = f"offered {per_s:.1f} requests/s over {over}: {share:.1%} of it"
        return text if share <= SHARE_BUSY else f"{text}, so the load generators may be measured as well"

    def lines(self) -> list[str]:
        """For people."""
        most = "" if self.tokens_per_s is None else f" or {self.tokens_per_s:.0f} tokens/s"
        text = [
            f"{self.client} client roofline on this host: {self.requests_per_s:.0f} requests/s{most} at most "
            f"({self.in_flight} in flight, {self.tokens} tokens each; client {self.client_cpu:.0%} of a core, stub "
            f"{self.stub_cpu:.0%}: {self.limit})",
            f"  at {self.rate_per_s:g} requests/s: dispatch lag p99 {_ms(self.lag_p99_s)}; time to first token "
            f"{_signed(self.ttft_error_p50_s)} off the truth (p99 {_signed(self.ttft_error_p99_s)}), between tokens "
            f"{_signed(self.gap_error_p50_s)} (p99 {_signed(self.gap_error_p99_s)}); n = {self.samples}; of this the "
            f"stub itself was up to {_ms(self.stub_late_p99_s)} late (p99)",
        ]
        if self.failed:
            text.append(f"  {self.failed} requests to the stub did not complete: these figures mean little")
        return text


def _ms(seconds: float | None) -> str:
    return "unknown (too few samples)" if seconds is None else f"{1000 * seconds:.2f} ms"


def _signed(seconds: float | None) -> str:
    return "unknown" if seconds is None else f"{1000 * seconds:+.2f} ms"


class Drive(msgspec.Struct, frozen=True):
    """Rows of a drive against the stub, and the shares of a core that client and stub took."""

    rows: list[RequestRow]
    client_cpu: float
    stub_cpu: float
    stub_late_p99_s: float | None

    @property
    def completed(self) -> list[RequestRow]:
        """Those that completed."""
        return [row for row in self.rows if row.outcome == "completed"]

    def lag_p99_s(self) -> float | None:
        """Sent minus intended; None with too few samples."""
        return percentile([row.sent_s - row.intended_s for row in self.rows], 0.99)


async def drive_stub(stub: StubProcess, source: Source, api: Literal["chat", "completions"] = "chat") -> Drive:
    """Run a source against the stub in this process. Raises StubFailed."""
    rows: list[RequestRow] = []
    async with HttpDriver(HttpTarget(stub.url, MODEL, api), rows.append) as driver:
        await stub.stats()
        began_s, cpu_s = time.monotonic(), time.process_time()
        await driver.run(source)
        client_cpu = (time.process_time() - cpu_s) / max(1e-9, time.monotonic() - began_s)
        stats = await stub.stats()
    return Drive(rows, client_cpu, stats.cpu_s / max(1e-9, stats.elapsed_s), stats.late_p99_s)


def open_loop(rate_per_s: float, duration_s: float, tokens: int = TOKENS, seed: int = 1) -> OpenLoop:
    """Poisson arrivals that begin in a moment, on the loop's clock."""
    spec = WorkloadSpec(prompt_tokens=32, output_tokens=tokens, sessions=200, turns_max=1)
    schedule = build_schedule(spec, rate_per_s, duration_s, seed, WordVocabulary())
    return OpenLoop(schedule, asyncio.get_running_loop().time() + LEAD_S, MODEL, TIMEOUT_S)


def closed_loop(in_flight: int, duration_s: float, tokens: int = TOKENS, prefix: str = "roofline-") -> ClosedLoop:
    """So many in flight. prefix: of the names of its requests."""
    spec = WorkloadSpec(prompt_tokens=32, output_tokens=tokens, sessions=200, turns_max=1)
    schedule = build_schedule(spec, 200.0, 1.0, 1, WordVocabulary())
    prompts = [(request.prompt, request.max_tokens) for request in schedule]
    start_s = asyncio.get_running_loop().time() + LEAD_S
    return ClosedLoop(prompts, in_flight, start_s, start_s + duration_s, MODEL, TIMEOUT_S, prefix)


def most_per_s(rows: Iterable[RequestRow]) -> float:
    """Completions per second between the first and the last one."""
    ends = sorted(row.ended_s for row in rows)
    return (len(ends) - 1) / (ends[-1] - ends[0]) if len(ends) > 1 and ends[-1] > ends[0] else 0.0


async def measure(measure_s: float = MEASURE_S, rate_per_s: float = RATE_PER_S) -> Roofline:
    """Three drives of `measure_s` each: requests/s, tokens/s, and times at a rate. Raises StubFailed."""
    async with running_stub(0.0, 0.0) as stub:
        await drive_stub(stub, closed_loop(IN_FLIGHT, 0.2))
        most = await drive_stub(stub, closed_loop(IN_FLIGHT, measure_s))
    async with running_stub(0.0, STREAM_GAP_S) as stub:
        streams = await drive_stub(stub, closed_loop(IN_FLIGHT, measure_s, STREAM_TOKENS))
    async with running_stub(TTFT_S, GAP_S) as stub:
        paced = await drive_stub(stub, open_loop(rate_per_s, measure_s))
    return with_streams(summary(most, paced, rate_per_s), streams)


def with_streams(found: Roofline, streams: Drive) -> Roofline:
    """With the tokens per second of a closed loop of streams of STREAM_TOKENS."""
    failed = found.failed + len(streams.rows) - len(streams.completed)
    tokens_per_s = STREAM_TOKENS * most_per_s(streams.completed)
    return msgspec.structs.replace(found, tokens_per_s=tokens_per_s, failed=failed)


def summary(most: Drive, paced: Drive, rate_per_s: float, in_flight: int = IN_FLIGHT) -> Roofline:
    """most: a closed loop. paced: an open loop at `rate_per_s`, of TTFT_S and GAP_S. Raises StubFailed."""
    if len(paced.completed) < 2 or len(most.completed) < 2:
        raise StubFailed("nothing came back from the stub")
    ttft = [(row.first_token_s or row.ended_s) - row.sent_s - TTFT_S for row in paced.completed]
    gaps = [gap - GAP_S for row in paced.completed for gap in _mean_gap(row)]
    return Roofline(
        requests_per_s=most_per_s(most.completed),
        in_flight=in_flight,
        tokens=TOKENS,
        client_cpu=most.client_cpu,
        stub_cpu=most.stub_cpu,
        rate_per_s=rate_per_s,
        samples=len(paced.completed),
        lag_p99_s=paced.lag_p99_s(),
        ttft_error_p50_s=float(np.median(ttft)),
        ttft_error_p99_s=percentile(ttft, 0.99),
        gap_error_p50_s=float(np.median(gaps)) if gaps else 0.0,
        gap_error_p99_s=percentile(gaps, 0.99),
        stub_late_p99_s=paced.stub_late_p99_s,
        failed=len(most.rows) - len(most.completed) + len(paced.rows) - len(paced.completed),
        measured_at=time.time(),
    )


def _mean_gap(row: RequestRow) -> list[float]:
    times = [segment.received_s for segment in row.segments]
    return [(times[-1] - times[0]) / (len(times) - 1)] if len(times) > 1 else []


def roofline(cache: Cache = "use") -> Roofline:
    """The roofline of this host: the remembered one where it is fresh, else measured now (a few seconds).

    Not for use within a running event loop. Raises StubFailed.
    """
    return cached(cache_path(f"aiohttp {aiohttp.__version__}"), measure, cache)


def cached(path: Path, measured: Callable[[], Coroutine[Any, Any, Roofline]], cache: Cache = "use") -> Roofline:
    """What the file holds where it is fresh, else what is measured now. Raises what that raises."""
    if cache == "use" and (known := _remembered(path)) is not None:
        return known
    found = asyncio.run(measured())
    if cache != "none":
        remember(path, found)
    return found


def cache_path(client: str) -> Path:
    """A file for this host, interpreter and client, in the folder for temporary files: it need not last.

    client: its name and version.
    """
    parts = (platform.node(), sys.version, client, str(os.cpu_count()), str(Path(__file__).parent))
    key = hashlib.sha256("\n".join(parts).encode()).hexdigest()[:16]
    return Path(tempfile.gettempdir()) / f"mlx-chaos-roofline-{os.getuid()}-{key}.json"


def _remembered(path: Path) -> Roofline | None:
    try:
        if path.is_symlink() or path.stat().st_uid != os.getuid():
            return None
        known = msgspec.json.decode(path.read_bytes(), type=Roofline)
    except (OSError, msgspec.DecodeError):
        return None
    return known if 0 <= time.time() - known.measured_at < CACHED_S else None


def remember(path: Path, found: Roofline) -> None:
    """Best effort: without a cache it is measured again."""
    with contextlib.suppress(OSError):
        write_whole(path, msgspec.json.encode(found))


def command(
    program: str,
    about: str | None,
    measured: Callable[[float, float], Coroutine[Any, Any, Roofline]],
    path: Path,
    arguments: Sequence[str] | None,
) -> int:
    """The command line of a roofline; returns the exit code.

    measured: from seconds of each measurement and requests per second. path: where it is remembered.
    """
    parser = argparse.ArgumentParser(prog=f"python -m {program}", description=about)
    parser.add_argument("--rate", type=float, default=RATE_PER_S, metavar="PER_S", help="default: %(default)s")
    parser.add_argument("--seconds", type=float, default=MEASURE_S, help="of each measurement, default: %(default)s")
    parser.add_argument("--json", action="store_true", help="print it as JSON")
    options = parser.parse_args(arguments)
    if not 1 <= options.rate <= 10_000 or not 0.5 <= options.seconds <= 600:
        parser.error("expected a rate between 1 and 10000/s and between 0.5 and 600 seconds")
    try:
        found = asyncio.run(measured(options.seconds, options.rate))
    except StubFailed as error:
        print(f"{program}: {error}", file=sys.stderr)
        return 5
    if (options.seconds, options.rate) == (MEASURE_S, RATE_PER_S):
        remember(path, found)
    print(msgspec.json.encode(found).decode() if options.json else "\n".join(found.lines()))
    return 0


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit code."""
    return command("workloads.roofline", __doc__, measure, cache_path(f"aiohttp {aiohttp.__version__}"), arguments)


if __name__ == "__main__":
    sys.exit(main())
