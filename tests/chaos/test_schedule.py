"""The command: what it prints, what it does with acknowledgements, metrics, a dead webhook, and a full stop."""

import json
import time
import urllib.request
from pathlib import Path

import pytest

from chaos.schedule import main
from chaos.scheduling.journal import FOLDER, Journal, read
from chaos.scheduling.metrics import ScheduleMetrics
from chaos.scheduling.plan import load
from chaos.scheduling.records import Ended, Missed, Opened, Record, Started
from tests.chaos.scheduling import stub_run
from tests.chaos.scheduling.killed import Ten, changes, webhook

SCHEDULE = """
name: nightly
results: {results}
entries:
  partition: {{experiment: network_partition, cron: "0 2 * * *", world: simulated}}
  resting: {{experiment: slow_network, cron: "0 3 * * *", world: simulated, enabled: false}}
"""
SLOT_S = 1_799_978_400
RECORDS: tuple[Record, ...] = (
    Opened(entry="partition", at_s=0.0, cron="0 2 * * *", timezone="UTC", after_s=SLOT_S - 90_000),
    Missed(
        entry="partition", at_s=1.0, after_s=SLOT_S - 90_000, until_s=SLOT_S - 86_400, slots=1, reason="blackout: x"
    ),
    Started(entry="partition", at_s=SLOT_S + 1.0, slot_s=SLOT_S),
    Ended(
        entry="partition", at_s=SLOT_S + 9.0, slot_s=SLOT_S, outcome="ran", verdict="fail", reason="too slow",
        results="partition/x/run", quarantine=True,
    ),
)  # fmt: skip


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "schedule.yaml"
    path.write_text(SCHEDULE.format(results=tmp_path / "results"))
    journal = Journal(tmp_path / "results" / FOLDER)
    for record in RECORDS:
        journal.write(record)
    journal.close()
    return path


def test_the_status_says_how_everything_stands(file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([str(file), "--status"]) == 0
    told = capsys.readouterr().out
    assert "nightly: the scheduler does not run" in told
    assert "partition: fail; 1 ran, 0 interrupted, 1 missed" in told
    assert "QUARANTINED since the failure in slot 2027-01-15T02:00:00Z" in told
    assert "missed: blackout: x" in told
    assert "resting: disabled" in told
    assert "1 changes still to be told" in told
    assert main([str(file), "--status", "--json"]) == 0
    status = json.loads(capsys.readouterr().out)
    assert [entry["standing"] for entry in status["entries"]] == ["fail", ""]


def test_an_acknowledgement_with_no_scheduler_is_written_down_at_once(
    file: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([str(file), "--ack", "nobody"]) == 2
    assert "there are partition, resting" in capsys.readouterr().err
    assert main([str(file), "--ack", "partition"]) == 0
    assert read(file.parent / "results" / FOLDER).entries["partition"].quarantined_s is None
    assert main([str(file), "--ack", "partition"]) == 0
    assert "is not quarantined" in capsys.readouterr().out


def test_a_slot_that_could_not_start_is_missed_and_says_why(file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder, slot_s = file.parent / "results" / FOLDER, SLOT_S + 86_400
    journal = Journal(folder)
    journal.write(Started(entry="partition", at_s=slot_s + 1.0, slot_s=slot_s))
    journal.write(
        Ended(
            entry="partition", at_s=slot_s + 2.0, slot_s=slot_s, outcome="missed", verdict="usage", reason="no x.yaml",
            results="",
        )
    )  # fmt: skip
    journal.close()
    assert main([str(file), "--status"]) == 0
    told = capsys.readouterr().out
    assert "partition: usage; 1 ran, 0 interrupted, 2 missed" in told
    assert "slot 2027-01-16T02:00:00Z missed, it could not start (usage): no x.yaml" in told
    plan, state = load(file), read(folder)
    text = ScheduleMetrics(plan, state, lambda name: None).text().decode()
    assert 'outcome="missed",schedule="nightly",world="simulated"} 2.0' in text
    assert 'verdict="usage",world="simulated"} 1.0' in text
    assert [change.began for change in state.changes] == [True, False]


def test_mistakes_of_the_command_line_are_told_before_anything_starts(
    file: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for options in (
        ("--dry-run", "--count", "-1"),
        ("--metrics-port", "99999"),
        ("--metrics-port", "-5"),
    ):
        with pytest.raises(SystemExit, match="2"):
            main([str(file), *options])
        assert "expected a whole number, 0" in capsys.readouterr().err
    assert main([str(file), "--metrics-file", str(file.parent / "nowhere" / "x.prom")]) == 2
    assert "nowhere/x.prom: there is no folder" in capsys.readouterr().err
    assert main([str(file), "--metrics-file", str(file.parent)]) == 2
    assert "this is a folder" in capsys.readouterr().err
    file.write_text(SCHEDULE.format(results=file / "below"))
    assert main([str(file)]) == 2
    said = capsys.readouterr().err
    assert "results: " in said
    assert "cannot be written to" in said
    assert said.count("\n") == 1


def test_a_wrong_file_and_a_damaged_state_are_one_line(file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    journal = file.parent / "results" / FOLDER / "journal.jsonl"
    journal.write_text("garbage\n" + journal.read_text())
    assert main([str(file)]) == 5
    said = capsys.readouterr().err
    assert "line 1" in said
    assert said.count("\n") == 1
    file.write_text("name: x\n")
    assert main([str(file), "--dry-run"]) == 2
    assert capsys.readouterr().err.count("\n") == 1


def test_the_metrics_of_the_last_verdicts(file: Path) -> None:
    plan = load(file)
    text = ScheduleMetrics(plan, read(plan.folder / FOLDER), lambda name: 12.5).text().decode()
    labels = 'entry="partition",experiment="network_partition",schedule="nightly"'
    assert f'mlxc_schedule_verdict{{{labels},verdict="fail",world="simulated"}} 1.0' in text
    assert f'mlxc_schedule_verdict{{{labels},verdict="pass",world="simulated"}} 0.0' in text
    assert 'outcome="missed",schedule="nightly",world="simulated"} 1.0' in text
    assert f'mlxc_schedule_quarantined{{{labels},world="simulated"}} 1.0' in text
    assert f'mlxc_schedule_next_timestamp_seconds{{{labels},world="simulated"}} 12.5' in text
    assert 'mlxc_schedule_notifications_waiting{schedule="nightly"} 1.0' in text
    assert "last_pass_timestamp_seconds{" not in text, "it never passed"


FAST = """
name: ten
results: {results}
notify: {{webhook_env: TEST_WEBHOOK}}
entries:
  one: {{experiment: network_partition, cron: "* * * * *", world: simulated, seed: slot}}
"""


@pytest.mark.verify
def test_a_dead_webhook_a_second_scheduler_and_an_acknowledgement_while_it_runs(tmp_path: Path) -> None:
    """Of the stub's verdicts the third minute is the first failure, after which it is quarantined."""
    (tmp_path / "schedule.yaml").write_text(FAST.format(results=tmp_path / "results"))
    with webhook() as hook:
        hook.refuse = True
        ten = Ten(tmp_path, 200.0, stub_run.__file__, hook.url)
        ten.options = ["--metrics-port", "0"]
        try:
            ten.start()
            assert ten.until(lambda: changes(ten.records()), 120), ten.lines
            assert main([str(tmp_path / "schedule.yaml"), "--ack", "one"]) == 0
            assert ten.until(lambda: any("acknowledged" in line for line in ten.lines), 120), ten.lines
            (line,) = [line for line in ten.lines if "/metrics" in line]
            with urllib.request.urlopen(line.split()[-1], timeout=5) as answer:
                assert b"mlxc_schedule_notifications_waiting" in answer.read()
            assert not hook.posted
            ten.kill()
            hook.refuse = False
            ten.start()
            # It was on disk, and is told by the next life.
            assert ten.until(lambda: hook.posted, 120), ten.lines
            assert str(hook.posted[0]["id"]).partition("/")[2] == changes(ten.records())[0]
            time.sleep(0.1)
            assert ten.stop() == 0, ten.lines
        finally:
            ten.family.end()
