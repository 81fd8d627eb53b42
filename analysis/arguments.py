"""What command lines take, checked when they are read: a mistake costs one line that says what was expected."""

import argparse
import math
import os
import tempfile
from collections.abc import Callable
from pathlib import Path

COUNT_MAX = 1_000_000_000


class NotWritable(Exception):
    """A folder cannot be made, or nothing can be written there. The message is one line."""


def whole_number(least: int, most: int = COUNT_MAX) -> Callable[[str], int]:
    """Takes whole numbers between two, both included."""

    def parse(text: str) -> int:
        try:
            value = int(text)
        except ValueError:
            value = least - 1
        if not least <= value <= most:
            upper = f"to {most}" if most < COUNT_MAX else "or more"
            raise argparse.ArgumentTypeError(f"expected a whole number, {least} {upper}, got {_shown(text)}")
        return value

    return parse


def real_number(least: float, most: float, *, above: bool = False) -> Callable[[str], float]:
    """Takes numbers between two, both included. above: `least` itself is not taken."""

    def parse(text: str) -> float:
        try:
            value = float(text)
        except ValueError:
            value = math.nan
        if not least <= value <= most or (above and value == least):
            lower = f"more than {least:g} and at most" if above else f"{least:g} to"
            raise argparse.ArgumentTypeError(f"expected a number, {lower} {most:g}, got {_shown(text)}")
        return value

    return parse


positive_int = whole_number(1)
seed = whole_number(0)
port = whole_number(0, 65_535)


def path(text: str) -> Path:
    """Takes what can be a path: not nothing, which would be where we are."""
    if not text or "\0" in text:
        raise argparse.ArgumentTypeError(f"expected a path, got {_shown(text)}")
    return Path(text)


def check_writable(folder: Path) -> None:
    """Whether the folder can be made and written to, tried and undone again. Raises NotWritable.

    Permissions alone do not tell: root may do everything, and still nothing can be made below /proc.
    """
    made: list[Path] = []
    try:
        for each in (*reversed(folder.absolute().parents), folder.absolute()):
            if not each.is_dir():
                each.mkdir()
                made.append(each)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except (OSError, ValueError) as error:
        why = (error.strerror if isinstance(error, OSError) else None) or str(error)
        raise NotWritable(f"{folder}: cannot be written to: {why}") from None
    finally:
        for each in reversed(made):
            try:
                each.rmdir()
            except OSError:
                # Somebody else has begun to use it.
                break


def parent_of(file: Path) -> Path:
    """The folder in which a file is to be written."""
    return file.parent if str(file.parent) else Path(os.curdir)


def _shown(text: str) -> str:
    return repr(text if len(text) <= 80 else f"{text[:80]}...")
