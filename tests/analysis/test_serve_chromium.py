"""The pages of the browser of runs in a real Chromium: they fit, their links lead somewhere, and no script runs."""

import asyncio
from pathlib import Path

import msgspec
import pytest
from aiohttp.test_utils import TestServer
from msgspec.structs import replace

from analysis.report import PerformanceReporter
from analysis.serve import Browser
from analysis.verdict import Outcome
from tests.analysis import chromium, report_fixture
from tests.analysis.histories import INFO
from tests.analysis.test_serve import HOSTILE, judged, keep

pytestmark = [pytest.mark.live, pytest.mark.verify]
PAGES = (
    "/",
    "/live",
    "/trend?experiment=network_partition",
    "/runs/20260102T030405-network_partition-live-aaaa/report.html",
)


@pytest.fixture
def root(tmp_path: Path) -> Path:
    folder = keep(tmp_path, "20260102T030405-network_partition-live-aaaa", verdict=judged(Outcome.PASS))
    run = report_fixture.history()
    html = PerformanceReporter(run, report_fixture.verdict(run), report_fixture.ENVIRONMENT).html()
    (folder / "report.html").write_text(html)
    hostile = keep(tmp_path, "20260103T030405-network_partition-live-bbbb", verdict=judged(Outcome.FAIL))
    told = replace(INFO, run_id=f"{HOSTILE}<img src=x onerror=document.title='pwned'>", world=HOSTILE)
    (hostile / "run.json").write_bytes(msgspec.json.encode(told))
    return tmp_path


def test_every_page_fits_and_runs_no_script(root: Path) -> None:
    program = chromium.find()
    assert program is not None, "this test needs Chromium"

    async def look() -> None:
        async with TestServer(Browser(root).application(("127.0.0.1",))) as server, chromium.tab(program) as tab:
            for path in PAGES:
                for width in (1280, 400):
                    await tab.open(str(server.make_url("/")).rstrip("/") + path, width)
                    assert await tab.evaluate("document.documentElement.scrollWidth") <= width, f"{path} at {width}"
                    assert await tab.evaluate("document.title") not in ("", "pwned")
                    assert await tab.evaluate("document.querySelectorAll('script, img').length") == 0
                    assert await tab.evaluate("document.querySelector('h1').innerText.trim().length") > 0

    asyncio.run(look())


def test_a_run_is_found_opened_and_compared_by_clicking(root: Path) -> None:
    program = chromium.find()
    assert program is not None, "this test needs Chromium"

    async def look() -> None:
        async with TestServer(Browser(root).application(("127.0.0.1",))) as server, chromium.tab(program) as tab:
            home = str(server.make_url("/"))
            await tab.open(f"{home}?state=pass", 1280)
            assert await tab.evaluate("document.querySelectorAll('table.runs tbody tr').length") == 1
            target = await tab.evaluate("document.querySelector('table.runs tbody a').href")
            await tab.open(target, 1280)
            assert "NATS" in await tab.evaluate("document.querySelector('h1').innerText")
            await tab.open(home, 1280)
            await tab.evaluate("document.querySelectorAll('table.runs input').forEach(box => box.click())")
            await tab.evaluate("document.querySelector('button.primary').click()")
            await tab.await_value("location.pathname", "/compare")
            assert (await tab.evaluate("location.search")).count("run=") == 2

    asyncio.run(look())
