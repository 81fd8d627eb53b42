"""The baseline comparison on known blocks: what passes, fails or is left open; and a side that does not answer."""

import asyncio

import numpy as np
import pytest
from aiohttp import web

from analysis.verdict import Outcome
from chaos import baseline_engine
from chaos.baseline_engine import LIMITS, BaselineReport, Limit, _row
from chaos.baseline_sides import BARE, CLUSTER, SERVER, Block, HttpSide, SideFailed
from workloads.schedule import first_requests
from workloads.spec import WorkloadSpec
from workloads.stub_server import StubServer
from workloads.words import WordVocabulary


def blocks(tokens_per_s: float, first_s: float, noise: float, seed: int, count: int = 8) -> list[Block]:
    random = np.random.default_rng(seed)
    return [
        Block(
            1000, 1000 / (tokens_per_s * random.normal(1, noise)), [first_s * random.normal(1, noise) for _ in range(8)]
        )
        for _ in range(count)
    ]


def judged(ratio: float, noise: float, limit: Limit, count: int = 8) -> Outcome:
    ours, theirs = blocks(1000 * ratio, 0.1 * ratio, noise, 1, count), blocks(1000, 0.1, noise, 2, count)
    return _row({CLUSTER: ours, BARE: theirs, SERVER: theirs}, limit).verdict


@pytest.mark.parametrize("limit", LIMITS, ids=lambda limit: f"{limit.metric}-{limit.versus}")
def test_a_limit_is_kept_broken_or_left_open(limit: Limit) -> None:
    bound = limit.at_least or limit.at_most
    assert bound is not None
    better = 1.3 if limit.at_least else 0.7
    assert judged(bound * better, 0.02, limit) is Outcome.PASS
    assert judged(bound / better, 0.02, limit) is Outcome.FAIL
    assert judged(bound, 0.02, limit) is Outcome.INCONCLUSIVE
    assert judged(bound * better, 0.02, limit, count=4) is Outcome.INCONCLUSIVE


def test_the_table_names_every_ratio_with_its_interval() -> None:
    side = blocks(1000, 0.1, 0.02, 1)
    rows = [_row({CLUSTER: side, BARE: side, SERVER: side}, limit) for limit in LIMITS]
    text = BaselineReport("tiny", "none", 1, 96, rows, Outcome.PASS).text()
    assert text.count("| 1.000 | 1.000 to 1.000 |") == len(LIMITS)


def test_too_few_blocks_are_refused(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        baseline_engine.main(["--blocks", "4"])
    assert "5 to 200 blocks" in capsys.readouterr().err


def asked(application: web.Application) -> Block:
    async def use() -> Block:
        runner = web.AppRunner(application, shutdown_timeout=0.1)
        await runner.setup()
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        spec = WorkloadSpec(prompt_tokens=4, output_tokens=5, turns_max=1)
        requests = first_requests(spec, 7, 1, WordVocabulary())
        try:
            side = HttpSide(f"http://127.0.0.1:{runner.addresses[0][1]}/v1", "m", 3, "theirs")
            return await side.block(requests)
        finally:
            await runner.cleanup()

    return asyncio.run(use())


def test_a_block_counts_all_tokens_and_every_first_one() -> None:
    block = asked(StubServer(0.02, 0.001).application)
    assert block.tokens == 35
    assert len(block.first_s) == 7
    # Seven requests, three at a time: three rounds of 20 ms and four gaps each.
    assert block.elapsed_s >= 3 * 0.024
    assert min(block.first_s) >= 0.02


async def _down(request: web.Request) -> web.StreamResponse:
    raise web.HTTPServiceUnavailable(text="loading")


def test_a_server_that_refuses_is_no_side() -> None:
    application = web.Application()
    application.router.add_post("/v1/chat/completions", _down)
    with pytest.raises(SideFailed, match="theirs: 7 of 7 requests did not complete: HTTP_503: loading"):
        asked(application)
