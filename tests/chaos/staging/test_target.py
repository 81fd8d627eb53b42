"""The target file: one clear line for each mistake."""

import subprocess
import sys
from datetime import date, datetime
from pathlib import Path
from typing import Any
from zoneinfo import ZoneInfo

import pytest
import yaml

from chaos import target as target_module
from chaos.staging.hours import Hours, Window
from chaos.target import TargetError, load_target
from tests.chaos.staging.fakes import FakeCluster, fake_cluster
from tests.processes import ROOT

BERLIN = ZoneInfo("Europe/Berlin")


def document(**changes: Any) -> dict[str, Any]:
    whole = yaml.safe_load((ROOT / "chaos/examples/staging_target.yaml").read_text())
    whole.update(changes)
    return whole


def complaint(folder: Path, **changes: Any) -> str:
    path = folder / "t.yaml"
    path.write_text(yaml.safe_dump(document(**changes)))
    with pytest.raises(TargetError) as told:
        load_target(path)
    said = str(told.value)
    assert "\n" not in said
    return said.removeprefix(f"{path}: ")


def test_the_example_is_a_target(tmp_path: Path) -> None:
    target = load_target(ROOT / "chaos/examples/staging_target.yaml")
    assert target.allows("partition", "stall")
    assert not target.allows("partition", "black_hole")
    assert target.rate_per_s() == 10.0


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"name": "a b"}, "name: expected letters"),
        ({"owner": " "}, "owner: expected whom to call"),
        ({"onwer": "x"}, "Object contains unknown field onwer"),
        ({"workers": 0}, "workers: Expected int >= 1"),
        ({"links": {}}, "links: expected at least one"),
        ({"links": {"worker-9": {"toxiproxy": "rack", "proxy": "p"}}}, "links.worker-9: expected one of worker-0"),
        ({"links": {"worker-0": {"toxiproxy": "x", "proxy": "p"}}}, "links.worker-0.toxiproxy: no 'x' in toxi"),
        ({"links": {"worker-0": {"toxiproxy": "rack"}}}, "links.worker-0: Object missing required field proxy"),
        (
            {"links": {name: {"toxiproxy": "rack", "proxy": "p"} for name in ("worker-0", "worker-1")}},
            "links.worker-1.proxy: p is the link of worker-0 already",
        ),
        ({"faults": ["kill"]}, "faults[0]: expected one of partition, flap"),
        ({"faults": ["latency.stall"]}, "faults[0]: expected one of"),
        ({"faults": ["partition.sideways"]}, "faults[0]: expected one of"),
        ({"fingerprint": {}}, "fingerprint: expected nats_server_id"),
        ({"fingerprint": {"toxiproxy_version": "2"}}, "fingerprint: expected nats_server_id"),
        ({"nats_monitoring": None}, "links.worker-0.client_name: only nats_monitoring could tell"),
        ({"stop": {}}, "stop: expected file or url"),
        ({"stop": {"file": "stop-chaos"}}, "stop.file: expected an absolute path, got 'stop-chaos'"),
        ({"stop": {"file": ""}}, "stop.file: expected an absolute path, got ''"),
        (
            {"budget": {"failed_requests": 1, "fault_s": float("inf")}},
            "budget.fault_s: expected a finite number, got inf",
        ),
        ({"ttl_s_max": float("nan")}, "ttl_s_max: Expected float > 0.0"),
        (
            {"prometheus": {"url": "http://h:1", "probes": {"q": {"query": "x", "at_most": float("nan")}}}},
            "prometheus.probes.q.at_most: expected a finite number, got nan",
        ),
        ({"hours": {"zone": "Mars/Olympus", "allow": [{"from": "1:00", "to": "2:00"}]}}, "hours: no time zone"),
        ({"hours": {"zone": "UTC", "allow": [{"from": "25:00", "to": "2:00"}]}}, "hours.allow[0]: '25:00': expected a"),
        ({"hours": {"zone": "UTC", "allow": []}}, "hours.allow: Expected array of length >= 1"),
        ({"load": {"rate_max": "60%"}}, "load.rate_max: expected requests per second such as 5/s"),
        ({"toxiproxies": {"rack": "https://x:1"}}, "toxiproxies.rack: Toxiproxy API address"),
        ({"api": {"urls": [], "model": "m"}}, "api.urls: expected at least one"),
        ({"api": {"urls": ["http://u:p@h/v1"], "model": "m"}}, "api.urls: the URL holds a user name or password"),
        (
            {"prometheus": {"url": "http://h:1", "probes": {"q": {"query": "x"}}}},
            "prometheus.probes.q: expected at_most",
        ),
    ],
)
def test_mistakes(tmp_path: Path, changes: dict[str, Any], said: str) -> None:
    assert complaint(tmp_path, **changes).startswith(said)


def test_no_file_and_no_yaml(tmp_path: Path) -> None:
    with pytest.raises(TargetError, match="cannot be read"):
        load_target(tmp_path / "none.yaml")
    (tmp_path / "bad.yaml").write_text("{")
    with pytest.raises(TargetError, match="not YAML"):
        load_target(tmp_path / "bad.yaml")
    (tmp_path / "twice.yaml").write_text("budget: {fault_s: 1}\nbudget: {fault_s: 9}")
    with pytest.raises(TargetError, match=r"twice.yaml: line 2: the key 'budget' is there twice"):
        load_target(tmp_path / "twice.yaml")
    (tmp_path / "list.yaml").write_text("[1]")
    with pytest.raises(TargetError, match="expected a mapping"):
        load_target(tmp_path / "list.yaml")


def unix(text: str) -> float:
    return datetime.fromisoformat(text).replace(tzinfo=BERLIN).timestamp()


def test_hours() -> None:
    hours = Hours(zone="Europe/Berlin", allow=(Window(begin="22:00", end="05:00", days=("mon", "fri")),))
    # 2026-11-23 is a Monday.
    assert hours.left_s(unix("2026-11-23T21:59:59")) == 0.0
    assert hours.left_s(unix("2026-11-23T22:00:00")) == 7 * 3600
    assert hours.left_s(unix("2026-11-24T04:59:00")) == 60.0
    assert hours.left_s(unix("2026-11-24T05:00:00")) == 0.0
    assert hours.left_s(unix("2026-11-24T23:00:00")) == 0.0
    assert hours.day(unix("2026-11-24T00:00:01")) == date(2026, 11, 24)


def test_windows_without_a_gap_are_one() -> None:
    always = Hours(zone="Europe/Berlin", allow=(Window(begin="00:00", end="00:00"),))
    assert always.left_s(unix("2026-11-23T23:59:30")) > 13 * 86_400
    joined = Hours(zone="Europe/Berlin", allow=(Window(begin="20:00", end="23:00"), Window(begin="23:00", end="02:00")))
    assert joined.left_s(unix("2026-11-23T22:00:00")) == 4 * 3600


def test_summer_time_ends_hours_by_the_wall_clock() -> None:
    # The night in which clocks go forward from 02:00 to 03:00 has an hour less.
    hours = Hours(zone="Europe/Berlin", allow=(Window(begin="22:00", end="05:00"),))
    assert hours.left_s(unix("2026-03-28T22:00:00")) == 6 * 3600
    assert hours.left_s(unix("2026-10-24T22:00:00")) == 8 * 3600


def test_a_target_says_who_it_is(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    cluster: FakeCluster
    with fake_cluster(tmp_path) as cluster:
        assert target_module.main([str(cluster.file())]) == 0
        told = yaml.safe_load(capsys.readouterr().out.partition("\n")[2])["fingerprint"]
        assert told["nats_server_name"] == "fake-bus"
        assert told["models_owner"] == "fake-owner"
        assert target_module.main([str(cluster.file(toxiproxies={"all": "http://8.8.8.8:8474"}))]) == 2
        assert target_module.main([str(cluster.file(nats_monitoring="http://127.0.0.1:9"))]) == 5


def test_as_a_program_it_complains_in_one_line(tmp_path: Path) -> None:
    path = tmp_path / "t.yaml"
    path.write_text(yaml.safe_dump(document(nats_monitoring="http://8.8.8.8:8222")))
    done = subprocess.run(
        [sys.executable, "-m", "chaos.target", str(path)], capture_output=True, text=True, cwd=ROOT, check=False
    )
    assert done.returncode == 2
    assert done.stderr.splitlines() == [
        "chaos.target: nats_monitoring: 8.8.8.8 is neither loopback nor private; allow_public: [8.8.8.8] would allow it"
    ]
