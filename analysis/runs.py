"""The runs below a folder, as a results browser lists them: what each was, what came of it, or how it stands."""

import os
import re
import time
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import msgspec

from analysis.history import RunInfo, UnreadableError, read_experiment, read_info
from analysis.judge import read_verdict
from analysis.verdict import CriterionResult

RUNS_MAX = 5_000
SLOT_FILE = "slot.json"
"""In the folder above a run that a schedule has started: see Slot."""
_DEPTH_MAX = 4
_STALE_S = 15.0
"""A progress file that is older belongs to a run that was killed."""
_STAMP = re.compile(r"^(\d{8}T\d{6})-")


class Slot(msgspec.Struct, frozen=True):
    """What a schedule writes of a slot. slot_s: its time, Unix."""

    schedule: str
    entry: str
    slot_s: int


class Listed(msgspec.Struct, frozen=True):
    """One run. path: below the folder, with slashes. verdict: empty while there is none. began: UTC, None: unknown.

    criteria: by name. progress: what `progress.json` says, None when it does not run now. entry: of the schedule that
    started it, as schedule/entry; empty when none did.
    """

    path: str
    info: RunInfo
    model: str
    began: datetime | None
    verdict: str
    reason: str
    criteria: dict[str, CriterionResult]
    has_report: bool
    progress: dict[str, Any] | None
    entry: str = ""

    @property
    def state(self) -> str:
        """Its verdict, or why it has none."""
        if self.progress is not None:
            return "running"
        return self.verdict or "no verdict"


class Filter(msgspec.Struct, frozen=True):
    """Which runs to show: all whose fields are equal to those that are not empty, and whose text holds the words."""

    experiment: str = ""
    world: str = ""
    state: str = ""
    entry: str = ""
    words: str = ""

    def passes(self, run: Listed) -> bool:
        """Whether the run is to be shown."""
        asked = [(self.experiment, run.info.experiment), (self.world, run.info.world), (self.state, run.state)]
        asked.append((self.entry, run.entry))
        text = " ".join((run.path, run.model, run.reason, run.info.experiment)).lower()
        return all(wanted in ("", found) for wanted, found in asked) and all(
            word in text for word in self.words.lower().split()
        )


class Shelf:
    """The runs below a folder. A run that has ended is read once."""

    def __init__(self, root: Path) -> None:
        self._root = root
        self._known: dict[str, tuple[tuple[int, ...], Listed]] = {}

    def runs(self) -> list[Listed]:
        """The newest RUNS_MAX of them, newest first. Folders that hold no run are passed over."""
        found = sorted(self._folders(), key=lambda place: place.name, reverse=True)[:RUNS_MAX]
        listed = [run for folder in found if (run := self._listed(folder)) is not None]
        names = {run.path for run in listed}
        self._known = {path: entry for path, entry in self._known.items() if path in names}
        return listed

    def find(self, path: str) -> Listed | None:
        """The run at a path as `Listed.path` has it; None for any other."""
        return next((run for run in self.runs() if run.path == path), None)

    def folder(self, run: Listed) -> Path:
        """Where it is."""
        return self._root / run.path

    def _folders(self) -> Iterator[Path]:
        depth = len(self._root.parts)
        for place, folders, files in os.walk(self._root):
            if "run.json" in files:
                folders.clear()
                yield Path(place)
                continue
            if len(Path(place).parts) - depth >= _DEPTH_MAX:
                folders.clear()
            # Links such as `latest` would show a run twice, and could lead anywhere.
            folders[:] = [name for name in folders if not name.startswith(".") and not Path(place, name).is_symlink()]

    def _listed(self, folder: Path) -> Listed | None:
        path = folder.relative_to(self._root).as_posix()
        stamps = tuple(_modified_ns(folder / name) for name in ("run.json", "verdict.json", "report.html"))
        known = self._known.get(path)
        progress = _progress(folder)
        if known is not None and known[0] == stamps:
            return msgspec.structs.replace(known[1], progress=progress)
        try:
            info = read_info(folder)
        except UnreadableError:
            return None
        try:
            verdict = read_verdict(folder)
        except UnreadableError:
            verdict = None
        run = Listed(
            path=path,
            info=info,
            model=_model(folder),
            began=_began(info.run_id),
            verdict=verdict.verdict.value if verdict is not None else "",
            reason=(verdict.reasons or [""])[0] if verdict is not None else info.ended_by,
            criteria={each.name: each for each in verdict.criteria} if verdict is not None else {},
            has_report=stamps[2] > 0,
            progress=progress,
            entry=_entry(folder),
        )
        self._known[path] = (stamps, run)
        return run


def _modified_ns(path: Path) -> int:
    try:
        return path.stat().st_mtime_ns
    except OSError:
        return 0


def _progress(folder: Path) -> dict[str, Any] | None:
    path = folder / "progress.json"
    try:
        if time.time() - path.stat().st_mtime > _STALE_S:
            return None
        return msgspec.json.decode(path.read_bytes(), type=dict[str, Any])
    except (OSError, msgspec.DecodeError, UnicodeDecodeError):
        return None


def _entry(folder: Path) -> str:
    try:
        slot = msgspec.json.decode((folder.parent / SLOT_FILE).read_bytes(), type=Slot)
    except (OSError, msgspec.DecodeError, UnicodeDecodeError):
        return ""
    return f"{slot.schedule}/{slot.entry}"


def _model(folder: Path) -> str:
    try:
        cluster = read_experiment(folder).get("cluster")
    except (UnreadableError, UnicodeDecodeError):
        return ""
    return str(cluster.get("model", "")) if isinstance(cluster, dict) else ""


def _began(run_id: str) -> datetime | None:
    match = _STAMP.match(run_id)
    try:
        return datetime.strptime(match[1], "%Y%m%dT%H%M%S").replace(tzinfo=UTC) if match else None
    except ValueError:
        return None
