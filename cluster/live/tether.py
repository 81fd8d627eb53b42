"""`python -m cluster.live.tether [--patience SECONDS] PROGRAM [ARGUMENT ...]`: it lives no longer than who starts this.

Ends the program when standard input closes, which also happens when the process at its other end is killed, and ends
with the program's exit code when that ends by itself. Writes the program's pid on standard output first.
"""

import os
import selectors
import signal
import subprocess
import sys
from collections.abc import Sequence

_PATIENCE_S = 5.0
"""How long the program has to end in an orderly way, unless `--patience` says otherwise."""
_LOOK_S = 0.2


def main(arguments: Sequence[str]) -> int:
    """Run the program in `arguments`."""
    patience_s = _PATIENCE_S
    if arguments[0] == "--patience":
        patience_s, arguments = float(arguments[1]), arguments[2:]
    # What a terminal sends to all is for whoever started us to act on. Not SIG_IGN: the program would inherit it.
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, lambda number, frame: None)
    try:
        program = subprocess.Popen(list(arguments), stdin=subprocess.DEVNULL, stdout=sys.stderr)
    except OSError as error:
        print(f"{arguments[0]}: cannot be started: {error.strerror}", file=sys.stderr)
        return 127
    print(program.pid, flush=True)
    with selectors.DefaultSelector() as selector:
        selector.register(sys.stdin.fileno(), selectors.EVENT_READ)
        while program.poll() is None:
            if selector.select(_LOOK_S) and not os.read(sys.stdin.fileno(), 4096):
                return _end(program, patience_s)
    code = program.returncode
    return code if code >= 0 else 128 - code


def _end(program: "subprocess.Popen[bytes]", patience_s: float) -> int:
    program.terminate()
    try:
        program.wait(patience_s)
    except subprocess.TimeoutExpired:
        program.kill()
        program.wait()
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
