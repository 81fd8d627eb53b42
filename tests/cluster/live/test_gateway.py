"""The gateway over real sockets, in front of a cluster that does what each test wants."""

import asyncio
import contextlib
import json
import logging
import socket
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import aiohttp
import pytest
import yarl

from cluster.engine.weights import model_directory
from cluster.errors import TRAITS, Code
from cluster.live.chat import ChatTokenizer
from cluster.live.gateway import Gateway, GatewaySettings, ServedModel
from cluster.live.http import Limits
from cluster.node import Abandon, Ask, Deliver, Event
from cluster.protocol import Sampling

TINY = str(model_directory("tiny"))
TOKENIZER = ChatTokenizer(model_directory("tiny"))
CHAT: dict[str, Any] = {"model": "tiny", "messages": [{"role": "user", "content": "hi"}]}
Play = Callable[["FakeCluster", Ask], Awaitable[None]]


class FakeCluster:
    """Takes what a client node takes, and plays what it is told to for each request."""

    def __init__(self, play: Play) -> None:
        self.delivered: Callable[[Deliver], None] | None = None
        self.asks: list[Ask] = []
        self.abandoned: list[str] = []
        self.tasks: dict[str, asyncio.Task[None]] = {}
        self._play = play

    def feed(self, event: Event) -> None:
        match event:
            case Ask():
                self.asks.append(event)
                self.tasks[event.request_id] = asyncio.ensure_future(self._play(self, event))
            case Abandon(request_id):
                self.abandoned.append(request_id)
                self.tasks[request_id].cancel()

    def give(self, ask: Ask, text: str, finish: str | None = None, total: int = 0, cached: int = 0) -> None:
        tokens = TOKENIZER.text(text)
        assert self.delivered is not None
        self.delivered(Deliver(ask.request_id, tokens, total or len(tokens), finish, None, cached))

    def fail(self, ask: Ask, code: Code) -> None:
        assert self.delivered is not None
        self.delivered(Deliver(ask.request_id, (), 0, None, code))


def says(*texts: str, finish: str = "stop") -> Play:
    async def play(cluster: FakeCluster, ask: Ask) -> None:
        total = 0
        for number, text in enumerate(texts):
            await asyncio.sleep(0.001)
            total += len(TOKENIZER.text(text))
            cluster.give(ask, text, finish if number == len(texts) - 1 else None, total, cached=3)

    return play


def fails(code: Code, after: str = "") -> Play:
    async def play(cluster: FakeCluster, ask: Ask) -> None:
        if after:
            cluster.give(ask, after)
            await asyncio.sleep(0.02)
        cluster.fail(ask, code)

    return play


async def hangs(cluster: FakeCluster, ask: Ask) -> None:
    await asyncio.sleep(60)


class Bench:
    """A gateway, its cluster, and a client of it."""

    def __init__(self, gateway: Gateway, cluster: FakeCluster, session: aiohttp.ClientSession, port: int) -> None:
        self.gateway, self.cluster, self.session, self.port = gateway, cluster, session, port

    async def post(self, body: object, path: str = "/v1/chat/completions", **options: Any) -> tuple[int, Any]:
        async with self.session.post(path, json=body, **options) as answer:
            return answer.status, await answer.json()

    async def events(self, body: dict[str, Any], path: str = "/v1/chat/completions") -> list[Any]:
        async with self.session.post(path, json={**body, "stream": True}) as answer:
            assert answer.status == 200
            assert answer.content_type == "text/event-stream"
            text = (await answer.read()).decode()
        lines = [line.removeprefix("data: ") for line in text.split("\n\n") if line]
        return [line if line == "[DONE]" else json.loads(line) for line in lines]

    async def metric(self, name: str) -> float:
        async with self.session.get("/metrics") as answer:
            text = await answer.text()
        return sum(float(line.rpartition(" ")[2]) for line in text.splitlines() if line.startswith(name))


@contextlib.asynccontextmanager
async def bench(play: Play, **settings: Any) -> AsyncIterator[Bench]:
    cluster = FakeCluster(play)
    options: dict[str, Any] = {"context_tokens": 256, "message_bytes_max": 2**20, **settings}
    options.setdefault("models", (ServedModel("tiny", "tiny", TINY),))
    gateway = Gateway(GatewaySettings(**options), cluster)
    port = await gateway.start()
    try:
        async with aiohttp.ClientSession(f"http://127.0.0.1:{port}") as session:
            yield Bench(gateway, cluster, session, port)
    finally:
        await gateway.stop()
        for task in cluster.tasks.values():
            task.cancel()


def run(play: Play, test: Callable[[Bench], Awaitable[None]], **settings: Any) -> None:
    async def all_of_it() -> None:
        async with bench(play, **settings) as b:
            await test(b)

    asyncio.run(all_of_it())


async def until(condition: Callable[[], bool], limit_s: float = 5.0) -> None:
    async with asyncio.timeout(limit_s):
        while not condition():  # noqa: ASYNC110 - what is waited for tells nobody
            await asyncio.sleep(0.005)


def test_a_whole_answer() -> None:
    async def test(b: Bench) -> None:
        body = {**CHAT, "max_tokens": 9, "session_id": "s", "priority": 1, "temperature": 0.5, "top_p": 0.9}
        status, answer = await b.post({**body, "timeout": 7, "worker": "w1"})
        assert status == 200
        assert answer["choices"] == [
            {
                "index": 0,
                "message": {"role": "assistant", "content": "Hello you", "refusal": None},
                "finish_reason": "stop",
                "logprobs": None,
            }
        ]
        (ask,) = b.cluster.asks
        prompt, total = len(ask.prompt), len(TOKENIZER.text("Hello")) + len(TOKENIZER.text(" you"))
        assert answer["usage"] == {
            "prompt_tokens": prompt,
            "completion_tokens": total,
            "total_tokens": prompt + total,
            "prompt_tokens_details": {"cached_tokens": 3},
        }
        assert ask.prompt == TOKENIZER.chat([{"role": "user", "content": "hi"}])
        assert (ask.max_tokens, ask.timeout_s, ask.session_id, ask.priority, ask.worker) == (9, 7.0, "s", 1, "w1")
        assert ask.sampling == Sampling(0.5, 0.9)
        assert b.cluster.abandoned == []

    run(says("Hello", " you"), test)


def test_a_stream_tells_the_role_first_and_the_tokens_last() -> None:
    async def test(b: Bench) -> None:
        events = await b.events({**CHAT, "stream_options": {"include_usage": True}})
        assert events.pop() == "[DONE]"
        assert [event["choices"] and event["choices"][0]["delta"] for event in events] == [
            {"role": "assistant", "content": "Hel"},
            {"content": "lo"},
            {},
            [],
        ]
        assert [event["choices"] and event["choices"][0]["finish_reason"] for event in events] == [
            None,
            None,
            "length",
            [],
        ]
        assert [event["usage"] is None for event in events] == [True, True, True, False]
        assert len({event["id"] for event in events}) == 1
        assert all("usage" not in event for event in (await b.events(CHAT))[:-1])

    run(says("Hel", "lo", finish="length"), test)


def test_texts_are_completed_from_text_or_tokens() -> None:
    async def test(b: Bench) -> None:
        path = "/v1/completions"
        status, answer = await b.post({"model": "tiny", "prompt": "abc"}, path)
        assert (status, answer["choices"][0]["text"]) == (200, "Hello")
        status, answer = await b.post({"model": "tiny", "prompt": [5, 6, 7]}, path)
        assert status == 200
        assert [ask.prompt for ask in b.cluster.asks] == [TOKENIZER.text("abc"), (5, 6, 7)]
        events = await b.events({"model": "tiny", "prompt": "abc"}, path)
        assert [event["choices"][0]["text"] for event in events[:-1]] == ["Hello", ""]
        status, answer = await b.post({"model": "tiny", "prompt": [5, 512]}, path)
        assert (status, answer["error"]["param"]) == (400, "prompt")

    run(says("Hello"), test)


def test_a_stop_string_ends_the_answer_and_frees_the_slot() -> None:
    async def endless(cluster: FakeCluster, ask: Ask) -> None:
        for number in range(1, 10_000):
            cluster.give(ask, "one EN" if number % 2 else "D two", total=number)
            await asyncio.sleep(0.001)

    async def test(b: Bench) -> None:
        status, answer = await b.post({**CHAT, "stop": ["END"]})
        assert (status, answer["choices"][0]["finish_reason"]) == (200, "stop")
        assert answer["choices"][0]["message"]["content"] == "one "
        events = await b.events({**CHAT, "stop": "END"})
        assert "".join(event["choices"][0]["delta"].get("content", "") for event in events[:-1]) == "one "
        assert b.cluster.abandoned == [ask.request_id for ask in b.cluster.asks]

    run(endless, test)


@pytest.mark.parametrize("path", ["/v1/chat/completions", "/v1/completions"])
def test_tokens_after_a_stop_string_are_not_counted(path: str) -> None:
    text = "one END two three four"
    wanted = next(count for count in range(1, 100) if "END" in TOKENIZER.decode(TOKENIZER.text(text)[:count]))

    async def test(b: Bench) -> None:
        body = {"model": "tiny", "stop": ["END"], **({"prompt": "x"} if "chat" not in path else CHAT)}
        assert wanted < len(TOKENIZER.text(text))
        # All of it comes at once, before the gateway could stop anything.
        _, answer = await b.post(body, path)
        prompt = answer["usage"]["prompt_tokens"]
        assert (answer["usage"]["completion_tokens"], answer["usage"]["total_tokens"]) == (wanted, prompt + wanted)
        events = await b.events({**body, "stream_options": {"include_usage": True}}, path)
        assert events[-2]["usage"] == answer["usage"]
        assert await b.metric('mlxc_gateway_tokens_total{kind="completion"}') == 2 * wanted
        _, answer = await b.post({**body, "stop": "no such string"}, path)
        assert answer["usage"]["completion_tokens"] == len(TOKENIZER.text(text))

    run(says(text), test)


@pytest.mark.parametrize("code", [code for code in Code if code is not Code.CANCELLED])
def test_each_code_keeps_its_identity(code: Code) -> None:
    async def test(b: Bench) -> None:
        for stream in (False, True):
            async with b.session.post("/v1/chat/completions", json={**CHAT, "stream": stream}) as answer:
                assert answer.status == TRAITS[code].http_status
                error = (await answer.json())["error"]
                assert (error["code"], error["message"]) == (code.value, TRAITS[code].meaning)
                assert ("Retry-After" in answer.headers) == (answer.status in (429, 503))
        assert await b.metric(f'mlxc_gateway_requests_total{{code="{code}"') == 2

    run(fails(code), test)


def test_a_failure_in_the_middle_is_the_streams_last_event() -> None:
    async def test(b: Bench) -> None:
        events = await b.events(CHAT)
        assert events[0]["choices"][0]["delta"]["content"] == "Hel"
        assert events[1]["error"]["code"] == "WORKER_LOST"
        assert len(events) == 2
        status, answer = await b.post(CHAT)
        assert (status, answer["error"]["code"]) == (502, "WORKER_LOST")

    run(fails(Code.WORKER_LOST, after="Hel"), test)


def test_what_never_ends_is_ended_at_its_deadline(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("cluster.live.exchange._OVERDUE_S", 0.1)

    async def test(b: Bench) -> None:
        status, answer = await b.post({**CHAT, "timeout": 0.1})
        assert (status, answer["error"]["code"]) == (504, "DEADLINE_EXCEEDED")
        assert len(b.cluster.abandoned) == 1

    run(hangs, test)


@pytest.mark.parametrize("stream", [False, True])
def test_a_caller_that_goes_away_frees_the_slot(stream: bool) -> None:
    async def play(cluster: FakeCluster, ask: Ask) -> None:
        cluster.give(ask, "Hello")
        await asyncio.sleep(60)

    async def test(b: Bench) -> None:
        asked = asyncio.ensure_future(b.post({**CHAT, "stream": stream}))
        await until(lambda: len(b.cluster.asks) == 1)
        await asyncio.sleep(0.05)
        asked.cancel()
        await until(lambda: len(b.cluster.abandoned) == 1)
        assert await b.metric("mlxc_gateway_open_requests") == 0
        assert await b.metric('mlxc_gateway_requests_total{code="CANCELLED"') == 1

    run(play, test)


def test_a_reader_that_does_not_read_is_left() -> None:
    async def floods(cluster: FakeCluster, ask: Ask) -> None:
        for number in range(1, 100_000):
            cluster.give(ask, "Hello you there " * 50, total=number)
            await asyncio.sleep(0)

    async def test(b: Bench) -> None:
        body = json.dumps({**CHAT, "stream": True}).encode()
        head = f"POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\nContent-Length: {len(body)}\r\n"
        peer = socket.socket()
        peer.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        peer.setblocking(False)
        loop = asyncio.get_running_loop()
        await loop.sock_connect(peer, ("127.0.0.1", b.port))
        await loop.sock_sendall(peer, f"{head}Content-Type: application/json\r\n\r\n".encode() + body)
        await until(lambda: len(b.cluster.abandoned) == 1, 20)
        peer.close()
        assert await b.metric("mlxc_gateway_open_requests") == 0

    run(floods, test, limits=Limits(reader_s=0.3))


def test_keys_are_demanded_and_sessions_of_different_keys_do_not_meet() -> None:
    async def test(b: Bench) -> None:
        for headers in ({}, {"Authorization": "Bearer wrong"}, {"Authorization": "Basic one"}):
            status, answer = await b.post(CHAT, headers=headers)
            assert (status, answer["error"]["code"]) == (401, "INVALID_API_KEY")
        for path in ("/v1/models", "/v1/models/tiny", "/v1/models/nosuch"):
            async with b.session.get(path) as answer:
                assert answer.status == 401
        for path in ("/healthz", "/metrics", "/openapi.json"):
            async with b.session.get(path) as answer:
                assert answer.status == 200
        for key in ("one", "two"):
            status, _ = await b.post({**CHAT, "session_id": "s"}, headers={"Authorization": f"Bearer {key}"})
            assert status == 200
        assert len({ask.session_id for ask in b.cluster.asks}) == 2

    run(says("Hello"), test, api_keys=("one", "two"))


def test_what_is_no_request_is_told_so() -> None:
    async def test(b: Bench) -> None:
        async def code(method: str, path: str, **options: Any) -> tuple[int, str]:
            async with b.session.request(method, path, **options) as answer:
                return answer.status, (await answer.json())["error"]["code"]

        json_type = {"Content-Type": "application/json"}
        chat = "/v1/chat/completions"
        assert await code("GET", "/nowhere") == (404, "NOT_FOUND")
        assert await code("GET", chat) == (405, "METHOD_NOT_ALLOWED")
        assert await code("POST", chat, data=b"{", headers=json_type) == (400, "INVALID_REQUEST")
        assert await code("POST", chat, data=b"{}", headers={"Content-Type": "text/plain"}) == (
            415,
            "UNSUPPORTED_MEDIA_TYPE",
        )
        assert await code("POST", chat, data=b" " * 5_000, headers=json_type) == (413, "REQUEST_TOO_LARGE")
        gzipped = {**json_type, "Content-Encoding": "gzip"}
        assert await code("POST", chat, data=b"rubbish", headers=gzipped) == (415, "UNSUPPORTED_MEDIA_TYPE")
        assert await code("POST", chat, json={**CHAT, "model": "gpt-4"}) == (404, "MODEL_NOT_FOUND")
        assert await code("POST", chat, json={**CHAT, "max_tokens": 300}) == (400, "context_length_exceeded")
        long = [{"role": "user", "content": "x y " * 200}]
        assert await code("POST", chat, json={**CHAT, "messages": long}) == (400, "context_length_exceeded")
        headers = {"X-Session-Id": "s" * 200}
        assert await code("POST", chat, json=CHAT, headers=headers) == (400, "INVALID_REQUEST")
        assert b.cluster.asks == []

    run(says("Hello"), test, limits=Limits(body_bytes_max=4_096))


def test_a_session_that_is_no_utf_8_is_refused_before_it_reaches_the_node() -> None:
    async def test(b: Bench) -> None:
        body = json.dumps(CHAT).encode()
        head = f"POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\nContent-Length: {len(body)}\r\nConnection: close\r\n"
        for session, status in ((b"\xff\xfe", 400), ("Frühling".encode(), 200)):
            reader, writer = await asyncio.open_connection("127.0.0.1", b.port)
            writer.write(head.encode() + b"Content-Type: application/json\r\nX-Session-Id: %s\r\n\r\n" % session + body)
            answer = await asyncio.wait_for(reader.read(), 3)
            assert answer[9:12] == str(status).encode()
            assert status == 200 or b'"param":"X-Session-Id"' in answer
            writer.close()
        assert [ask.session_id for ask in b.cluster.asks] == ["Frühling"]

    run(says("Hello"), test)


def test_what_does_not_fit_into_a_message_of_the_cluster_is_refused_before() -> None:
    async def test(b: Bench) -> None:
        status, answer = await b.post({**CHAT, "max_tokens": 200})
        assert (status, answer["error"]["code"]) == (400, "context_length_exceeded")
        assert "message of the cluster" in answer["error"]["message"]

    run(says("Hello"), test, message_bytes_max=5_000)


def test_a_body_that_does_not_come_is_not_awaited_for_ever() -> None:
    async def test(b: Bench) -> None:
        reader, writer = await asyncio.open_connection("127.0.0.1", b.port)
        head = "POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"
        writer.write(f"{head}Content-Length: 100\r\n\r\n{{".encode())
        assert b" 408 " in await reader.readline()
        writer.close()

    run(says("Hello"), test, limits=Limits(body_s=0.1))


def test_a_head_that_does_not_come_is_not_awaited_for_ever() -> None:
    async def test(b: Bench) -> None:
        reader, writer = await asyncio.open_connection("127.0.0.1", b.port)
        writer.write(b"GET /healthz HTTP/1.1\r\nHost: x\r\nX-A:")
        assert await asyncio.wait_for(reader.read(), 3) == b""
        writer.close()

    run(says("Hello"), test, limits=Limits(idle_s=0.2))


def test_what_is_no_http_gets_a_typed_error_too(caplog: pytest.LogCaptureFixture) -> None:
    async def test(b: Bench) -> None:
        for rubbish in (b"\x16\x03\x01\x02\x00\x01", b"GET\r\n\r\n", b"GET / HTTP/9\r\n\r\n", b"A" * 20_000 + b"\r\n"):
            reader, writer = await asyncio.open_connection("127.0.0.1", b.port)
            writer.write(rubbish + b"\r\n\r\n")
            answer = await asyncio.wait_for(reader.read(), 3)
            assert answer[8:].startswith(b" 400 ")
            assert json.loads(answer.partition(b"\r\n\r\n")[2])["error"]["code"] == "INVALID_REQUEST"
            writer.close()
        assert caplog.records == []

    run(says("Hello"), test)


def test_there_is_a_limit_of_open_requests_and_of_connections() -> None:
    async def test(b: Bench) -> None:
        first = asyncio.ensure_future(b.post(CHAT))
        await until(lambda: len(b.cluster.asks) == 1)
        async with b.session.post("/v1/chat/completions", json=CHAT) as answer:
            assert answer.status == 429
            assert answer.headers["Retry-After"] == "1"
            assert (await answer.json())["error"]["code"] == "OVERLOADED"
        peers = [await asyncio.open_connection("127.0.0.1", b.port) for _ in range(4)]
        with contextlib.suppress(ConnectionError):
            assert await asyncio.wait_for(peers[-1][0].read(), 3) == b""
        for _, writer in peers:
            writer.close()
        first.cancel()

    run(hangs, test, open_max=1, limits=Limits(connections_max=4))


def test_ready_means_that_a_token_was_made_a_moment_ago() -> None:
    answers = [says("a", finish="length"), fails(Code.NO_WORKERS_AVAILABLE)]

    async def play(cluster: FakeCluster, ask: Ask) -> None:
        await answers[0](cluster, ask)

    async def ready(b: Bench) -> int:
        async with b.session.get("/readyz") as answer:
            return answer.status

    async def test(b: Bench) -> None:
        assert await asyncio.gather(*(ready(b) for _ in range(5))) == [200] * 5
        assert [(ask.max_tokens, ask.priority) for ask in b.cluster.asks] == [(1, 1)]
        answers.reverse()
        assert await ready(b) == 200
        await asyncio.sleep(1.1)
        async with b.session.get("/readyz") as answer:
            assert answer.status == 503
            assert "NO_WORKERS_AVAILABLE" in (await answer.json())["error"]["message"]
        assert len(b.cluster.asks) == 2

    run(play, test)


def test_an_error_of_ours_is_typed_logged_once_and_tells_nothing(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    async def test(b: Bench) -> None:
        monkeypatch.setattr("cluster.live.gateway.StopFinder", lambda stops: 1 / 0)
        status, answer = await b.post(CHAT)
        assert (status, answer["error"]["code"]) == (500, "INTERNAL_ERROR")
        assert "division" not in answer["error"]["message"]
        assert len([record for record in caplog.records if record.levelno >= logging.ERROR]) == 1
        assert len(b.cluster.abandoned) == 1

    run(says("Hello"), test)


def test_draining_lets_open_requests_end_and_takes_no_others() -> None:
    async def slow(cluster: FakeCluster, ask: Ask) -> None:
        await asyncio.sleep(0.3)
        cluster.give(ask, "Hello", "stop")

    async def test(b: Bench) -> None:
        first = asyncio.ensure_future(b.post(CHAT))
        async with b.session.get("/healthz") as answer:
            await answer.read()
        await until(lambda: len(b.cluster.asks) == 1)
        drain = asyncio.ensure_future(b.gateway.drain(5.0))
        await asyncio.sleep(0.01)
        # Over the connection that the other request has left open.
        status, answer = await b.post(CHAT)
        assert (status, answer["error"]["code"]) == (503, "GATEWAY_STOPPING")
        assert await drain
        assert (await first)[0] == 200

    run(slow, test)


def test_when_the_node_is_lost_every_request_is_told_so() -> None:
    async def test(b: Bench) -> None:
        first = asyncio.ensure_future(b.post(CHAT))
        await until(lambda: len(b.cluster.asks) == 1)
        b.gateway.fail("the shell ended")
        assert (await first)[1]["error"]["code"] == "INTERNAL_ERROR"
        assert (await b.post(CHAT))[0] == 503
        async with b.session.get("/healthz") as answer:
            assert answer.status == 500

    run(hangs, test)


def test_what_is_served_and_how_to_ask_is_told() -> None:
    async def test(b: Bench) -> None:
        async with b.session.get("/v1/models") as answer:
            (model,) = (await answer.json())["data"]
            assert (model["id"], model["object"], model["context_tokens"]) == ("tiny", "model", 256)
        async with b.session.get("/openapi.json") as answer:
            document = await answer.json()
        assert document["openapi"].startswith("3.1")
        (parameter,) = document["paths"]["/v1/models/{id}"]["get"]["parameters"]
        assert (parameter["in"], parameter["schema"]["enum"]) == ("path", ["tiny"])
        assert document["components"]["schemas"]["ChatRequest"]["properties"]["model"]["enum"] == ["tiny"]
        await b.post(CHAT)
        for name in ("time_to_first_token_seconds", "request_seconds"):
            assert await b.metric(f"mlxc_gateway_{name}_count") == 1

    run(says("Hello"), test)


def test_one_model_is_told_also_when_its_id_has_slashes() -> None:
    hub = "mlx-community/Llama-3.2-1B-Instruct-4bit"
    models = (ServedModel("tiny", "tiny", TINY), ServedModel(hub, hub, TINY))

    async def test(b: Bench) -> None:
        async with b.session.get("/v1/models") as answer:
            listed = {model["id"]: model for model in (await answer.json())["data"]}
        for path, name in (("tiny", "tiny"), (hub, hub), (hub.replace("/", "%2F"), hub)):
            async with b.session.get(yarl.URL(f"http://127.0.0.1:{b.port}/v1/models/{path}", encoded=True)) as answer:
                assert (answer.status, await answer.json()) == (200, listed[name])
        for path in ("nosuch", "tiny/", "mlx-community", "%FF%00", "x" * 5_000):
            async with b.session.get(yarl.URL(f"http://127.0.0.1:{b.port}/v1/models/{path}", encoded=True)) as answer:
                assert answer.status == 404
                error = (await answer.json())["error"]
                assert (error["code"], error["type"], error["param"]) == ("MODEL_NOT_FOUND", "not_found_error", "model")
                assert len(error["message"]) < 500

    run(says("Hello"), test, models=models)


@pytest.mark.parametrize("escape", [b"\\ud800", b"\xff"])
def test_a_text_that_is_no_unicode_is_told_with_its_field(escape: bytes) -> None:
    async def test(b: Bench) -> None:
        body = b'{"model": "tiny", "messages": [{"role": "user", "content": "hi %s"}]}' % escape
        headers = {"Content-Type": "application/json"}
        async with b.session.post("/v1/chat/completions", data=body, headers=headers) as answer:
            error = (await answer.json())["error"]
            assert (answer.status, error["code"], error["param"]) == (400, "INVALID_REQUEST", "messages[0].content")
            assert error["message"].startswith("messages[0].content: is not valid Unicode text")

    run(says("Hello"), test)
