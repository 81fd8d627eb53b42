"""What runs on each other host of a run: an actor with a keeper of its own, which heals there what the run has done.

Nothing there may depend on us to be undone. The keeper holds the time limits of what is frozen; it ends all processes
of the run there when the agent ends; and the agent ends when the runner has not been heard of for the lease.
"""

import asyncio
import contextlib
import logging
import os
import shutil
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import BinaryIO

import msgspec
import psutil

from chaos.clean_slate import left_behind
from chaos.toxiproxy.launcher import cache_directory
from chaos.undo import RUN_MARK, UndoError, UndoLog
from chaos.worlds.orphan import start
from chaos.worlds.processes import note_frozen, status
from chaos.worlds.reviver import Plan, begin, raylet_above
from cluster.engine.blas import find_blas, preload_environment
from cluster.engine.weights import ModelUnavailable, model_directory
from cluster.live.host import HostAgent
from cluster.record import SUFFIX

LEASE_S = 60.0
"""How long the runner may be silent before everything of its run ends on a host."""
CHUNK_BYTES = 4 * 2**20
_FILES_MAX = 4_096
_UNFETCHED_MAX = 5
_UNFETCHED_S_MIN = 3_600.0
"""What was written to in this time may be a run's that goes on."""
_LOOK_S = 1.0
_HERE = str(Path(__file__).resolve().parents[2])
_log = logging.getLogger(__name__)


def rows_directory(mark: str) -> Path:
    """Where the nodes of a run write their rows on a host other than the runner's, until they are fetched.

    mark: of the run on one host in one of that host's lives, `<run id>.<host>.<life>`. All lives have one folder.
    """
    return cache_directory() / "runs" / mark.rpartition(".")[0]


class OtherHostAgent(HostAgent):
    """A HostAgent that needs nobody on the runner's host to heal."""

    def __init__(self, name: str, raw: str) -> None:
        """raw: not used, because it is a folder of another host. The run's mark here is in our environment."""
        self._mark = os.environ[RUN_MARK]
        self._raw = rows_directory(self._mark)
        self._raw.mkdir(parents=True, exist_ok=True, mode=0o700)
        prune(self._raw.parent)
        super().__init__(name, str(self._raw))
        self._undo: UndoLog | None = None
        self._keeper: tuple[int, BinaryIO] | None = None
        """Its pid, and the pipe whose end it takes for ours."""
        self._lease_s = time.monotonic() + LEASE_S
        self._lease: asyncio.Task[None] | None = None

    async def open(self) -> str:
        """Start the keeper; the folder for the rows of this host's nodes. Raises UndoError and OSError."""
        undo = self._undo = await asyncio.to_thread(UndoLog.create, self._mark)
        command = [sys.executable, "-m", "chaos.keeper", "--log", str(undo.path.resolve())]
        path = os.pathsep.join(filter(None, (_HERE, os.environ.get("PYTHONPATH", ""))))
        variables = os.environ | {"PYTHONPATH": path}
        self._keeper = await asyncio.to_thread(start, command, variables, self._raw / "keeper.log")
        self._lease = asyncio.create_task(self._watch_lease())
        return str(self._raw)

    async def renew(self) -> float:
        """The runner lives; this host's monotonic clock, seconds."""
        now = time.monotonic()
        self._lease_s = now + LEASE_S
        return now

    async def status(self, pid: int) -> str | None:
        """See chaos.worlds.processes.status."""
        return status(pid)

    async def note_frozen(self, pid: int, node: str, ttl_s: float) -> str:
        """The entry's id, or a line that begins with `!` and says why there is none: then do not freeze."""
        assert self._undo is not None
        if not self._kept():
            return "!its keeper does not run, and nobody there would let it go on"
        try:
            return note_frozen(self._undo, pid, node, ttl_s)
        except (UndoError, psutil.Error) as error:
            return f"!{' '.join(str(error).split())}"

    async def note_thawed(self, entry: str) -> str:
        """What went wrong, empty when nothing did."""
        assert self._undo is not None
        try:
            self._undo.done(entry)
        except UndoError as error:
            return str(error)
        return ""

    async def make_model(self, model: str) -> str:
        """Have a model here, built where it can be built and never downloaded; why it is not, empty when it is."""
        try:
            await asyncio.to_thread(model_directory, model, download=False)
        except ModelUnavailable as error:
            return str(error)
        return ""

    async def preload(self) -> dict[str, str]:
        """Variables for a worker's process here, see cluster.engine.blas."""
        return await asyncio.to_thread(lambda: preload_environment(find_blas()))

    async def files(self) -> list[tuple[str, int]]:
        """Names and bytes of the files with rows that are here."""
        found = sorted(path for path in self._raw.iterdir() if path.suffix in (".arrow", SUFFIX))[:_FILES_MAX]
        return [(path.name, path.stat().st_size) for path in found]

    async def read(self, name: str, offset: int) -> bytes:
        """A part of such a file."""
        with (self._raw / Path(name).name).open("rb") as file:
            file.seek(offset)
            return file.read(CHUNK_BYTES)

    async def clear(self) -> None:
        """Remove the rows: they have been fetched."""
        await asyncio.to_thread(shutil.rmtree, self._raw, ignore_errors=True)

    async def begin_reviver(self, plan: Plan) -> int:
        """Start who kills this host's Ray node and starts it again; its pid. See chaos.worlds.reviver."""
        assert self._keeper is not None
        return await asyncio.to_thread(begin, msgspec.structs.replace(plan, spare=(self._keeper[0],)))

    async def ray_processes(self) -> tuple[int, int]:
        """The pid of this host's raylet, and how many processes run below it."""
        raylet = raylet_above()
        return raylet.pid, 1 + len(raylet.children(recursive=True))

    def _kept(self) -> bool:
        return self._keeper is not None and status(self._keeper[0]) is not None

    async def _watch_lease(self) -> None:
        while time.monotonic() < self._lease_s:
            await asyncio.sleep(_LOOK_S)
            if not self._kept():
                _log.error("the keeper has ended: everything of the run ends here")
                break
        # The keeper reads the end of our pipe, heals, and ends what else is here of the run.
        os._exit(1)


def prune(folder: Path) -> None:
    """Remove old rows that nobody has fetched, because their runner was killed: all but the newest few."""
    with contextlib.suppress(OSError):
        by_age = sorted(folder.iterdir(), key=lambda path: path.stat().st_mtime, reverse=True)
        for path in by_age[_UNFETCHED_MAX:]:
            if time.time() - path.stat().st_mtime > _UNFETCHED_S_MIN:
                shutil.rmtree(path, ignore_errors=True)


def left_there(marks: Sequence[str], limit_s: float, fetched: bool) -> list[str]:
    """See chaos.clean_slate.left_behind; of several marks, on the host where this runs.

    fetched: false where nobody has begun to write rows that anybody could want.
    """
    if not fetched:
        for mark in marks:
            shutil.rmtree(rows_directory(mark), ignore_errors=True)
    return [line for mark in marks for line in left_behind(mark, limit_s)]


def weigh_model(model: str) -> int:
    """Bytes of a model's weights; 0 where it is not there, or where they cannot be told."""
    with contextlib.suppress(ModelUnavailable, OSError):
        directory = model_directory(model, download=False)
        return sum(path.stat().st_size for path in directory.glob("*.safetensors"))
    return 0
