"""What is posted when a verdict changes, and what is said when nobody takes it."""

import asyncio
import json
import socket

import msgspec
from aiohttp import web

from chaos import notify
from chaos.notify import Webhook, body
from chaos.scheduling.records import Change

CHANGE = Change(
    entry="partition", slot_s=1_800_000_000, at_s=1_800_000_090.0, verdict="fail", before="pass",
    reason="1 of the 2 requests\nat risk <was> lost", results="partition/20270115T080000Z/run", quarantined=True,
)  # fmt: skip


def test_the_body_has_a_text_for_people_and_facts_for_programs() -> None:
    told = json.loads(body("nightly", CHANGE))
    assert told["text"] == (
        "nightly/partition: FAIL, was pass. 1 of the 2 requests at risk &lt;was&gt; lost Slot 2027-01-15T08:00:00Z, "
        "results partition/20270115T080000Z/run. It does not run again until `--ack partition`."
    )
    assert told["id"] == "nightly/partition@1800000000"
    assert (told["verdict"], told["before"], told["quarantined"]) == ("fail", "pass", True)
    assert told["began"] is True
    assert told["reason"] == "1 of the 2 requests at risk <was> lost"


def test_a_run_that_could_not_start_is_called_so() -> None:
    change = msgspec.structs.replace(CHANGE, verdict="usage", reason="no such experiment", results="", began=False)
    told = json.loads(body("nightly", change))
    assert told["text"].startswith("nightly/partition: COULD NOT START (usage), was pass. no such experiment")
    assert (told["verdict"], told["began"]) == ("usage", False)


async def _answered(status: int, delay_s: float = 0.0) -> tuple[str, list[dict[str, str]]]:
    seen: list[dict[str, str]] = []

    async def take(request: web.Request) -> web.Response:
        seen.append({**json.loads(await request.read()), "key": request.headers["Idempotency-Key"]})
        await asyncio.sleep(delay_s)
        return web.Response(status=status, headers={"Location": "/elsewhere"})

    application = web.Application()
    application.add_routes([web.post("/secret", take)])
    runner = web.AppRunner(application)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    try:
        port = runner.addresses[0][1]
        return await Webhook(f"http://127.0.0.1:{port}/secret", "nightly").post(CHANGE), seen
    finally:
        await runner.cleanup()


def test_what_is_taken_is_told_once() -> None:
    problem, seen = asyncio.run(_answered(204))
    assert problem == ""
    assert [each["key"] for each in seen] == [seen[0]["id"]]


def test_refusals_and_redirects_are_no_delivery() -> None:
    for status in (302, 404, 500):
        problem, _ = asyncio.run(_answered(status))
        assert problem == f"the webhook answered {status}"


def test_nobody_there_and_nobody_who_answers_are_said_without_the_url() -> None:
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    problem = asyncio.run(Webhook(f"http://127.0.0.1:{port}/T0/secret", "nightly").post(CHANGE))
    assert problem.startswith("the webhook cannot be reached")
    assert "secret" not in problem


def test_an_answer_that_does_not_come_has_a_limit() -> None:
    before, notify.LIMIT_S = notify.LIMIT_S, 0.1
    try:
        problem, _ = asyncio.run(_answered(200, delay_s=1.0))
    finally:
        notify.LIMIT_S = before
    assert problem == "the webhook did not answer within 0.1 s"
