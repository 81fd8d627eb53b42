"""The schedule file: what a wrong one is told, and the shipped example."""

import plistlib
from configparser import ConfigParser
from pathlib import Path
from xml.parsers.expat import ExpatError

import pytest

from chaos.scheduling.plan import ScheduleError, load
from tests.processes import ROOT

EXAMPLES = ROOT / "chaos" / "examples"
GOOD = """
name: nightly
timezone: Europe/Berlin
notify: {webhook_env: MLX_CHAOS_TEST_HOOK}
blackouts:
  - {why: office hours, days: [mon, fri], from: 08:00, to: 18:00}
entries:
  partition: {experiment: network_partition, cron: "0 2 * * *", world: simulated, seed: slot, model: tiny,
              set: {workload.rate: 20/s, faults.cut.targets: [worker-1]}}
"""


def loaded(tmp_path: Path, text: str) -> str:
    path = tmp_path / "schedule.yaml"
    path.write_text(text)
    with pytest.raises(ScheduleError) as caught:
        load(path)
    message = str(caught.value)
    assert message.startswith(f"{path}: ")
    assert "\n" not in message
    return message.removeprefix(f"{path}: ")


def test_what_a_slot_is_started_with(tmp_path: Path) -> None:
    path = tmp_path / "schedule.yaml"
    path.write_text(GOOD)
    plan = load(path)
    assert " ".join(plan.entries["partition"].arguments(77)) == (
        "network_partition --world simulated --seed 77 --model tiny --set workload.rate=20/s "
        '--set faults.cut.targets=["worker-1"]'
    )
    # 18:00 without quotes is 1,080 to YAML, and 08:00 a text.
    assert plan.blackout("partition", 1_800_000_000) == "office hours"
    assert plan.blackout("partition", 1_800_000_000 + 9 * 3600) == ""


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        ('"0 2 * * *"', '"0 2 * *"', "entries.partition.cron: '0 2 * *': expected five fields"),
        ("Europe/Berlin", "Berlin", "timezone: no time zone 'Berlin'"),
        ("model: tiny", "modell: tiny", "entries.partition: Object contains unknown field `modell`"),
        ("network_partition", "partition", "entries.partition.experiment: partition: no such experiment"),
        ("workload.rate: 20/s", "workload.rat: 20/s", "entries.partition.experiment: network_partition.yaml with"),
        ("world: simulated", "world: staging", "entries.partition.target: expected a target's file"),
        ("world: simulated", "world: live, target: x.yaml", "entries.partition.target: expected a target's file"),
        ("  partition:", '  "no spaces":', "entries.no spaces: expected a name"),
        ("  partition:", "  off:", "entries: expected names, got False; put it in quotes"),
        ("from: 08:00", "from: 8 o'clock", "blackouts[0]"),
        ("seed: slot", "seed: -1", "entries.partition.seed"),
        ("entries:\n", "entrys:\n", "Object"),
        ("webhook_env: MLX_CHAOS_TEST_HOOK", "webhook_env: A, webhook: http://b/", "notify: expected webhook or"),
        ("name: nightly", "name: [", "not YAML"),
        ("name: nightly", "name: nightly\nname: other", "line 3: the key 'name' is there twice"),
        ("name: nightly", "retention: {days: .inf}", "retention.days: expected a finite number, got inf"),
    ],
)
def test_a_wrong_file_is_told_which_field(tmp_path: Path, old: str, new: str, said: str) -> None:
    assert loaded(tmp_path, GOOD.replace(old, new)).startswith(said)


def test_the_webhook_comes_from_the_environment_and_is_never_shown(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "schedule.yaml"
    path.write_text(GOOD)
    plan = load(path)
    with pytest.raises(ScheduleError, match="the environment has no MLX_CHAOS_TEST_HOOK"):
        plan.webhook()
    monkeypatch.setenv("MLX_CHAOS_TEST_HOOK", "ftp://secret.example/T0")
    with pytest.raises(ScheduleError) as caught:
        plan.webhook()
    assert "secret" not in str(caught.value)
    monkeypatch.setenv("MLX_CHAOS_TEST_HOOK", "https://hooks.example/T0")
    assert plan.webhook() == "https://hooks.example/T0"


def test_the_shipped_examples_are_right() -> None:
    plan = load(EXAMPLES / "schedule.yaml")
    assert set(plan.entries) == {"partition", "many_seeds"}
    unit = ConfigParser(strict=False, interpolation=None)
    unit.optionxform = str  # type: ignore[assignment,method-assign]
    unit.read(EXAMPLES / "mlx-chaos-schedule.service")
    assert "-m chaos.schedule" in unit["Service"]["ExecStart"]
    assert (unit["Service"]["KillMode"], unit["Service"]["Restart"]) == ("mixed", "always")
    try:
        told = plistlib.loads((EXAMPLES / "com.mlx-chaos.schedule.plist").read_bytes())
    except ExpatError as error:
        pytest.fail(str(error))
    assert told["ProgramArguments"][1:3] == ["-m", "chaos.schedule"]
    assert told["KeepAlive"] == {"SuccessfulExit": False}
