"""What a run recorded, and what can be said of it.

    import analysis
    run = analysis.load("results/latest")
    run.requests.groupby("phase")["latency_s"].quantile([0.5, 0.95])

Processes of the cluster import this package for its schema alone: nothing here may import pandas before it is asked to.
"""

from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pathlib import Path

    from analysis.notebook import Results


def load(directory: "str | Path | Sequence[str | Path]") -> "Results":
    """A results directory as pandas frames; for several, their frames together, with a column `run`.

    See analysis.notebook.Results for what is in them and in which units. Nothing in the directory is changed, but for
    the tables of a run that was killed, which are merged first. Raises analysis.history.UnreadableError, whose message
    is one line.
    """
    from analysis.notebook import read

    return read(directory)
