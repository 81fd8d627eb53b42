"""Who ends a run, how soon, and who lets a fault strike."""

import asyncio
import contextlib
import time
from collections.abc import Callable, Iterator
from datetime import date, timedelta
from functools import partial
from pathlib import Path
from typing import Any

import msgspec
import pytest

from analysis.schema import EventRow
from chaos.guard import Stopped
from chaos.staging import warden as warden_module
from chaos.staging.budget import BudgetSpent, DayBudget, Spent
from chaos.staging.identity import cluster_key
from chaos.staging.probes import judge_probe
from chaos.staging.warden import BUDGET, HOURS, STOP, TARGET, Ended, Warden, unsteady
from chaos.target import Budget, Fingerprint, Probe, Steady, Target, TargetError, load_target
from tests.chaos.staging.fakes import FakeCluster, fake_cluster

NOW = 1_000.0
DAY = date(2026, 11, 24)
STEADY = Steady(requests_min=20, window_s=10.0, success_min=0.95, latency_p95_s_max=1.0)


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[FakeCluster]:
    with fake_cluster(tmp_path_factory.mktemp("staging")) as found:
        yield found


@pytest.fixture(autouse=True)
def _own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLX_CHAOS_CACHE", str(tmp_path / "cache"))


class Scene:
    """A warden that watches, and what it did."""

    def __init__(self, target: Target) -> None:
        self.rows: list[EventRow] = []
        self.halted = False
        self.budget = DayBudget(target.name, target.budget, target.hours.day(time.time()))
        self.warden = Warden(target, self.budget, self.rows.append, self._halt, lambda before_s: 0)

    def _halt(self) -> None:
        self.halted = True

    def well(self, count: int = 30) -> None:
        now = time.monotonic()
        for number in range(count):
            self.warden.ended(Ended(now - 0.1 - number / 100, now - number / 100, True))

    def run(self, disturb: Callable[["Scene"], None] = lambda scene: None) -> Stopped | None:
        """Watch for a while after the disturbance."""

        async def watch() -> None:
            self.warden.begin()
            await asyncio.sleep(0.05)
            disturb(self)
            ends_s = time.monotonic() + 5.0
            while self.warden.stopped is None and time.monotonic() < ends_s:
                await asyncio.sleep(0.01)
                self.warden.check()
            await self.warden.close()

        with contextlib.suppress(Stopped):
            asyncio.run(watch())
        stopped = self.warden.stopped
        if stopped is not None:
            assert self.rows[0].kind == "guard"
            assert (self.rows[0].subject, self.rows[0].detail) == (stopped.by, stopped.reason)
            assert self.halted
        return stopped


def scene(cluster: FakeCluster, **changes: Any) -> Scene:
    return Scene(load_target(cluster.file(**changes)))


def test_everything_is_looked_at_each_second() -> None:
    """How long that takes on a busy host is for the live cases to say."""
    assert warden_module.LOOK_S + warden_module.URL_EVERY_S < 1.0


@pytest.mark.parametrize("dangling", [False, True])
def test_the_stop_file_ends_it_also_a_link_to_nothing(cluster: FakeCluster, tmp_path: Path, dangling: bool) -> None:
    path = tmp_path / "stop"
    make = partial(path.symlink_to, tmp_path / "nothing") if dangling else path.touch
    stopped = scene(cluster, stop={"file": str(path)}).run(lambda _: make())
    assert stopped is not None
    assert (stopped.by, stopped.reason) == (STOP, f"{path} exists")


def test_the_stop_url_ends_it(cluster: FakeCluster, monkeypatch: pytest.MonkeyPatch) -> None:
    url = f"{cluster.web.url}/stop"
    stopped = scene(cluster, stop={"url": url}).run(lambda _: monkeypatch.setattr(cluster.web, "go_on", 403))
    assert stopped is not None
    assert (stopped.by, stopped.reason) == (STOP, f"{url} answers 403")


def test_the_end_of_the_hours(cluster: FakeCluster, monkeypatch: pytest.MonkeyPatch) -> None:
    def end(_: Scene) -> None:
        monkeypatch.setattr(warden_module, "time", Ahead())

    class Ahead:
        monotonic = staticmethod(time.monotonic)

        @staticmethod
        def time() -> float:
            return time.time() + 3 * 3_600

    now = time.gmtime()
    window = {"from": f"{now.tm_hour:02d}:{now.tm_min:02d}", "to": f"{(now.tm_hour + 2) % 24:02d}:{now.tm_min:02d}"}
    stopped = scene(cluster, hours={"zone": "UTC", "allow": [window]}).run(end)
    assert stopped is not None
    assert stopped.by == HOURS


def test_too_much_harm(cluster: FakeCluster) -> None:
    def harm(one: Scene) -> None:
        for _ in range(6):
            one.warden.ended(Ended(NOW, NOW, False))
            one.warden.ended(Ended(NOW, NOW, False, cancelled=True))

    one = scene(cluster, budget={"failed_requests": 5, "fault_s": 10})
    stopped = one.run(harm)
    assert stopped is not None
    assert (stopped.by, stopped.reason) == (BUDGET, "budget.failed_requests: 6 requests have failed today, 5 may")
    assert one.budget.failed_left == -1


def test_a_watch_that_breaks_is_no_watch(cluster: FakeCluster) -> None:
    def break_it(one: Scene) -> None:
        one.warden._budget = None  # type: ignore[assignment]

    with pytest.raises(AttributeError):
        scene(cluster).run(break_it)


def test_a_fault_may_strike_when_all_is_well(cluster: FakeCluster) -> None:
    one = scene(cluster)
    one.well()
    assert asyncio.run(one.warden.permit(30.0, 30.0, list)) == ""
    assert one.warden.stopped is None


def test_a_fault_may_not_strike(cluster: FakeCluster, monkeypatch: pytest.MonkeyPatch) -> None:
    def refused(one: Scene, ttl_s: float = 30.0, wrong: Callable[[], list[str]] = list) -> str:
        one.well()
        said = asyncio.run(one.warden.permit(30.0, ttl_s, wrong))
        assert one.warden.stopped is not None
        assert one.warden.stopped.by == TARGET
        assert said in one.warden.stopped.reason
        assert asyncio.run(one.warden.permit(30.0, ttl_s, wrong)), "nor anything after it"
        return said

    assert "budget.fault_s: 300.0 s are left" in refused(scene(cluster), 301.0)
    assert refused(scene(cluster), wrong=lambda: ["w0: the toxic x is new"]) == "w0: the toxic x is new"
    probes = {"queue": {"query": "q", "at_most": 0}}
    assert refused(scene(cluster, prometheus={"url": cluster.web.url, "probes": probes})).startswith("probe queue: 1")
    one = scene(cluster)
    monkeypatch.setattr(cluster.web, "server_name", "another")
    assert "the target says 'another'" in refused(one)
    monkeypatch.undo()


def ended(count: int, *, failed: int = 0, latency_s: float = 0.1, at_s: float = NOW - 1) -> list[Ended]:
    return [Ended(at_s - latency_s, at_s, number >= failed) for number in range(count)]


def test_the_steady_state() -> None:
    assert unsteady(STEADY, ended(20, failed=1), [], 0, NOW) == ""
    assert "2 of 20 requests failed" in unsteady(STEADY, ended(20, failed=2), [], 0, NOW)
    assert "19 requests have ended" in unsteady(STEADY, ended(19), [], 0, NOW)
    assert "0 requests have ended" in unsteady(STEADY, ended(50, at_s=NOW - 11), [], 0, NOW)
    assert "p95 latency 1.10 s" in unsteady(STEADY, ended(20, latency_s=1.1), [], 0, NOW)
    assert "3 of 43 requests failed or hang" in unsteady(STEADY, ended(40), [], 3, NOW)
    # What met a fault of ours says nothing, for or against.
    assert unsteady(STEADY, ended(20) + ended(9, failed=9, at_s=NOW - 5), [(NOW - 6, NOW - 4)], 0, NOW) == ""


def test_probes() -> None:
    assert judge_probe("q", Probe(query="", at_most=1.0, at_least=0.0), 1.0) == ""
    assert judge_probe("q", Probe(query="", at_most=1.0), 1.1) == "probe q: 1.1, expected at most 1"
    assert judge_probe("q", Probe(query="", at_least=1.0), 0.9) == "probe q: 0.9, expected at least 1"
    assert judge_probe("q", Probe(query="", at_most=1.0), float("nan"))


def test_the_budget_outlives_the_process_and_not_the_day(tmp_path: Path) -> None:
    limits = Budget(failed_requests=10, fault_s=100)
    first = DayBudget("here", limits, DAY)
    first.begin("a", 60)
    first.charge_failed(3)
    again = DayBudget("here", limits, DAY)
    assert (again.failed_left, again.fault_left_s) == (7, 40)
    with pytest.raises(BudgetSpent, match=r"40.0 s of 100 s are left"):
        again.begin("b", 41)
    again.begin("a", 70)
    assert again.fault_left_s == 30, "the same fault goes on: its time limit counts once"
    again.end("a", 12.5)
    assert again.spent() == Spent(DAY, 3, 12.5, {})
    tomorrow = DayBudget("here", limits, DAY + timedelta(days=1))
    assert tomorrow.fault_left_s == 100
    tomorrow.end("b", 7.0)
    # A file of the same cluster in a zone where it is still yesterday does not begin the day anew.
    assert again.fault_left_s == 93
    again.charge_failed(1)
    assert (tomorrow.failed_left, tomorrow.fault_left_s) == (9, 93)


@pytest.mark.parametrize(
    "kept",
    [
        "{",
        "",
        "{}",
        "[]",
        '{"day": "2026-11-24"}',
        '{"day": "", "failed": 0, "fault_s": 0, "open": {}}',
        '{"day": "2026-13-24", "failed": 9, "fault_s": 0, "open": {}}',
        '{"day": "2026-11-24", "failed": -5, "fault_s": 0, "open": {}}',
        '{"day": "2026-11-24", "failed": 0, "fault_s": -9, "open": {}}',
        '{"day": "2026-11-24", "failed": 0, "fault_s": 0, "open": {"a": -9}}',
        '{"day": "2026-11-24", "failed": 0, "fault_s": 1e999, "open": {}}',
        '{"day": "2026-11-24", "failed": 0, "fault_s": 0, "open": {}, "more": 1}',
        '{"day": "2026-11-29", "failed": 0, "fault_s": 0, "open": {}}',
    ],
)
def test_what_is_kept_of_the_budget_and_makes_no_sense_lets_nothing_be_done(tmp_path: Path, kept: str) -> None:
    budget = DayBudget("here", Budget(failed_requests=10, fault_s=100), DAY)
    budget.charge_failed(1)
    path = tmp_path / "cache" / "staging" / "here.json"
    path.write_text(kept)
    for ask in (
        budget.spent,
        lambda: budget.begin("b", 1),
        lambda: budget.charge_failed(1),
        lambda: budget.end("b", 1),
    ):
        with pytest.raises(TargetError, match="mend or delete it") as told:
            ask()
        assert "\n" not in str(told.value)
        assert path.read_text() == kept


def test_a_cluster_has_one_budget_whatever_its_files_are_called() -> None:
    whole = Fingerprint(nats_server_id="NABC", nats_server_name="rack", models_owner="us", toxiproxy_version="2")
    assert cluster_key(whole).startswith("nats_server_name-rack-")
    restarted = msgspec.structs.replace(whole, nats_server_id="NDEF", toxiproxy_version="3")
    assert cluster_key(restarted) == cluster_key(whole)
    other = msgspec.structs.replace(whole, nats_server_name="rack.")
    assert cluster_key(other) != cluster_key(whole), "though both read alike"
    clustered = msgspec.structs.replace(whole, nats_cluster="racks/../x")
    assert cluster_key(clustered).startswith("nats_cluster-racks-x-")
    nameless = Fingerprint(nats_server_id="NABC", nats_server_name="NABC")
    assert cluster_key(nameless).startswith("nats_server_id-NABC-")
    assert cluster_key(msgspec.structs.replace(nameless, models_owner="us")).startswith("models_owner-us-")
    with pytest.raises(TargetError):
        cluster_key(Fingerprint(toxiproxy_version="2"))
