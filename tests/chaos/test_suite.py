"""The suite: one table of everything, resumed where it stopped, and honest about what has no verdict."""

import signal
import sys
import threading
import time
from pathlib import Path

import msgspec
import pytest

from chaos.playing import Line, run_to_its_end
from chaos.suite import main, table
from tests.chaos.simulated_runs import SHORT

ARGUMENTS = ["catalogue", "--world", "simulated", "--only", "network_partition"]


def settings() -> list[str]:
    return [part for setting in SHORT for part in ("--set", setting)]


def line(experiment: str, policy: str, verdict: str, reason: str = "") -> Line:
    shown = (4,) if verdict == "fail" else ()
    return Line(experiment, policy, "simulated", 1, verdict, reason, (1, 4), "where", shown)


def test_the_table_has_a_row_for_each_experiment_and_a_verdict_for_each_policy() -> None:
    lines = [
        line("a", "default", "pass"),
        line("a", "weak", "fail", "it | broke"),
        line("b", "default", "invalid", "no"),
    ]
    head, _, first, second = table(lines).splitlines()
    assert head == "| experiment | asks about | default | weak | why | shows |"
    assert first.startswith("| a | 1. requests pile up")
    noticed_late = "4. a silent link is noticed only after the default ping interval"
    assert first.endswith(f"| pass | fail | weak: it \\| broke | weak: {noticed_late} |")
    assert second.endswith("| invalid |  | default: no | default: unclassified |")


def test_what_has_a_verdict_is_not_run_again(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    arguments = [*ARGUMENTS, "--out", str(tmp_path), *settings()]
    assert main(arguments) == 0
    assert "network_partition under default: running" in capfd.readouterr().out
    assert main(arguments) == 0
    told = capfd.readouterr().out
    assert "running" not in told
    assert "network_partition under default: pass" in told
    (kept,) = msgspec.json.decode((tmp_path / "suite.json").read_bytes(), type=list[Line])
    assert (kept.experiment, kept.policy, kept.verdict) == ("network_partition", "default", "pass")
    assert (tmp_path / kept.results / "report.html").is_file()


def test_an_experiment_that_cannot_run_has_no_verdict_and_the_suite_says_so(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    assert main([*ARGUMENTS, "--out", str(tmp_path), "--set", "cluster.wrokers=3"]) == 5
    assert "network_partition under default: usage: no verdict" in capfd.readouterr().out


@pytest.mark.parametrize(
    ("more", "said"),
    [
        (["--only", "nosuch"], "--only nosuch: no such experiment"),
        (["--policy", "default,nosuch"], "--policy"),
    ],
)
def test_a_wrong_name_costs_one_line(
    more: list[str], said: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    assert main(["catalogue", "--out", str(tmp_path / "none"), *more]) == 2
    assert said in capfd.readouterr().err
    assert not (tmp_path / "none").exists()


def test_a_run_that_is_interrupted_has_the_time_to_heal(tmp_path: Path) -> None:
    told = tmp_path / "told"
    script = (
        "import pathlib, signal, sys, time\n"
        "told = pathlib.Path(sys.argv[1])\n"
        "def heal(number, frame):\n    time.sleep(0.8); told.write_text('healed'); raise SystemExit(1)\n"
        "signal.signal(signal.SIGINT, heal)\ntold.write_text('ready')\ntime.sleep(60)\n"
    )

    def interrupt() -> None:
        while not told.exists() or told.read_text() != "ready":
            time.sleep(0.02)
        signal.pthread_kill(threading.main_thread().ident or 0, signal.SIGINT)

    threading.Thread(target=interrupt).start()
    assert run_to_its_end([sys.executable, "-c", script, str(told)]) == 130
    assert told.read_text() == "healed"
