"""Which code ran: a digest of this project's files as they are, committed or not, installed or not."""

import functools
import hashlib
from importlib.resources import files
from pathlib import Path

_PACKAGES = ("analysis", "chaos", "cluster", "workloads")
_KINDS = (".py", ".yaml")


@functools.cache
def code_digest() -> str:
    """Equal for equal code; twelve hexadecimal digits."""
    digest = hashlib.sha256()
    for package in _PACKAGES:
        root = Path(str(files(package)))
        for path in sorted(each for each in root.rglob("*") if each.suffix in _KINDS):
            name = path.relative_to(root).as_posix()
            content = path.read_bytes()
            digest.update(f"{package}/{name}\n{len(content)}\n".encode())
            digest.update(content)
    return digest.hexdigest()[:12]
