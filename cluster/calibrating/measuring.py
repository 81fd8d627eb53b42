"""What is measured: an engine alone at all kinds of rounds, then several side by side, with the bus meanwhile."""

import asyncio
import statistics
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from random import Random
from typing import Any

import msgspec

from cluster.calibrating.bench import BATCH_MAX
from cluster.calibrating.rounds import Answer, Chats, Chatted, Loaded, Order, Round, Taken
from cluster.engine.blas import find_blas, preload_environment
from cluster.live.broker import Broker, BrokerSettings
from cluster.live.children import BrokerChild, environment
from cluster.live.nats import NatsLink
from cluster.policy import Policy

_LINE_BYTES_MAX = 2**26
_NAME = "calibrate"
_LINK_S = 10.0
_PAYLOAD_BYTES = 300
"""About as much as a message that carries some tokens."""
_PAUSE_S = 0.02
_START_S = 900.0


class CannotMeasure(Exception):
    """An engine or the bus did not do its part. One line."""


class Budget(msgspec.Struct, frozen=True):
    """How much is measured, `repeats` times. side_by_side_s: how long each number of busy engines is looked at.

    decode, prefill: batches and prompt lengths, every pair of them. new_tokens: of a sequence in a decode round.
    """

    decode_batches: tuple[int, ...]
    decode_prompts: tuple[int, ...]
    prefill_batches: tuple[int, ...]
    prefill_prompts: tuple[int, ...]
    new_tokens: int
    repeats: int
    side_by_side_s: float
    chats: tuple[Chats, ...]


SMALL = Budget(
    (1, 2, 4, 8, BATCH_MAX),
    (32, 256),
    (1, 2, 4, 8),
    (16, 48, 96, 192, 448),
    48,
    5,
    3.0,
    tuple(Chats(chats, 8, cached, 60, 18) for chats in (1, 2, 4, 8) for cached in (0, 120)),
)
"""For models that make a thousand tokens per second."""
LARGE = Budget(
    (1, 2, 4, 8),
    (32, 192),
    (1, 2, 4),
    (16, 64, 192),
    12,
    2,
    8.0,
    tuple(Chats(chats, 2, cached, 60, 12) for chats in (1, 2, 4) for cached in (0, 120)),
)
"""For models of which a token takes a tenth of a second."""


class Measured(msgspec.Struct, frozen=True):
    """side_by_side, round_trips_s: by how many engines computed at the same time; 0 of the latter: none."""

    loads: list[Loaded]
    alone: list[Taken]
    chatted: list[Chatted]
    side_by_side: dict[int, list[Taken]]
    round_trips_s: dict[int, list[float]]


class _Engine:
    """A process with an engine."""

    def __init__(self, process: asyncio.subprocess.Process) -> None:
        self._process = process

    @classmethod
    async def start(cls, model: str, variables: dict[str, str]) -> "_Engine":
        argv = (sys.executable, "-m", "cluster.calibrating.bench", model)
        pipe = asyncio.subprocess.PIPE
        return cls(
            await asyncio.create_subprocess_exec(*argv, stdin=pipe, stdout=pipe, env=variables, limit=_LINE_BYTES_MAX)
        )

    async def loaded(self) -> Loaded:
        loaded = msgspec.json.decode(await self._line(), type=Loaded)
        if loaded.error:
            raise CannotMeasure(loaded.error)
        return loaded

    async def obey(self, order: Order) -> Answer:
        assert self._process.stdin is not None
        self._process.stdin.write(msgspec.json.encode(order) + b"\n")
        return msgspec.json.decode(await self._line(), type=Answer)

    async def stop(self) -> None:
        assert self._process.stdin is not None
        self._process.stdin.close()
        try:
            async with asyncio.timeout(15.0):
                await self._process.wait()
        except TimeoutError:
            self._process.kill()
            await self._process.wait()

    async def _line(self) -> bytes:
        assert self._process.stdout is not None
        async with asyncio.timeout(_START_S):
            line = await self._process.stdout.readline()
        if not line:
            raise CannotMeasure("an engine's process has ended; what it said is above")
        return line


async def measure(
    model: str, workers: int, budget: Budget, logs: Path, seed: int, say: Callable[[str], None]
) -> Measured:
    """With so many engines in memory. logs: a folder for the broker's. Raises CannotMeasure, BrokerUnavailable,
    LinkUnavailable."""
    broker = Broker(logs / "broker", [_NAME], BrokerSettings())
    server = BrokerChild(broker, logs / "nats-server.log", environment(), say)
    engines: list[_Engine] = []
    link: NatsLink | None = None
    try:
        await server.start()
        link = NatsLink(_NAME, broker.url(_NAME), Policy().link, lambda event: None)
        await link.open(_LINK_S)
        variables = environment(preload_environment(find_blas()))
        loads = []
        for number in range(workers):
            engines.append(await _Engine.start(model, variables))
            loads.append(await engines[-1].loaded())
            say(f"engine {number + 1} of {workers} has {model} after {loads[-1].load_s:.2f} s")
        return await _measure_loaded(engines, loads, link, budget, Random(seed), say)
    except TimeoutError as error:
        raise CannotMeasure(f"an engine said nothing for {_START_S:g} s") from error
    finally:
        for engine in engines:
            await engine.stop()
        if link is not None:
            await link.close()
        await server.stop()


async def _measure_loaded(
    engines: Sequence[_Engine],
    loads: list[Loaded],
    link: NatsLink,
    budget: Budget,
    random: Random,
    say: Callable[[str], None],
) -> Measured:
    decode = [(b, p, budget.new_tokens) for b in budget.decode_batches for p in budget.decode_prompts]
    prefill = [(b, p, 2) for b in budget.prefill_batches for p in budget.prefill_prompts]
    rounds = [Round(*which) for which in (*decode, *prefill)]
    mixed = Order((Round(1, 48, 20), Round(2, 64, 20)), budget.side_by_side_s)
    await engines[0].obey(Order(tuple(rounds)))
    alone: list[Taken] = []
    chatted: list[Chatted] = []
    side_by_side: dict[int, list[Taken]] = {count: [] for count in range(1, len(engines) + 1)}
    round_trips_s: dict[int, list[float]] = {count: [] for count in range(len(engines) + 1)}
    for repeat in range(budget.repeats):
        say(f"repeat {repeat + 1} of {budget.repeats}")
        # In another order each time, so that whatever else the host does hits all alike; and each time with another
        # engine, so that none stands for all.
        random.shuffle(rounds)
        answer = await engines[repeat % len(engines)].obey(Order(tuple(rounds), chats=budget.chats))
        alone += answer.taken
        chatted += answer.chatted
        counts = list(side_by_side)
        random.shuffle(counts)
        round_trips_s[0] += await _round_trips(link, asyncio.ensure_future(asyncio.sleep(1.0)))
        for count in counts:
            busy = asyncio.gather(*(engine.obey(mixed) for engine in random.sample(list(engines), count)))
            round_trips_s[count] += await _round_trips(link, busy)
            for each in await busy:
                side_by_side[count] += each.taken
    typical_ms = 1e3 * statistics.median(round_trips_s[0])
    say(f"{len(alone)} rounds alone, {sum(map(len, side_by_side.values()))} side by side, bus {typical_ms:.2f} ms")
    return Measured(loads, alone, chatted, side_by_side, round_trips_s)


async def _round_trips(link: NatsLink, until: "asyncio.Future[Any]") -> list[float]:
    """How long a message to oneself takes, again and again until something is over."""
    taken_s: list[float] = []
    while not until.done():
        took_s = await link.round_trip(_LINK_S, _PAYLOAD_BYTES)
        if took_s is None:
            raise CannotMeasure(f"no word over the bus within {_LINK_S:g} s")
        taken_s.append(took_s)
        await asyncio.wait((until,), timeout=_PAUSE_S)
    return taken_s
