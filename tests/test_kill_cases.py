"""What fifty kills must have shown before they are believed."""

import signal
import subprocess
import sys

import pytest

from tests.kill_cases import KILLS, STRUCK_EACH_MIN, STRUCK_MIN, Kill, problems, told
from tests.processes import Family

HURT = ("link", "process", "messages")


def kills(struck: dict[str, int]) -> list[Kill]:
    """Fifty kills in time, so many of them under a fault of each sort."""
    made = [Kill(hurt, 1.0, ["something"], 0.2, []) for hurt, count in struck.items() for _ in range(count)]
    return made + [Kill(HURT[0], 1.0, [], 0.01, []) for _ in range(KILLS - len(made))]


def test_enough_kills_under_faults_of_each_sort_are_believed() -> None:
    found = kills({"link": 14, "process": STRUCK_EACH_MIN, "messages": STRUCK_EACH_MIN})
    assert problems(found) == []
    assert f"{STRUCK_MIN} were killed under a fault (link 14, process 3, messages 3)" in told(found)


@pytest.mark.parametrize(
    ("struck", "why"),
    [
        ({}, "only 0 of 50 were killed under a fault"),
        ({"link": 13, "process": 3, "messages": 3}, "only 19 of 50 were killed under a fault, 20 are needed"),
        ({"link": 40, "messages": 5}, "only 0 were killed under a fault of process"),
        ({"link": 20, "process": 20, "messages": 2}, "only 2 were killed under a fault of messages"),
        ({"process": 20, "messages": 20}, "only 0 were killed under a fault of link"),
    ],
)
def test_kills_that_met_no_fault_show_nothing(struck: dict[str, int], why: str) -> None:
    assert any(why in problem for problem in problems(kills(struck)))


def test_a_fault_that_outlives_its_runner_is_told() -> None:
    found = [*kills(dict.fromkeys(HURT, 10))[1:], Kill("process", 1.0, ["x"], None, ["process: x in force"])]
    assert problems(found) == ["process: x in force", f"only {KILLS - 1} of {KILLS} without a fault in time"]


@pytest.mark.skipif(sys.platform == "win32", reason="no such signals")
def test_a_process_that_stands_still_is_seen_and_one_that_goes_on_is_not() -> None:
    sleeper = subprocess.Popen([sys.executable, "-c", "import os, signal; os.kill(os.getpid(), signal.SIGSTOP)"])
    family = Family("nobody's mark")
    try:
        family.add(sleeper.pid)
        while not family.standing_still():
            assert sleeper.poll() is None
        sleeper.send_signal(signal.SIGCONT)
        assert sleeper.wait(30) == 0
        assert family.standing_still() == []
    finally:
        sleeper.kill()
        sleeper.wait()
