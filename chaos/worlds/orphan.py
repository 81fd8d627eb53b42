"""`python -m chaos.worlds.orphan PROGRAM [ARGUMENT ...]`: start a program that is nobody's child, and say its pid.

Ray ends the children of an actor's process with it, also those that are there to heal when it ends.
"""

import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import BinaryIO

_SAY_S = 20.0


def start(argv: Sequence[str], environment: Mapping[str, str], messages: Path | None = None) -> tuple[int, BinaryIO]:
    """Start a program as an orphan; its pid, and what writes to its standard input. Raises OSError.

    messages: where its output goes; None: nowhere.
    """
    with messages.open("ab") if messages is not None else open("/dev/null", "ab") as output:
        process = subprocess.Popen(
            [sys.executable, "-m", "chaos.worlds.orphan", *argv],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=output,
            env=dict(environment),
            start_new_session=True,
            cwd="/",
        )
    assert process.stdin is not None
    assert process.stdout is not None
    said, _ = process.stdout.readline(), process.wait(_SAY_S)
    process.stdout.close()
    if not said.strip().isdigit():
        process.stdin.close()
        raise OSError(f"{argv[0]} does not start")
    # The process object reaps nobody any more, but closing its pipe is ours.
    stdin: BinaryIO = process.stdin  # type: ignore[assignment]
    return int(said), stdin


def main(argv: Sequence[str]) -> int:
    """Start it and leave it alone."""
    program = subprocess.Popen(argv, stdout=sys.stderr, start_new_session=True)
    print(program.pid, flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
