"""Digests of a run's rows: equal where two runs have told the same, byte for byte."""

import hashlib
from pathlib import Path


def rows_digest(raw: Path) -> str:
    """SHA-256 of all files of rows in a folder."""
    whole = hashlib.sha256()
    for path in _files(raw):
        whole.update(path.name.encode())
        whole.update(path.read_bytes())
    return whole.hexdigest()


def file_digests(raw: Path) -> dict[str, str]:
    """SHA-256 of each of them, by name."""
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in _files(raw)}


def _files(raw: Path) -> list[Path]:
    return sorted(raw.glob("*.arrow"))
