"""What command lines take: every wrong word is refused in one line, and no folder is left by the try."""

import argparse
import os
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from analysis.arguments import NotWritable, check_writable, path, port, positive_int, real_number, seed, whole_number

TAKEN = {"positive_int": positive_int, "seed": seed, "port": port, "three": whole_number(1, 3)}


def tried(take: Callable[[str], float], text: str) -> tuple[float | None, str]:
    """What is taken, or None and why it is refused."""
    try:
        return take(text), ""
    except argparse.ArgumentTypeError as refused:
        return None, str(refused)


@pytest.mark.parametrize("kind", TAKEN)
@given(text=st.one_of(st.text(max_size=100), st.integers().map(str), st.floats().map(str)))
def test_a_whole_number_is_in_its_range_or_refused_in_one_line(kind: str, text: str) -> None:
    least, most = {"positive_int": (1, 10**9), "seed": (0, 10**9), "port": (0, 65_535), "three": (1, 3)}[kind]
    value, said = tried(TAKEN[kind], text)
    if value is None:
        assert said.startswith(f"expected a whole number, {least} ")
        assert "\n" not in said
        # Of 80 characters each may be shown as an escape.
        assert len(said) < 1000
    else:
        assert least <= value <= most
        assert value == int(text)


@given(text=st.one_of(st.text(max_size=20), st.floats().map(str)))
def test_a_number_is_finite_and_in_its_range(text: str) -> None:
    value, said = tried(real_number(0, 10, above=True), text)
    if value is None:
        assert said.startswith("expected a number, more than 0 and at most 10, got ")
    else:
        assert 0 < value <= 10


def test_an_edge_is_taken_or_not_as_said() -> None:
    assert real_number(0, 1)("0") == 0.0
    assert port("65535") == 65_535
    for wrong in ("0", "-1", "nan", "inf", ""):
        with pytest.raises(argparse.ArgumentTypeError):
            real_number(0, 1, above=True)(wrong)


def test_nothing_is_no_path() -> None:
    assert path("a/b") == Path("a/b")
    for wrong in ("", "a\0b"):
        with pytest.raises(argparse.ArgumentTypeError, match="expected a path"):
            path(wrong)


def test_a_folder_that_can_be_made_is_not_made_by_the_try(tmp_path: Path) -> None:
    check_writable(tmp_path / "a" / "b")
    assert not (tmp_path / "a").exists()
    check_writable(tmp_path)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("below", ["", "x", "x/y"])
def test_a_file_is_no_folder_and_has_nothing_below(tmp_path: Path, below: str) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(NotWritable, match="cannot be written to: ") as refused:
        check_writable(tmp_path / "file" / below)
    assert "\n" not in str(refused.value)
    assert os.listdir(tmp_path) == ["file"]


@pytest.mark.skipif(not Path("/proc/self").exists(), reason="there is no /proc")
def test_where_even_root_can_make_nothing(tmp_path: Path) -> None:
    with pytest.raises(NotWritable, match="/proc/x: cannot be written to: "):
        check_writable(Path("/proc/x"))
