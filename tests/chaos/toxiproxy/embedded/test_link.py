"""The laws of a link, whatever comes and goes: no byte lost, added or out of order; nothing held without bound."""

import asyncio
import random
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from chaos.toxiproxy.embedded.frame_stage import FRAMES_READY_MAX, READY_BYTES_MAX
from chaos.toxiproxy.embedded.link import Link
from chaos.toxiproxy.embedded.toxic import Toxic

# Each of these delivers everything in order, at the latest when it is removed.
HARMLESS: dict[str, dict[str, Any]] = {
    "noop": {},
    "latency": {"latency": 2, "jitter": 1},
    "bandwidth": {"rate": 50_000},
    "slicer": {"average_size": 64, "size_variation": 10, "delay": 10},
    "slow_close": {"delay": 3},
    "limit_data": {"bytes": 1 << 40},
    "nats_drop": {"share_ppm": 0},
    "nats_delay": {"share_ppm": 0},
    "nats_duplicate": {"subject": "none"},
}
STALLS: dict[str, dict[str, Any]] = {"latency": {"latency": 600_000}, "bandwidth": {"rate": 0}}


class Ends:
    """Source and sink of a link. The source keeps what is fed to it while it is held."""

    def __init__(self) -> None:
        self.writable = True
        self.held = False
        self.closed = False
        self.got = bytearray()

    def hold(self) -> None:
        self.held = True

    def go_on(self) -> None:
        self.held = False

    def write(self, data: bytes) -> None:
        assert not self.closed
        self.got += data

    def close(self) -> None:
        self.closed = True


def toxic(kind: str, attributes: dict[str, Any], toxicity: float = 1.0) -> Toxic:
    """As the API makes it."""
    value = {"type": kind, "stream": "upstream", "attributes": attributes, "toxicity": toxicity}
    made = Toxic.parse(value)
    made.change(value)
    return made


def nats(draws: random.Random, size: int) -> bytes:
    """A client's stream, which may end in the middle of a frame."""
    out = bytearray(b'CONNECT {"name": "w"}\r\n')
    while len(out) < size:
        body = draws.randbytes(draws.choice((0, 1, 100, 5000)))
        out += draws.choice((b"PING\r\n", b"SUB a 1\r\n", b"PUB a.b %d\r\n%b\r\n" % (len(body), body)))
    return bytes(out[:size])


@settings(max_examples=60, deadline=None)
@given(seed=st.integers(0, 2**32), speaks_nats=st.booleans())
def test_no_byte_is_lost_added_or_overtaken(seed: int, speaks_nats: bool) -> None:
    draws = random.Random(seed)
    data = nats(draws, 60_000) if speaks_nats else draws.randbytes(60_000)
    ends = asyncio.run(_shaken(draws, data))
    assert bytes(ends.got) == data
    assert ends.closed


async def _shaken(draws: random.Random, data: bytes) -> Ends:
    """Feeds the data in pieces, while toxics come, change and go and the sink now and then takes nothing."""
    ends = Ends()
    link = Link("upstream", ends, ends, "seed", None)
    present: list[Toxic] = []
    at = 0
    while at < len(data):
        match draws.randrange(6):
            case 0:
                kind = draws.choice(list(HARMLESS))
                present.append(toxic(kind, HARMLESS[kind], draws.choice((0.5, 1.0))))
                link.add(present[-1], None)
            case 1 if present:
                link.remove(present.pop(draws.randrange(len(present))), None)
            case 2 if present:
                link.update(draws.choice(present), None)
            case 3:
                ends.writable = not ends.writable
                link.pump()
            case 4:
                await asyncio.sleep(draws.choice((0, 0.001)))
            case _ if not ends.held:
                size = draws.choice((1, 10, 1000, 40_000))
                link.feed(data[at : at + size])
                at += size
            case _:
                if not ends.writable:
                    ends.writable = True
                    link.pump()
                await asyncio.sleep(0.001)
    ends.writable = True
    link.end_input()
    async with asyncio.timeout(10):
        while not ends.closed:
            link.pump()
            await asyncio.sleep(0.001)
    link.abandon()
    return ends


@settings(max_examples=20, deadline=None)
@given(st.sampled_from(sorted(STALLS)), st.booleans())
def test_what_is_held_is_bounded_and_comes_back(kind: str, taken_away: bool) -> None:
    async def run() -> None:
        ends = Ends()
        link = Link("upstream", ends, ends, "seed", None)
        stall = toxic(kind, STALLS[kind])
        link.add(stall, None)
        fed = bytearray()
        while not ends.held:
            piece = random.Random(len(fed)).randbytes(32_768)
            link.feed(piece)
            fed += piece
            assert len(fed) <= 1100 * 32_768
        assert not ends.got
        if taken_away:
            link.remove(stall, None)
        else:
            stall.change({"attributes": {"latency": 0, "rate": 10**9}})
            link.update(stall, None)
            await asyncio.sleep(0.05)
        assert ends.got == fed
        assert not ends.held
        link.abandon()

    asyncio.run(run())


@pytest.mark.parametrize("payload_bytes", [0, 100, 1_000_000])
def test_messages_that_wait_for_a_slow_sink_are_few_whatever_their_size(payload_bytes: int) -> None:
    async def case() -> None:
        ends = Ends()
        link = Link("upstream", ends, ends, "seed", None)
        link.add(toxic("nats_duplicate", {"copies": 10}), None)
        ends.writable = False
        message = b"PUB a %d\r\n%b\r\n" % (payload_bytes, b"x" * payload_bytes)
        limit_bytes = min(READY_BYTES_MAX, FRAMES_READY_MAX * len(message))
        fed_bytes = 0
        while not ends.held:
            link.feed(message)
            fed_bytes += len(message)
            # One message more may have come in when the limit is reached, and one waits before the stage.
            assert fed_bytes * 11 <= limit_bytes + 22 * len(message)
        ends.writable = True
        link.pump()
        assert (len(ends.got), ends.held) == (fed_bytes * 11, False)

    asyncio.run(case())


def test_what_is_no_frame_is_none_for_any_stage() -> None:
    """The rest of a message in which they began looks like a message itself."""

    async def case() -> None:
        ends = Ends()
        link = Link("upstream", ends, ends, "seed", None)
        inner = b"PUB secret 1\r\nx\r\n"
        beginning = b"PUB a %d\r\n" % (len(inner) - 2)
        link.feed(beginning)
        for name in ("one", "two"):
            made = toxic("nats_drop", {})
            made.name = name
            link.add(made, None)
        link.feed(inner)
        link.feed(b"PUB b 1\r\ny\r\nPING\r\n")
        assert bytes(ends.got) == beginning + inner + b"PING\r\n"

    asyncio.run(case())


def test_a_link_whose_sink_has_gone_reads_on_so_that_it_sees_the_end() -> None:
    async def run() -> None:
        ends = Ends()
        link = Link("upstream", ends, ends, "seed", None)
        link.add(toxic("bandwidth", {"rate": 0}), None)
        link.feed(b"x" * 100_000)
        assert ends.held
        link.sink_gone()
        assert not ends.held
        link.feed(b"y" * 100_000)
        assert not ends.held
        assert not ends.got
        link.abandon()

    asyncio.run(run())


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 2**32))
def test_what_acts_keeps_the_order_of_addition_with_messages_first(seed: int) -> None:
    """Also when toxicity spares and hits a connection in turn."""

    async def run() -> None:
        draws = random.Random(seed)
        ends = Ends()
        link = Link("upstream", ends, ends, str(seed), None)
        kinds = draws.sample(sorted(HARMLESS), 6)
        present = [toxic(kind, HARMLESS[kind], 0.5) for kind in kinds]
        for one in present:
            link.add(one, None)
        for _ in range(20):
            link.update(draws.choice(present), None)
            acting = [placement.toxic.kind for placement in link.placements() if placement.acts]
            acting.sort(key=lambda kind: not kind.startswith("nats_"))
            stages = {id(placement.stage): placement.toxic.kind for placement in link.placements()}
            assert [stages[id(stage)] for stage in link._chain] == acting
        link.abandon()

    asyncio.run(run())
