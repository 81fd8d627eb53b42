"""`python -m tests.gateway_fuzz --requests N`: rubbish, wrong and right requests against a running gateway.

Half of them are made from its OpenAPI document by schemathesis, half are bytes that somebody only might send. Every
answer must be one that the document allows, every error typed; afterwards nothing may be left of them: no open
request, task, connection or file, no memory, no slot of a worker.
"""

import argparse
import itertools
import json
import random
import socket
import struct
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import msgspec
import requests
import schemathesis
from hypothesis import HealthCheck, Phase, given, settings
from schemathesis import GenerationMode

from cluster.errors import Code
from cluster.live import openai as api
from tests.serving import Serving

POLICY = """
worker: {context_max_tokens: 64}
timeout: {first_token_s: 20, between_tokens_s: 20}
"""
"""Short answers; and a machine that is busy with other things is no finding about a gateway."""
CODES = {*Code, *(value for name, value in vars(api).items() if name.isupper() and isinstance(value, str))}
MINE = {504: {"DEADLINE_EXCEEDED"}, 429: {"OVERLOADED", "QUEUE_FULL", "RESOURCE_LIMIT_EXCEEDED"}}
"""Refusals that a request can ask for itself, with a tiny timeout or by coming in a crowd."""
LORIS = 16
SOCKET_S = 10.0
QUIET_S = 20.0
GROWTH_BYTES_MAX = 48 * 2**20
CHAT = {"model": "tiny", "messages": [{"role": "user", "content": "hi"}], "max_tokens": 8}

CLOSING = ("/v1/chat/completions", "Connection: close")


class Findings:
    """What was seen, and what should not have been."""

    def __init__(self) -> None:
        self.answers: Counter[str] = Counter()
        self.wrong: list[str] = []
        self._lock = threading.Lock()

    def saw(self, kind: str, status: int | str) -> None:
        """Count an answer."""
        with self._lock:
            self.answers[f"{kind} {status}"] += 1

    def bad(self, what: str) -> None:
        """Keep what must not be."""
        with self._lock:
            self.wrong.append(what[:500])


def judge(findings: Findings, kind: str, status: int, body: bytes, content_type: str, request: str) -> None:
    """One answer that is whole."""
    findings.saw(kind, status)
    if content_type.startswith("text/event-stream"):
        events = [line for line in body.split(b"\n\n") if line]
        if not events or not (events[-1] == b"data: [DONE]" or b'"error"' in events[-1]):
            findings.bad(f"{kind}: a stream without an end after {request}: {body[-200:]!r}")
        return
    if status == 200:
        return
    try:
        error = msgspec.json.decode(body, type=api.ErrorBody).error
    except msgspec.DecodeError:
        findings.bad(f"{kind}: {status} without a typed body after {request}: {body[:200]!r}")
        return
    if error.code not in CODES or "Traceback" in error.message or not error.message:
        findings.bad(f"{kind}: {status} with {error} after {request}")
    if status >= 500 or status == 429:
        allowed = MINE.get(status, set())
        if error.code not in allowed:
            findings.bad(f"{kind}: {status} {error.code} after {request}")


def from_document(serving: Serving, count: int, findings: Findings) -> None:
    """Requests that the OpenAPI document describes, and others that are almost so."""
    schema = schemathesis.openapi.from_url(f"{serving.url}/openapi.json")
    operations = [result.ok() for result in schema.get_all_operations()]
    generations = [operation for operation in operations if operation.method.upper() == "POST"]
    others = [operation for operation in operations if operation.method.upper() != "POST"]
    plan = [(operation, mode, count * 2 // 9) for operation in generations for mode in GenerationMode]
    plan += [(operation, GenerationMode.POSITIVE, count // 9 // len(others)) for operation in others]
    session = requests.Session()
    session.trust_env = False
    for operation, mode, examples in plan:
        strategy = operation.as_strategy(generation_mode=mode)
        bound = settings(
            max_examples=max(1, examples),
            deadline=None,
            database=None,
            phases=[Phase.generate],
            suppress_health_check=list(HealthCheck),
        )
        bound(given(case=strategy)(_sender(serving.url, session, operation, mode, findings)))()


def _sender(
    url: str, session: requests.Session, operation: Any, mode: GenerationMode, findings: Findings
) -> Callable[[Any], None]:
    kind = f"{operation.method.upper()} {operation.path} {mode.value}"
    documented = operation.definition.raw["responses"]

    def send(case: Any) -> None:
        try:
            # Not `case.call`, which leaves a stream when it has seen enough of it.
            answer = session.request(**case.as_transport_kwargs(base_url=url), timeout=60)
        except (requests.RequestException, UnicodeError, ValueError) as error:
            # What a client of HTTP cannot even send says nothing about a server.
            findings.saw(kind, type(error).__name__)
            return
        content_type = answer.headers.get("Content-Type", "")
        judge(findings, kind, answer.status_code, answer.content, content_type, str(case.body)[:200])
        if str(answer.status_code) not in documented and answer.status_code not in (404, 405):
            findings.bad(f"{kind}: {answer.status_code} is not documented; {str(case.body)[:200]}")

    return send


def request_bytes(body: bytes, path: str = "/v1/chat/completions", *headers: str) -> bytes:
    """A request as it goes over the wire."""
    lines = [f"POST {path} HTTP/1.1", "Host: x", "Content-Type: application/json", f"Content-Length: {len(body)}"]
    return ("\r\n".join([*lines, *headers]) + "\r\n\r\n").encode() + body


class Rubbish:
    """Makes bytes. Each method: what to send, and whether the peer hangs up without reading."""

    def __init__(self, seed: int) -> None:
        self._random = random.Random(seed)

    def kinds(self) -> Iterator[tuple[str, Callable[[], tuple[bytes, bool]]]]:
        """All of them, in turn, for ever."""
        methods = (
            self.half,
            self.garbage,
            self.huge_head,
            self.flipped,
            self.pipelined,
            self.chunked,
            self.lying_length,
            self.wild_headers,
            self.left_stream,
            self.whole,
        )
        return itertools.cycle((method.__name__, method) for method in methods)

    def _body(self, **changes: object) -> bytes:
        return json.dumps({**CHAT, **changes}).encode()

    def half(self) -> tuple[bytes, bool]:
        """A request that breaks off."""
        whole = request_bytes(self._body())
        return whole[: self._random.randrange(1, len(whole))], True

    def garbage(self) -> tuple[bytes, bool]:
        """No HTTP at all."""
        return self._random.randbytes(self._random.randrange(1, 2_000)) + b"\r\n\r\n", False

    def huge_head(self) -> tuple[bytes, bool]:
        """One line of 100 kB, or two thousand lines."""
        if self._random.random() < 0.5:
            return request_bytes(self._body(), "/v1/chat/completions", "X-Long: " + "a" * 100_000), False
        return request_bytes(self._body(), "/v1/chat/completions", *(f"X-{n}: a" for n in range(2_000))), False

    def flipped(self) -> tuple[bytes, bool]:
        """A right request with a few wrong bytes."""
        raw = bytearray(request_bytes(self._body(), *CLOSING))
        for _ in range(self._random.randrange(1, 6)):
            raw[self._random.randrange(len(raw))] = self._random.randrange(256)
        return bytes(raw), False

    def pipelined(self) -> tuple[bytes, bool]:
        """Several at once, the last one broken."""
        return request_bytes(self._body(max_tokens=1)) * 3 + request_bytes(b"{", *CLOSING), False

    def chunked(self) -> tuple[bytes, bool]:
        """Broken chunks."""
        head = b"POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"
        sizes = (b"zz", b"-1", b"ffffffffffffffffff", b"5", b"")
        return head + b"Transfer-Encoding: chunked\r\n\r\n" + self._random.choice(
            sizes
        ) + b"\r\nhello\r\n0\r\n\r\n", True

    def lying_length(self) -> tuple[bytes, bool]:
        """A body that is longer than told, or a length that is none."""
        body = self._body()
        length = self._random.choice((b"1", b"-5", b"x", b"99999999999999999999", b"5, 6"))
        head = b"POST /v1/completions HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: "
        return head + length + b"\r\n\r\n" + body, True

    def wild_headers(self) -> tuple[bytes, bool]:
        """Bytes in headers that are no text."""
        name = self._random.choice((b"X-Session-Id", b"Authorization", b"Accept", b"User-Agent"))
        value = bytes(self._random.choice(range(128, 256)) for _ in range(self._random.randrange(1, 9)))
        whole = request_bytes(self._body(), *CLOSING)
        return whole.replace(b"Host: x", b"Host: x\r\n" + name + b": " + value, 1), False

    def left_stream(self) -> tuple[bytes, bool]:
        """A stream that nobody stays for."""
        return request_bytes(self._body(stream=True, max_tokens=48)), True

    def whole(self) -> tuple[bytes, bool]:
        """A right request, so that the others have company."""
        return request_bytes(self._body(), *CLOSING), False


def exchange(port: int, payload: bytes, leaves: bool, patience_s: float) -> bytes:
    """Send, read what comes, hang up: with a reset when `leaves`."""
    answer = b""
    with socket.create_connection(("127.0.0.1", port), timeout=SOCKET_S) as peer:
        try:
            peer.sendall(payload)
            peer.settimeout(0.02 if leaves else patience_s)
            if leaves:
                peer.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
                answer = peer.recv(4_096)
            else:
                while data := peer.recv(65_536):
                    answer += data
                    if len(answer) > 2**20:
                        break
        except (TimeoutError, ConnectionError):
            pass
    return answer


def from_bytes(port: int, count: int, findings: Findings, seed: int) -> None:
    """Rubbish over sockets."""
    for number, (kind, make) in enumerate(Rubbish(seed).kinds()):
        if number >= count:
            return
        payload, leaves = make()
        try:
            answer = exchange(port, payload, leaves, 1.0)
        except OSError as error:
            findings.bad(f"{kind}: no connection: {error}")
            continue
        if not answer:
            findings.saw(kind, "nothing")
            continue
        head, _, rest = answer.partition(b"\r\n\r\n")
        status = int(head[9:12]) if head.startswith(b"HTTP/") and head[9:12].isdigit() else 0
        findings.saw(kind, status)
        if status == 0 or status >= 500:
            findings.bad(f"{kind}: {answer[:200]!r}")
        if 400 <= status < 500 and b'"code"' not in rest:
            findings.bad(f"{kind}: {status} without a typed body: {answer[:300]!r}")


def drip(port: int, ended: threading.Event) -> None:
    """Slow loris: a request of which one byte comes at a time, over and over."""
    while not ended.is_set():
        try:
            with socket.create_connection(("127.0.0.1", port), timeout=SOCKET_S) as peer:
                for byte in itertools.cycle(b"GET /healthz HTTP/1.1\r\nX-Slow: "):
                    if ended.wait(0.5):
                        return
                    peer.sendall(bytes([byte]))
        except OSError:
            ended.wait(0.2)


class Levels(msgspec.Struct, frozen=True):
    """What must be back at its base."""

    open_requests: float
    connections: float
    tasks: float
    files: float
    resident_bytes: float
    nodes: float


def levels(serving: Serving) -> Levels:
    """Now."""
    found = serving.metrics()
    busy = [f"mlxc_node_{level}{{" for level in ("open_requests", "queue_depth", "active", "kv_bytes")]
    return Levels(
        found["mlxc_gateway_open_requests"],
        found["mlxc_gateway_connections"],
        found["mlxc_gateway_tasks"],
        found.get("process_open_fds", 0),
        found.get("process_resident_memory_bytes", 0),
        sum(value for name, value in found.items() if any(name.startswith(part) for part in busy)),
    )


def await_quiet(serving: Serving, base: Levels | None) -> Levels:
    """The levels when they are back at their base, or as they are when they do not come back."""
    ends_s = time.monotonic() + QUIET_S
    while True:
        now = levels(serving)
        quiet = now.open_requests == now.nodes == 0
        if base is not None:
            quiet = quiet and now.tasks <= base.tasks and now.files <= base.files
        if quiet or time.monotonic() > ends_s:
            return now
        time.sleep(0.5)


def fuzz(count: int, seed: int) -> tuple[Findings, Levels, Levels]:
    """Send `count` requests or a few more; what was found, and the levels before and after."""
    findings = Findings()
    with tempfile.TemporaryDirectory() as folder:
        policy = Path(folder) / "policy.yaml"
        policy.write_text(POLICY)
        with Serving("--model", "tiny", "--policy", str(policy), "--log-dir", folder) as serving:
            port = int(serving.url.rpartition(":")[2])
            # What every kind of request leaves in caches and pools for good has its place in the base.
            from_bytes(port, 90, Findings(), seed)
            from_document(serving, 90, Findings())
            time.sleep(2)
            base = await_quiet(serving, None)
            ended = threading.Event()
            threads = [threading.Thread(target=drip, args=(port, ended)) for _ in range(LORIS)]
            threads += [
                threading.Thread(target=from_bytes, args=(port, count // 4, findings, seed + part)) for part in (1, 2)
            ]
            for thread in threads:
                thread.start()
            from_document(serving, count // 2, findings)
            for thread in threads[LORIS:]:
                thread.join()
            # Shares are whole numbers, and some operations have few inputs: raw bytes make up for them.
            from_bytes(port, max(0, count - findings.answers.total()), findings, seed + 3)
            ended.set()
            for thread in threads:
                thread.join()
            after = await_quiet(serving, base)
            check_end(serving, Path(folder), base, after, findings)
    return findings, base, after


def check_end(serving: Serving, logs: Path, base: Levels, after: Levels, findings: Findings) -> None:
    """Nothing is left, and everything still works."""
    for level in ("open_requests", "connections", "tasks", "files", "nodes"):
        before, now = getattr(base, level), getattr(after, level)
        if now > before:
            findings.bad(f"left behind: {level} {now:g}, at first {before:g}")
    if after.resident_bytes - base.resident_bytes > GROWTH_BYTES_MAX:
        findings.bad(f"memory grew from {base.resident_bytes:.0f} to {after.resident_bytes:.0f} bytes")
    restarts = sum(value for name, value in serving.metrics().items() if name.startswith("mlxc_node_restarts"))
    if restarts:
        findings.bad(f"{restarts:g} processes had to be started again")
    log = (logs / "gateway.log").read_text(errors="replace")
    if log:
        findings.bad(f"the gateway's log has {len(log)} characters: {log[-400:]}")
    answer = requests.post(f"{serving.url}/v1/chat/completions", json=CHAT, timeout=30)
    if answer.status_code != 200 or requests.get(f"{serving.url}/readyz", timeout=30).status_code != 200:
        findings.bad(f"it does not answer any more: {answer.status_code} {answer.text[:200]}")
    if serving.interrupt() != 130:
        findings.bad("it did not end in order")


def main() -> int:
    """Exit code 0 when nothing was wrong."""
    parser = argparse.ArgumentParser(prog="python -m tests.gateway_fuzz", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--requests", type=int, default=1_000, metavar="N")
    parser.add_argument("--seed", type=int, default=1, metavar="S")
    options = parser.parse_args()
    began_s = time.monotonic()
    findings, base, after = fuzz(options.requests, options.seed)
    for kind, number in sorted(findings.answers.items()):
        print(f"{number:6d}  {kind}")
    print(f"before: {base}\nafter:  {after}")
    for what, number in Counter(findings.wrong).most_common(20):
        print(f"WRONG ({number}x): {what}")
    total = sum(findings.answers.values())
    print(f"{total} requests in {time.monotonic() - began_s:.0f} s, {len(findings.wrong)} findings")
    return 1 if findings.wrong or total < 0.9 * options.requests else 0


if __name__ == "__main__":
    sys.exit(main())
