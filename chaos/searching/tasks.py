"""The parts of a search that run somewhere: here, in a process of this host, or in one of a Ray cluster.

`python -m chaos.searching.tasks TASK RESULT` does the one in the first file and leaves what came of it in the second.
"""

import sys
from collections.abc import Sequence
from pathlib import Path

import msgspec

from chaos.experiment import Experiment
from chaos.searching.hunt import SHRINK_PLAYS_MAX, Prey, Scouted, Sighting, chase, scout


class Task(msgspec.Struct, frozen=True):
    """A stretch of `tries` plans of a seed: all to be played, or the one that was sighted to be made small, in about
    `plays_max` plays."""

    base: Experiment
    seed: int
    tries: int
    sighting: Sighting | None = None
    plays_max: int = SHRINK_PLAYS_MAX


class Result(msgspec.Struct, frozen=True):
    """scouted: of a stretch. prey: of a chase, None where it came to nothing. lost: why there is neither."""

    scouted: Scouted | None = None
    prey: Prey | None = None
    lost: str = ""


def perform(task: Task) -> Result:
    """Do it, in this process."""
    if task.sighting is None:
        return Result(scouted=scout(task.base, task.seed, task.tries))
    return Result(prey=chase(task.base, task.seed, task.tries, task.sighting, plays_max=task.plays_max))


def main(arguments: Sequence[str]) -> int:
    """Run the command line; 130 when it was interrupted."""
    given, left = (Path(name) for name in arguments)
    try:
        result = perform(msgspec.json.decode(given.read_bytes(), type=Task))
    except KeyboardInterrupt:
        return 130
    left.write_bytes(msgspec.json.encode(result))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
