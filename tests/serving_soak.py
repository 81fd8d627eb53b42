"""`python -m tests.serving_soak ...` is `chaos.run` on a live cluster whose collections are counted afterwards.

After the load it counts what every collection of every node still holds: `census.json` beside the results. Everything
else is the real thing.
"""

import sys
from collections.abc import Sequence

from chaos.run import main, prepare_ray


def soak(arguments: Sequence[str]) -> int:
    """Run with a census; returns the exit code."""
    prepare_ray(None)
    from chaos.worlds import live
    from tests.counting_world import CountingWorld

    live.LiveWorld = CountingWorld  # type: ignore[misc]
    return main(arguments)


if __name__ == "__main__":
    sys.exit(soak(sys.argv[1:]))
