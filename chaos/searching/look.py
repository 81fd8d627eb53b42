"""`python -m chaos.searching.look DIR`: what a search would say of a run, live or simulated, from its results.

A finding that is run live is confirmed by this: the verdict of a run knows the invariants, and not all signs of
failures known from the field.
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from analysis.history import UnreadableError
from analysis.reader import load_history
from chaos.searching.classes import class_of, told
from chaos.searching.oracle import breaches


def main(arguments: Sequence[str] | None = None) -> int:
    """Exit code 0 where nothing is broken, 1 where something is, 2 where the directory cannot be read."""
    parser = argparse.ArgumentParser(prog="python -m chaos.searching.look", description=__doc__)
    parser.add_argument("directory", type=Path, help="of one run, such as results/latest")
    directory = parser.parse_args(arguments).directory
    try:
        history = load_history(directory)
    except (OSError, UnreadableError) as error:
        print(f"chaos.searching.look: {error}", file=sys.stderr)
        return 2
    found = breaches(history, tuple(sorted(set(history.faults["kind"]))))
    for breach in found:
        print(f"{told(class_of(breach))}: {breach.what} ({breach.by})")
    if not found:
        print("nothing is broken")
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
