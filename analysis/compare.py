"""`python -m analysis.compare BASE CANDIDATE`: what became better or worse, with intervals, for people and for CI.

BASE and CANDIDATE are results directories, folders of them (runs of one experiment), or names of baselines. Exit codes:
0 nothing became worse, 1 something did, 2 wrong usage or something that cannot be read or compared, 3 nothing can be
said at all.

`python -m analysis.compare --fidelity LIVE SIMULATED`: how near a simulated run comes to the live one whose schedule it
had. Exit code 1: an error is beyond its limit.
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

import msgspec

from analysis import baselines, fidelity, regression
from analysis.arguments import real_number
from analysis.baselines import Side
from analysis.comparison import Change
from analysis.fidelity import NotAPair
from analysis.history import UnreadableError
from analysis.reader import load_history
from analysis.regression import Compared, NotComparable, Regression
from analysis.text import clean

EXIT_WORSE, EXIT_USAGE, EXIT_SILENT = 1, 2, 3
_CONFIDENCE_MAX = 0.9999
_HEADINGS = ("metric", "base", "candidate", "ratio", "interval", "detectable", "change", "basis")
_MARKDOWN = {ord(character): f"\\{character}" for character in "|\\`*_[]<>"}


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit code."""
    options = _parser().parse_args(arguments)
    try:
        if options.list:
            return _list(options.baselines)
        if options.save is not None:
            if len(options.sides) != 1:
                return _complain("--save NAME takes one results directory or folder of them")
            return _save(options.save, Path(options.sides[0]), options.baselines)
        if options.fidelity:
            if len(options.sides) != 2:
                return _complain("--fidelity takes the results directories of a live run and of its simulated one")
            return _fidelity(Path(options.sides[0]), Path(options.sides[1]), options.form)
        if len(options.sides) != 2:
            return _complain("expected BASE and CANDIDATE: results directories, folders of them, or baselines")
        base, candidate = (_side(text, options.baselines) for text in options.sides)
        found = regression.compare_sides(
            base,
            candidate,
            confidence=options.confidence,
            tolerance=options.tolerance,
            share_tolerance=options.share_tolerance,
            force=options.force,
        )
    except (UnreadableError, NotComparable, NotAPair) as error:
        return _complain(clean(error))
    except OSError as error:
        return _complain(f"{error.filename}: {error.strerror}")
    shown = {"json": as_json, "markdown": as_markdown}.get(options.form, as_text)(found)
    print(shown, end="")
    if found.worse:
        return EXIT_WORSE
    return EXIT_SILENT if found.silent else 0


def as_json(found: Regression) -> str:
    """The whole comparison as one JSON object, without numbers that JSON has not: those are null."""
    body = msgspec.to_builtins(found) | {"worse": [each.name for each in found.worse], "silent": found.silent}
    return msgspec.json.format(msgspec.json.encode(body), indent=1).decode() + "\n"


def as_markdown(found: Regression) -> str:
    """A table and the notes."""
    rows = [_cells(each) for each in found.compared]
    lines = [f"### {_escaped(_title(found))}", "", _row(_HEADINGS), _row(["---"] * len(_HEADINGS))]
    lines += [_row([_escaped(cell) for cell in row]) for row in rows]
    lines += ["", f"**{_escaped(_summary(found))}**", ""]
    lines += [f"- {_escaped(note)}" for note in found.notes]
    return "\n".join(lines).rstrip() + "\n"


def as_text(found: Regression) -> str:
    """Columns for a terminal."""
    lines = [_title(found), *_columns([_HEADINGS, *(_cells(each) for each in found.compared)])]
    lines += [_summary(found), *(f"note: {note}" for note in found.notes)]
    return "\n".join(lines) + "\n"


def _columns(rows: Sequence[tuple[str, ...]]) -> list[str]:
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    return ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]


def _fidelity(live: Path, simulated: Path, form: str | None) -> int:
    """Raises UnreadableError and NotAPair."""
    found = fidelity.fidelity(load_history(live), load_history(simulated))
    rows, title, conclusion = fidelity.table(found), fidelity.title(found), fidelity.conclusion(found)
    if form == "json":
        print(msgspec.json.format(msgspec.json.encode(found), indent=1).decode())
    elif form == "markdown":
        head, *body = rows
        lines = [_row(head), _row(["---"] * len(head)), *(_row([_escaped(cell) for cell in row]) for row in body)]
        print("\n".join([f"### {_escaped(title)}", "", *lines, "", f"**{conclusion}**"]))
    else:
        print("\n".join([title, *_columns(rows), conclusion]))
    return EXIT_WORSE if found.beyond else 0


def _title(found: Regression) -> str:
    runs = " and ".join(f"{count} run{'' if count == 1 else 's'}" for count in found.runs)
    return (
        f"{found.experiment} ({found.world}, {found.model}): {clean(found.base)} against {clean(found.candidate)}, "
        f"{runs}, confidence {found.confidence:.3g} each"
    )


def _summary(found: Regression) -> str:
    counted = {change: sum(each.change is change for each in found.compared) for change in Change}
    told = ", ".join(f"{count} {change.value.replace('_', ' ')}" for change, count in counted.items())
    chance = (1 - found.confidence) * len(found.compared)
    return f"{told} (of so many comparisons {chance:.2g} would call a difference by chance)"


def _cells(each: Compared) -> tuple[str, ...]:
    interval = "-" if each.interval is None else f"{each.interval[0]:.3f} .. {each.interval[1]:.3f}"
    return (
        each.name,
        _quantity(each.base, each.unit),
        _quantity(each.candidate, each.unit),
        "-" if each.ratio is None else f"{each.ratio:.3f}",
        interval,
        "-" if each.detectable is None else f"{100 * each.detectable:.2g} %",
        each.change.value.replace("_", " "),
        each.basis + (f" ({each.why})" if each.why else ""),
    )


def _quantity(value: float | None, unit: str) -> str:
    if value is None:
        return "-"
    return f"{100 * value:.4g} %" if unit == "share" else f"{value:.4g} {unit}".rstrip()


def _row(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"


def _escaped(text: str) -> str:
    return text.translate(_MARKDOWN)


def _side(text: str, folder: Path) -> Side:
    path = Path(text)
    if not path.exists() and baselines.is_name(text):
        if text in baselines.names(folder):
            return baselines.read_baseline(text, folder)
        known = ", ".join(baselines.names(folder)) or "none"
        raise UnreadableError(f"{text}: neither a directory nor a baseline in {folder} (there: {known})")
    return baselines.read_side(path)


def _save(name: str, path: Path, folder: Path) -> int:
    if not baselines.is_name(name):
        return _complain(f"--save {clean(name)}: expected letters, digits and . _ -, 64 at most")
    side = baselines.read_side(path)
    kept, left_out = baselines.usable(side.runs)
    for line in left_out:
        print(line, file=sys.stderr)
    if not kept:
        return _complain(f"{path}: no run that could be a baseline")
    print(f"{baselines.save(msgspec.structs.replace(side, runs=kept), name, folder)}: {len(kept)} runs")
    return 0


def _list(folder: Path) -> int:
    for name in baselines.names(folder):
        try:
            side = baselines.read_baseline(name, folder)
        except UnreadableError as error:
            print(f"{name:24} {clean(error)}")
            continue
        run = side.runs[0]
        print(f"{name:24} {run.experiment}, {run.world}, {run.model}, {len(side.runs)} runs, saved {clean(side.saved)}")
    return 0


_share = real_number(0, 1)
_confidence = real_number(0.5, _CONFIDENCE_MAX, above=True)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m analysis.compare",
        description="What became better or worse between two results directories, folders of runs, or baselines.",
        epilog="Exit codes: 0 nothing became worse, 1 something did, 2 usage, 3 nothing can be said at all.",
    )
    parser.add_argument("sides", nargs="*", metavar="BASE CANDIDATE", help="a directory, or the name of a baseline")
    parser.add_argument("--fidelity", action="store_true", help="a live run and the simulated one of its schedule")
    parser.add_argument("--save", metavar="NAME", help="keep the runs of one directory as a baseline")
    parser.add_argument("--list", action="store_true", help="the baselines that there are")
    parser.add_argument("--baselines", type=Path, default=baselines.FOLDER, metavar="DIR", help="their folder")
    parser.add_argument("--force", action="store_true", help="compare different experiments, worlds or models")
    parser.add_argument("--confidence", type=_confidence, default=regression.CONFIDENCE, help="of each comparison")
    parser.add_argument("--tolerance", type=_share, default=regression.TOLERANCE, help="relative, for no difference")
    parser.add_argument(
        "--share-tolerance", type=_share, default=regression.SHARE_TOLERANCE, help="the same, of shares"
    )
    form = parser.add_mutually_exclusive_group()
    form.add_argument("--json", dest="form", action="store_const", const="json")
    form.add_argument("--markdown", dest="form", action="store_const", const="markdown")
    return parser


def _complain(text: str) -> int:
    print(f"analysis.compare: {text}", file=sys.stderr)
    return EXIT_USAGE


if __name__ == "__main__":
    sys.exit(main())
