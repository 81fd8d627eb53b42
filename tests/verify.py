"""`python -m tests.verify`: all live evidence, one case after the other, in about 50 minutes on 2 cores.

It can be stopped and started again: a case that gave what was expected at this state of the code is not played again.
Exit code 0 only if every case has been played at this state and gave what was expected.
"""

import argparse
import contextlib
import hashlib
import shutil
import subprocess
import sys
import time
import traceback
from pathlib import Path

import msgspec

from analysis.whole_file import write_whole
from tests import bundle
from tests.cases import Case, Outcome, cases
from tests.processes import ROOT

_CODE = ("analysis", "chaos", "cluster", "workloads", "tests")
_CELL_MAX = 300


class Record(msgspec.Struct, frozen=True):
    """What state.json keeps of a case. code: the state of the code that was played, see `code_state`."""

    code: str
    outcome: Outcome


def code_state() -> str:
    """The commit; with a digest behind it when files of ours differ from it."""

    def git(*arguments: str) -> bytes:
        return subprocess.run(["git", *arguments], cwd=ROOT, capture_output=True, check=True).stdout

    try:
        commit = git("rev-parse", "--short=12", "HEAD").decode().strip()
        changed = git("diff", "HEAD", "--", *_CODE)
        changed += git("ls-files", "--others", "--exclude-standard", "--", *_CODE)
    except (OSError, subprocess.CalledProcessError):
        return "unknown"
    return f"{commit}+{hashlib.sha256(changed).hexdigest()[:8]}" if changed else commit


class State:
    """`state.json`: the last outcome of each case."""

    def __init__(self, folder: Path) -> None:
        self._path = folder / "state.json"
        self.records: dict[str, Record] = {}
        with contextlib.suppress(OSError, msgspec.DecodeError):
            self.records = msgspec.json.decode(self._path.read_bytes(), type=dict[str, Record])

    def outcome(self, case: str, code: str) -> Outcome | None:
        """What the case gave at this state of the code."""
        record = self.records.get(case)
        return record.outcome if record is not None and record.code == code else None

    def keep(self, case: str, record: Record) -> None:
        """Remember, on disk at once: the next case may be the one in which somebody loses patience."""
        self.records[case] = record
        write_whole(self._path, msgspec.json.format(msgspec.json.encode(self.records)))


def play(case: Case, folder: Path) -> Outcome:
    """Play one case in an empty folder of its own."""
    out = folder / case.name
    shutil.rmtree(out, ignore_errors=True)
    out.mkdir(parents=True)
    began_s = time.monotonic()
    try:
        outcome = case.play(out)
    except Exception:
        # One case that breaks must not take the others' evidence with it.
        outcome = Outcome(got="an error of the case", problems=[traceback.format_exc()])
    outcome.seconds = round(time.monotonic() - began_s, 1)
    return outcome


def table(chosen: list[Case], state: State, code: str) -> str:
    """One Markdown row for each case, with what is known at this state of the code."""
    lines = [f"Code: `{code}`", "", "| case | expected | got | seconds | figures | results |"]
    lines.append("|---|---|---|---|---|---|")
    for case in chosen:
        outcome = state.outcome(case.name, code)
        if outcome is None:
            lines.append(f"| {case.name} | {case.expected} | NOT RUN | | | |")
            continue
        said = outcome.figures
        if outcome.problems:
            # Whole output and tracebacks are in state.json and on the terminal.
            first = [problem.strip().splitlines()[0] for problem in outcome.problems[:3] if problem.strip()]
            said = "; ".join([*first, *([said] if said else [])])
        got = outcome.got if not outcome.problems else f"**NOT AS EXPECTED**: {outcome.got}"
        cells = (case.name, case.expected, got, f"{outcome.seconds:.0f}", said, outcome.where)
        lines.append(f"| {' | '.join(_cell(text) for text in cells)} |")
    return "\n".join(lines) + "\n"


def _cell(text: str) -> str:
    return " ".join(text.split())[:_CELL_MAX].replace("|", "\\|")


def main() -> int:
    """Play what is missing and print the table."""
    options = _options()
    chosen = [case for case in cases() if not options.only or case.name in options.only]
    if unknown := set(options.only) - {case.name for case in chosen}:
        print(f"tests.verify: no case named {', '.join(sorted(unknown))}; see --list", file=sys.stderr)
        return 2
    if options.list:
        for case in chosen:
            print(f"{case.name:28} {case.expected}")
        return 0
    folder: Path = options.out.resolve()
    folder.mkdir(parents=True, exist_ok=True)
    state, code = State(folder), code_state()
    began_s = time.monotonic()
    for number, case in enumerate(chosen, 1):
        known = state.outcome(case.name, code)
        label = f"[{number}/{len(chosen)}] {case.name}"
        if known is not None and not known.problems and not options.fresh:
            print(f"{label}: as expected already, skipped", flush=True)
            continue
        if options.budget is not None and time.monotonic() - began_s >= options.budget:
            print(f"{label}: the budget of {options.budget:g} s is spent", flush=True)
            break
        print(f"{label}: expecting {case.expected}", flush=True)
        outcome = play(case, folder)
        state.keep(case.name, Record(code, outcome))
        word = "NOT AS EXPECTED" if outcome.problems else "as expected"
        print(f"    {word}: {outcome.got} in {outcome.seconds:.0f} s; {outcome.figures}", flush=True)
        for problem in outcome.problems:
            print("      " + problem.replace("\n", "\n      "), flush=True)
    text = table(chosen, state, code)
    (folder / "table.md").write_text(text)
    print(f"\n{text}")
    if options.bundle or sys.platform == "darwin":
        told = bundle.write(folder, text, {case.name: state.outcome(case.name, code) for case in chosen}, code)
        print(f"to be shared, with nothing that says whose machine it was: {told}")
    outcomes = [state.outcome(case.name, code) for case in chosen]
    return 0 if all(outcome is not None and not outcome.problems for outcome in outcomes) else 1


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m tests.verify", description="Gather all live evidence.")
    parser.add_argument("--list", action="store_true", help="name the cases and stop")
    parser.add_argument("--only", action="append", default=[], metavar="CASE", help="this case; may be repeated")
    parser.add_argument("--fresh", action="store_true", help="play also what is known already")
    parser.add_argument("--budget", type=float, metavar="SECONDS", help="start no more cases after this time")
    parser.add_argument("--bundle", action="store_true", help="write a file to be shared (on macOS always)")
    parser.add_argument("--out", type=Path, default=ROOT / "results" / "verify", help="default results/verify/")
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())
