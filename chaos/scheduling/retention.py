"""Which results of a schedule may go: what is old or too many, and neither a baseline nor a finding refers to."""

import shutil
import time
from pathlib import Path

from analysis.baselines import names, read_baseline
from analysis.findings import referred
from analysis.history import UnreadableError
from analysis.runs import SLOT_FILE
from chaos.scheduling.plan import DAY_S, Plan
from chaos.scheduling.runner import slot_of


def tidy(plan: Plan, entry: str, now_s: float | None = None) -> list[str]:
    """Delete what need not be kept of an entry's results; a line for each slot that went, and for what went wrong.

    Only folders are touched that the schedule has made itself. While a baseline or a run's verdict cannot be read,
    nobody knows what it refers to, and nothing is deleted.
    """
    root = plan.folder / entry
    slots = sorted((path for path in _folders(root) if slot_of(path.name) is not None), reverse=True)
    keep = plan.retention_of(entry)
    oldest_s = (time.time() if now_s is None else now_s) - keep.days * DAY_S
    old = [path for place, path in enumerate(slots) if place >= keep.runs or (slot_of(path.name) or 0) < oldest_s]
    # The newest stays, however old: what stands is read from it.
    old = [path for path in old if path != slots[0] and (path / SLOT_FILE).is_file()]
    if not old:
        return []
    try:
        kept = _baselined(Path(plan.baselines)) | referred(root)
    except UnreadableError as error:
        return [f"{entry}: nothing is deleted: {error}"]
    lines = []
    for path in old:
        if any(child.name in kept for child in _folders(path)):
            continue
        try:
            shutil.rmtree(path)
            lines.append(f"{entry}: results of {path.name} deleted")
        except OSError as error:
            lines.append(f"{entry}: {path}: cannot be deleted: {error.strerror}")
    return lines


def _folders(root: Path) -> list[Path]:
    try:
        return [path for path in root.iterdir() if path.is_dir() and not path.is_symlink()]
    except OSError:
        return []


def _baselined(folder: Path) -> set[str]:
    """Ids of the runs that baselines were made of. Raises UnreadableError."""
    return {run.run_id for name in names(folder) for run in read_baseline(name, folder).runs}
