"""What a target's owner does not allow is refused in one line, before anything is done."""

import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from chaos.experiment import Experiment, find
from chaos.resolve import load
from chaos.run import main
from chaos.staging.budget import DayBudget, locked
from chaos.staging.identity import cluster_key, identify
from chaos.staging.preflight import Preflight, preflight
from chaos.target import TargetError, load_target
from chaos.toxiproxy.embedded import api
from tests.chaos.staging.fakes import OWNER, SERVER_NAME, FakeCluster, fake_cluster

SHORT = (
    "phases.warm_up.duration_s=1",
    "phases.baseline.duration_s=7",
    "phases.fault.duration_s=16",
    "phases.recovery.duration_s=11",
    "faults.cut.start_s=1",
    "faults.cut.duration_s=12",
    "recovery_limit_s=5",
    "workload.rate_max=40/s",
)


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[FakeCluster]:
    with fake_cluster(tmp_path_factory.mktemp("staging")) as found:
        yield found


@pytest.fixture(autouse=True)
def _own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLX_CHAOS_CACHE", str(tmp_path / "cache"))


def experiment(cluster: FakeCluster, *settings: str, **changes: Any) -> Experiment:
    target = load_target(cluster.file(**changes))
    return load(find("staging_link"), [*SHORT, *settings, *target.settings()])


def look(cluster: FakeCluster, *settings: str, **changes: Any) -> Preflight:
    return preflight(experiment(cluster, *settings, **changes), load_target(cluster.file(**changes)), 1)


def refusal(cluster: FakeCluster, *settings: str, **changes: Any) -> str:
    before = cluster.proxy()
    found = look(cluster, *settings, **changes)
    assert cluster.proxy() == before
    assert len(found.refusals) == 1, found.refusals
    assert "\n" not in found.refusals[0]
    return found.refusals[0]


def test_it_tells_exactly_what_would_be_done_to_what(cluster: FakeCluster) -> None:
    before, asked = cluster.proxy(), cluster.web.asked
    found = look(cluster)
    assert not found.refusals
    told = "\n".join(found.lines)
    for part in (
        "target fake of somebody",
        f"POST {cluster.web.url}/v1/chat/completions",
        "fault cut: partition stall worker-0, from 9 s of the load for 12 s, TTL 40 s",
        f"proxy w0 at {cluster.toxiproxy_url}",
        "toxic mlx-chaos-<run>-stall_up: latency upstream, latency 86400000",
        "theirs of somebody else stay",
        "the broker's counts for worker-0's own connection",
        "invariant 5: what workers execute",
        "detection (detection_s)",
        "budget of today: 0 of 50 failed requests, 0 of 300 s of fault",
        "ends toxics at their TTL by itself",
    ):
        assert part in told
    requests = int(told.split("load: ")[1].split()[0])
    assert 700 < requests < 1_000
    assert (cluster.proxy(), cluster.web.asked) == (before, asked)


def test_dry_run_stops_there(cluster: FakeCluster, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before, asked = cluster.proxy(), cluster.web.asked
    settings = [word for setting in SHORT for word in ("--set", setting)]
    arguments = ["staging_link", "--world", "staging", "--target", str(cluster.file()), "--dry-run"]
    assert main([*arguments, *settings, "--out", str(tmp_path / "out")]) == 0
    assert "toxic mlx-chaos-" in capsys.readouterr().out
    assert not (tmp_path / "out").exists()
    assert (cluster.proxy(), cluster.web.asked) == (before, asked)


def test_a_wrong_fingerprint(cluster: FakeCluster) -> None:
    said = refusal(cluster, fingerprint={"nats_server_name": "production"})
    assert said == f"fingerprint.nats_server_name: the file says 'production', the target says {SERVER_NAME!r}"
    assert "models_owner" in refusal(cluster, fingerprint={"models_owner": "somebody else"})
    told = refusal(cluster, fingerprint={"nats_server_name": SERVER_NAME, "toxiproxy_version": "2.5.0"})
    assert "toxiproxy_version: the file says '2.5.0'" in told


def test_one_of_several_servers(cluster: FakeCluster) -> None:
    assert not look(cluster, fingerprint={"nats_server_id": ["OTHER", "FAKE"]}).refusals
    said = refusal(cluster, fingerprint={"nats_server_id": ["OTHER", "ANOTHER"]})
    assert said == "fingerprint.nats_server_id: the file says 'OTHER' or 'ANOTHER', the target says 'FAKE'"


def test_a_proxy_that_leads_to_another_broker(cluster: FakeCluster, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cluster.bus, "server_id", "PRODUCTION")
    said = refusal(cluster)
    assert said == (
        f"links.worker-0.proxy: w0 leads to the NATS server PRODUCTION ({SERVER_NAME}), "
        "which is none of the target's; see fingerprint"
    )
    # A server of the same cluster is as good: one that the monitored one has a route to, or that the file names.
    assert not look(cluster, fingerprint={"nats_server_id": ["FAKE", "PRODUCTION"]}).refusals
    monkeypatch.setattr(cluster.web, "routes", ["PRODUCTION"])
    assert not look(cluster).refusals
    # Who is only known by the API's word has no broker to compare with.
    links = {"worker-0": {"toxiproxy": "all", "proxy": "w0"}}
    said = refusal(cluster, fingerprint={"models_owner": OWNER}, nats_monitoring=None, links=links)
    assert said.startswith("links.worker-0.upstream: expected where w0 must lead to (Toxiproxy says 127.0.0.1:")


def test_out_of_hours(cluster: FakeCluster) -> None:
    now = time.gmtime()
    away = (now.tm_hour + 4) % 24
    hours = {"zone": "UTC", "allow": [{"from": f"{away:02d}:00", "to": f"{(away + 2) % 24:02d}:00"}]}
    assert refusal(cluster, hours=hours).startswith("hours: it is not allowed now, only daily")
    # They end before the run would.
    soon = time.gmtime(time.time() + 20)
    start = time.gmtime(time.time() - 3_600)
    window = {"from": f"{start.tm_hour:02d}:{start.tm_min:02d}", "to": f"{soon.tm_hour:02d}:{soon.tm_min:02d}"}
    hours = {"zone": "UTC", "allow": [window]}
    assert "hours:" in refusal(cluster, hours=hours)


def test_a_proxy_that_is_not_opted_in(cluster: FakeCluster) -> None:
    said = refusal(cluster, "faults.cut.targets=[worker-1]")
    assert said == "faults.cut.targets: the link of worker-1 is not opted in, only worker-0"
    links = {"worker-0": {"toxiproxy": "all", "proxy": "other"}}
    assert "no proxy 'other'" in refusal(cluster, links=links)


def test_a_public_address(cluster: FakeCluster) -> None:
    said = refusal(cluster, nats_monitoring="http://8.8.8.8:8222")
    assert said.startswith("nats_monitoring: 8.8.8.8 is neither loopback nor private; allow_public: [8.8.8.8]")


def test_a_fault_kind_that_is_not_allowed(cluster: FakeCluster) -> None:
    assert "partition.stall is not allowed there, only latency" in refusal(cluster, faults=["latency"])
    assert "only partition.reset" in refusal(cluster, faults=["partition.reset"])
    kill = ("faults.cut.kind=kill", "faults.cut.mode=null")
    assert "a staging target gives no handle for kill" in refusal(cluster, *kill)


def test_the_days_budget(cluster: FakeCluster, tmp_path: Path) -> None:
    target = load_target(cluster.file())
    budget = DayBudget(cluster_key(identify(target)), target.budget, target.hours.day(time.time()))
    budget.begin("an-earlier-run-that-was-killed", 270.0)
    assert refusal(cluster).startswith("budget.fault_s: 30.0 s of 300 s are left today, the run needs 40 s")
    # The same cluster by another name, and by another word of its fingerprint.
    assert "30.0 s of 300 s" in refusal(cluster, name="other")
    assert "30.0 s of 300 s" in refusal(cluster, name="other", fingerprint={"models_owner": OWNER})
    budget.end("an-earlier-run-that-was-killed", 10.0)
    assert not look(cluster).refusals
    budget.charge_failed(50)
    assert refusal(cluster) == "budget.failed_requests: all 50 of today are used up"
    # Another cluster, whose file has the same name.
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(cluster.web, "server_name", "another-bus")
        assert not look(cluster, fingerprint={"nats_server_name": "another-bus"}).refusals
    (kept,) = (tmp_path / "cache" / "staging").glob("*.json")
    kept.write_text("{}")
    assert "the day's harm cannot be read" in refusal(cluster)


def test_more_than_the_owner_allows(cluster: FakeCluster) -> None:
    assert "rate 50/s is 125% of what the owner allows" in refusal(
        cluster, "workload.rate=50/s", "workload.rate_max=null"
    )
    assert "it rises to" in refusal(cluster, "workload.ramp=[1,3]")
    assert "phases.fault.load" in refusal(cluster, "phases.fault.load={rate: 5x}")
    assert "an open load only" in refusal(cluster, "phases.fault.load={closed: 5}")
    assert "ttl_s_max = 20 s, got 40" in refusal(cluster, ttl_s_max=20)


def test_what_could_not_be_proved(cluster: FakeCluster) -> None:
    narrow = ("faults.cut.kind=bandwidth", "faults.cut.mode=null", "faults.cut.options={kb_per_s: 1000}")
    assert "cannot be told from chance" in refusal(cluster, *narrow)
    mute = cluster.mute_proxy()
    web = cluster.web.url.removeprefix("http://")
    links = {"worker-0": {"toxiproxy": "all", "proxy": mute, "upstream": web}}
    assert "nothing would be a proof" in refusal(cluster, links=links)
    slow = ("faults.cut.kind=latency", "faults.cut.mode=null", "faults.cut.options={latency_ms: 100}")
    links = {"worker-0": {"toxiproxy": "all", "proxy": mute, "client_name": "worker-0", "upstream": web}}
    assert "nothing would be a proof" in refusal(cluster, *slow, links=links)
    links = {"worker-0": {"toxiproxy": "all", "proxy": "w0", "client_name": "nobody"}}
    assert "the broker lists no 'nobody'; there is worker-0" in refusal(cluster, links=links)


def test_modes_that_could_crash_a_toxiproxy_of_others(cluster: FakeCluster, monkeypatch: pytest.MonkeyPatch) -> None:
    black_hole = "faults.cut.mode=black_hole"
    assert not look(cluster, black_hole).refusals, "the embedded server is safe"
    monkeypatch.setattr(api, "API_VERSION", "2.12.0")
    said = refusal(cluster, black_hole)
    assert said.startswith("faults.cut.mode: black_hole needs the toxic `timeout`")
    assert "NOTHING heals" in "\n".join(look(cluster).lines)


def test_a_probe_that_does_not_hold(cluster: FakeCluster, monkeypatch: pytest.MonkeyPatch) -> None:
    probes = {"queue": {"query": "sum(queue)", "at_most": 5}}
    prometheus = {"url": cluster.web.url, "probes": probes}
    assert not look(cluster, prometheus=prometheus).refusals
    monkeypatch.setattr(cluster.web, "value", "7")
    assert refusal(cluster, prometheus=prometheus) == "the cluster is sick already: probe queue: 7, expected at most 5"


def test_a_stop_that_is_set_already(cluster: FakeCluster, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "stop").touch()
    assert "exists, so nothing may begin" in refusal(cluster, stop={"file": str(tmp_path / "stop")})
    monkeypatch.setattr(cluster.web, "go_on", 503)
    assert "answers 503" in refusal(cluster, stop={"url": f"{cluster.web.url}/stop"})


def test_one_run_at_a_time(tmp_path: Path) -> None:
    with locked("somewhere"), pytest.raises(TargetError, match="another run is at this cluster"), locked("somewhere"):
        pass
    with locked("somewhere"), locked("elsewhere"):
        pass


def test_a_target_belongs_to_staging_alone(
    cluster: FakeCluster, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert main(["staging_link", "--world", "staging"]) == 2
    assert main(["staging_link", "--world", "simulated", "--target", str(cluster.file())]) == 2
    api_of_key = {"urls": [f"{cluster.web.url}/v1"], "model": "m", "key_env": "NO_SUCH_KEY"}
    target = str(cluster.file(api=api_of_key))
    assert main(["staging_link", "--world", "staging", "--target", target]) == 2
    assert "the environment has no NO_SUCH_KEY" in capsys.readouterr().err
    nowhere = str(cluster.file(nats_monitoring="http://127.0.0.1:9"))
    settings = [word for setting in SHORT for word in ("--set", setting)]
    assert main(["staging_link", "--world", "staging", "--target", nowhere, *settings]) == 5
    assert "nothing listens there" in capsys.readouterr().err
