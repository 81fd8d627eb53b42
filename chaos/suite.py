"""`python -m chaos.suite catalogue`: every experiment of the catalogue under one policy or several, and one table.
`python -m chaos.suite prd`: what was promised of the cluster against what is measured, for one model or several.

It can be stopped and started again: what has a verdict in its folder is not run again.
"""

import argparse
import sys
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

import msgspec

from analysis.arguments import NotWritable, check_writable, path, seed
from analysis.whole_file import write_whole
from chaos.experiment import catalogue
from chaos.playing import INTERRUPTED, Line, Play, play, profile_of
from chaos.promises import PROMISES, report
from chaos.robustness import CLASSES
from cluster.profiles import ProfileError, load_policy

EXIT_USAGE = 2
SUITES = ("catalogue", "prd")
_REASON_MAX = 200
_OUT = Path("results/suite")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run what is missing and print the table. Exit code 0 when everything has a verdict, whichever; 5 otherwise."""
    options = _parser().parse_args(arguments)
    known = list(catalogue()) if options.suite == "catalogue" else list(dict.fromkeys(p.experiment for p in PROMISES))
    unknown = [name for name in options.only if name not in known]
    if unknown:
        return _complain(f"--only {', '.join(unknown)}: no such experiment; the suite has {', '.join(known)}")
    for policy in options.policy:
        try:
            load_policy(policy)
        except ProfileError as error:
            return _complain(f"--policy {error}")
    out: Path = options.out if options.out is not None else _OUT / options.suite
    try:
        check_writable(out)
    except NotWritable as error:
        return _complain(f"--out {error}")
    out.mkdir(parents=True, exist_ok=True)
    lines: list[tuple[Play, Line]] = []
    for what in _plays([name for name in known if not options.only or name in options.only], options):
        line = play(what, out)
        lines.append((what, line))
        with_label = f" with {what.label}" if what.label else ""
        print(f"{what.experiment} under {what.policy}{with_label}: {line.verdict}: {line.reason}", flush=True)
        if line.verdict == INTERRUPTED:
            return 130
        told = _write(options.suite, out, lines)
    print(f"\n{told}", end="")
    return 0 if all(line.has_verdict for _, line in lines) else 5


def table(lines: Sequence[Line]) -> str:
    """Markdown: a row for each experiment, a column of verdicts for each policy, what the first reason was, and which
    failures known from the field the verdicts that are no pass show."""
    policies = list(dict.fromkeys(line.policy for line in lines))
    head = ["experiment", "asks about", *policies, "why", "shows"]
    rows = [f"| {' | '.join(head)} |", f"|{'---|' * len(head)}"]
    for name in dict.fromkeys(line.experiment for line in lines):
        of = {line.policy: line for line in lines if line.experiment == name}
        classes = next(iter(of.values())).robustness
        asks = _named(classes)
        verdicts = [of[policy].verdict if policy in of else "" for policy in policies]
        bad = {policy: line for policy, line in of.items() if line.verdict != "pass"}
        why = "; ".join(f"{policy}: {line.reason}" for policy, line in bad.items())
        shows = "; ".join(f"{policy}: {_named(line.shown) or 'unclassified'}" for policy, line in bad.items())
        rows.append(f"| {' | '.join(_cell(text) for text in (name, asks, *verdicts, why, shows))} |")
    return "\n".join(rows) + "\n"


def _named(classes: Iterable[int]) -> str:
    return "; ".join(f"{number}. {CLASSES[number]}" for number in classes)


def _plays(names: Sequence[str], options: argparse.Namespace) -> Iterator[Play]:
    """In the order in which they are run: all of one experiment together, whose conditions are then most alike."""
    for name in names:
        for policy in options.policy:
            for model in options.model:
                settings = (*options.set, f"cluster.model={model}") if model else tuple(options.set)
                profile = profile_of(name, model)
                yield Play(name, policy, options.world, options.seed, settings, profile, Path(model).name)


def _write(suite: str, out: Path, lines: Sequence[tuple[Play, Line]]) -> str:
    """Write the suite's files as far as it has come; what is to be printed at its end."""
    if suite == "prd":
        return report(out, lines)
    found = [line for _, line in lines]
    whole = msgspec.json.format(msgspec.json.encode(found), indent=1)
    write_whole(out / "suite.json", whole)
    write_whole(out / "suite.md", table(found))
    return table(found)


def _cell(text: str) -> str:
    short = text if len(text) <= _REASON_MAX else f"{text[:_REASON_MAX]}..."
    return " ".join(short.split()).replace("|", "\\|")


def _complain(text: str) -> int:
    print(f"chaos.suite: {text}", file=sys.stderr)
    return EXIT_USAGE


def _listed(text: str) -> list[str]:
    found = [part for part in text.split(",") if part]
    if not found:
        raise argparse.ArgumentTypeError(f"expected one at least, with commas between them, got {text!r}")
    return found


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m chaos.suite", description=__doc__)
    parser.add_argument("suite", choices=SUITES)
    parser.add_argument("--policy", type=_listed, default=["default"], help="profiles or files, with commas between")
    parser.add_argument(
        "--model", type=_listed, default=[""], help="models, with commas between; default: each its own"
    )
    parser.add_argument("--world", choices=("live", "simulated"), default="live")
    parser.add_argument("--only", nargs="*", default=[], metavar="NAME", help="only these experiments")
    parser.add_argument("--seed", type=seed, default=1)
    parser.add_argument("--set", action="append", default=[], metavar="PATH=VALUE", help="override a field in all")
    parser.add_argument("--out", type=path, help=f"default {_OUT}/SUITE")
    return parser


if __name__ == "__main__":
    sys.exit(main())
