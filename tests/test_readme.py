"""What the README shows a newcomer works as it stands."""

import re
import shlex
from pathlib import Path

import yaml

from chaos import sweep
from chaos.experiment import catalogue
from chaos.resolve import load
from chaos.robustness import CLASSES, classes
from chaos.run import main

README = Path(__file__).parents[1] / "README.md"


def test_the_example_experiment_is_valid(tmp_path: Path) -> None:
    (example,) = re.findall(r"```yaml\n(.*?)```", README.read_text(), re.DOTALL)
    path = tmp_path / "my_partition.yaml"
    path.write_text(example)
    assert load(path).name == yaml.safe_load(example)["name"]


def test_every_file_of_the_code_map_exists() -> None:
    table = README.read_text().partition("| where | what |")[2].partition("\n\n")[0]
    rows = [line.split("|")[1] for line in table.splitlines() if line.count("|") == 3 and "`" in line]
    assert len(rows) > 5
    for row in rows:
        names = re.findall(r"`([^`]+)`", row)
        package = README.parent / names[0].split("/")[0]
        for name in names:
            assert (README.parent / name).exists() or (package / name).exists(), name


def _commands(program: str) -> list[list[str]]:
    shown = rf"^\.venv/bin/python -m {program} ((?:{'|'.join(catalogue())})[^#\n]*)"
    return [shlex.split(command) for command in re.findall(shown, README.read_text(), re.MULTILINE)]


def test_the_commands_of_the_readme_are_accepted() -> None:
    commands = _commands("chaos.run")
    assert len(commands) > 3
    for command in commands:
        # A target is asked who it is even before a dry run; here there is none.
        spoken_to = command[: command.index("--world")] if "--target" in command else command
        assert main([*spoken_to, "--dry-run"]) == 0, command


def test_the_sweeps_of_the_readme_are_accepted(tmp_path: Path) -> None:
    commands = _commands("chaos.sweep")
    assert len(commands) >= 3
    for command in commands:
        assert sweep.main([*command, "--out", str(tmp_path / "sweep"), "--dry-run"]) == 0, command


def test_the_table_of_both_policies_names_the_failure_that_its_reason_shows() -> None:
    text = README.read_text()
    start = text.index("| experiment | what happens | default | mlx_serving |")
    _, _, *rows = text[start : text.index("\n\n", start)].splitlines()
    named = {}
    for row in rows:
        name, _, _, reason, shows = (cell.strip() for cell in row.strip("|").split("|"))
        named[name.strip("`")] = shows
        experiment = load(catalogue()[name.strip("`")])
        faults = [(fault.kind, ", ".join(fault.targets)) for fault in experiment.faults.values()]
        by_reason = classes(faults, [reason]) if reason.startswith("fail") else ()
        numbers = [int(number) for number in re.findall(r"(?:^|; )(\d+)\. ", shows)]
        assert bool(shows) == reason.startswith("fail")
        assert shows in ("", "unclassified", "; ".join(f"{number}. {CLASSES[number]}" for number in numbers))
        # The reason is the first one only: others may show more.
        assert set(by_reason) <= set(numbers), name
    hurt = {name for name, path in catalogue().items() if load(path).faults}
    assert set(named) == {name for name in hurt if not name.startswith("staging")}
