"""A live link's shape: which toxics make it, what is refused before anything is changed, and that it is undone."""

import asyncio
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import Any, cast

import pytest

from chaos.toxiproxy.adapter import Toxic, Toxiproxy, ToxiproxyRefused, check_toxic
from chaos.undo import ToxicEntry, UndoLog
from chaos.worlds.proxied import ProxiedLink, shape_toxics
from chaos.worlds.world import Cut, HandleError, Shape
from cluster.live.broker import Broker
from cluster.live.nats import LinkFacts

FACTS = LinkFacts(True, 7, 1, 1, 0, 0, 1)


class StubApi:
    """Toxiproxy's adapter as far as a link needs it. It remembers what the undo log held at each change."""

    url = "http://127.0.0.1:1"

    def __init__(self, log: UndoLog) -> None:
        self.toxics: dict[str, Toxic] = {}
        self.enabled = True
        self.unannounced: list[str] = []
        self.failing = ""
        self.replaced = 0
        self._log = log

    def add_toxic(self, proxy: str, toxic: Toxic) -> Toxic:
        announced = [entry.toxic for entry in self._log.open_entries() if isinstance(entry, ToxicEntry)]
        if toxic.name not in announced:
            self.unannounced.append(toxic.name)
        if toxic.name == self.failing:
            raise ToxiproxyRefused("no", 500)
        self.toxics[toxic.name] = toxic
        return toxic

    def remove_toxic(self, proxy: str, name: str) -> str:
        return "missing" if self.toxics.pop(name, None) is None else "removed"

    def replace_proxy(self, proxy: str, without: Collection[str]) -> None:
        self.replaced += 1
        self.toxics = {name: toxic for name, toxic in self.toxics.items() if name not in without}

    def set_enabled(self, proxy: str, enabled: bool) -> None:
        self.enabled = enabled


class Stage:
    def __init__(self) -> None:
        self.log = UndoLog.create("shaped")
        self.api = StubApi(self.log)
        self.echoes: list[int] = []

        async def ask() -> tuple[LinkFacts, bool]:
            return FACTS, True

        async def echo(payload_bytes: int) -> float | None:
            self.echoes.append(payload_bytes)
            return 0.25

        self.link = ProxiedLink(cast(Toxiproxy, self.api), "w", self.log, cast(Broker, None), "worker-0", ask, echo)

    def shape(self, **fields: Any) -> None:
        asyncio.run(self.link.shape(Shape(**fields), 30.0))

    def names(self) -> list[str]:
        return sorted(self.api.toxics)


@pytest.fixture
def stage(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Stage]:
    monkeypatch.setenv("MLX_CHAOS_CACHE", str(tmp_path))
    built = Stage()
    yield built
    built.log.close()


def test_each_part_of_a_shape_is_a_toxic_in_each_direction() -> None:
    shape = Shape(
        latency_s=0.1,
        jitter_s=0.02,
        bytes_per_s=40_000,
        slice_bytes=100,
        slice_variation_bytes=20,
        slice_delay_s=0.002,
    )
    found = shape_toxics(shape)
    assert len(found) == 6
    told = {(toxic.type, toxic.stream): toxic.attributes for toxic in found}
    for way in ("upstream", "downstream"):
        assert told["latency", way] == {"latency": 100, "jitter": 20}
        assert told["bandwidth", way] == {"rate": 40}
        assert told["slicer", way] == {"average_size": 100, "size_variation": 20, "delay": 2_000}
    for toxic in found:
        check_toxic(toxic)
    assert {toxic.stream for toxic in shape_toxics(Shape(latency_s=1.0, directions=("upstream",)))} == {"upstream"}


@pytest.mark.parametrize(
    "fields",
    [
        {},
        {"latency_s": 0.1, "directions": ()},
        {"latency_s": -0.1},
        {"latency_s": 0.1, "jitter_s": -0.1},
        {"bytes_per_s": -5_000},
        {"bytes_per_s": 0},
        {"bytes_per_s": 999},
        {"slice_bytes": 0},
        {"slice_bytes": -1},
        {"slice_bytes": 10, "slice_variation_bytes": 11},
        {"slice_bytes": 10, "slice_delay_s": -1.0},
    ],
    ids=repr,
)
def test_what_crashes_the_server_or_has_no_effect_is_refused_with_one_line_and_nothing_is_changed(
    stage: Stage, fields: dict[str, Any]
) -> None:
    with pytest.raises(HandleError, match=r"^worker-0: ") as caught:
        stage.shape(**fields)
    assert "\n" not in str(caught.value)
    assert stage.names() == []
    assert stage.log.open_entries() == []


def test_a_shape_is_announced_before_it_is_made_and_gone_when_it_is_undone(stage: Stage) -> None:
    stage.shape(latency_s=0.1)
    assert stage.names() == ["latency_downstream", "latency_upstream"]
    assert stage.api.unannounced == []
    assert all(entry.expires_unix_s is not None for entry in stage.log.open_entries())
    for _ in range(2):
        asyncio.run(stage.link.restore())
        assert stage.names() == []
        assert stage.log.open_entries() == []


def test_a_shape_takes_the_place_of_an_earlier_one(stage: Stage) -> None:
    stage.shape(latency_s=0.1)
    stage.shape(latency_s=0.3, directions=("upstream",))
    assert {name: toxic.attributes["latency"] for name, toxic in stage.api.toxics.items()} == {"latency_upstream": 300}
    assert len(stage.log.open_entries()) == 1


def test_a_reset_leaves_the_shape_and_a_restore_undoes_both(stage: Stage) -> None:
    stage.shape(bytes_per_s=2_000)
    asyncio.run(stage.link.cut(Cut.RESET, 30.0))
    assert stage.names() == ["bandwidth_downstream", "bandwidth_upstream"]
    assert stage.api.enabled
    asyncio.run(stage.link.cut(Cut.REFUSE, 30.0))
    asyncio.run(stage.link.restore())
    assert stage.api.enabled
    assert stage.names() == []
    assert stage.log.open_entries() == []


@pytest.mark.parametrize("cut", [Cut.BLACK_HOLE, Cut.UPSTREAM, Cut.DOWNSTREAM])
def test_a_hole_is_undone_with_its_whole_proxy(stage: Stage, cut: Cut) -> None:
    asyncio.run(stage.link.cut(cut, 30.0))
    assert stage.names()
    asyncio.run(stage.link.restore())
    assert stage.api.replaced == 1
    assert stage.names() == []
    assert stage.log.open_entries() == []


def test_a_shape_that_is_half_made_is_undone_by_a_restore(stage: Stage) -> None:
    stage.api.failing = "latency_downstream"
    with pytest.raises(HandleError):
        stage.shape(latency_s=0.1)
    assert stage.names() == ["latency_upstream"]
    asyncio.run(stage.link.restore())
    assert stage.names() == []
    assert stage.log.open_entries() == []


def test_an_echo_is_asked_of_the_node_itself(stage: Stage) -> None:
    assert asyncio.run(stage.link.echo(900)) == 0.25
    assert stage.echoes == [900]
