"""`python -m chaos.replay`: a recorded simulated run, played again by the command."""

import re
from pathlib import Path

import pytest

from chaos import run
from chaos.replay import main, told
from chaos.results import ResultsDirectory
from chaos.session import play_simulated
from cluster.protocol import Ping
from tests.chaos.simulated_runs import Quiet, experiment
from tests.mutants.mutant import in_place
from tests.mutants.plants import MUTANTS


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> Path:
    whole = experiment("workload.rate=10/s", "workload.rate_min=10/s")
    made = ResultsDirectory(tmp_path_factory.mktemp("replay"), whole, "simulated", 1)
    play_simulated(whole, 1, made, Quiet(), record_policy=True)
    return made.path


@pytest.mark.simulated
def test_a_recorded_run_is_the_same_again(results: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([str(results)]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 7
    assert all("commands, the same" in line for line in lines[:-1])
    summed = re.fullmatch(r"6 of 6 nodes decide again what they decided: (\d+) events, (\d+) commands", lines[-1])
    assert summed is not None
    assert min(map(int, summed.groups())) > 2_000


@pytest.mark.simulated
def test_changed_code_is_told_with_the_event_and_both_answers(
    results: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with in_place(MUTANTS["silent_streams_kept"]):
        assert main([str(results), "--node", "controller"]) == 1
    told_lines = capsys.readouterr().out.splitlines()
    assert "DIFFERENT at event" in told_lines[0]
    assert re.match(r"    at -?\d+\.\d{6} s: Received\(message=StreamReport\(worker='worker-\d'", told_lines[1])
    assert any(line.startswith("    recorded: Send(to='client-") for line in told_lines)
    assert any(line.startswith("    replayed: next wake at") for line in told_lines)
    assert told_lines[-1].startswith("0 of 1 nodes")


@pytest.mark.simulated
def test_an_instant_is_shown_on_the_clock_of_the_report(results: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([str(results), "--node", "worker-1", "--around", "5", "--within", "0.6"]) == 0
    lines = capsys.readouterr().out.splitlines()
    times_s = [float(found[1]) for line in lines if (found := re.match(r"    (\d+\.\d+) s, event \d+: ", line))]
    assert len(times_s) > 2
    assert all(4.4 <= time_s <= 5.6 for time_s in times_s)
    assert times_s == sorted(times_s)
    # It sends one every half second, with its own time in it.
    assert any("Heartbeat(worker='worker-1'" in line for line in lines)


def test_what_cannot_be_replayed_is_said_in_one_line(
    results: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([str(tmp_path)]) == 2
    assert main([str(results), "--node", "worker-9"]) == 2
    (tmp_path / "raw").mkdir()
    (tmp_path / "raw" / "decisions.worker-0.1.record").write_bytes(b"\x01")
    assert main([str(tmp_path)]) == 2
    lines = capsys.readouterr().err.splitlines()
    assert [line.split(": ")[0] for line in lines] == ["chaos.replay"] * 3
    assert "holds no record" in lines[0]
    assert "not among those recorded: client-0, client-1, controller, worker-0, worker-1, worker-2" in lines[1]


def test_nodes_of_somebody_else_are_not_recorded(capsys: pytest.CaptureFixture[str]) -> None:
    assert run.main(["staging_link", "--world", "staging", "--record-policy"]) == 2
    assert "--record-policy: the nodes of a staging target are not ours" in capsys.readouterr().err


def test_long_values_are_cut_short_and_usual_ones_left_out() -> None:
    assert told(Ping("client-0")) == "Ping(client='client-0')"
    assert told(tuple(range(9))) == "[0, 1, 2, 3, 4, 5, ... 9 in all]"
    assert len(told("x" * 1_000)) < 80
