"""The example for GitHub Actions: what it calls is there."""

import re
from importlib.util import find_spec
from pathlib import Path

import pytest
import yaml

from analysis import compare
from chaos.experiment import find

ROOT = Path(__file__).parent.parent
EXAMPLE = ROOT / ".github" / "workflows" / "chaos.yml.example"


def test_the_example_calls_what_there_is(capsys: pytest.CaptureFixture[str]) -> None:
    text = EXAMPLE.read_text()
    steps = yaml.safe_load(text)["jobs"]["chaos"]["steps"]
    script = "\n".join(step.get("run", "") for step in steps)
    modules = set(re.findall(r"python -m ([a-z_.]+)", script))
    assert {"chaos.run", "analysis.compare"} <= modules
    assert all(find_spec(module) is not None for module in modules)
    targets = set(re.findall(r"make ([a-z]+)", script))
    assert {"setup", "test"} <= targets
    assert all(f"\n{target}:" in (ROOT / "Makefile").read_text() for target in targets)
    with pytest.raises(SystemExit):
        compare.main(["--help"])
    known = capsys.readouterr().out
    for line in re.findall(r"analysis\.compare (.*)", text):
        assert all(option in known for option in re.findall(r"--[a-z-]+", line))


def test_it_names_both_kinds_of_machine_and_an_experiment() -> None:
    workflow = yaml.safe_load(EXAMPLE.read_text())
    runners = workflow["jobs"]["chaos"]["strategy"]["matrix"]["runner"]
    assert any(name.startswith("ubuntu") for name in runners)
    assert any(re.fullmatch(r"macos-1[4-9]", name) for name in runners)
    assert find(workflow["env"]["EXPERIMENT"]).is_file()
