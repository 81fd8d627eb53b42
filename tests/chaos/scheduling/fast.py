"""`python -m tests.chaos.scheduling.fast ANCHOR FACTOR COMMAND -- ARGUMENT ...`: a scheduler whose time runs faster.

ANCHOR is a file that says where time began, so that a scheduler that is started again goes on in the same time. COMMAND
is `chaos.run`, or a script that is run in its place.
"""

import asyncio
import sys
import time
from pathlib import Path

from chaos.schedule import main
from chaos.scheduling.runner import RUN

BEGIN_S = 1_800_000_000.0 + 59.0
"""Just before a whole minute."""
_LEAST_S = 0.01


class FastClock:
    """`factor` seconds pass in each."""

    def __init__(self, anchor: Path, factor: float) -> None:
        self._factor = factor
        if not anchor.exists():
            anchor.write_text(repr(time.time()))
        self._began_s = float(anchor.read_text())

    def unix_s(self) -> float:
        """See Clock."""
        return BEGIN_S + (time.time() - self._began_s) * self._factor

    def mono_s(self) -> float:
        """See Clock."""
        return time.monotonic() * self._factor

    async def sleep(self, seconds: float) -> None:
        """See Clock."""
        await asyncio.sleep(max(_LEAST_S, seconds / self._factor))


if __name__ == "__main__":
    anchor, factor, script, _, *arguments = sys.argv[1:]
    command = RUN if script == "chaos.run" else (sys.executable, "-S", script)
    sys.exit(main(arguments, FastClock(Path(anchor), float(factor)), command))
