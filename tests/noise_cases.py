"""Are comparisons calibrated on real noise? `python -m tests.noise_cases RUNS_DIR...`, after `--make 20 --out DIR`.

From undisturbed runs of tests/live/noise.yaml pairs are drawn that differ in nothing (A/A), and pairs whose second side
is slowed down by 20 %; counted is how many are called different at the confidence that `analysis.compare` uses.
"""

import argparse
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

import msgspec
import numpy as np

from analysis.comparison import Comparison, Percentile, compare, compare_runs
from analysis.history import UnreadableError, read_info
from analysis.metrics import METRICS
from analysis.reader import load_history
from analysis.regression import CONFIDENCE
from analysis.statistics import Values, proportion_interval

EXPERIMENT = Path(__file__).parent / "live" / "noise.yaml"
PHASE = "steady"
PAIRS = 400
SLOWDOWN = 1.2
RUNS_MIN = 20
FALSE_MAX, FOUND_MIN = 0.05, 0.95
BLOCKS = 20
_RUN_LIMIT_S = 300
_FAILURES_MAX = 3

Draw = Callable[[np.random.Generator, Sequence[Values], float], Comparison | None]


class Calibration(msgspec.Struct, frozen=True):
    """How many of `pairs` pairs were called different: of those that differ in nothing, and of those slowed down.

    detectable: the median of what the comparisons of the A/A pairs said that they could see.
    """

    design: str
    statistic: str
    gate: bool
    pairs: int
    false: int
    found: int
    detectable: float

    @property
    def good(self) -> bool:
        """At most 5 % of the first, at least 95 % of the second."""
        return self.false <= FALSE_MAX * self.pairs and self.found >= FOUND_MIN * self.pairs

    def told(self) -> str:
        """A line for people."""

        def share(hits: int) -> str:
            low, high = proportion_interval(hits, self.pairs, 0.95)
            return f"{hits:3} of {self.pairs} ({100 * low:.1f}..{100 * high:.1f} %)"

        mark = ("good" if self.good else "MISSED") if self.gate else ""
        return (
            f"{self.design:24} {self.statistic:4} A/A {share(self.false)}  slowed {share(self.found)}  "
            f"detectable {100 * self.detectable:5.1f} %  {mark}".rstrip()
        )


class Design(NamedTuple):
    """How sides are drawn. gate: whether the promise is about it."""

    name: str
    share: float
    draw: Draw
    gate: bool = False


def _resampled(random: np.random.Generator, run: Values) -> Values:
    """The run again, its stretches of time drawn with replacement."""
    blocks = np.array_split(run, BLOCKS)
    return np.concatenate([blocks[index] for index in random.integers(len(blocks), size=len(blocks))])


def _between(treatment: int, control: int, share: float) -> Draw:
    """So many runs against so many others, each resampled by blocks: what `analysis.compare` does with folders."""

    def draw(random: np.random.Generator, runs: Sequence[Values], factor: float) -> Comparison | None:
        drawn = random.permutation(len(runs))[: treatment + control]
        seen = [Percentile(share)(_resampled(random, runs[index])) for index in drawn]
        return compare_runs([factor * value for value in seen[:treatment]], seen[treatment:], CONFIDENCE)

    return draw


def _interleaved(share: float) -> Draw:
    """Neighbouring stretches of one run in pairs, which of the two is treated drawn by lot: ABBA within one run."""

    def draw(random: np.random.Generator, runs: Sequence[Values], factor: float) -> Comparison | None:
        blocks = np.array_split(runs[int(random.integers(len(runs)))], 2 * BLOCKS)
        lots = random.integers(2, size=BLOCKS)
        treated = [factor * blocks[2 * pair + lot] for pair, lot in enumerate(lots)]
        control = [blocks[2 * pair + 1 - lot] for pair, lot in enumerate(lots)]
        return compare(treated, control, Percentile(share), paired=True, confidence=CONFIDENCE)

    return draw


DESIGNS = (
    Design("interleaved in one run", 0.5, _interleaved(0.5), gate=True),
    Design("10 runs against 10", 0.5, _between(10, 10, 0.5), gate=True),
    Design("10 runs against 10", 0.95, _between(10, 10, 0.95)),
    Design("5 runs against 5", 0.5, _between(5, 5, 0.5)),
    Design("5 runs against 5", 0.95, _between(5, 5, 0.95)),
    Design("1 run against 5", 0.5, _between(1, 5, 0.5)),
)


def calibrate(runs: Sequence[Values], pairs: int = PAIRS, seed: int = 1) -> list[Calibration]:
    """The latencies of each run, in order of time; at least 20 runs."""
    if len(runs) < RUNS_MIN:
        raise ValueError(f"expected at least {RUNS_MIN} runs, got {len(runs)}")
    results = []
    for number, design in enumerate(DESIGNS):
        random = np.random.default_rng([seed, number])
        same = [design.draw(random, runs, 1.0) for _ in range(pairs)]
        slowed = [design.draw(random, runs, SLOWDOWN) for _ in range(pairs)]
        false, found = (sum(_different(each) for each in drawn) for drawn in (same, slowed))
        detectable = float(np.median([each.detectable for each in same if each is not None] or [np.inf]))
        name = f"p{100 * design.share:.0f}"
        results.append(Calibration(design.name, name, design.gate, pairs, false, found, detectable))
    return results


def _different(comparison: Comparison | None) -> bool:
    return comparison is not None and not comparison.interval[0] <= 1 <= comparison.interval[1]


def read(folders: Sequence[Path]) -> tuple[list[Values], set[str]]:
    """The latencies of every complete run below the folders, and in which worlds they were."""
    runs, worlds = [], set()
    values = METRICS["latency_p50_s"].values
    assert values is not None
    for path in sorted(path for folder in folders for path in _complete(folder)):
        history = load_history(path)
        worlds.add(history.info.world)
        runs.append(np.asarray(values(history, PHASE).dropna(), dtype=float))
    return runs, worlds


def _complete(folder: Path) -> list[Path]:
    """Its runs that came to their end, or the folder itself when it is one."""
    found = []
    for place in (folder, *sorted(folder.iterdir())):
        if place.is_symlink() or not (place / "run.json").exists():
            continue
        if read_info(place).complete and (place / "requests.parquet").exists():
            found.append(place)
    return found


def make(count: int, out: Path, world: str) -> int:
    """Play runs until there are `count` complete ones in `out`; what is there already counts. Returns the exit code.

    Live runs all have the same seed and differ in nothing. Simulated ones would then be equal, so there it differs.
    """
    out.mkdir(parents=True, exist_ok=True)
    failures = 0
    while (done := len(_complete(out))) < count:
        seed = "1" if world == "live" else str(done + 1 + failures)
        command = [sys.executable, "-m", "chaos.run", str(EXPERIMENT), "--world", world, "--seed", seed]
        with (out / "runs.log").open("a") as log:
            # The verdict is of no interest: it is the noise that is wanted.
            subprocess.run([*command, "--out", str(out)], stdout=log, stderr=log, timeout=_RUN_LIMIT_S, check=False)
        failures = failures + 1 if len(_complete(out)) == done else 0
        if failures == _FAILURES_MAX:
            print(f"{out}: {failures} runs in a row came to nothing; see {out / 'runs.log'}", file=sys.stderr)
            return 1
        print(f"{len(_complete(out))} of {count} runs", flush=True)
    return 0


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit code: 0 when the promise is kept."""
    parser = argparse.ArgumentParser(prog="python -m tests.noise_cases", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("runs", nargs="*", type=Path, metavar="RUNS_DIR")
    parser.add_argument("--make", type=int, metavar="N", help="play runs until there are N in --out")
    parser.add_argument("--out", type=Path, default=Path("results/noise"))
    parser.add_argument("--world", choices=("live", "simulated"), default="live")
    parser.add_argument("--seed", type=int, default=1, help="of the drawing of pairs")
    options = parser.parse_args(arguments)
    if options.make is not None:
        return make(options.make, options.out, options.world)
    try:
        runs, worlds = read(options.runs or [options.out])
        results = calibrate(runs, seed=options.seed)
    except (UnreadableError, ValueError, OSError) as error:
        print(f"tests.noise_cases: {error}", file=sys.stderr)
        return 2
    print(f"{len(runs)} {' and '.join(sorted(worlds))} runs, {PAIRS} pairs each, confidence {CONFIDENCE:g}")
    medians = np.array([float(np.median(run)) for run in runs])
    print(
        f"median latency {medians.mean():.4f} s, from run to run +- {100 * medians.std(ddof=1) / medians.mean():.1f} %"
    )
    for result in results:
        print(result.told())
    return 0 if all(result.good for result in results if result.gate) else 1


if __name__ == "__main__":
    sys.exit(main())
