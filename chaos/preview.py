"""`python -m chaos.preview NAME|FILE.yaml`: see an experiment's open load before anything runs.

Nothing is measured and nothing started: a rate that is a share is one of `--capacity`, and words
are random bytes. Phases with a load of their own are shown as if they had none.
"""

import argparse
import sys
from collections.abc import Sequence

from analysis.arguments import real_number, seed
from chaos.experiment import Experiment, ExperimentError, find
from chaos.resolve import load
from workloads.capacity import InfeasibleRate, resolve_rate
from workloads.schedule import ScheduledRequest, build_schedule
from workloads.vocabulary import ByteVocabulary

EXIT_USAGE = 2
BUCKETS = 60
CAPACITY_PER_S_MAX = 1_000_000
REMEMBERED_TOKENS_MAX = 5_000_000
_BARS = " ▁▂▃▄▅▆▇█"


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit code."""
    parser = argparse.ArgumentParser(prog="python -m chaos.preview", description="Show an experiment's open load.")
    parser.add_argument("experiment", help="a name of the catalogue, or a .yaml file")
    capacity = real_number(0, CAPACITY_PER_S_MAX, above=True)
    parser.add_argument("--capacity", type=capacity, default=50.0, help="requests/s that shares are of (default 50)")
    parser.add_argument("--seed", type=seed, default=1)
    parser.add_argument("--set", action="append", default=[], metavar="PATH=VALUE", help="override a field")
    options = parser.parse_args(arguments)
    try:
        experiment = load(find(options.experiment), options.set)
        rate = resolve_rate(experiment.workload, options.capacity)
        schedule = build_schedule(
            experiment.workload,
            rate.per_s,
            duration_s(experiment),
            options.seed,
            ByteVocabulary(),
            context_max_tokens=experiment.policy.worker.context_max_tokens,
        )
    except (ExperimentError, InfeasibleRate, ValueError) as error:
        print(f"chaos.preview: {error}", file=sys.stderr)
        return EXIT_USAGE
    print(f"offering {rate.statement.replace('measured', 'assumed')}")
    for line in describe(schedule, duration_s(experiment)):
        print(line)
    return 0


def duration_s(experiment: Experiment) -> float:
    """All phases together, seconds."""
    return sum(phase.duration_s for phase in experiment.phases.values())


def describe(schedule: Sequence[ScheduledRequest], length_s: float) -> list[str]:
    """A load in a few lines: how much, when, how long, and how much of the prompts somebody has asked before."""
    if not schedule:
        return ["no requests"]
    buckets = [0] * BUCKETS
    for request in schedule:
        buckets[min(int(request.intended_s / length_s * BUCKETS), BUCKETS - 1)] += 1
    most = max(buckets)
    bars = "".join(_BARS[-(-count * (len(_BARS) - 1) // most)] for count in buckets)
    prompts = sorted(len(request.prompt) for request in schedule)
    outputs = sorted(request.max_tokens for request in schedule)
    return [
        f"{len(schedule)} requests in {len({r.session_id for r in schedule})} sessions over {length_s:g} s",
        f"rate      |{bars}| at most {most / length_s * BUCKETS:.1f}/s over {length_s / BUCKETS:.2g} s",
        f"prompts   {_spread(prompts)}, {sum(prompts)} tokens together",
        f"outputs   {_spread(outputs)}, at most {sum(outputs)} tokens together",
        f"prefixes  {reused_share(schedule):.0%} of the prompt tokens begin an earlier prompt too",
    ]


def reused_share(schedule: Sequence[ScheduledRequest]) -> float:
    """Prompt tokens that a cache of all earlier prompts, without end and without their answers, would hold.

    Of the first REMEMBERED_TOKENS_MAX prompt tokens or so, as a share.
    """
    known: dict[tuple[int, int], int] = {}
    reused = tokens = 0
    for request in schedule:
        node, shared = 0, True
        for token in request.prompt:
            child = known.get((node, token))
            shared = shared and child is not None
            reused += shared
            node = known.setdefault((node, token), len(known) + 1)
        tokens += len(request.prompt)
        if tokens > REMEMBERED_TOKENS_MAX:
            break
    return reused / tokens


def _spread(lengths: list[int]) -> str:
    return f"{lengths[0]} to {lengths[-1]} tokens, median {lengths[len(lengths) // 2]}"


if __name__ == "__main__":
    sys.exit(main())
