"""The served cluster over mlx-lm's own server: the same model, BLAS and requests, one after the other in turns.

`python -m tests.serving_bench` prints the rows; tests.bench shows them with the others.
"""

import asyncio
import contextlib
import json
import os
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import aiohttp
import msgspec

from cluster.engine.blas import find_blas, preload_environment
from cluster.engine.weights import model_directory
from tests.processes import ROOT
from tests.serving import Serving

Row = tuple[str, str, str, str]

CLIENTS = 8
REQUESTS = 3
"""Of each client in each round."""
TOKENS = 128
ROUNDS = 5
POLICY = "worker: {batch_max: 8}\n"
START_S = 120.0
_SYLLABLES = ("ba", "do", "fi", "gu", "ke", "la", "mo", "ni", "pu", "re")


class Target(msgspec.Struct, frozen=True):
    """A server, and what it calls the model."""

    url: str
    model: str


class Round(msgspec.Struct, frozen=True):
    """What one round of one server gave."""

    tokens_per_s: float
    first_token_s: list[float]


def serving_rows(rounds: int = ROUNDS) -> list[Row]:
    """Tokens per second and time to the first token of 8 streaming clients; the ratio with its smallest and largest."""
    blas = find_blas()
    directory = str(model_directory("tiny"))
    with tempfile.TemporaryDirectory() as folder:
        policy = Path(folder) / "policy.yaml"
        policy.write_text(POLICY)
        with (
            Serving("--model", "tiny", "--policy", str(policy)) as serving,
            _mlx_lm_server(directory, preload_environment(blas)) as theirs_url,
        ):
            ours, theirs = asyncio.run(
                _in_turns(Target(serving.url, "tiny"), Target(theirs_url, "default_model"), rounds)
            )
    ratios = [one.tokens_per_s / other.tokens_per_s for one, other in zip(ours, theirs, strict=True)]
    firsts = [[first for round_ in part for first in round_.first_token_s] for part in (ours, theirs)]
    ours_ms, theirs_ms = (1000 * statistics.median(part) for part in firsts)
    ours_per_s, theirs_per_s = (statistics.median(round_.tokens_per_s for round_ in part) for part in (ours, theirs))
    return [
        (
            f"served cluster, 1 worker, {CLIENTS} streams of {TOKENS} tokens (BLAS: {blas.name})",
            f"{ours_per_s:.0f} tokens/s",
            f"mlx_lm.server {theirs_per_s:.0f} tokens/s",
            f"{statistics.median(ratios):.2f} ({min(ratios):.2f} to {max(ratios):.2f})",
        ),
        (
            "  time to the first token, median",
            f"{ours_ms:.0f} ms",
            f"mlx_lm.server {theirs_ms:.0f} ms",
            f"{ours_ms / theirs_ms:.2f}",
        ),
    ]


async def _in_turns(ours: Target, theirs: Target, rounds: int) -> tuple[list[Round], list[Round]]:
    """Both warm up, then one round each in turns, the order reversed every time."""
    found: dict[Target, list[Round]] = {ours: [], theirs: []}
    async with aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=120)) as session:
        for target in (ours, theirs):
            await _round(session, target, "warm")
        for number in range(rounds):
            for target in (ours, theirs) if number % 2 == 0 else (theirs, ours):
                found[target].append(await _round(session, target, str(number)))
    return found[ours], found[theirs]


async def _round(session: aiohttp.ClientSession, target: Target, name: str) -> Round:
    began_s = time.perf_counter()
    parts = await asyncio.gather(*(_client(session, target, f"{name}/{number}") for number in range(CLIENTS)))
    took_s = time.perf_counter() - began_s
    made = [request for part in parts for request in part]
    return Round(sum(tokens for tokens, _ in made) / took_s, [first_s for _, first_s in made])


async def _client(session: aiohttp.ClientSession, target: Target, name: str) -> list[tuple[int, float]]:
    """Its requests one after the other: tokens, and seconds to the first of them."""
    return [await _ask(session, target, _prompt(f"{name}/{number}")) for number in range(REQUESTS)]


async def _ask(session: aiohttp.ClientSession, target: Target, prompt: str) -> tuple[int, float]:
    body = {
        "model": target.model,
        "messages": [{"role": "user", "content": prompt}],
        "max_tokens": TOKENS,
        "temperature": 0,
        "stream": True,
        "stream_options": {"include_usage": True},
    }
    began_s = time.perf_counter()
    first_s, tokens = 0.0, 0
    async with session.post(f"{target.url}/v1/chat/completions", json=body) as answer:
        answer.raise_for_status()
        async for line in answer.content:
            if not line.startswith(b"data: {"):
                continue
            event = json.loads(line[6:])
            if first_s == 0.0 and event["choices"] and event["choices"][0]["delta"].get("content"):
                first_s = time.perf_counter() - began_s
            if event.get("usage"):
                tokens = event["usage"]["completion_tokens"]
    assert tokens == TOKENS, f"{target.url}: {tokens} tokens instead of {TOKENS}"
    return tokens, first_s


def _prompt(name: str) -> str:
    """About 20 words that no other request has, so that nobody can have them in a cache."""
    return " ".join("".join(_SYLLABLES[int(digit)] for digit in str(part)) for part in _numbers(name))


def _numbers(name: str) -> list[int]:
    number = int.from_bytes(name.encode(), "big")
    return [(number * factor + factor) % 9_973 for factor in range(3, 23)]


@contextlib.contextmanager
def _mlx_lm_server(directory: str, environment: dict[str, str]) -> Iterator[str]:
    """mlx-lm's server with the same limits of concurrency; its URL."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = [sys.executable, "-m", "mlx_lm", "server", "--model", directory, "--port", str(port)]
    command += ["--decode-concurrency", "8", "--prompt-concurrency", "8", "--log-level", "ERROR"]
    with tempfile.TemporaryFile() as log:
        process = subprocess.Popen(command, cwd=ROOT, env=os.environ | environment, stdout=log, stderr=log)
        try:
            _await_port(port, process)
            yield f"http://127.0.0.1:{port}"
        finally:
            process.kill()
            process.wait()


def _await_port(port: int, process: "subprocess.Popen[bytes]") -> None:
    ends_s = time.monotonic() + START_S
    while time.monotonic() < ends_s and process.poll() is None:
        with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), timeout=1):
            return
        time.sleep(0.2)
    raise AssertionError("mlx_lm.server does not come up")


def main() -> int:
    """Print the rows."""
    for row in serving_rows():
        print("| " + " | ".join(row) + " |")
    return 0


if __name__ == "__main__":
    sys.exit(main())
