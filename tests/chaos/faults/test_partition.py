"""When a cut counts as proved: from the victim's existing connection, and never from silence alone."""

from collections.abc import Coroutine
from typing import Any, cast

import pytest
from msgspec.structs import replace

from analysis.schema import EventRow, Row
from chaos.experiment import FaultSpec
from chaos.faults.partition import Partition, judge
from chaos.worlds.world import Cut, HandleError, LinkState, World
from cluster.errors import Code
from cluster.simulation.kernel import Kernel

BEFORE = LinkState(True, 7, True, 100, 100, 100, 100, 0)
EARLY = replace(BEFORE, node_in=110, node_out=110, broker_in=110, broker_out=110)
WORKING = replace(EARLY, node_in=115, node_out=115, broker_in=115, broker_out=115)
GONE = replace(
    EARLY, connected=False, cid=0, answered=False, broker_in=None, broker_out=None, broker_pending_bytes=None
)
SILENT = replace(EARLY, answered=False, node_out=115)
DEAF = replace(EARLY, answered=False, node_out=115, broker_in=115, broker_out=115)
BITES: dict[Cut, LinkState] = {
    Cut.REFUSE: GONE,
    Cut.RESET: replace(EARLY, cid=8, broker_in=None, broker_out=None),
    Cut.STALL: SILENT,
    Cut.BLACK_HOLE: SILENT,
    Cut.UPSTREAM: SILENT,
    Cut.DOWNSTREAM: DEAF,
}
NODES = ("controller", "worker-0", "worker-1", "client-0")


@pytest.mark.parametrize("cut", list(Cut))
def test_each_cut_is_proved_by_what_it_does(cut: Cut) -> None:
    proved, why = judge(cut, BEFORE, EARLY, BITES[cut])
    assert proved, why


@pytest.mark.parametrize("cut", list(Cut))
def test_a_sabotaged_cut_is_not_proved(cut: Cut) -> None:
    assert not judge(cut, BEFORE, EARLY, WORKING)[0]


@pytest.mark.parametrize("cut", list(Cut))
@pytest.mark.parametrize("broken", [{"connected": False}, {"answered": False}])
def test_a_link_that_did_not_work_before_proves_nothing(cut: Cut, broken: dict[str, bool]) -> None:
    assert not judge(cut, replace(BEFORE, **broken), EARLY, BITES[cut])[0]


@pytest.mark.parametrize(
    ("cut", "late"),
    [
        (Cut.REFUSE, replace(GONE, connected=True, cid=8)),
        (Cut.REFUSE, replace(GONE, broker_in=110)),
        (Cut.RESET, replace(WORKING, cid=8)),
        (Cut.RESET, replace(WORKING, broker_in=None)),
        (Cut.STALL, replace(SILENT, answered=True)),
        (Cut.STALL, replace(SILENT, node_out=110)),
        (Cut.BLACK_HOLE, replace(SILENT, broker_in=115)),
        (Cut.BLACK_HOLE, replace(SILENT, node_out=110)),
        (Cut.UPSTREAM, DEAF),
        (Cut.UPSTREAM, replace(SILENT, node_out=110)),
        (Cut.DOWNSTREAM, SILENT),
        (Cut.DOWNSTREAM, replace(DEAF, node_in=115)),
        (Cut.DOWNSTREAM, replace(DEAF, answered=True)),
    ],
)
def test_half_an_effect_is_no_proof_of_the_whole(cut: Cut, late: LinkState) -> None:
    proved, why = judge(cut, BEFORE, EARLY, late)
    assert not proved
    assert why


def spec(mode: str | None = "stall", **fields: Any) -> FaultSpec:
    whole: dict[str, Any] = {"kind": "partition", "phase": "fault", "targets": ("worker-0", "controller")}
    return FaultSpec(**(whole | {"duration_s": 5.0, "ttl_s": 9.0, "mode": mode} | fields))


@pytest.mark.parametrize("mode", [None, "", "Stall", "bandwidth"])
def test_an_unknown_mode_is_refused_and_the_known_ones_are_named(mode: str | None) -> None:
    with pytest.raises(
        ValueError, match=r"^mode: expected one of refuse, reset, stall, black_hole, upstream, downstre"
    ):
        Partition(spec(mode), NODES)


def test_options_are_refused() -> None:
    with pytest.raises(ValueError, match="options: partition has no jitter; it has none"):
        Partition(spec(options={"jitter": 3}), NODES)


@pytest.mark.parametrize(
    ("targets", "controller", "nobody"),
    [
        (("worker-0",), False, False),
        (("worker-0", "worker-1"), False, True),
        (("controller",), True, False),
        (("client-0",), True, False),
    ],
)
def test_it_explains_no_more_errors_than_its_targets_can_cause(
    targets: tuple[str, ...], controller: bool, nobody: bool
) -> None:
    explains = Partition(spec(targets=targets), NODES).explains
    assert (Code.CONTROLLER_UNREACHABLE in explains) == controller
    assert (Code.NO_WORKERS_AVAILABLE in explains) == nobody
    assert not {Code.MODEL_NOT_FOUND, Code.INVALID_REQUEST, Code.ENGINE_ERROR, Code.CANCELLED} & set(explains)


class StubLink:
    def __init__(self, world: "StubWorld") -> None:
        self.world = world
        self.cuts: list[float] = []
        self.restores = 0
        self.works = True
        self.asked: list[int | None] = []

    async def cut(self, cut: Cut, ttl_s: float) -> None:
        assert ttl_s == 9.0
        self.cuts.append(self.world.now())
        self.works = self.world.sabotaged

    async def restore(self) -> None:
        self.restores += 1
        self.works = self.world.heals

    async def inspect(self, cid: int | None = None) -> LinkState:
        self.asked.append(cid)
        if self.world.mute:
            raise HandleError("no answer")
        sent = 100 + int(self.world.now() * 10)
        heard = sent if self.works else 100
        return LinkState(True, 7, self.works, heard, sent, heard, heard, 0)


class StubWorld:
    """Links that do as they are told, or not, on a virtual clock."""

    def __init__(self, *, sabotaged: bool = False, heals: bool = True) -> None:
        self.kernel = Kernel()
        self.sabotaged = sabotaged
        self.heals = heals
        self.mute = False
        self.links = {name: StubLink(self) for name in NODES}
        self.rows: list[Row] = []

    def now(self) -> float:
        return self.kernel.now

    def clock(self) -> float:
        return self.kernel.now

    def record(self, row: Row) -> None:
        self.rows.append(row)

    async def sleep(self, seconds: float) -> None:
        await self.kernel.sleep(seconds)

    def link(self, node: str) -> StubLink:
        return self.links[node]

    def run(self, coroutine: Coroutine[Any, Any, Any]) -> Any:
        return self.kernel.run(coroutine)


@pytest.mark.parametrize("sabotaged", [False, True])
def test_the_proof_is_taken_from_every_target_and_from_the_connection_of_before(sabotaged: bool) -> None:
    world = StubWorld(sabotaged=sabotaged)
    fault = Partition(spec(), NODES)

    async def life() -> bool:
        await world.sleep(1.0)
        await fault.inject(cast(World, world))
        evidence = await fault.verify(cast(World, world))
        assert set(evidence.facts) == {"worker-0", "controller"}
        return evidence.proved

    assert world.run(life()) is not sabotaged
    for name in ("worker-0", "controller"):
        assert world.links[name].asked == [None, 7, 7]
        assert len(world.links[name].cuts) == 1
    assert world.links["worker-1"].asked == []


def test_one_target_without_an_effect_spoils_the_proof() -> None:
    world = StubWorld()
    fault = Partition(spec(), NODES)

    async def life() -> bool:
        await world.sleep(1.0)
        await fault.inject(cast(World, world))
        world.links["controller"].works = True
        return (await fault.verify(cast(World, world))).proved

    assert world.run(life()) is False


def test_a_reset_repeats_until_its_end_and_the_others_do_not() -> None:
    for mode, cuts in (("reset", [0.0, 3.0, 6.0, 9.0]), ("black_hole", [0.0])):
        world = StubWorld()
        fault = Partition(spec(mode), NODES)

        async def life(fault: Partition = fault, world: StubWorld = world) -> None:
            await fault.inject(cast(World, world))
            await fault.sustain(cast(World, world), 10.0)

        world.run(life())
        assert world.links["worker-0"].cuts == cuts
        assert world.now() == 10.0
        told = [row.time_s for row in world.rows if isinstance(row, EventRow) and row.subject == "worker-0"]
        assert told == cuts[1:], "each strike after the first is in the history"


@pytest.mark.parametrize("heals", [True, False])
def test_a_heal_is_proved_by_an_answer_or_not_at_all(heals: bool) -> None:
    world = StubWorld(heals=heals)
    fault = Partition(spec(), NODES)

    async def life() -> bool:
        await fault.inject(cast(World, world))
        await fault.heal(cast(World, world))
        return (await fault.verify_healed(cast(World, world), 4.0)).proved

    assert world.run(life()) is heals
    assert world.now() <= 4.2
    assert [world.links[name].restores for name in ("worker-0", "controller", "worker-1")] == [1, 1, 0]
