"""How fast the simulated world is: requests per second of one core, with the full policy code and all rows written.

`python -m tests.simulation_bench [--workers 10,100,1000] [--profile]` runs an undisturbed open loop of two requests a
second for each worker, 64 tokens in and 64 out.
"""

import argparse
import cProfile
import pstats
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from random import Random

import msgspec

from analysis.recorder import MetricsCollector
from cluster.engine.timed import StepCosts
from cluster.node import Ask, Deliver
from cluster.policy import ClientPolicy, Policy, RoutingPolicy
from cluster.simulation.cluster import SimulatedCluster

PROMPT_TOKENS = 64
OUTPUT_TOKENS = 64
RATE_PER_WORKER_PER_S = 2.0
VIRTUAL_S = {10: 60.0, 100: 12.0, 1_000: 3.0}
"""For how long each size is loaded: a number of requests that takes seconds to simulate."""
_VIRTUAL_DEFAULT_S = 10.0
_READY_S = 5.0
_DRAIN_S = 10.0
_REQUESTS_PER_CLIENT = 500.0
"""Of one client, per second."""
_COSTS = StepCosts(load_s=0.5, step_s=0.004, decode_each_s=0.0008, prefill_each_s=0.0001)


class Speed(msgspec.Struct, frozen=True):
    """One measurement. ran_s: seconds of one core from the first request to the last answer."""

    workers: int
    requests: int
    completed: int
    virtual_s: float
    ran_s: float

    @property
    def requests_per_s(self) -> float:
        """Requests simulated in a second of one core."""
        return self.requests / self.ran_s


class PoissonSource:
    """Requests made when they are due. See cluster.caller.Source."""

    def __init__(self, name: str, rate_per_s: float, start_s: float, stop_s: float, random: Random) -> None:
        self._name = name
        self._rate_per_s = rate_per_s
        self._stop_s = stop_s
        self._random = random
        self._next_s = start_s + random.expovariate(rate_per_s)
        self.asked = 0

    def due(self, now: float) -> list[Ask]:
        """See Source."""
        asks: list[Ask] = []
        while self._next_s <= now and not self.finished:
            tokens = self._random.getrandbits(8 * PROMPT_TOKENS).to_bytes(PROMPT_TOKENS, "little")
            self.asked += 1
            asks.append(
                Ask(
                    request_id=f"{self._name}-{self.asked}",
                    model="timed",
                    prompt=tuple(tokens),
                    max_tokens=OUTPUT_TOKENS,
                    intended_s=self._next_s,
                    timeout_s=30.0,
                )
            )
            self._next_s += self._random.expovariate(self._rate_per_s)
        return asks

    def next_time(self) -> float | None:
        """See Source."""
        return None if self.finished else self._next_s

    def ended(self, request_id: str, now: float) -> list[Ask]:
        """See Source."""
        return []

    @property
    def finished(self) -> bool:
        """See Source."""
        return self._next_s >= self._stop_s


class _Counter:
    def __init__(self) -> None:
        self.completed = self.ended_ = 0

    def asked(self, ask: Ask) -> None:
        """See cluster.caller.Observer."""

    def ended(self, ask: Ask, end: Deliver, now: float) -> None:
        """See cluster.caller.Observer."""
        self.ended_ += 1
        self.completed += end.code is None


def measure(workers: int, virtual_s: float, rows: Path, seed: int = 1) -> Speed:
    """Simulate `virtual_s` of load; the rows go below `rows`."""
    clients = max(1, round(workers * RATE_PER_WORKER_PER_S / _REQUESTS_PER_CLIENT))
    policy = Policy(client=ClientPolicy(open_requests_max=100_000), routing=RoutingPolicy(requests_max=100_000))
    sinks: list[MetricsCollector] = []

    def sink(name: str, incarnation: int) -> MetricsCollector:
        sinks.append(MetricsCollector(rows, name, incarnation, flush_rows=1024, flush_s=60.0))
        return sinks[-1]

    cluster = SimulatedCluster(policy, workers, clients, seed, sink, costs=_COSTS)
    cluster.start()
    cluster.kernel.run_until(_READY_S)
    counter = _Counter()
    sources: list[PoissonSource] = []
    began_s = time.process_time()
    for number in range(clients):
        rate_per_s = workers * RATE_PER_WORKER_PER_S / clients
        name = f"client-{number}"
        sources.append(PoissonSource(name, rate_per_s, _READY_S, _READY_S + virtual_s, Random(f"{seed}/{name}")))
        cluster.nodes[name].drive(sources[-1], counter)
    cluster.kernel.run_until(_READY_S + virtual_s)
    end_s = cluster.kernel.now + _DRAIN_S
    asked = sum(source.asked for source in sources)
    while counter.ended_ < asked and cluster.kernel.now < end_s:
        cluster.kernel.run_until(cluster.kernel.now + 0.1)
    for open_sink in sinks:
        open_sink.close()
    return Speed(workers, asked, counter.completed, virtual_s, time.process_time() - began_s)


def speeds(sizes: Sequence[int]) -> Iterator[Speed]:
    """One measurement for each number of workers."""
    for workers in sizes:
        with tempfile.TemporaryDirectory() as folder:
            yield measure(workers, VIRTUAL_S.get(workers, _VIRTUAL_DEFAULT_S), Path(folder))


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit code."""
    parser = argparse.ArgumentParser(
        prog="python -m tests.simulation_bench", description=(__doc__ or "").splitlines()[0]
    )
    parser.add_argument("--workers", default="10,100,1000", help="with commas between")
    parser.add_argument("--profile", action="store_true", help="say where the time goes")
    options = parser.parse_args(arguments)
    sizes = [int(part) for part in options.workers.split(",")]
    profile = cProfile.Profile(time.process_time)
    if options.profile:
        profile.enable()
    for speed in speeds(sizes):
        print(
            f"{speed.workers:5} workers: {speed.requests} requests in {speed.ran_s:.2f} s of one core, "
            f"{speed.requests_per_s:.0f} requests/s, {speed.completed} completed, "
            f"{speed.virtual_s / speed.ran_s:.1f} x real time",
            flush=True,
        )
    if options.profile:
        profile.disable()
        pstats.Stats(profile).sort_stats("tottime").print_stats(45)
    return 0


if __name__ == "__main__":
    sys.exit(main())
