"""`python -m chaos.baseline_engine --model tiny`: what the cluster costs, against mlx-lm without and with a server.

Three ways to the same greedy tokens on this host: mlx-lm's bare BatchGenerator, a served cluster with one worker, and
`mlx_lm.server`. All keep the same number of requests in flight with the same prompts, in short blocks that take turns,
so whatever else the machine does, it does to all of them. Ratios come with their intervals (analysis.comparison).
"""

import argparse
import asyncio
import contextlib
import sys
import tempfile
from collections.abc import Sequence
from itertools import islice
from pathlib import Path

import msgspec
import numpy as np

from analysis.comparison import Comparison, compare, mean
from analysis.statistics import Values
from analysis.verdict import EXIT_CODES, Outcome, merge
from analysis.whole_file import write_whole
from chaos.baseline_sides import BARE, CLUSTER, SERVER, BareSide, Block, Side, SideFailed, served_cluster, their_server
from cluster.engine.blas import find_blas
from cluster.engine.weights import ModelUnavailable, model_directory
from workloads.schedule import first_requests
from workloads.spec import WorkloadSpec
from workloads.streams import Stream, stream
from workloads.words import WordVocabulary

BLOCKS = 12
IN_FLIGHT = 8
REQUESTS = 24
"""Of each block."""
PROMPT_WORDS = 12
CONFIDENCE = 0.95
EXIT_USAGE = 2
EXIT_INFRASTRUCTURE = 5


class Limit(msgspec.Struct, frozen=True):
    """A bound of a ratio, cluster over another."""

    metric: str
    versus: str
    at_least: float | None = None
    at_most: float | None = None


LIMITS = (
    Limit("tokens_per_s", BARE, at_least=0.5),
    Limit("tokens_per_s", SERVER, at_least=0.8),
    # The mean: first tokens of a closed loop come in two crowds, with and without a wait, and a median jumps between.
    Limit("ttft_mean_s", SERVER, at_most=1.5),
)
"""A cluster that gives half of the bare engine's tokens away, or falls behind a single server, does not pay."""


class Row(msgspec.Struct, frozen=True):
    """One ratio: cluster over `versus`. ours, theirs: of all blocks together, in the metric's unit."""

    metric: str
    versus: str
    ours: float
    theirs: float
    comparison: Comparison | None
    limit: str
    verdict: Outcome


class BaselineReport(msgspec.Struct, frozen=True):
    """What was measured, and whether the limits are shown to be kept."""

    model: str
    blas: str
    seed: int
    output_tokens: int
    rows: list[Row]
    verdict: Outcome

    def text(self) -> str:
        """A table in Markdown."""
        lines = [
            f"# Baseline engine: {self.verdict}",
            "",
            f"Model {self.model}, BLAS {self.blas}, {IN_FLIGHT} requests in flight, {self.output_tokens} tokens each, "
            f"seed {self.seed}. Ratios are cluster over the other, {CONFIDENCE:.0%} interval, blocks in pairs.",
            "",
            "| metric | against | cluster | other | ratio | interval | detectable | limit | verdict |",
            "|---|---|---|---|---|---|---|---|---|",
        ]
        for row in self.rows:
            found = row.comparison
            ratio = f"{found.ratio:.3f}" if found is not None else "too few blocks"
            interval = f"{found.interval[0]:.3f} to {found.interval[1]:.3f}" if found is not None else ""
            seen = f"{100 * found.detectable:.1f} %" if found is not None else ""
            cells = (row.metric, row.versus, f"{row.ours:.4g}", f"{row.theirs:.4g}", ratio, interval, seen)
            lines.append(f"| {' | '.join((*cells, row.limit, row.verdict))} |")
        return "\n".join(lines) + "\n"


def run(model: str, out: Path, *, blocks: int = BLOCKS, output_tokens: int = 96, seed: int = 1) -> BaselineReport:
    """Measure and write `baseline.json` and `baseline.md` into `out`. Raises SideFailed, ModelUnavailable, OSError.

    Not for use within a running event loop.
    """
    found = asyncio.run(_measure(model, blocks, output_tokens, seed))
    rows = [_row(found, limit) for limit in LIMITS]
    verdict = merge([row.verdict for row in rows])
    report = BaselineReport(model, find_blas().name, seed, output_tokens, rows, verdict)
    out.mkdir(parents=True, exist_ok=True)
    for name, data in (
        ("baseline.json", msgspec.json.format(msgspec.json.encode(report))),
        ("baseline.md", report.text().encode()),
    ):
        write_whole(out / name, data)
    return report


async def _measure(model: str, blocks: int, output_tokens: int, seed: int) -> dict[str, list[Block]]:
    """Blocks of every side, in rounds: a random order, then the same reversed (ABC CBA)."""
    directory = model_directory(model)
    # A round has the same prompts on every side, and no other round has any of them: nothing is found in a cache.
    spec = WorkloadSpec(prompt_tokens=PROMPT_WORDS, output_tokens=output_tokens, turns_max=1, sessions=REQUESTS)
    requests = iter(first_requests(spec, (blocks + 1) * REQUESTS, seed, WordVocabulary()))
    random = stream(seed, Stream.BLOCKS)
    found: dict[str, list[Block]] = {BARE: [], CLUSTER: [], SERVER: []}
    async with contextlib.AsyncExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        sides: dict[str, Side] = {
            BARE: await stack.enter_async_context(BareSide(directory, IN_FLIGHT)),
            CLUSTER: await stack.enter_async_context(served_cluster(model, folder, IN_FLIGHT)),
            SERVER: await stack.enter_async_context(their_server(directory, folder, IN_FLIGHT)),
        }
        order = list(sides)
        for number in range(blocks + 1):
            chosen = list(islice(requests, REQUESTS))
            order = [order[place] for place in random.permutation(len(order))] if number % 2 else order[::-1]
            for name in order:
                block = await sides[name].block(chosen)
                # The first round warms up.
                if number:
                    found[name].append(block)
    return found


def _row(found: dict[str, list[Block]], limit: Limit) -> Row:
    ours, theirs = ([_values(block, limit.metric) for block in found[name]] for name in (CLUSTER, limit.versus))
    comparison = compare(ours, theirs, mean, paired=True, confidence=CONFIDENCE)
    bound = f">= {limit.at_least:g}" if limit.at_least is not None else f"<= {limit.at_most:g}"
    return Row(
        metric=limit.metric,
        versus=limit.versus,
        ours=mean(np.concatenate(ours)),
        theirs=mean(np.concatenate(theirs)),
        comparison=comparison,
        limit=bound,
        verdict=_weigh(comparison, limit),
    )


def _values(block: Block, metric: str) -> Values:
    return np.array([block.tokens / block.elapsed_s] if metric == "tokens_per_s" else block.first_s, dtype=float)


def _weigh(comparison: Comparison | None, limit: Limit) -> Outcome:
    """pass: the one-sided bound keeps the limit; fail: the other bound breaks it; else inconclusive."""
    if comparison is None:
        return Outcome.INCONCLUSIVE
    least = -np.inf if limit.at_least is None else limit.at_least
    most = np.inf if limit.at_most is None else limit.at_most
    if least <= comparison.lower and comparison.upper <= most:
        return Outcome.PASS
    return Outcome.FAIL if comparison.upper < least or comparison.lower > most else Outcome.INCONCLUSIVE


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit code."""
    parser = argparse.ArgumentParser(prog="python -m chaos.baseline_engine", description=__doc__)
    parser.add_argument("--model", default="tiny", help="as in cluster.engine.weights (default: %(default)s)")
    parser.add_argument("--blocks", type=int, default=BLOCKS, help="of each side, 5 at least (default: %(default)s)")
    parser.add_argument("--tokens", type=int, default=96, help="of each answer (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--out", type=Path, default=Path("results") / "baseline_engine", help="default: %(default)s")
    options = parser.parse_args(arguments)
    if not (5 <= options.blocks <= 200 and 2 <= options.tokens <= 4096 and options.seed >= 0):
        parser.error("expected 5 to 200 blocks, 2 to 4096 tokens, and a seed of 0 or more")
    try:
        report = run(options.model, options.out, blocks=options.blocks, output_tokens=options.tokens, seed=options.seed)
    except ModelUnavailable as error:
        print(f"chaos.baseline_engine: {error}", file=sys.stderr)
        return EXIT_USAGE
    except (SideFailed, OSError) as error:
        print(f"chaos.baseline_engine: {error}", file=sys.stderr)
        return EXIT_INFRASTRUCTURE
    except KeyboardInterrupt:
        return 130
    print(report.text() + f"\nreport: {options.out / 'baseline.md'}")
    return EXIT_CODES[report.verdict]


if __name__ == "__main__":
    sys.exit(main())
