"""`python -m chaos.search EXPERIMENT --seeds N`: look for faults and loads under which the cluster breaks an invariant.

Each seed is a random plan: faults of any kind, at random nodes, times and states, over a random load in a cluster of
random size, with the policy of the experiment; then everything is healed, and the cluster has to be whole again. It is
played in the simulated world. A plan that breaks an invariant is made as small as possible and saved as an experiment
file, which reproduces it there byte for byte and can be run live. What earlier searches found is tried again first.
"""

import argparse
import os
import sys
import time
from collections.abc import Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from pathlib import Path

from chaos.experiment import Experiment, ExperimentError, find
from chaos.resolve import load
from chaos.searching.findings import Finding, Findings, FindingsError, State
from chaos.searching.hunt import CRASH, Hunt, Signature, attempt, hunt
from chaos.searching.plans import Plan

EXIT_FOUND = 1
EXIT_USAGE = 2
EXIT_INTERRUPTED = 130
_STRETCH = 25
"""Plans that a process tries before it hears what the others have found."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line. Exit code 1 when something stands that breaks an invariant, 0 when nothing does."""
    options = _parser().parse_args(arguments)
    try:
        base = load(find(options.experiment), options.set, options.policy)
        findings = Findings(options.out)
        return _search(base, options, findings)
    except (ExperimentError, FindingsError) as error:
        print(f"chaos.search: {error}", file=sys.stderr)
        return EXIT_USAGE
    except KeyboardInterrupt:
        print("chaos.search: interrupted; what was found is kept", file=sys.stderr)
        return EXIT_INTERRUPTED


def _search(base: Experiment, options: argparse.Namespace, findings: Findings) -> int:
    policy = Path(options.policy or "default").stem
    for finding in [one for one in findings.known if one.policy == policy]:
        print(_told(_again(finding, findings)), flush=True)
    began_s = time.monotonic()
    tried = _hunt_all(base, options, policy, findings)
    stand = [one for one in findings.known if one.policy == policy and one.state.stands]
    print(f"{tried} plans tried in {time.monotonic() - began_s:.0f} s; {len(stand)} findings stand, see {options.out}")
    return EXIT_FOUND if stand else 0


def _again(finding: Finding, findings: Findings) -> Finding:
    """Play a finding of an earlier search. A file that cannot be read any more is an error."""
    broken = attempt(Plan(load(findings.path(finding), (), None), finding.seed)).broken
    # A plan that makes our own code raise is not mended, whatever it broke before.
    return findings.retried(finding, finding.invariant in broken or CRASH in broken)


def _hunt_all(base: Experiment, options: argparse.Namespace, policy: str, findings: Findings) -> int:
    """Share the plans out over processes, stretch by stretch; how many were tried."""
    first, left, tried = options.first_seed, options.seeds, 0
    with ProcessPoolExecutor(max_workers=options.jobs) as pool:
        running: dict[Future[Hunt], int] = {}
        while left > 0 or running:
            while left > 0 and len(running) < options.jobs:
                size = min(_STRETCH, left)
                known = _signatures(findings, policy)
                running[pool.submit(hunt, base, size, first, known)] = size
                first, left = first + 1, left - size
            done, _ = wait(running, return_when=FIRST_COMPLETED)
            for future in done:
                size, result = running.pop(future), future.result()
                tried += result.tried
                left += size - result.tried if result.prey is not None else 0
                if result.prey is not None and _is_new(result, findings, policy):
                    prey = result.prey
                    finding = findings.add(prey.plan, policy, prey.invariant, prey.what, prey.digest)
                    print(f"{_told(finding)} ({result.played} plays)", flush=True)
            print(f"{tried} plans tried, {len(findings.known)} findings", flush=True)
    return tried


def _is_new(result: Hunt, findings: Findings, policy: str) -> bool:
    """Whether no other process has found the same meanwhile."""
    prey = result.prey
    assert prey is not None
    return (prey.invariant, prey.plan.kinds) not in _signatures(findings, policy)


def _signatures(findings: Findings, policy: str) -> list[Signature]:
    return [(one.invariant, one.kinds) for one in findings.known if one.policy == policy and one.state.stands]


def _told(finding: Finding) -> str:
    mark = finding.state.value if finding.state is not State.NEW else "FOUND"
    return f"{mark}: {' + '.join(finding.kinds)}: {finding.what}\n  {finding.file} --seed {finding.seed}"


def _positive(text: str) -> int:
    value = int(text)
    if value < 1:
        raise ValueError
    return value


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m chaos.search", description=__doc__)
    parser.add_argument("experiment", help="a name of the catalogue, or a .yaml file: its policy and limits are used")
    parser.add_argument("--seeds", type=_positive, default=100, help="how many plans are tried (default 100)")
    parser.add_argument("--first-seed", type=_positive, default=1, help="other ones give other plans")
    parser.add_argument("--policy", help="a policy profile of the cluster, or a .yaml file")
    parser.add_argument("--set", action="append", default=[], metavar="PATH=VALUE", help="override a field")
    parser.add_argument("--jobs", type=_positive, default=os.cpu_count() or 1, help="processes (default: all cores)")
    parser.add_argument("--out", type=Path, default=Path("results/search"), help="where findings are kept")
    return parser


if __name__ == "__main__":
    sys.exit(main())
