"""`python -m workloads.stub_server`: an endpoint that computes nothing and keeps time, to measure clients against.

It answers POST /v1/chat/completions and /v1/completions with `max_tokens` tokens: the first after `ttft_s`, each next
`gap_s` after the one before, as planned from the moment in which the request was read, so that one that is late does
not delay the next. How late it was itself, it tells under /stats. A gap of 0 sends the whole answer at once.
"""

import argparse
import asyncio
import signal
import sys
import time
from typing import Any

import msgspec
import numpy as np
from aiohttp import web

TTFT_S = 0.05
GAP_S = 0.01
TOKENS_MAX = 10_000
_BODY_BYTES_MAX = 2**22
_LATE_MAX = 200_000
_BACKLOG = 2048
_DONE = b"data: [DONE]\n\n"


class Stats(msgspec.Struct, frozen=True):
    """Since the last reset. late_*: of its tokens against its own plan, seconds; None before any."""

    requests: int
    tokens: int
    cpu_s: float
    elapsed_s: float
    late_p50_s: float | None
    late_p99_s: float | None


class _Asked(msgspec.Struct):
    model: str = "stub"
    max_tokens: int | None = None
    max_completion_tokens: int | None = None
    stream: bool = False


_asked = msgspec.json.Decoder(_Asked)


class StubServer:
    """The application. ttft_s, gap_s: in seconds."""

    def __init__(self, ttft_s: float = TTFT_S, gap_s: float = GAP_S) -> None:
        self._ttft_s = ttft_s
        self._gap_s = gap_s
        self.application = web.Application(client_max_size=_BODY_BYTES_MAX)
        self.application.router.add_post("/v1/chat/completions", self._chat)
        self.application.router.add_post("/v1/completions", self._text)
        self.application.router.add_get("/v1/models", self._models)
        self.application.router.add_get("/stats", self._stats)
        self._reset()

    def _reset(self) -> None:
        self._requests = self._tokens = 0
        self._late_s: list[float] = []
        self._began_s, self._cpu_s = time.monotonic(), time.process_time()

    async def _models(self, request: web.Request) -> web.Response:
        return web.json_response({"object": "list", "data": [{"id": "stub", "object": "model", "owned_by": "stub"}]})

    async def _stats(self, request: web.Request) -> web.Response:
        late = np.array(self._late_s)
        p50, p99 = (float(np.quantile(late, share)) for share in (0.5, 0.99)) if late.size else (None, None)
        elapsed_s, cpu_s = time.monotonic() - self._began_s, time.process_time() - self._cpu_s
        stats = Stats(self._requests, self._tokens, cpu_s, elapsed_s, p50, p99)
        if "reset" in request.query:
            self._reset()
        return web.Response(body=msgspec.json.encode(stats), content_type="application/json")

    async def _chat(self, request: web.Request) -> web.StreamResponse:
        return await self._answer(request, _chat_event, "chat.completion")

    async def _text(self, request: web.Request) -> web.StreamResponse:
        return await self._answer(request, _text_event, "text_completion")

    async def _answer(self, request: web.Request, event: Any, kind: str) -> web.StreamResponse:
        try:
            asked = _asked.decode(await request.read())
        except msgspec.DecodeError as error:
            return web.json_response({"error": {"message": str(error), "code": "INVALID_REQUEST"}}, status=400)
        clock = asyncio.get_running_loop().time
        due_s = clock() + self._ttft_s
        count = min(max(1, asked.max_completion_tokens or asked.max_tokens or 16), TOKENS_MAX)
        self._requests += 1
        if not asked.stream:
            await asyncio.sleep(due_s + (count - 1) * self._gap_s - clock())
            return web.json_response(_whole(kind, asked.model, count))
        response = web.StreamResponse(headers={"Content-Type": "text/event-stream", "Cache-Control": "no-cache"})
        await response.prepare(request)
        ending = event(asked.model, "", "length") + _usage_event(kind, asked.model, count) + _DONE
        token = event(asked.model, "ba ", None)
        if self._ttft_s > 0:
            await asyncio.sleep(due_s - clock())
        if self._gap_s <= 0:
            self._sent(due_s, clock(), count)
            await response.write(token * count + ending)
            return response
        for number in range(count):
            wait_s = due_s + number * self._gap_s - clock()
            if number and wait_s > 0:
                await asyncio.sleep(wait_s)
            self._sent(due_s + number * self._gap_s, clock(), 1)
            await response.write(token if number + 1 < count else token + ending)
        return response

    def _sent(self, due_s: float, now: float, tokens: int) -> None:
        self._tokens += tokens
        if len(self._late_s) < _LATE_MAX:
            self._late_s.append(now - due_s)


def _event(kind: str, model: str, choices: list[dict[str, object]], **more: object) -> bytes:
    body = {"id": "stub-1", "object": kind, "created": 0, "model": model, "choices": choices, **more}
    return b"data: " + msgspec.json.encode(body) + b"\n\n"


def _chat_event(model: str, text: str, finish: str | None) -> bytes:
    delta = {"content": text} if text else {}
    return _event("chat.completion.chunk", model, [{"index": 0, "delta": delta, "finish_reason": finish}])


def _text_event(model: str, text: str, finish: str | None) -> bytes:
    return _event("text_completion", model, [{"index": 0, "text": text, "finish_reason": finish}])


def _usage(count: int) -> dict[str, int]:
    return {"prompt_tokens": 1, "completion_tokens": count, "total_tokens": count + 1}


def _usage_event(kind: str, model: str, count: int) -> bytes:
    kind = "chat.completion.chunk" if kind == "chat.completion" else kind
    return _event(kind, model, [], usage=_usage(count))


def _whole(kind: str, model: str, count: int) -> dict[str, object]:
    text = "ba " * count
    said: dict[str, object] = {"index": 0, "finish_reason": "length"}
    said |= {"message": {"role": "assistant", "content": text}} if kind == "chat.completion" else {"text": text}
    return {"id": "stub-1", "object": kind, "created": 0, "model": model, "choices": [said], "usage": _usage(count)}


async def serve(stub: StubServer, host: str, port: int, parent: bool) -> None:
    """Serve until told to end; with `parent`, also when standard input is closed. Prints the URL. Raises OSError."""
    over = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, over.set)
    if parent:
        loop.add_reader(sys.stdin.fileno(), over.set)
    runner = web.AppRunner(stub.application, access_log=None, shutdown_timeout=0.5)
    await runner.setup()
    try:
        site = web.TCPSite(runner, host, port, backlog=_BACKLOG)
        await site.start()
        bound = runner.addresses[0][1]
        print(f"http://{host}:{bound}/v1", flush=True)
        await over.wait()
    finally:
        await runner.cleanup()


def main() -> int:
    """Run the command line; returns the exit code."""
    parser = argparse.ArgumentParser(prog="python -m workloads.stub_server", description=__doc__)
    parser.add_argument("--host", default="127.0.0.1", help="default: loopback only")
    parser.add_argument("--port", type=int, default=0, help="default: any free one; the URL is printed")
    parser.add_argument("--ttft", type=float, default=TTFT_S, metavar="S", help="default: %(default)s s")
    parser.add_argument("--gap", type=float, default=GAP_S, metavar="S", help="between tokens, default: %(default)s s")
    parser.add_argument("--ends-with-stdin", action="store_true", help="end when standard input is closed")
    options = parser.parse_args()
    if options.ttft < 0 or options.gap < 0:
        parser.error("--ttft, --gap: expected seconds, 0 or more")
    try:
        asyncio.run(serve(StubServer(options.ttft, options.gap), options.host, options.port, options.ends_with_stdin))
    except OSError as error:
        print(f"workloads.stub_server: cannot listen on {options.host}:{options.port}: {error}", file=sys.stderr)
        return 5
    return 0


if __name__ == "__main__":
    sys.exit(main())
