"""The same seeds find the same, whoever plays them and in whatever order they come back."""

import os
import sys
import time
from pathlib import Path
from random import Random

import pytest

from chaos.experiment import find
from chaos.resolve import load
from chaos.search import main
from chaos.searching import crews
from chaos.searching.breach import Breach
from chaos.searching.campaign import STRETCH, Campaign
from chaos.searching.crews import Alone, Processes
from chaos.searching.findings import LIST, Findings
from chaos.searching.hunt import Prey, Scouted, Sighting, Signature
from chaos.searching.tasks import Result, Task
from tests.chaos.searching.drawn import drawn

BASE = load(find("network_partition"), (), "mlx_serving")
SHOWN = (Breach("hung", "planted", ("kill",)), Breach("storm", "planted"), Breach("invariant 9", "planted", ("flap",)))


PLAN = drawn(BASE, 1, 1)[0]


def planted(task: Task) -> Result:
    """Stretch 2 shows one thing, stretch 3 the same and another, stretch 5 what fits no class."""
    if task.sighting is not None:
        breach = next(each for each in SHOWN if Signature.of(each) == task.sighting.signature)
        return Result(prey=Prey(PLAN, task.sighting.signature, breach, f"of {task.seed}", 9))
    shown = {2: SHOWN[:1], 3: SHOWN[:2], 5: SHOWN[2:]}.get(task.seed, ())
    return Result(scouted=Scouted(task.tries, tuple(Sighting(Signature.of(breach), 4) for breach in shown)))


class Disorderly:
    """Hands back what is done in an order of chance."""

    def __init__(self, seed: int, at_once: int) -> None:
        self.at_once = at_once
        self.most = 0
        self._random = Random(seed)
        self._open: list[tuple[int, Task]] = []

    def submit(self, number: int, task: Task) -> None:
        self._open.append((number, task))
        self.most = max(self.most, len(self._open))

    def next(self) -> tuple[int, Result]:
        number, task = self._open.pop(self._random.randrange(len(self._open)))
        return number, planted(task)

    def close(self) -> None:
        self._open.clear()


def campaign(folder: Path, plans: int = 6 * STRETCH - 10) -> Campaign:
    return Campaign(BASE, "mlx_serving", plans, 1, Findings(folder), lambda line: None)


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("at_once", [1, 3, 8])
def test_the_order_in_which_tasks_end_changes_nothing(tmp_path: Path, seed: int, at_once: int) -> None:
    crew = Disorderly(seed, at_once)
    whole = campaign(tmp_path / "some")
    whole.run(crew)
    assert whole.tried == 6 * STRETCH - 10
    assert crew.most <= at_once
    campaign(tmp_path / "serial").run(Disorderly(0, 1))
    assert (tmp_path / "some" / LIST).read_bytes() == (tmp_path / "serial" / LIST).read_bytes()
    found = Findings(tmp_path / "some").known
    assert [(one.signature.number, one.digest, one.found_after) for one in found] == [
        (5, "of 2", STRETCH + 4),
        (15, "of 3", 2 * STRETCH + 4),
        (None, "of 5", 4 * STRETCH + 4),
    ]


def test_what_stands_already_is_not_looked_for_again(tmp_path: Path) -> None:
    campaign(tmp_path).run(Disorderly(0, 1))
    before = (tmp_path / LIST).read_bytes()
    again = campaign(tmp_path)
    again.run(Disorderly(1, 2))
    assert again.tried == 6 * STRETCH - 10
    assert (tmp_path / LIST).read_bytes() == before


def test_what_was_caught_before_ctrl_c_is_kept(tmp_path: Path) -> None:
    class Interrupted(Disorderly):
        """The second chase comes back before the first, and then somebody asks for the end."""

        script = iter((0, 1, 2, -2))

        def next(self) -> tuple[int, Result]:
            wanted = next(self.script, None)
            if wanted is None:
                raise KeyboardInterrupt
            task = dict(self._open)[wanted]
            self._open.remove((wanted, task))
            return wanted, planted(task)

    whole = campaign(tmp_path)
    with pytest.raises(KeyboardInterrupt):
        whole.run(Interrupted(0, 3))
    assert Findings(tmp_path).known == []
    whole.keep()
    assert [one.signature.number for one in Findings(tmp_path).known] == [15]


def test_a_task_that_is_lost_is_told_and_counted(tmp_path: Path) -> None:
    class Losing(Disorderly):
        def next(self) -> tuple[int, Result]:
            number, result = super().next()
            return number, Result(lost="killed") if number == 2 else result

    said: list[str] = []
    whole = Campaign(BASE, "mlx_serving", 4 * STRETCH, 1, Findings(tmp_path), said.append)
    whole.run(Losing(0, 1))
    assert (whole.lost, whole.tried) == (1, 3 * STRETCH)
    assert "LOST: stretch 3: killed" in said


def scripted(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, body: str) -> Path:
    """A stand-in for the interpreter: of the tether, which it lets through, and of `-m chaos.searching.tasks`."""
    script = tmp_path / "stand_in"
    script.write_text(f"#!/bin/sh\n{body}\n")
    script.chmod(0o755)
    monkeypatch.setattr(crews.sys, "executable", str(script))
    return script


@pytest.mark.parametrize(("dies", "lost"), [(1, False), (2, True)])
def test_a_task_whose_process_is_killed_is_run_again_once(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, dies: int, lost: bool
) -> None:
    runs = tmp_path / "runs"
    runs.touch()
    task = f'echo run >> {runs}; [ $(wc -l < {runs}) -gt {dies} ] || kill -9 $$; exec {sys.executable} "$@"'
    scripted(monkeypatch, tmp_path, f'if [ "$2" = chaos.searching.tasks ]; then {task}; fi; exec {sys.executable} "$@"')
    crew = Processes(1)
    try:
        crew.submit(7, Task(BASE, 1, 1, Sighting(Signature(99), 2)))
        number, result = crew.next()
    finally:
        crew.close()
    assert number == 7
    assert bool(result.lost) == lost
    assert runs.read_text().count("run") == 2


def test_whoever_closes_a_crew_ends_what_it_does(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    begun = tmp_path / "pid"
    task = f"echo $$ > {begun}; exec sleep 600"
    scripted(monkeypatch, tmp_path, f'if [ "$2" = chaos.searching.tasks ]; then {task}; fi; exec {sys.executable} "$@"')
    crew = Processes(1)
    crew.submit(1, Task(BASE, 1, 1))
    while not (begun.exists() and begun.read_text().strip()):
        time.sleep(0.02)
    crew.close()
    with pytest.raises(ProcessLookupError):
        os.kill(int(begun.read_text()), 0)


@pytest.mark.simulated
def test_a_stretch_in_a_process_comes_to_what_it_comes_to_here() -> None:
    tasks = {0: Task(BASE, 5, 1)}
    here = Alone()
    for number, task in tasks.items():
        here.submit(number, task)
    there = Processes(1)
    try:
        for number, task in tasks.items():
            there.submit(number, task)
        assert dict(there.next() for _ in tasks) == dict(here.next() for _ in tasks)
    finally:
        there.close()


def test_address_needs_on_ray(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["network_partition", "--address", "auto"]) == 2
    assert "--on-ray" in capsys.readouterr().err


@pytest.mark.verify
def test_a_search_on_ray_finds_what_a_search_here_finds(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("chaos.searching.campaign.STRETCH", 2)
    asked = ["network_partition", "--policy", "mlx_serving", "--seeds", "4"]
    codes = [
        main([*asked, *how, "--out", str(tmp_path / name)])
        for name, how in (("here", ["--jobs", "1"]), ("beside", ["--jobs", "2"]), ("ray", ["--on-ray"]))
    ]
    assert codes == [1, 1, 1]
    lists = {name: (tmp_path / name / LIST).read_bytes() for name in ("here", "beside", "ray")}
    assert len(Findings(tmp_path / "here").known) > 0
    assert lists["beside"] == lists["here"]
    assert lists["ray"] == lists["here"]
