"""`python -m chaos.suite catalogue`: every experiment of the catalogue under one policy or several, and one table.

It can be stopped and started again: what has a verdict in its folder is not run again.
"""

import argparse
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import msgspec
import yaml

from analysis.history import UnreadableError
from analysis.judge import read_verdict
from chaos.experiment import catalogue
from chaos.robustness import CLASSES
from cluster.profiles import ProfileError, load_policy

EXIT_USAGE = 2
SUITES = ("catalogue",)
_REASON_MAX = 200
_OTHER = {2: "usage", 5: "infrastructure", 130: "interrupted"}


class Line(msgspec.Struct, frozen=True):
    """One experiment under one policy. verdict: of the run, or why there is none. results: its folder."""

    experiment: str
    policy: str
    world: str
    seed: int
    verdict: str
    reason: str
    robustness: tuple[int, ...]
    results: str


def main(arguments: Sequence[str] | None = None) -> int:
    """Run what is missing and print the table. Exit code 0 when everything has a verdict, whichever; 5 otherwise."""
    options = _parser().parse_args(arguments)
    known = catalogue()
    unknown = [name for name in options.only if name not in known]
    if unknown:
        return _complain(f"--only {', '.join(unknown)}: no such experiment; the catalogue has {', '.join(known)}")
    for policy in options.policy:
        try:
            load_policy(policy)
        except ProfileError as error:
            return _complain(f"--policy {error}")
    chosen = [name for name in known if not options.only or name in options.only]
    options.out.mkdir(parents=True, exist_ok=True)
    lines: list[Line] = []
    for name in chosen:
        for policy in options.policy:
            line = _played(name, policy, options)
            lines.append(line)
            print(f"{name} under {policy}: {line.verdict}: {line.reason}", flush=True)
            if line.verdict == _OTHER[130]:
                return 130
            _write(options.out, lines)
    print()
    print(table(lines), end="")
    return 0 if all(line.verdict not in _OTHER.values() for line in lines) else 5


def table(lines: Sequence[Line]) -> str:
    """Markdown: a row for each experiment, a column of verdicts for each policy, and what the first reason was."""
    policies = list(dict.fromkeys(line.policy for line in lines))
    head = ["experiment", "asks about", *policies, "why"]
    rows = [f"| {' | '.join(head)} |", f"|{'---|' * len(head)}"]
    for name in dict.fromkeys(line.experiment for line in lines):
        of = {line.policy: line for line in lines if line.experiment == name}
        classes = next(iter(of.values())).robustness
        asks = "; ".join(f"{number}. {CLASSES[number]}" for number in classes)
        verdicts = [of[policy].verdict if policy in of else "" for policy in policies]
        why = "; ".join(f"{policy}: {line.reason}" for policy, line in of.items() if line.verdict != "pass")
        rows.append(f"| {' | '.join(_cell(text) for text in (name, asks, *verdicts, why))} |")
    return "\n".join(rows) + "\n"


def _played(name: str, policy: str, options: argparse.Namespace) -> Line:
    """The line of an experiment, which is run unless it has its verdict."""
    folder = options.out / f"{name}.{Path(policy).stem}.{options.world}.{options.seed}"
    found = _line(name, policy, options, folder, 0)
    if found is not None:
        return found
    command = [sys.executable, "-m", "chaos.run", name, "--policy", policy, "--world", options.world]
    command += ["--seed", str(options.seed), "--out", str(folder)]
    for setting in options.set:
        command += ["--set", setting]
    print(f"{name} under {policy}: running", flush=True)
    try:
        ended = subprocess.run(command, check=False)
    except KeyboardInterrupt:
        # It was told as well, and has healed.
        return _missing(name, policy, options, folder, 130)
    return _line(name, policy, options, folder, ended.returncode) or _missing(
        name, policy, options, folder, ended.returncode
    )


def _line(name: str, policy: str, options: argparse.Namespace, folder: Path, code: int) -> Line | None:
    """From the run's verdict, None when there is none, or when it was interrupted."""
    if code in _OTHER:
        return None
    try:
        verdict = read_verdict(folder / "latest")
    except UnreadableError:
        return None
    if not verdict.complete and code == 0:
        return None
    reason = verdict.reasons[0] if verdict.reasons else ""
    where = str((folder / "latest").resolve().relative_to(options.out.resolve()))
    return Line(name, policy, options.world, options.seed, verdict.verdict.value, reason, _robustness(name), where)


def _missing(name: str, policy: str, options: argparse.Namespace, folder: Path, code: int) -> Line:
    what = _OTHER.get(code, f"exit code {code}")
    reason = "no verdict; see the output above"
    return Line(name, policy, options.world, options.seed, what, reason, _robustness(name), folder.name)


def _robustness(name: str) -> tuple[int, ...]:
    return tuple(yaml.safe_load(catalogue()[name].read_text()).get("robustness", ()))


def _write(out: Path, lines: Sequence[Line]) -> None:
    for name, data in (("suite.json", _json(lines)), ("suite.md", table(lines).encode())):
        part = out / f".{name}.part"
        part.write_bytes(data)
        os.replace(part, out / name)


def _json(lines: Sequence[Line]) -> bytes:
    return msgspec.json.format(msgspec.json.encode(list(lines)), indent=1)


def _cell(text: str) -> str:
    short = text if len(text) <= _REASON_MAX else f"{text[:_REASON_MAX]}..."
    return " ".join(short.split()).replace("|", "\\|")


def _complain(text: str) -> int:
    print(f"chaos.suite: {text}", file=sys.stderr)
    return EXIT_USAGE


def _policies(text: str) -> list[str]:
    return [part for part in text.split(",") if part]


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m chaos.suite", description=__doc__)
    parser.add_argument("suite", choices=SUITES)
    parser.add_argument("--policy", type=_policies, default=["default"], help="profiles or files, with commas between")
    parser.add_argument("--world", choices=("live", "simulated"), default="live")
    parser.add_argument("--only", nargs="*", default=[], metavar="NAME", help="only these experiments")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--set", action="append", default=[], metavar="PATH=VALUE", help="override a field in all")
    parser.add_argument("--out", type=Path, default=Path("results/suite"), help="default %(default)s")
    return parser


if __name__ == "__main__":
    sys.exit(main())
