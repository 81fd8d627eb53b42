"""What an endpoint does with so many requests in flight, in a few seconds: how much a closed loop has to plan for."""

import asyncio
import time

import msgspec

from analysis.schema import RequestRow
from workloads.capacity import Capacity
from workloads.http import HttpDriver, HttpTarget
from workloads.load import ClosedLoop
from workloads.planner import segment_requests
from workloads.spec import WorkloadSpec
from workloads.words import WordVocabulary

PROBE_S = 2.0
_SEED_STEP = 7_000_003
"""Added to the run's: what the endpoint keeps of the probe must be no beginning of a prompt of the run."""
_PROMPTS_MIN = 32


class Probe(msgspec.Struct, frozen=True):
    """capacity: of what ended, in whatever way, per second. cpu_share: of a core, that this process took."""

    capacity: Capacity
    cpu_share: float

    def line(self, in_flight: int) -> str:
        """For people."""
        per_s = self.capacity.requests_per_s
        return f"a probe of {PROBE_S:g} s with {in_flight} in flight: at most about {per_s:.1f} requests/s"


def probe_prompts(
    spec: WorkloadSpec, in_flight: int, seed: int, context_words: int
) -> list[tuple[tuple[int, ...], int]]:
    """Prompts and output caps for a probe. Raises ValueError as build_schedule does."""
    count = max(in_flight, _PROMPTS_MIN)
    made = segment_requests(
        "probe", 0.0, count, spec, seed + _SEED_STEP, WordVocabulary(), context_max_tokens=context_words
    )
    return [(request.prompt, request.max_tokens) for request in made]


async def probe(
    target: HttpTarget,
    prompts: list[tuple[tuple[int, ...], int]],
    in_flight: int,
    timeout_s: float,
    connections_max: int,
) -> Probe:
    """Keep so many in flight for PROBE_S, and wait for the rest.

    Where hardly anything ends in that time, it is taken that all of it was about to. Raises BadTarget.
    """
    rows: list[RequestRow] = []
    loop = asyncio.get_running_loop()
    async with HttpDriver(target, rows.append, connections_max) as driver:
        stop_s = loop.time() + PROBE_S
        source = ClosedLoop(prompts, in_flight, loop.time(), stop_s, target.model, timeout_s, "probe-")
        cpu_s, began_s = time.process_time(), time.monotonic()
        await driver.run(source)
        cpu_share = (time.process_time() - cpu_s) / max(1e-9, time.monotonic() - began_s)
    ended = [row for row in rows if row.ended_s <= stop_s]
    count = max(len(ended), in_flight)
    tokens = sum(len(row.tokens) for row in ended)
    return Probe(Capacity(count / PROBE_S, tokens / PROBE_S, len(ended), PROBE_S), cpu_share)
