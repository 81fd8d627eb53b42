"""The served cluster over mlx-lm's own server: the same model, BLAS and requests, one after the other in turns.

`python -m tests.serving_bench` prints the rows; tests.bench shows them with the others. chaos.baseline_engine judges
the same two sides, and the bare engine, in more blocks.
"""

import asyncio
import contextlib
import statistics
import sys
import tempfile
from itertools import islice
from pathlib import Path

from chaos.baseline_sides import Block, HttpSide, served_cluster, their_server
from cluster.engine.blas import find_blas
from cluster.engine.weights import model_directory
from workloads.schedule import first_requests
from workloads.spec import WorkloadSpec
from workloads.words import WordVocabulary

Row = tuple[str, str, str, str]

CLIENTS = 8
REQUESTS = 24
"""In each block."""
TOKENS = 128
ROUNDS = 5


def serving_rows(rounds: int = ROUNDS) -> list[Row]:
    """Tokens per second and time to the first token of 8 streaming clients; the ratio with its smallest and largest."""
    ours, theirs = asyncio.run(_in_turns(rounds))
    ratios = [_per_s(one) / _per_s(other) for one, other in zip(ours, theirs, strict=True)]
    ours_ms, theirs_ms = (
        1000 * statistics.median(first_s for block in part for first_s in block.first_s) for part in (ours, theirs)
    )
    ours_per_s, theirs_per_s = (statistics.median(map(_per_s, part)) for part in (ours, theirs))
    return [
        (
            f"served cluster, 1 worker, {CLIENTS} streams of {TOKENS} tokens (BLAS: {find_blas().name})",
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


async def _in_turns(rounds: int) -> tuple[list[Block], list[Block]]:
    """Both warm up, then one block each in turns, the order reversed every time; no block's prompts come again."""
    spec = WorkloadSpec(prompt_tokens=20, output_tokens=TOKENS, turns_max=1, sessions=REQUESTS)
    requests = iter(first_requests(spec, (rounds + 1) * REQUESTS, 1, WordVocabulary()))
    ours: list[Block] = []
    theirs: list[Block] = []
    async with contextlib.AsyncExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        sides: list[tuple[HttpSide, list[Block]]] = [
            (await stack.enter_async_context(served_cluster("tiny", folder, CLIENTS)), ours),
            (await stack.enter_async_context(their_server(model_directory("tiny"), folder, CLIENTS)), theirs),
        ]
        for number in range(rounds + 1):
            chosen = list(islice(requests, REQUESTS))
            for side, blocks in sides if number % 2 else sides[::-1]:
                blocks.append(await side.block(chosen))
    # The first round warms up.
    return ours[1:], theirs[1:]


def _per_s(block: Block) -> float:
    return block.tokens / block.elapsed_s


def main() -> int:
    """Print the rows."""
    for row in serving_rows():
        print("| " + " | ".join(row) + " |")
    return 0


if __name__ == "__main__":
    sys.exit(main())
