"""`python -m chaos.search EXPERIMENT --seeds N`: look for faults and loads under which the cluster breaks an invariant.

Each seed is a random plan: faults of any kind, at random nodes, times and states, over a random load in a cluster of
random size, with the policy of the experiment; then everything is healed, and the cluster has to be whole again. It is
played in the simulated world and judged by the invariants and by signs of failures known from the field. A plan that
breaks something is made as small as possible and saved as an experiment file, which reproduces it there byte for byte
and can be run live. What earlier searches found is tried again first. What is found depends on the seeds, and not on
where or beside what they are played.
"""

import argparse
import os
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from analysis.arguments import NotWritable, check_writable, path, positive_int
from chaos.experiment import Experiment, ExperimentError, find
from chaos.resolve import load
from chaos.searching.campaign import Campaign
from chaos.searching.classes import told
from chaos.searching.crews import Alone, Crew, Processes
from chaos.searching.findings import Finding, Findings, FindingsError, State
from chaos.searching.hunt import SHRINK_PLAYS_MAX, attempt
from chaos.searching.plans import Plan

EXIT_FOUND = 1
EXIT_USAGE = 2
EXIT_INFRASTRUCTURE = 5
EXIT_INTERRUPTED = 130


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line. For exit codes see the parser's epilogue."""
    options = _parser().parse_args(arguments)
    if options.address is not None and not options.on_ray:
        return _complain("--address: expected --on-ray beside it")
    try:
        base = load(find(options.experiment), options.set, options.policy)
        check_writable(options.out)
        findings = Findings(options.out)
    except NotWritable as error:
        return _complain(f"--out {error}")
    except (ExperimentError, FindingsError) as error:
        return _complain(str(error))
    try:
        return _search(base, options, findings)
    except (ExperimentError, FindingsError) as error:
        return _complain(str(error))
    except KeyboardInterrupt:
        print("chaos.search: interrupted; what was found is kept", file=sys.stderr)
        return EXIT_INTERRUPTED


def _search(base: Experiment, options: argparse.Namespace, findings: Findings) -> int:
    policy = Path(options.policy or "default").stem
    for finding in findings.of(policy):
        print(_again(finding, findings), flush=True)
    crew = _crew(options)
    if isinstance(crew, str):
        print(f"chaos.search: {crew}", file=sys.stderr)
        return EXIT_INFRASTRUCTURE
    began_s = time.monotonic()
    campaign = Campaign(
        base,
        policy,
        options.seeds,
        options.first_seed,
        findings,
        lambda line: print(line, flush=True),
        options.shrink_plays,
    )
    try:
        campaign.run(crew)
    finally:
        crew.close()
        campaign.keep()
        print(_summary(findings.of(policy), campaign, time.monotonic() - began_s, options.out), flush=True)
    if campaign.lost:
        return EXIT_INFRASTRUCTURE
    return EXIT_FOUND if any(finding.state.stands for finding in findings.of(policy)) else 0


def _again(finding: Finding, findings: Findings) -> str:
    """Play a finding of an earlier search; what became of it. A file that cannot be read any more is an error."""
    judged = attempt(Plan(load(findings.path(finding), (), None), finding.seed))
    same = "byte for byte as before" if judged.digest == finding.digest else "with other rows than before"
    return f"{line_of(findings.retried(finding, judged))} ({same})"


def _crew(options: argparse.Namespace) -> Crew | str:
    """Who does it, or why nobody can."""
    if options.on_ray:
        from chaos.searching.on_ray import RayCrew, RayUnavailable

        try:
            return RayCrew(options.address)
        except RayUnavailable as error:
            return str(error)
    return Alone() if options.jobs == 1 else Processes(options.jobs)


def line_of(finding: Finding) -> str:
    """A finding for people."""
    mark = finding.state.value if finding.state is not State.NEW else "FOUND"
    needs = f"{finding.faults} fault{'s' if finding.faults > 1 else ''} ({' + '.join(finding.kinds)})"
    return f"{mark}: {told(finding.signature.number)}: {needs}: {finding.what}\n  {finding.file} --seed {finding.seed}"


def _summary(known: Sequence[Finding], campaign: Campaign, took_s: float, out: Path) -> str:
    lines = [
        f"{'class':48} {'state':9} {'faults':>6} {'after plans':>11}  file",
        *(
            f"{told(one.signature.number)[:48]:48} {one.state:9} {one.faults:6} {one.found_after:11}  {one.file}"
            for one in sorted(known, key=lambda one: (one.signature.number or 99, one.file))
        ),
    ]
    stand = [one for one in known if one.state.stands]
    classes = {one.signature.number for one in stand if one.signature.number is not None}
    said = (
        f"{campaign.tried} plans tried in {took_s:.0f} s; {len(stand)} findings stand, of {len(classes)} known classes"
    )
    return "\n".join([*(lines if known else []), f"{said}, see {out}"])


def _complain(text: str) -> int:
    print(f"chaos.search: {text}", file=sys.stderr)
    return EXIT_USAGE


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m chaos.search",
        description=__doc__,
        epilog="exit codes: 0 nothing stands that breaks anything, 1 something does, 2 usage, 5 there is no Ray, or a "
        "part of the search was lost twice, 130 interrupted",
    )
    parser.add_argument("experiment", help="a name of the catalogue, or a .yaml file: its policy and limits are used")
    parser.add_argument("--seeds", type=positive_int, default=100, help="how many plans are tried (default 100)")
    parser.add_argument("--first-seed", type=positive_int, default=1, help="other ones give other plans")
    parser.add_argument("--policy", help="a policy profile of the cluster, or a .yaml file")
    parser.add_argument("--set", action="append", default=[], metavar="PATH=VALUE", help="override a field")
    parser.add_argument("--jobs", type=positive_int, default=os.cpu_count() or 1, help="processes (default: all cores)")
    parser.add_argument(
        "--shrink-plays", type=positive_int, default=SHRINK_PLAYS_MAX, metavar="N",
        help=f"plays that making a finding small may take (default {SHRINK_PLAYS_MAX})",
    )  # fmt: skip
    parser.add_argument("--on-ray", action="store_true", help="spread the search over a Ray cluster, begun here")
    parser.add_argument("--address", help="of --on-ray: a running Ray cluster to join, instead of starting one here")
    parser.add_argument("--out", type=path, default=Path("results/search"), help="where findings are kept")
    return parser


if __name__ == "__main__":
    sys.exit(main())
