"""A borrowed proxy is given back exactly as it was, whatever of others is on it and however a run ends."""

import asyncio
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import date
from pathlib import Path
from typing import Any

import pytest
import requests
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from chaos.healing import heal_all
from chaos.staging.budget import DayBudget
from chaos.staging.identity import Brokers
from chaos.staging.link import PREFIX, StagingLink, _reached, differences, embedded, refusal
from chaos.target import Budget, LinkSpec, TargetError
from chaos.toxiproxy.adapter import Toxiproxy
from chaos.undo import UndoLog
from chaos.worlds.world import Cut, HandleError, Shape
from tests.chaos.staging.fakes import FakeBus, FakeCluster, fake_cluster

KINDS = {"latency": {"latency": 1}, "bandwidth": {"rate": 9_000}, "slow_close": {"delay": 1}, "noop": {}}
TTL_S = 20.0
UNDO = Path("undo")
OURS = Brokers(ids=frozenset({"FAKE"}))


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[FakeCluster]:
    with fake_cluster(tmp_path_factory.mktemp("staging")) as found:
        yield found


@pytest.fixture(scope="module", autouse=True)
def _own_cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MLX_CHAOS_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield


class Borrowed:
    """A link with an undo log of its own."""

    count = 0

    def __init__(
        self,
        cluster: FakeCluster,
        fault_s: float = 1e6,
        demand: Callable[[], Brokers] = lambda: OURS,
        spec: LinkSpec | None = None,
    ) -> None:
        Borrowed.count += 1
        self.undo = UndoLog.create(f"test-{Borrowed.count}")
        self.budget = DayBudget(f"t{Borrowed.count}", Budget(failed_requests=0, fault_s=fault_s), date(2026, 11, 24))
        api = Toxiproxy(cluster.toxiproxy_url)
        spec = spec or LinkSpec(toxiproxy="all", proxy="w0")
        self.link = StagingLink("worker-0", spec, api, undo=self.undo, budget=self.budget, mark="abcd", demand=demand)
        self.link.examine()


def clean(cluster: FakeCluster) -> None:
    url = f"{cluster.toxiproxy_url}/proxies/w0"
    for toxic in cluster.proxy()["toxics"]:
        requests.delete(f"{url}/toxics/{toxic['name']}", timeout=5)
    requests.post(url, json={"enabled": True}, timeout=5)


foreign = st.lists(
    st.tuples(st.sampled_from(sorted(KINDS)), st.sampled_from(["upstream", "downstream"])), max_size=3, unique=True
)
changes = st.lists(
    st.one_of(
        st.sampled_from(list(Cut)),
        st.builds(
            Shape,
            latency_s=st.sampled_from([0.001, 0.01]),
            bytes_per_s=st.sampled_from([None, 50_000]),
            slice_bytes=st.sampled_from([None, 500]),
        ),
    ),
    min_size=1,
    max_size=3,
)


@settings(max_examples=8, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(theirs=foreign, steps=changes, dies=st.booleans())
def test_what_was_there_is_there_again(
    cluster: FakeCluster, theirs: list[tuple[str, str]], steps: list[Cut | Shape], dies: bool
) -> None:
    """However the faults follow each other, and whether we undo them or the keeper of one who died does."""
    clean(cluster)
    for number, (kind, stream) in enumerate(theirs):
        cluster.foreign(f"f{number}", kind, stream, KINDS[kind])
    before = cluster.proxy()
    borrowed = Borrowed(cluster)

    async def hurt() -> None:
        for number, step in enumerate(steps):
            if isinstance(step, Cut):
                await borrowed.link.cut(step, TTL_S)
            else:
                await borrowed.link.shape(step, TTL_S)
            shown = cluster.proxy()
            kept = [toxic for toxic in shown["toxics"] if not toxic["name"].startswith(PREFIX)]
            assert kept == before["toxics"], "nothing of others is ever touched"
            if number < len(steps) - 1 or not dies:
                await borrowed.link.restore()

    asyncio.run(hurt())
    if dies:
        entries = borrowed.undo.open_entries()
        assert bool(entries) == (steps[-1] is not Cut.RESET)
        assert all(result.healed for result in heal_all(entries))
        assert all(result.healed for result in heal_all(entries)), "healing what is healed is no harm"
    else:
        assert borrowed.undo.open_entries() == []
        assert borrowed.budget.spent().open == {}
    assert cluster.proxy() == before
    assert asyncio.run(borrowed.link.differences()) == []
    borrowed.undo.close()


def test_ours_end_by_themselves_on_our_own_server(cluster: FakeCluster) -> None:
    """When runner, keeper and their host are all gone."""
    clean(cluster)
    cluster.foreign("theirs", "latency", "downstream", {"latency": 1})
    before = cluster.proxy()
    borrowed = Borrowed(cluster)
    asyncio.run(borrowed.link.cut(Cut.BLACK_HOLE, 0.3))
    assert cluster.proxy() != before
    ends_s = time.monotonic() + 5
    while cluster.proxy() != before:
        assert time.monotonic() < ends_s
        time.sleep(0.02)


def test_the_budget_comes_first(cluster: FakeCluster) -> None:
    clean(cluster)
    before = cluster.proxy()
    borrowed = Borrowed(cluster, fault_s=10.0)
    with pytest.raises(HandleError, match=r"budget.fault_s: 10.0 s of 10 s are left"):
        asyncio.run(borrowed.link.cut(Cut.REFUSE, 11.0))
    assert cluster.proxy() == before
    assert borrowed.undo.open_entries() == []


def test_who_the_target_is_comes_before_every_strike(cluster: FakeCluster) -> None:
    def another() -> Brokers:
        if told.pop():
            raise TargetError("fingerprint: it is another one now")
        return OURS

    clean(cluster)
    before = cluster.proxy()
    told = [True, False, False]
    borrowed = Borrowed(cluster, demand=another)
    asyncio.run(borrowed.link.cut(Cut.RESET, TTL_S))
    with pytest.raises(HandleError, match="it is another one now"):
        asyncio.run(borrowed.link.cut(Cut.RESET, TTL_S))
    assert (cluster.proxy(), borrowed.undo.open_entries(), borrowed.budget.spent().open) == (before, [], {})


def refused(cluster: FakeCluster, said: str, **fields: str) -> None:
    """Before anything is done."""
    spec = LinkSpec(**{"toxiproxy": "all", "proxy": "w0", **fields})
    with pytest.raises(TargetError, match=said) as told:
        Borrowed(cluster, spec=spec)
    assert "\n" not in str(told.value)


def test_the_proxy_must_lead_to_the_broker_that_was_asked(
    cluster: FakeCluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    clean(cluster)
    upstream = f"127.0.0.1:{cluster.bus.port}"
    borrowed = Borrowed(cluster)
    before = cluster.proxy()
    monkeypatch.setattr(cluster.bus, "server_id", "PRODUCTION")
    said = "links.worker-0.proxy: w0 leads to the NATS server PRODUCTION .*, which is none of the target's"
    refused(cluster, said)
    refused(cluster, said, upstream=upstream)
    with pytest.raises(HandleError, match=said):
        asyncio.run(borrowed.link.cut(Cut.STALL, TTL_S))
    with pytest.raises(HandleError, match=said):
        asyncio.run(borrowed.link.shape(Shape(latency_s=0.01), TTL_S))
    assert (cluster.proxy(), borrowed.undo.open_entries(), borrowed.budget.spent().open) == (before, [], {})
    monkeypatch.undo()
    asyncio.run(borrowed.link.cut(Cut.STALL, TTL_S))
    asyncio.run(borrowed.link.restore())
    assert cluster.proxy() == before


def test_a_proxy_that_is_led_elsewhere_in_the_midst_of_a_run(cluster: FakeCluster) -> None:
    clean(cluster)
    borrowed = Borrowed(cluster)
    with other_bus(cluster) as other:
        before = cluster.proxy()
        with pytest.raises(HandleError, match=f"w0 leads to 127.0.0.1:{other.port}, at first it was"):
            asyncio.run(borrowed.link.cut(Cut.STALL, TTL_S))
        assert cluster.proxy() == before
        refused(cluster, "the file says 127.0.0.1:4222", upstream="127.0.0.1:4222")
        with pytest.raises(TargetError, match="none of the target's"):
            Borrowed(cluster, demand=lambda: Brokers(ids=frozenset({"FAKE"}), cluster="ours"))
        Borrowed(cluster, demand=lambda: Brokers(ids=frozenset({"FAKE", "OTHER"})))


def test_where_nothing_is_seen_the_owner_must_have_said_where_it_leads(cluster: FakeCluster) -> None:
    clean(cluster)
    proxy, web = cluster.proxy(), cluster.web.url.removeprefix("http://")
    with proxy_on(cluster, "mute", "127.0.0.1:0", web):
        said = f"links.worker-0.upstream: expected where mute must lead to .Toxiproxy says {web}"
        refused(cluster, said, proxy="mute")
        Borrowed(cluster, spec=LinkSpec(toxiproxy="all", proxy="mute", upstream=web))
    with proxy_on(cluster, "wide", "0.0.0.0:0", proxy["upstream"]) as wide:
        refused(cluster, "may be another place there than from here", proxy="wide")
        Borrowed(cluster, spec=LinkSpec(toxiproxy="all", proxy="wide", upstream=proxy["upstream"]))
        listen = wide["listen"]
        Borrowed(cluster, spec=LinkSpec(toxiproxy="all", proxy="wide", upstream=proxy["upstream"], listen=listen))
        refused(cluster, f"wide listens on .*, the file says {proxy['listen']}", proxy="wide", listen=proxy["listen"])
    with pytest.raises(TargetError, match="without nats_monitoring there is no broker to compare with"):
        Borrowed(cluster, demand=Brokers)
    Borrowed(cluster, demand=Brokers, spec=LinkSpec(toxiproxy="all", proxy="w0", upstream=proxy["upstream"]))


def test_a_proxy_that_leads_into_the_public(cluster: FakeCluster) -> None:
    clean(cluster)
    with proxy_on(cluster, "out", "127.0.0.1:0", "8.8.8.8:4222"):
        refused(
            cluster,
            "links.worker-0.upstream: 8.8.8.8 is neither loopback nor private",
            proxy="out",
            upstream="8.8.8.8:4222",
        )


def test_who_listens_on_the_loopback_of_another_host_is_not_asked_on_ours() -> None:
    assert _reached("127.0.0.1:7", "127.0.0.1") == (("127.0.0.1", 7), True)
    assert _reached("localhost:7", "::1") == (("localhost", 7), True)
    assert _reached("10.0.0.7:7", "10.0.0.5") == (("10.0.0.7", 7), True)
    assert _reached("127.0.0.1:7", "10.0.0.5") == (("10.0.0.5", 7), False)
    for anywhere in ("0.0.0.0:7", "[::]:7", ":7"):
        assert _reached(anywhere, "127.0.0.1") == (("127.0.0.1", 7), False)
    with pytest.raises(TargetError, match="expected HOST:PORT"):
        _reached("somewhere", "127.0.0.1")


@contextmanager
def proxy_on(cluster: FakeCluster, name: str, listen: str, upstream: str) -> Iterator[dict[str, Any]]:
    made = {"name": name, "listen": listen, "upstream": upstream}
    answer = requests.post(f"{cluster.toxiproxy_url}/proxies", json=made, timeout=5)
    assert answer.status_code == 201
    yield answer.json()
    requests.delete(f"{cluster.toxiproxy_url}/proxies/{name}", timeout=5)


@contextmanager
def other_bus(cluster: FakeCluster) -> Iterator[FakeBus]:
    """w0 leads to it."""
    other, url, upstream = FakeBus(), f"{cluster.toxiproxy_url}/proxies/w0", cluster.proxy()["upstream"]
    other.server_id = "OTHER"
    requests.post(url, json={"upstream": f"127.0.0.1:{other.port}"}, timeout=5)
    yield other
    requests.post(url, json={"upstream": upstream}, timeout=5)
    other.close()


def test_what_its_owner_has_disabled_meanwhile_stays_disabled(cluster: FakeCluster) -> None:
    """Just before we would; and after the keeper has given it back at its time limit."""
    clean(cluster)
    url = f"{cluster.toxiproxy_url}/proxies/w0"
    borrowed = Borrowed(cluster)
    requests.post(url, json={"enabled": False}, timeout=5)
    with pytest.raises(HandleError, match="disabled already: left as it is"):
        asyncio.run(borrowed.link.cut(Cut.REFUSE, TTL_S))
    asyncio.run(borrowed.link.restore())
    assert (cluster.proxy()["enabled"], borrowed.undo.open_entries()) == (False, [])
    assert borrowed.budget.spent().open == {}

    clean(cluster)
    asyncio.run(borrowed.link.cut(Cut.REFUSE, TTL_S))
    (entry,) = borrowed.undo.open_entries()
    assert heal_all([entry])[0].healed
    borrowed.undo.done(entry.id)
    requests.post(url, json={"enabled": False}, timeout=5)
    asyncio.run(borrowed.link.restore())
    assert cluster.proxy()["enabled"] is False
    clean(cluster)


def test_a_strike_that_comes_after_its_time_limit_is_taken_back(cluster: FakeCluster) -> None:
    """The keeper may have looked after it already, when there was nothing to undo."""
    clean(cluster)
    borrowed = Borrowed(cluster)
    with pytest.raises(HandleError, match="after its time limit"):
        asyncio.run(borrowed.link.cut(Cut.REFUSE, 0.0))
    assert cluster.proxy()["enabled"] is True
    asyncio.run(borrowed.link.restore())
    assert borrowed.undo.open_entries() == []


def test_what_it_is_not_begun_with(cluster: FakeCluster) -> None:
    clean(cluster)
    cluster.foreign(f"{PREFIX}1234-stall_up", "latency", "upstream", {"latency": 1})
    with pytest.raises(TargetError, match="from an earlier run"):
        Borrowed(cluster)
    clean(cluster)
    requests.post(f"{cluster.toxiproxy_url}/proxies/w0", json={"enabled": False}, timeout=5)
    with pytest.raises(TargetError, match="disabled already"):
        Borrowed(cluster)
    clean(cluster)


def test_modes_and_servers() -> None:
    assert embedded("2.12.0+embedded")
    assert not embedded("2.12.0")
    safe = [cut for cut in Cut if not refusal(cut, "2.12.0")]
    assert safe == [Cut.REFUSE, Cut.RESET, Cut.STALL]
    assert not any(refusal(cut, "2.12.0+embedded") for cut in Cut)


def test_differences_are_told() -> None:
    one: dict[str, Any] = {"listen": "a", "upstream": "b", "enabled": True, "toxics": [{"name": "x"}, {"name": "y"}]}
    assert differences("p", one, one) == []
    assert differences("p", one, {**one, "enabled": False}) == ["p: enabled was True and is False"]
    assert differences("p", one, {**one, "toxics": one["toxics"][:1]}) == ["p: the toxic y is gone"]
    assert differences("p", one, {**one, "toxics": [*one["toxics"], {"name": "z"}]}) == ["p: the toxic z is new"]
    changed = {**one, "toxics": [{"name": "x", "toxicity": 1}, {"name": "y"}]}
    assert differences("p", one, changed) == ["p: the toxic x is another one"]
    assert differences("p", one, {**one, "toxics": one["toxics"][::-1]}) == ["p: its toxics come in another order"]
