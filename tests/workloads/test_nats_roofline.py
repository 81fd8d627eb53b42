"""The clients' roofline on a real nats-server: that everything is measured; how well, a quiet machine shows."""

import asyncio
import sys
from pathlib import Path

import pytest

from workloads import nats_roofline, roofline
from workloads.roofline import Roofline
from workloads.stub_controller import Birth, Timing
from workloads.stub_process import StubFailed

LIMITS = Roofline(100.0, 64, 16, 0.9, 0.4, 200.0, 150, 0.002, 0.001, 0.004, 0.0, 0.001, 0.002, 0, 1.0, 2_000.0, "NATS")


@pytest.mark.live
def test_every_figure_is_measured() -> None:
    found = asyncio.run(nats_roofline.measure(0.5, 100.0))
    assert found.failed == 0
    assert found.samples > 20
    assert found.requests_per_s > 10
    assert found.tokens_per_s is not None
    assert found.tokens_per_s > 10
    # Time only ever adds, here as well.
    assert found.ttft_error_p50_s > 0
    assert "NATS client roofline on this host" in found.lines()[0]


def test_a_stub_that_does_not_come_up_is_told_in_a_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "executable", "/bin/false")
    with pytest.raises(StubFailed, match="does not answer"):
        asyncio.run(_nothing())


async def _nothing() -> None:
    async with nats_roofline._stub(Birth("nats://nowhere", Timing(0.0, 0.0))):
        pytest.fail("nobody is there")


def test_http_and_nats_do_not_share_what_is_remembered(tmp_path: Path) -> None:
    assert nats_roofline._cache_path() != roofline.cache_path("aiohttp 3")


@pytest.mark.parametrize(
    ("per_s", "tokens_per_s", "clients", "told"),
    [
        (20.0, 100.0, 2, "offered 20.0 requests/s over 2 clients: 10.0% of it"),
        (20.0, 1_600.0, 1, "20.0 requests/s over 1 client: 80.0% of it, so the load generators may be measured"),
        (60.0, 0.0, 1, "60.0% of it, so the load generators may be measured as well"),
        (0.0, 0.0, 1, "0.0% of it"),
    ],
)
def test_a_load_is_told_as_a_share_of_what_its_clients_can_do(
    per_s: float, tokens_per_s: float, clients: int, told: str
) -> None:
    assert told in LIMITS.beside(per_s, tokens_per_s, clients)


@pytest.mark.parametrize(
    ("client", "stub", "told"), [(0.95, 0.5, "this client"), (0.5, 0.95, "the stub"), (0.5, 0.4, "neither")]
)
def test_who_was_busy_is_the_limit(client: float, stub: float, told: str) -> None:
    assert told in Roofline(1.0, 1, 1, client, stub, 1.0, 1, None, 0.0, None, 0.0, None, None, 0).limit
