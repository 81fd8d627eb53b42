import os
import subprocess
import sys
from pathlib import Path

import pytest

from analysis.whole_file import point_latest, replacing, write_whole


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_a_file_is_replaced_and_nothing_else_is_left(tmp_path: Path) -> None:
    path = tmp_path / "verdict.json"
    write_whole(path, b"old")
    write_whole(path, "neu, süß")
    assert path.read_bytes() == "neu, süß".encode()
    assert names(tmp_path) == ["verdict.json"]


def test_an_error_while_it_is_filled_leaves_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "report.html"
    write_whole(path, "old")

    def interrupted() -> None:
        with replacing(path) as part:
            part.write_text("half")
            assert path.read_text() == "old"
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert path.read_text() == "old"
    assert names(tmp_path) == ["report.html"]


def test_an_error_of_the_replacement_itself_leaves_no_part(tmp_path: Path) -> None:
    (tmp_path / "taken").mkdir()
    with pytest.raises(OSError), replacing(tmp_path / "taken") as part:  # noqa: PT011 - which one, the system says
        part.write_text("a file cannot take the place of a folder")
    assert names(tmp_path) == ["taken"]


def test_a_process_that_dies_in_between_leaves_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "requests.parquet"
    write_whole(path, "old")
    code = (
        "import os, pathlib; from analysis.whole_file import replacing\n"
        f"with replacing(pathlib.Path({str(path)!r})) as part:\n"
        "    part.write_text('half'); os.kill(os.getpid(), 9)"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == -9
    assert path.read_text() == "old"
    assert len(names(tmp_path)) == 2
    write_whole(path, "new")
    assert path.read_text() == "new"


def test_what_lies_in_the_part_s_place_is_not_written_through(tmp_path: Path) -> None:
    victim = tmp_path / "victim"
    victim.write_text("precious")
    (tmp_path / f".cache.json.{os.getpid()}.part").symlink_to(victim)
    write_whole(tmp_path / "cache.json", "ours")
    assert victim.read_text() == "precious"
    assert (tmp_path / "cache.json").read_text() == "ours"
    assert not (tmp_path / "cache.json").is_symlink()


def test_files_are_readable_as_others_are(tmp_path: Path) -> None:
    (tmp_path / "plain").write_text("")
    write_whole(tmp_path / "whole", "")
    assert (tmp_path / "whole").stat().st_mode == (tmp_path / "plain").stat().st_mode


def test_latest_is_the_newest(tmp_path: Path) -> None:
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        point_latest(tmp_path, name)
        assert os.readlink(tmp_path / "latest") == name
    assert names(tmp_path) == ["latest", "one", "two"]


def test_a_latest_that_is_no_link_stays_and_leaves_nothing(tmp_path: Path) -> None:
    (tmp_path / "latest").mkdir()
    point_latest(tmp_path, "one")
    assert names(tmp_path) == ["latest"]
