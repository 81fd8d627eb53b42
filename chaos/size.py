"""`python -m chaos.size EXPERIMENT --rate 40 --ttft-p95 0.5 --down 1`: how many workers are enough.

The cluster, its policy and the kind of load are the experiment's; the answer is found in the simulated world, with
several seeds, and is saved as an experiment whose run confirms it, simulated or live. It holds for workers that take
the time that `cluster.costs` say.
"""

import argparse
import os
import sys
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import msgspec

from analysis.arguments import NotWritable, check_writable, path, positive_int, real_number, seed, whole_number
from analysis.whole_file import write_whole
from chaos.experiment import Experiment, ExperimentError, find
from chaos.grid import resolved
from chaos.pool import computing_pool
from chaos.resolve import load
from chaos.sizing import Answer, Demand, Trial, experiment_for, play_one
from chaos.sizing import find as find_size

EXIT_NOT_ENOUGH = 1
EXIT_USAGE = 2
EXIT_INTERRUPTED = 130


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line. Exit code 0 with an answer, 1 when not even `--workers-max` workers are enough."""
    parser = _parser()
    options = parser.parse_args(arguments)
    if options.ttft_p95 is None and options.latency_p95 is None:
        parser.error("expected a limit: --ttft-p95 SECONDS, --latency-p95 SECONDS, or both")
    if options.down >= options.workers_max:
        parser.error(f"--down: expected fewer than --workers-max = {options.workers_max}, got {options.down}")
    demand = Demand(
        options.rate, options.down, options.success, options.ttft_p95, options.latency_p95, options.requests
    )
    try:
        check_writable(options.out)
        base = load(find(options.experiment), options.set, options.policy, options.profile)
        experiment_for(base, demand, options.workers_max)
        return _size(base, demand, options)
    except ExperimentError as error:
        print(f"chaos.size: {error}", file=sys.stderr)
        return EXIT_USAGE
    except NotWritable as error:
        print(f"chaos.size: --out {error}", file=sys.stderr)
        return EXIT_USAGE
    except KeyboardInterrupt:
        print("chaos.size: interrupted, there is no answer", file=sys.stderr)
        return EXIT_INTERRUPTED


def _size(base: Experiment, demand: Demand, options: argparse.Namespace) -> int:
    options.out.mkdir(parents=True, exist_ok=True)
    print(f"{base.name}: {demand}; {options.seeds} seeds, simulated", flush=True)
    seeds = range(options.seed, options.seed + options.seeds)
    with computing_pool(options.jobs) as pool:
        try:
            answer = find_size(lambda pairs: _play(pool, base, demand, pairs), seeds, demand.down, options.workers_max)
        except KeyboardInterrupt:
            pool.shutdown(wait=False, cancel_futures=True)
            raise
    write_whole(options.out / "sizing.json", msgspec.json.format(msgspec.json.encode(answer)).decode())
    for line in told(answer, demand, options.workers_max):
        print(line)
    if answer.workers is None:
        return EXIT_NOT_ENOUGH
    confirming = options.out / "answer.yaml"
    write_whole(confirming, resolved(experiment_for(base, demand, answer.workers)))
    print(f"To confirm it live, with --address on several hosts:\n  python -m chaos.run {confirming}")
    return 0


def _play(pool: ProcessPoolExecutor, base: Experiment, demand: Demand, pairs: Sequence[tuple[int, int]]) -> list[Trial]:
    running = [pool.submit(play_one, base, demand, workers, seed) for workers, seed in pairs]
    trials: list[Trial] = []
    for future in running:
        trial = future.result()
        found = "enough" if trial.enough else f"too few: {trial.missed}"
        print(f"  {trial.workers} workers, seed {trial.seed}: {found}", flush=True)
        trials.append(trial)
    return trials


def told(answer: Answer, demand: Demand, workers_max: int) -> list[str]:
    """The answer in lines of text."""
    count = len(answer.needed)
    if answer.workers is None:
        short = sum(each is None for each in answer.needed.values())
        return [f"ANSWER: none. {workers_max} workers are too few with {short or 'some'} of {count} seeds: {demand}"]
    needed = sorted(each for each in answer.needed.values() if each is not None)
    lines = [f"ANSWER (simulated): {answer.workers} workers for {demand}"]
    if needed[0] != needed[-1]:
        lines.append(f"  each seed alone needed {needed[0]} to {needed[-1]}")
    for workers in (answer.workers, answer.workers - 1):
        trials = [trial for trial in answer.trials if trial.workers == workers]
        if trials:
            lines.append(f"  {workers}: {_figures(trials)}")
    lines.append(
        f"  {count} of {count} seeds show that it is enough for at least {answer.share:.0%} of such stretches of "
        f"{demand.measured_s:g} s (95 % confidence); more --seeds show more"
    )
    return lines


def _figures(trials: Sequence[Trial]) -> str:
    parts = [f"enough with {sum(trial.enough for trial in trials)} of {len(trials)} seeds"]
    for name, values in (
        ("TTFT p95", [trial.ttft_p95_s for trial in trials]),
        ("latency p95", [trial.latency_p95_s for trial in trials]),
    ):
        seconds = [value for value in values if value is not None]
        if seconds:
            parts.append(f"{name} {min(seconds):.3f} to {max(seconds):.3f} s")
    if infeasible := sum(trial.success is None for trial in trials):
        parts.append(f"{infeasible} not even whole")
    return ", ".join(parts)


_above_0 = real_number(0, 1_000_000, above=True)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m chaos.size", description=__doc__)
    parser.add_argument("experiment", help="a name of the catalogue, or a .yaml file: its cluster, policy and load")
    parser.add_argument("--rate", type=_above_0, required=True, help="requests per second")
    parser.add_argument("--ttft-p95", type=_above_0, metavar="SECONDS", help="at most, from the intended time")
    parser.add_argument("--latency-p95", type=_above_0, metavar="SECONDS", help="at most, from the intended time")
    parser.add_argument(
        "--success", type=real_number(0, 1, above=True), default=0.99, help="share that completes (default 0.99)"
    )
    parser.add_argument("--down", type=whole_number(0), default=1, help="workers that are gone meanwhile (default 1)")
    parser.add_argument(
        "--requests", type=positive_int, default=2_000, help="over how many it is measured (default 2000)"
    )
    parser.add_argument("--seeds", type=positive_int, default=10, help="how many (default 10)")
    parser.add_argument("--seed", type=seed, default=1, help="the first of them (default 1)")
    parser.add_argument("--workers-max", type=positive_int, default=64, help="no more are tried (default 64)")
    parser.add_argument("--policy", help="a policy profile of the cluster, or a .yaml file")
    parser.add_argument("--profile", help="one of the experiment's own profiles")
    parser.add_argument("--set", action="append", default=[], metavar="PATH=VALUE", help="override a field")
    parser.add_argument("--jobs", type=positive_int, default=os.cpu_count() or 1, help="processes (default: all cores)")
    parser.add_argument("--out", type=path, default=Path("results/size"), help="where the answer is kept")
    return parser


if __name__ == "__main__":
    sys.exit(main())
