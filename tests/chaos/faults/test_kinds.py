"""Fault kinds by name: the project's own, those of installed packages, and what is said of each."""

import re
from pathlib import Path

import pytest

from chaos import faults, run
from chaos.faults.listing import listing
from tests.chaos.simulated_runs import conduct

UNPLUG = """
'''`unplug`: somebody trips over a cable.'''
import os
from chaos.faults.partition import Partition
class Unplug(Partition):
    KIND = "unplug"
    def __init__(self, spec, nodes):
        if "CABLES_FRAYED" in os.environ:
            raise TypeError("no end")
        super().__init__(spec, nodes)
class Nameless(Partition):
    KIND = "something"
class Nothing:
    KIND = "nothing"
"""


def install(folder: Path, monkeypatch: pytest.MonkeyPatch, *points: str) -> None:
    """A package of somebody else's, as pip would leave it."""
    (folder / "cables.py").write_text(UNPLUG)
    (folder / "frayed.py").write_text("raise KeyError('a cable')\n")
    metadata = folder / "cables-1.0.dist-info"
    metadata.mkdir()
    (metadata / "METADATA").write_text("Metadata-Version: 2.1\nName: cables\nVersion: 1.0\n")
    lines = "\n".join(points)
    (metadata / "entry_points.txt").write_text(f"[{faults.ENTRY_POINTS}]\n{lines}\n")
    monkeypatch.syspath_prepend(str(folder))


def test_every_kind_says_what_it_does_and_has_a_colour_of_its_own() -> None:
    for name, kind in faults.KINDS.items():
        told = listing({name: kind})
        assert told.startswith(f"`{name}`: ")
        assert len(told.split("\n\n")[0]) > 150
        assert re.fullmatch("#[0-9a-f]{6}", kind.COLOUR)
    colours = [kind.COLOUR for kind in faults.KINDS.values()]
    assert len(set(colours)) == len(colours)


@pytest.mark.simulated
def test_a_kind_of_an_installed_package_is_as_good_as_ours(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    install(tmp_path, monkeypatch, "unplug = cables:Unplug")
    done = conduct(tmp_path / "out", "faults.cut.kind=unplug")
    assert done.verdict.verdict == "pass"
    assert done.verdict.faults[0].kind == "unplug"
    assert run.main(["--faults"]) == 0
    assert "`unplug`: somebody trips over a cable." in capsys.readouterr().out


@pytest.mark.parametrize(
    ("point", "said"),
    [
        ("unplug = nowhere:Unplug", "unplug of nowhere:Unplug cannot be loaded: ModuleNotFoundError: No module named"),
        ("unplug = frayed:Unplug", "unplug of frayed:Unplug cannot be loaded: KeyError: 'a cable'"),
        ("unplug = cables:Plug", "cannot be loaded"),
        ("unplug = cables:Nameless", "calls itself 'something'"),
        ("nothing = cables:Nothing", "it lacks COLOUR, explains"),
        ("kill = cables:Unplug", "there is one of that name already"),
    ],
)
def test_a_package_with_a_kind_that_is_none_costs_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], point: str, said: str
) -> None:
    install(tmp_path, monkeypatch, point)
    assert run.main(["--faults"]) == 2
    assert said in capsys.readouterr().err


def test_a_kind_of_a_package_that_cannot_be_made_costs_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    install(tmp_path, monkeypatch, "unplug = cables:Unplug")
    monkeypatch.setenv("CABLES_FRAYED", "1")
    assert run.main(["network_partition", "--dry-run", "--set", "faults.cut.kind=unplug"]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert "faults.cut.kind: unplug cannot be made: TypeError: no end" in line
