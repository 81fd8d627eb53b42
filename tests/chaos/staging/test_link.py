"""A borrowed proxy is given back exactly as it was, whatever of others is on it and however a run ends."""

import asyncio
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import requests
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from chaos.healing import heal_all
from chaos.staging.budget import DayBudget
from chaos.staging.link import PREFIX, StagingLink, differences, embedded, refusal
from chaos.target import Budget, LinkSpec, TargetError
from chaos.toxiproxy.adapter import Toxiproxy
from chaos.undo import UndoLog
from chaos.worlds.world import Cut, HandleError, Shape
from tests.chaos.staging.fakes import FakeCluster, fake_cluster

KINDS = {"latency": {"latency": 1}, "bandwidth": {"rate": 9_000}, "slow_close": {"delay": 1}, "noop": {}}
TTL_S = 20.0
UNDO = Path("undo")


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

    def __init__(self, cluster: FakeCluster, fault_s: float = 1e6, demand: Callable[[], None] = lambda: None) -> None:
        Borrowed.count += 1
        self.undo = UndoLog.create(f"test-{Borrowed.count}")
        self.budget = DayBudget(f"t{Borrowed.count}", Budget(failed_requests=0, fault_s=fault_s), "d")
        spec = LinkSpec(toxiproxy="all", proxy="w0")
        api = Toxiproxy(cluster.toxiproxy_url)
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
    def another() -> None:
        if told.pop():
            raise TargetError("fingerprint: it is another one now")

    clean(cluster)
    before = cluster.proxy()
    told = [True, False]
    borrowed = Borrowed(cluster, demand=another)
    asyncio.run(borrowed.link.cut(Cut.RESET, TTL_S))
    with pytest.raises(HandleError, match="it is another one now"):
        asyncio.run(borrowed.link.cut(Cut.RESET, TTL_S))
    assert (cluster.proxy(), borrowed.undo.open_entries(), borrowed.budget.spent().open) == (before, [], {})


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
