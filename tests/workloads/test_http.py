"""The driver against real sockets: what a server does, and which row comes of it."""

import asyncio
from collections.abc import Awaitable, Callable, Sequence

import pytest
from aiohttp import web

from analysis.schema import RequestRow
from workloads.http import BadTarget, HttpDriver, HttpTarget
from workloads.load import ClosedLoop, OpenLoop
from workloads.request import ScheduledRequest
from workloads.schedule import build_schedule
from workloads.spec import WorkloadSpec
from workloads.stub_server import StubServer
from workloads.words import WordVocabulary

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


def schedule(rate_per_s: float, duration_s: float) -> list[ScheduledRequest]:
    spec = WorkloadSpec(arrivals="constant", prompt_tokens=4, output_tokens=3, sessions=4, turns_max=2)
    return build_schedule(spec, rate_per_s, duration_s, 1, WordVocabulary())


async def serving(application: web.Application, use: Callable[[str], Awaitable[None]]) -> None:
    runner = web.AppRunner(application, shutdown_timeout=0.1)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    try:
        await use(f"http://127.0.0.1:{runner.addresses[0][1]}/v1")
    finally:
        await runner.cleanup()


def driven(
    handler: Handler | None, requests: Sequence[ScheduledRequest], timeout_s: float = 5.0, **limits: int
) -> tuple[list[RequestRow], HttpDriver]:
    """Rows of a drive of a server with this handler; None: of the stub."""
    rows: list[RequestRow] = []
    found: list[HttpDriver] = []

    async def use(url: str) -> None:
        async with HttpDriver(HttpTarget(url, "m"), rows.append, **limits) as driver:
            found.append(driver)
            start_s = asyncio.get_running_loop().time() + 0.02
            await driver.run(OpenLoop(requests, start_s, "m", timeout_s))

    application = StubServer(0.01, 0.001).application
    if handler is not None:
        application = web.Application()
        application.router.add_post("/v1/chat/completions", handler)
    asyncio.run(serving(application, use))
    return rows, found[0]


def test_every_request_of_the_schedule_has_one_row_with_its_intended_time() -> None:
    planned = schedule(100.0, 0.5)
    rows, driver = driven(None, planned)
    assert sorted(row.request_id for row in rows) == [request.request_id for request in planned]
    assert {row.outcome for row in rows} == {"completed"}
    assert all(row.sent_s >= row.intended_s and len(row.tokens) == 3 == len(row.segments) for row in rows)
    assert all(row.first_token_s is not None and row.first_token_s - row.intended_s >= 0.01 for row in rows)
    by_id = {row.request_id: row.intended_s for row in rows}
    offset_s = by_id[planned[0].request_id] - planned[0].intended_s
    assert all(abs(by_id[request.request_id] - request.intended_s - offset_s) < 1e-6 for request in planned)
    assert (driver.asked, driver.in_flight, driver.untold, driver.spread) == (len(planned), 0, 0, 0)


async def _hangs(request: web.Request) -> web.StreamResponse:
    response = web.StreamResponse(headers={"Content-Type": "text/event-stream"})
    await response.prepare(request)
    await response.write(b'data: {"choices": [{"delta": {"content": "ba"}}]}\n\n')
    await asyncio.sleep(30)
    return response


async def _refuses(request: web.Request) -> web.StreamResponse:
    return web.json_response({"error": {"message": "too much", "code": "busy"}}, status=429)


async def _redirects(request: web.Request) -> web.StreamResponse:
    raise web.HTTPTemporaryRedirect("http://127.0.0.1:9/elsewhere")


async def _breaks(request: web.Request) -> web.StreamResponse:
    response = web.StreamResponse(headers={"Content-Type": "text/event-stream"})
    await response.prepare(request)
    await response.write(b'data: {"choices": [{"delta": {"content": "ba"}}]}\n\n')
    assert request.transport is not None
    request.transport.abort()
    return response


async def _is_no_stream(request: web.Request) -> web.StreamResponse:
    return web.json_response({"choices": [{"message": {"content": "whole"}}]})


async def _lingers(request: web.Request) -> web.StreamResponse:
    response = web.StreamResponse(headers={"Content-Type": "text/event-stream"})
    await response.prepare(request)
    await response.write(
        b'data: {"choices": [{"delta": {"content": "x"}, "finish_reason": "stop"}]}\n\ndata: [DONE]\n\n'
    )
    await asyncio.sleep(30)
    return response


@pytest.mark.parametrize(
    ("handler", "code", "outcome"),
    [
        (_hangs, "DEADLINE_EXCEEDED", "failed"),
        (_refuses, "HTTP_429", "refused"),
        (_redirects, "HTTP_307", "failed"),
        (_breaks, "BAD_RESPONSE", "failed"),
        (_is_no_stream, "BAD_RESPONSE", "failed"),
    ],
)
def test_what_goes_wrong_has_a_code_and_ends_by_its_deadline(handler: Handler, code: str, outcome: str) -> None:
    rows, driver = driven(handler, schedule(20.0, 0.1), timeout_s=0.4)
    assert [(row.code, row.outcome) for row in rows] == [(code, outcome)] * 2
    assert all(row.ended_s < row.deadline_s + 0.3 for row in rows)
    assert sum(driver.failures.values()) == 2


def test_an_answer_is_over_with_its_done_although_the_connection_stays_open() -> None:
    rows, _ = driven(_lingers, schedule(10.0, 0.1), timeout_s=5.0)
    assert [row.outcome for row in rows] == ["completed"]
    assert rows[0].ended_s - rows[0].intended_s < 0.9


def test_beyond_its_connections_a_request_is_sent_late_and_says_so() -> None:
    rows, _ = driven(_hangs, schedule(40.0, 0.1), timeout_s=0.3, connections_max=1)
    assert len(rows) == 4
    assert max(row.sent_s - row.intended_s for row in rows) > 0.15


def test_nobody_listens() -> None:
    rows: list[RequestRow] = []

    async def drive() -> None:
        async with HttpDriver(HttpTarget("http://127.0.0.1:9/v1", "m"), rows.append) as driver:
            await driver.run(OpenLoop(schedule(10.0, 0.2), asyncio.get_running_loop().time(), "m", 5.0))

    asyncio.run(drive())
    assert [(row.outcome, row.code) for row in rows] == [("failed", "CONNECT_FAILED")] * 2


def test_a_closed_loop_goes_on_to_its_end_and_then_ends() -> None:
    rows: list[RequestRow] = []

    async def use(url: str) -> None:
        async with HttpDriver(HttpTarget(url, "m"), rows.append) as driver:
            for _ in range(3):
                start_s = asyncio.get_running_loop().time()
                prompts = [(request.prompt, 2) for request in schedule(4.0, 1.0)]
                await driver.run(ClosedLoop(prompts, 3, start_s, start_s + 0.2, "m", 5.0, f"{start_s}-"))
                assert driver.in_flight == 0

    # Answers at once, so that places of the loop have to wait for their next turn.
    asyncio.run(serving(StubServer(0.0, 0.0).application, use))
    assert {row.outcome for row in rows} == {"completed"}
    assert len(rows) > 9


def test_a_cancelled_drive_gives_every_request_its_row() -> None:
    rows: list[RequestRow] = []

    async def use(url: str) -> None:
        async with HttpDriver(HttpTarget(url, "m"), rows.append) as driver:
            source = OpenLoop(schedule(40.0, 1.0), asyncio.get_running_loop().time(), "m", 5.0)
            task = asyncio.get_running_loop().create_task(driver.run(source))
            await asyncio.sleep(0.2)
            asked = driver.asked
            task.cancel()
            await asyncio.wait([task])
            assert asked == driver.asked == len(rows) >= 2

    application = web.Application()
    application.router.add_post("/v1/chat/completions", _hangs)
    asyncio.run(serving(application, use))
    assert {(row.outcome, row.code) for row in rows} == {("cancelled", "CANCELLED")}


def test_a_full_disk_ends_the_drive() -> None:
    class Full(Exception):
        pass

    def record(row: RequestRow) -> None:
        raise Full

    async def use(url: str) -> None:
        async with HttpDriver(HttpTarget(url, "m"), record) as driver:
            with pytest.raises(Full):
                await driver.run(OpenLoop(schedule(20.0, 0.5), asyncio.get_running_loop().time(), "m", 5.0))

    asyncio.run(serving(StubServer(0.0, 0.0).application, use))


@pytest.mark.parametrize(
    "url",
    [
        "127.0.0.1:8000",
        "ftp://host/v1",
        "http:///v1",
        "http://host:port/v1",
        "http://me:secret@host/v1",
        "http://h/v1?a=b",
    ],
)
def test_a_wrong_url_is_told_in_a_line_without_its_password(url: str) -> None:
    with pytest.raises(BadTarget) as told:
        HttpTarget(url, "m")
    assert "\n" not in str(told.value)
    assert "secret" not in str(told.value)


def test_the_key_comes_from_the_environment_and_is_in_nothing_else(monkeypatch: pytest.MonkeyPatch) -> None:
    target = HttpTarget("http://127.0.0.1:1/v1", "m", key_env="OUR_KEY")
    monkeypatch.delenv("OUR_KEY", raising=False)
    with pytest.raises(BadTarget, match="no OUR_KEY"):
        target.headers()
    monkeypatch.setenv("OUR_KEY", "secret\nX-Evil: 1")
    with pytest.raises(BadTarget, match="printable"):
        target.headers()
    monkeypatch.setenv("OUR_KEY", " secret \n")
    assert target.headers()["Authorization"] == "Bearer secret"
    assert "secret" not in repr(target)
