"""Files that a reader sees whole or not at all: what others read meanwhile, and what a full disk must not halve."""

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path


@contextlib.contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """In the block a file beside `path` is to be filled; then it takes its place. Raises OSError.

    When the block raises, the old file stays and the new one is removed; when the process dies, the old file stays.
    The file to be filled is there already, is ours, and has no other writer: not even another process that makes the
    same file, nor a link that somebody has laid out in a folder for all.
    """
    part = path.with_name(f".{path.name}.{os.getpid()}.part")
    part.unlink(missing_ok=True)
    try:
        part.touch(exist_ok=False)
        yield part
        os.replace(part, path)
    except BaseException:
        with contextlib.suppress(OSError):
            part.unlink(missing_ok=True)
        raise


def write_whole(path: Path, content: bytes | str) -> None:
    """Write the whole file (text as UTF-8) or leave the old one. Raises OSError."""
    with replacing(path) as part:
        part.write_bytes(content.encode() if isinstance(content, str) else content)


def point_latest(folder: Path, name: str) -> None:
    """`folder/latest` names the newest entry, here `name`; a file system without links does without."""
    link = folder / f".latest.{name}"
    try:
        link.symlink_to(name)
        os.replace(link, folder / "latest")
    except OSError:
        with contextlib.suppress(OSError):
            link.unlink(missing_ok=True)
