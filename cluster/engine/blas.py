"""Which BLAS MLX should use on Linux.

MLX's CPU build calls the standard cblas symbols and is linked against the reference BLAS. A library that is preloaded
and exports the same symbols takes its place. Nothing here imports MLX: it has to be decided before a process starts.
"""

import importlib.metadata
import mmap
import os
import sys
from collections.abc import Iterator
from pathlib import Path

import msgspec

SETTING = "MLX_CHAOS_BLAS"
"""Environment variable: the path of a library to preload, or `none`."""

# One-threaded or pthread builds only: an OpenMP build brings a second thread pool into the process. First match wins.
_SYSTEM = (
    "usr/lib/*/openblas-pthread/libopenblas.so.0",
    "usr/lib/*/openblas-serial/libopenblas.so.0",
    "usr/lib64/libopenblasp.so.0",
    "usr/lib64/libopenblas.so.0",
    "usr/lib/libopenblas.so.0",
    "usr/lib/libopenblas.so",
    "usr/local/lib/libopenblas.so.0",
    "opt/OpenBLAS/lib/libopenblas.so.0",
)


class Blas(msgspec.Struct, frozen=True):
    """A choice of BLAS. path: what to preload, None for nothing. note: one line for the report."""

    name: str
    path: str | None
    note: str


def find_blas(root: Path = Path("/")) -> Blas:
    """The BLAS to preload here: the user's, the system's OpenBLAS, the one inside the `scs` wheel, else none.

    root: where to look for the system's libraries. Raises ValueError when the user's setting names no file.
    """
    if sys.platform != "linux":
        return Blas("accelerate", None, "MLX computes on Metal; no BLAS is preloaded")
    setting = os.environ.get(SETTING, "")
    if setting == "none":
        return _reference(f"{SETTING}=none")
    if setting:
        path = Path(setting)
        if not path.is_file():
            raise ValueError(f"{SETTING} is neither `none` nor the path of a library: {setting}")
        doubt = "" if exports_cblas(path) else ", which does not seem to export cblas_sgemm: it may have no effect"
        return Blas(path.name, str(path.absolute()), f"chosen by {SETTING}{doubt}")
    for path in _system_libraries(root):
        if exports_cblas(path):
            return Blas("openblas-system", str(path), "the system's OpenBLAS")
    for path in _wheel_libraries():
        if exports_cblas(path):
            return Blas("openblas-scs", str(path), "the OpenBLAS inside the scs wheel")
    return _reference("no OpenBLAS found")


def preload_environment(blas: Blas) -> dict[str, str]:
    """Environment variables, to add to those of a new process, that make it compute with `blas` on one thread.

    One thread, because workers share the host: together they have as many threads as there are workers. A core type
    in the environment (OPENBLAS_CORETYPE) stays what it is.
    """
    if blas.path is None:
        return {}
    preloaded = [entry for entry in os.environ.get("LD_PRELOAD", "").replace(" ", ":").split(":") if entry]
    if blas.path not in preloaded:
        preloaded.append(blas.path)
    return {"LD_PRELOAD": ":".join(preloaded), "OPENBLAS_NUM_THREADS": "1", "OMP_NUM_THREADS": "1"}


def is_active(blas: Blas) -> bool:
    """Whether this very process has `blas` in memory: the loader only warns when a preload fails."""
    if blas.path is None:
        return False
    maps = Path("/proc/self/maps")
    return maps.is_file() and os.path.realpath(blas.path) in maps.read_text()


def exports_cblas(path: Path) -> bool:
    """Whether a library names the plain symbol `cblas_sgemm`. It is not loaded: that would start its threads here."""
    if not path.is_file() or path.stat().st_size == 0:
        return False
    with path.open("rb") as stream, mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ) as content:
        return content.find(b"\0cblas_sgemm\0") >= 0


def _reference(reason: str) -> Blas:
    note = f"{reason}: the reference BLAS is 3-5 times slower, and batching gains little"
    return Blas("reference", None, note)


def _system_libraries(root: Path) -> Iterator[Path]:
    for pattern in _SYSTEM:
        yield from sorted(root.glob(pattern))


def _wheel_libraries() -> Iterator[Path]:
    try:
        files = importlib.metadata.files("scs") or []
    except importlib.metadata.PackageNotFoundError:
        return
    for file in files:
        if file.name.startswith("libopenblas"):
            yield Path(str(file.locate())).resolve()
