"""The director: phases in order, faults at their times, proofs asked for, and everything healed however a run ends."""

import asyncio
import json
from collections.abc import Callable, Coroutine, Sequence
from pathlib import Path
from typing import Any, cast

import pytest

from analysis.facts import CLOCK_TOLERANCE_S
from analysis.schema import EventRow, FaultRow, Row
from chaos import guard
from chaos.arms import Blocks
from chaos.director import Director
from chaos.experiment import Experiment
from chaos.progress import Snapshot
from chaos.worlds.real_time import RealTime
from chaos.worlds.world import Cut, HandleError, LinkState, World
from cluster.protocol import Token
from cluster.simulation.kernel import Kernel, Task
from tests.chaos.simulated_runs import Quiet, experiment
from workloads.capacity import CapacityUnknown, Completion, ProbePlan
from workloads.plan import LoadPlan
from workloads.vocabulary import ByteVocabulary

SETTINGS = (
    "phases.fault.duration_s=6",
    "faults.cut.duration_s=4",
    "faults.cut.targets=[worker-0, worker-1]",
    "faults.cut.mode=stall",
    "recovery_limit_s=2",
)
WARM_UP_S, BASELINE_S, FAULT_S = 1, 5, 6
INJECTED_S = WARM_UP_S + BASELINE_S + 1
LEAD_S = 0.5


class StubLink:
    def __init__(self, world: "StubWorld", name: str) -> None:
        self.world = world
        self.name = name
        self.cut_now = False
        self.log: list[tuple[float, str]] = []

    async def cut(self, cut: Cut, ttl_s: float) -> None:
        await self.world.sleep(0.01)
        self._maybe_fail("cut")
        self.log.append((round(self.world.now(), 1), f"cut {cut}"))
        self.cut_now = not self.world.sabotaged

    async def restore(self) -> None:
        await self.world.sleep(0.3)
        self._maybe_fail("restore")
        self.log.append((round(self.world.now(), 1), "restore"))
        self.cut_now = False

    async def inspect(self, cid: int | None = None) -> LinkState:
        await self.world.sleep(0.01)
        self._maybe_fail("inspect")
        sent = 1_000 + int(self.world.kernel.now * 50)
        arrived = 1_000 if self.cut_now else sent
        return LinkState(True, 1, not self.cut_now, arrived, sent, arrived, arrived, 0)

    def _maybe_fail(self, what: str) -> None:
        if what in self.world.failing:
            raise HandleError(f"{self.name}: cannot {what}")


class StubWorld:
    """Links and a load that do nothing, on a virtual clock that began long before the run."""

    kind = "stub"
    invariants: tuple[int, ...] = ()
    exact_tokens = False

    def __init__(self) -> None:
        self.kernel = Kernel()
        self.kernel.run_until(0.1 + 0.2)
        self.origin_s = 0.0
        self.rows: list[Row] = []
        self.failing: set[str] = set()
        self.sabotaged = False
        self.drains = True
        self.look_hook: Callable[[], None] = lambda: None
        self.offered = LoadPlan(())
        self.answers_per_s = 100.0
        self.probed_s: list[float] = []
        self.liveness = {f"worker-{number}": "ready" for number in range(3)}
        self.p99_s: Callable[[float], float | None] = lambda now: None
        self.stances: dict[str, dict[str, Callable[[float], float]]] = {}
        self.links = {name: StubLink(self, name) for name in ("worker-0", "worker-1")}

    def now(self) -> float:
        return self.kernel.now - self.origin_s

    def clock(self) -> float:
        return self.kernel.now

    async def sleep(self, seconds: float) -> None:
        await self.kernel.sleep(seconds)

    def spawn(self, coroutine: Coroutine[Any, Any, None]) -> Task[None]:
        return self.kernel.spawn(coroutine)

    async def start(self) -> None:
        await self.sleep(0.7)

    def link(self, node: str) -> StubLink:
        return self.links[node]

    async def stance(self, node: str) -> dict[str, float]:
        return {name: value(self.now()) for name, value in self.stances.get(node, {}).items()}

    async def vocabulary(self) -> ByteVocabulary:
        return ByteVocabulary()

    async def probe(self, plan: ProbePlan, prompts: Sequence[tuple[tuple[Token, ...], int]]) -> list[Completion]:
        """A cluster that makes a hundred answers a second, or fewer."""
        await self.sleep(plan.duration_s)
        self.probed_s.append(plan.measure_s)
        per_s = self.answers_per_s
        return [Completion(number / per_s, 10) for number in range(int(plan.duration_s * per_s))]

    async def begin_load(self, plan: LoadPlan) -> None:
        self.origin_s = self.kernel.now + LEAD_S
        self.offered = plan

    async def finish_load(self, limit_s: float) -> bool:
        assert limit_s > 10.0, "requests get their whole deadline"
        await self.sleep(0.5)
        return self.drains

    async def look(self) -> Snapshot:
        self.look_hook()
        p99_s = self.p99_s(self.now())
        return Snapshot(elapsed_s=self.now(), phase="", workers=self.liveness, waited=100, waited_p99_s=p99_s)

    async def sleep_in_place_of_a_heal(self) -> None:
        await self.sleep(0.3)

    def record(self, row: Row) -> None:
        self.rows.append(row)

    def events(self) -> list[tuple[str, str, float]]:
        return [
            (row.kind, row.subject, round(row.time_s - self.origin_s, 2))
            for row in self.rows
            if isinstance(row, EventRow)
        ]

    def faults(self) -> list[FaultRow]:
        return [row for row in self.rows if isinstance(row, FaultRow)]


class Stopped(Exception):
    """Somebody ends the run."""


class Stage:
    def __init__(self, *settings: str) -> None:
        self.world = StubWorld()
        self.watcher = Quiet()
        self.experiment: Experiment = experiment(*SETTINGS, *settings)
        self.director = Director(cast(World, self.world), self.experiment, 1, self.watcher)

    def run(self) -> None:
        self.world.kernel.run(self.director.conduct())

    def stop_at(self, second: float) -> None:
        """The next look at the world after that raises, as a Ctrl-C would."""

        def hook() -> None:
            if self.world.now() >= second:
                self.world.look_hook = lambda: None
                raise Stopped

        self.world.look_hook = hook

    def all_healed(self) -> bool:
        return not any(link.cut_now for link in self.world.links.values())


def test_phases_follow_each_other_and_the_load_covers_them_all() -> None:
    stage = Stage()
    stage.run()
    ends = [("warm_up", 1.0), ("baseline", 6.0), ("fault", 12.0), ("recovery", 21.0)]
    begins = [("warm_up", 0.0), ("baseline", 1.0), ("fault", 6.0), ("recovery", 12.0)]
    events = stage.world.events()
    assert [(subject, at) for kind, subject, at in events if kind == "phase_started"] == begins
    assert [(subject, at) for kind, subject, at in events if kind == "phase_ended"] == ends
    assert events[0][0] == "run_started"
    assert events[-1] == ("run_ended", "", 21.5)
    assert 19.0 < max(request.intended_s for request in stage.world.offered.requests) < 21.0
    assert stage.director.complete


@pytest.mark.parametrize(("answers_per_s", "probed_s"), [(100.0, [3.0]), (1.0, [3.0, 12.0]), (0.3, [3.0, 12.0, 48.0])])
def test_a_slow_cluster_is_probed_for_longer(answers_per_s: float, probed_s: list[float]) -> None:
    stage = Stage("workload.rate=50%", "workload.rate_min=null", "workload.rate_max=null")
    stage.world.answers_per_s = answers_per_s
    stage.run()
    assert stage.world.probed_s == probed_s
    assert stage.director.rate is not None
    assert stage.director.rate.per_s == pytest.approx(answers_per_s / 2, rel=0.1)


def test_a_cluster_that_answers_next_to_nothing_has_no_known_capacity() -> None:
    stage = Stage("workload.rate=50%", "workload.rate_min=null", "workload.rate_max=null")
    stage.world.answers_per_s = 0.1
    with pytest.raises(CapacityUnknown, match=r"in 48 s"):
        stage.run()


def test_nodes_have_time_for_a_sample_after_the_last_request() -> None:
    stage = Stage()
    stage.run()
    ended_s = next(at for kind, _, at in stage.world.events() if kind == "run_ended")
    # Invariant 8 looks at samples from CLOCK_TOLERANCE_S after the last end on, and a node samples itself every 0.5 s.
    assert stage.world.now() >= ended_s + CLOCK_TOLERANCE_S + 0.5


def test_phases_begin_when_their_load_does_however_late_we_are_to_say_so() -> None:
    stage = Stage("phases.recovery.load={burst: 20}")
    quick = stage.world.look

    async def slow_look() -> Snapshot:
        await stage.world.sleep(0.17)
        return await quick()

    stage.world.look = slow_look  # type: ignore[method-assign]
    stage.run()
    begun = [row for row in stage.world.rows if isinstance(row, EventRow) and row.kind == "phase_started"]
    assert [row.time_s - stage.world.origin_s for row in begun] == pytest.approx([0.0, 1.0, 6.0, 12.0], abs=1e-5)
    (burst,) = stage.world.offered.closed
    assert begun[-1].time_s - stage.world.origin_s < burst.start_s == 12.0, "what is asked at once belongs to it"
    assert begun[-1].detail.startswith("20 requests at once")
    assert all(request.intended_s < 12.0 for request in stage.world.offered.requests)


def test_a_fault_is_injected_proved_and_healed_at_its_times_and_recorded() -> None:
    stage = Stage()
    stage.run()
    for link in stage.world.links.values():
        assert [what for _, what in link.log] == ["cut stall", "restore"]
        assert link.log[0][0] == INJECTED_S
        assert INJECTED_S + 4 <= link.log[1][0] <= INJECTED_S + 5
    (fault,) = stage.world.faults()
    assert fault.verified
    assert fault.heal_verified
    assert fault.injected_s == pytest.approx(stage.world.origin_s + INJECTED_S)
    assert fault.injected_s is not None
    assert fault.verified_s is not None
    assert fault.healed_s is not None
    assert fault.injected_s < fault.verified_s < fault.healed_s
    assert set(json.loads(fault.evidence)) == {"bite", "end", "heal"}
    assert json.loads(fault.parameters)["mode"] == "stall"


def test_a_fault_that_does_not_bite_is_told_of_and_the_run_goes_on() -> None:
    stage = Stage()
    stage.world.sabotaged = True
    stage.run()
    (fault,) = stage.world.faults()
    assert (fault.verified, fault.heal_verified) == (False, True)
    assert any(note.startswith("NOT PROVED") for note in stage.watcher.notes)
    assert stage.director.complete


@pytest.mark.parametrize("failing", ["cut", "inspect"])
def test_a_handle_that_fails_makes_the_fault_unproved_and_not_the_run_crash(failing: str) -> None:
    stage = Stage()
    stage.world.failing = {failing}
    stage.run()
    (fault,) = stage.world.faults()
    assert not fault.verified
    assert f"cannot {failing}" in fault.evidence
    assert all("restore" in [what for _, what in link.log] for link in stage.world.links.values()), (
        "healed all the same"
    )
    assert stage.director.complete


def test_a_heal_that_fails_is_not_called_proved() -> None:
    stage = Stage()
    stage.world.failing = {"restore"}
    stage.run()
    (fault,) = stage.world.faults()
    assert (fault.verified, fault.heal_verified, fault.healed_s) == (True, False, None)
    assert any(note.startswith("NOT HEALED") for note in stage.watcher.notes)


def test_requests_that_do_not_end_are_told_of() -> None:
    stage = Stage()
    stage.world.drains = False
    stage.run()
    details = [row.detail for row in stage.world.rows if isinstance(row, EventRow) and row.kind == "run_ended"]
    assert details == ["some requests had not ended"]


@pytest.mark.parametrize("second", [INJECTED_S + 0.5, INJECTED_S + 2.0, INJECTED_S + 3.5])
def test_a_run_that_is_ended_under_a_fault_heals_every_target_first(second: float) -> None:
    stage = Stage()
    stage.stop_at(second)
    with pytest.raises(Stopped):
        stage.run()
    assert stage.all_healed()
    assert len(stage.world.faults()) == 1
    assert not stage.director.complete


@pytest.mark.parametrize("tenths", range(0, 10, 2))
def test_a_run_that_is_ended_while_a_fault_is_being_healed_still_heals_every_target(tenths: int) -> None:
    """Healing the two links takes 0.3 s each; the end comes somewhere in between."""
    stage = Stage("faults.cut.start_s=0.7")
    end_s = WARM_UP_S + BASELINE_S + 0.7 + 4 + tenths / 10

    async def interrupted() -> None:
        run = stage.world.spawn(stage.director.conduct())
        while not stage.world.offered.requests:
            await stage.world.sleep(0.1)
        await stage.world.sleep(end_s - stage.world.now())
        run.cancel()
        await run

    with pytest.raises(BaseException):  # noqa: B017, PT011
        stage.world.kernel.run(interrupted())
    assert stage.all_healed()
    assert len(stage.world.faults()) == 1


def test_a_fault_whose_time_has_not_come_is_not_injected_when_the_run_is_ended() -> None:
    stage = Stage()
    stage.stop_at(WARM_UP_S + BASELINE_S)
    with pytest.raises(Stopped):
        stage.run()
    assert all(link.log == [] for link in stage.world.links.values())
    assert stage.world.faults() == []


def test_the_watcher_is_shown_what_is_in_force_and_how_much_is_left() -> None:
    stage = Stage()
    stage.run()
    assert stage.watcher.phases == ["start", "capacity probe", *stage.experiment.phases, "drain"]
    with_fault = [snapshot for snapshot in stage.watcher.snapshots if snapshot.faults]
    assert {snapshot.phase for snapshot in with_fault} == {"fault"}
    assert with_fault[0].faults == ["partition stall worker-0, worker-1"]
    lefts = [round(snapshot.left_s or 0.0, 3) for snapshot in stage.watcher.snapshots if snapshot.phase == "fault"]
    assert lefts[-11:] == [5.5, 5.0, 4.5, 4.0, 3.5, 3.0, 2.5, 2.0, 1.5, 1.0, 0.5]
    assert {snapshot.left_s for snapshot in stage.watcher.snapshots if snapshot.phase == "drain"} == {None}


@pytest.mark.parametrize("lead_s", [0.1, 0.3, 0.5, 1 / 3, 12345.678])
def test_phases_end_whatever_the_origin_of_time_rounds_to(lead_s: float) -> None:
    """On a clock of floats `start - now` may come out as 1e-16, which no sleep can use up."""
    stage = Stage()
    stage.world.kernel.run_until(lead_s * 1.1)
    stage.run()
    assert len(stage.watcher.snapshots) < 60


def struck(stage: Stage) -> list[float]:
    return [at for at, what in stage.world.links["worker-0"].log if what.startswith("cut")]


def test_a_repeated_fault_is_injected_proved_and_healed_each_time() -> None:
    stage = Stage("phases.fault.duration_s=16", "faults.cut.duration_s=3", "faults.cut.repeat={times: 3, every_s: 5}")
    stage.run()
    assert struck(stage) == [INJECTED_S, INJECTED_S + 5.0, INJECTED_S + 10.0]
    faults = stage.world.faults()
    assert [fault.name for fault in faults] == ["cut", "cut (2)", "cut (3)"]
    assert all(fault.verified and fault.heal_verified for fault in faults)


WHEN = ("phases.fault.duration_s=16", "faults.cut.when={state: stream_token, at_least: 5, within_s: 8}")


def test_a_fault_waits_for_its_state_and_says_what_it_struck_in_the_midst_of() -> None:
    stage = Stage(*WHEN)
    stage.world.stances = {
        "worker-0": {"stream_token": lambda now: 2 if now < INJECTED_S + 3 else 6, "queue": lambda now: 0},
        "controller": {"half_open": lambda now: 1, "handover": lambda now: 9},
    }
    stage.run()
    assert struck(stage) == [pytest.approx(INJECTED_S + 3, abs=0.1)]
    (fault,) = stage.world.faults()
    assert fault.states == ["stream_token at worker-0: 6", "half_open at controller: 1"]


def test_a_counter_is_waited_for_by_its_growth() -> None:
    stage = Stage(
        "phases.fault.duration_s=16", "faults.cut.when={state: handover, node: controller, at_least: 2, within_s: 8}"
    )
    stage.world.stances = {"controller": {"handover": lambda now: 40 + int(now >= INJECTED_S + 1) * 2}}
    stage.run()
    assert struck(stage) == [pytest.approx(INJECTED_S + 1, abs=0.1)]


def test_a_state_that_never_comes_leaves_the_fault_uninjected_and_says_so() -> None:
    stage = Stage(*WHEN)
    stage.world.stances = {"worker-0": {"stream_token": lambda now: 4}}
    stage.run()
    assert struck(stage) == []
    (fault,) = stage.world.faults()
    assert (fault.injected_s, fault.verified) == (None, False)
    assert "stream_token of worker-0 at least 5 was not reached within 8 s; the last was 4" in fault.evidence
    assert stage.director.complete


def test_a_fault_that_would_hurt_the_last_healthy_worker_is_not_injected() -> None:
    stage = Stage("cluster.workers=3", *WHEN)
    stage.world.stances = {"worker-0": {"stream_token": lambda now: 9}}
    stage.world.liveness = {"worker-0": "ready", "worker-1": "ready", "worker-2": "dead"}
    stage.run()
    assert struck(stage) == []
    (fault,) = stage.world.faults()
    assert "no healthy worker would be left" in fault.evidence


def test_a_stop_condition_heals_what_is_in_force_and_is_told_of() -> None:
    stage = Stage("guard.stop_file=/nowhere/stop", "guard.latency_p99_s_max=2")
    stage.world.p99_s = lambda now: 3.0 if now > INJECTED_S + 2 else 0.1
    with pytest.raises(guard.Stopped):
        stage.run()
    assert stage.all_healed()
    assert len(stage.world.faults()) == 1
    (told,) = [row for row in stage.world.rows if isinstance(row, EventRow) and row.kind == "guard"]
    assert told.subject == "stop_condition"
    assert "p99 latency is 3.00 s" in told.detail
    assert told.time_s - stage.world.origin_s <= INJECTED_S + 3


def test_an_unproven_heal_ends_the_run_where_that_was_asked_for() -> None:
    stage = Stage("guard.stop_when_unrecovered=true")
    stage.world.failing = {"restore"}
    with pytest.raises(guard.Stopped, match="the heal of partition stall worker-0, worker-1 is not proven"):
        stage.run()


def told_of(stage: Stage) -> list[tuple[str, str]]:
    return [(row.subject, row.detail) for row in stage.world.rows if isinstance(row, EventRow) and row.kind == "guard"]


def test_a_heal_that_is_not_proved_at_the_very_end_ends_the_run_all_the_same() -> None:
    """Its proof is waited for until after the last phase, while nothing else is looked at."""
    stage = Stage("guard.stop_when_unrecovered=true", "recovery_limit_s=12", "phases.recovery.duration_s=10")
    stage.world.links["worker-0"].restore = stage.world.sleep_in_place_of_a_heal  # type: ignore[method-assign]
    with pytest.raises(guard.Stopped, match="is not proven"):
        stage.run()
    assert not stage.director.complete
    assert [by for by, _ in told_of(stage)] == ["stop_condition"]


def test_a_heal_that_is_not_proved_as_the_run_is_being_ended_is_told_of() -> None:
    stage = Stage("guard.stop_when_unrecovered=true")
    stage.world.failing = {"restore"}
    stage.stop_at(INJECTED_S + 2.0)
    with pytest.raises(Stopped):
        stage.run()
    assert told_of(stage) == [
        ("stop_condition", "the heal of partition stall worker-0, worker-1 is not proven"),
    ]


def test_an_error_of_ours_in_a_fault_ends_the_run_at_once_healed_and_with_its_traceback() -> None:
    stage = Stage("phases.fault.duration_s=60", "faults.cut.duration_s=50")

    async def inspect(cid: int | None = None) -> LinkState:
        raise ZeroDivisionError("ours")

    stage.world.links["worker-1"].inspect = inspect  # type: ignore[method-assign]
    with pytest.raises(ZeroDivisionError, match="ours") as raised:
        stage.run()
    assert stage.world.now() < INJECTED_S + 5
    assert "inspect" in [entry.name for entry in raised.traceback]
    assert stage.all_healed()
    assert not stage.director.complete
    assert not told_of(stage), "it is no word of the guard"


def test_an_error_of_ours_in_one_heal_leaves_no_other_fault_unhealed() -> None:
    other = "kind: partition, mode: refuse, phase: fault, targets: [worker-1], start_s: 1, duration_s: 4, ttl_s: 60"
    stage = Stage("faults.cut.targets=[worker-0]", f"faults.other={{{other}}}")

    async def restore() -> None:
        raise ZeroDivisionError("ours")

    stage.world.links["worker-0"].restore = restore  # type: ignore[method-assign]
    stage.stop_at(INJECTED_S + 2.0)
    with pytest.raises(ZeroDivisionError):
        stage.run()
    assert not stage.world.links["worker-1"].cut_now


def test_an_error_of_ours_between_blocks_of_arms_ends_the_run_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    async def broken(blocks: Blocks) -> None:
        await blocks._world.sleep(2.0)
        raise ZeroDivisionError("ours")

    monkeypatch.setattr(Blocks, "_walk_through", broken)
    monkeypatch.setattr(Blocks, "begin", lambda self: setattr(self, "_job", self._world.spawn(self._walk())))
    stage = Stage()
    with pytest.raises(ZeroDivisionError):
        stage.run()
    assert stage.world.now() < 2.0 + 1.0


SECONDS: dict[str, tuple[str, float]] = {
    # The method of the world during which the end is asked for, and how long that would have taken.
    "start": ("start", 60.0),
    "vocabulary": ("vocabulary", 60.0),
    "capacity_probe": ("probe", 60.0),
    "begin_load": ("begin_load", 60.0),
    "drain": ("finish_load", 60.0),
}


@pytest.mark.parametrize("moment", SECONDS)
def test_a_stop_file_is_heeded_within_half_a_second_whatever_the_run_waits_for(moment: str, tmp_path: Path) -> None:
    file = tmp_path / "stop"
    stage = Stage(f"guard.stop_file={file}")
    name, takes_s = SECONDS[moment]
    asked_s: list[float] = []

    async def slow(*arguments: Any) -> None:
        await stage.world.sleep(1.23)
        file.touch()
        asked_s.append(stage.world.clock())
        await stage.world.sleep(takes_s)

    setattr(stage.world, name, slow)
    with pytest.raises(guard.Stopped, match="stop exists"):
        stage.run()
    assert stage.world.clock() - asked_s[0] <= 0.5
    assert told_of(stage) == [("stop_file", f"{file} exists")]
    assert not stage.director.complete


@pytest.mark.parametrize("at_s", [WARM_UP_S + 0.1, INJECTED_S + 0.6, INJECTED_S + 4.1, 21.2, 21.9])
def test_a_stop_file_is_heeded_in_every_phase_while_healing_and_while_nodes_settle(at_s: float, tmp_path: Path) -> None:
    file = tmp_path / "stop"
    stage = Stage(f"guard.stop_file={file}")

    async def whole() -> None:
        run = stage.world.spawn(stage.director.conduct())
        await stage.world.sleep(1.0)
        while not stage.world.offered.requests:
            await stage.world.sleep(0.1)
        await stage.world.sleep(at_s - stage.world.now())
        file.touch()
        await run

    with pytest.raises(guard.Stopped):
        stage.world.kernel.run(whole())
    assert at_s <= stage.world.now() <= at_s + 1.0, "and everything healed"
    assert stage.all_healed()
    assert not stage.director.complete


def test_with_a_stop_file_already_there_nothing_is_started(tmp_path: Path) -> None:
    (tmp_path / "stop").touch()
    stage = Stage(f"guard.stop_file={tmp_path / 'stop'}")
    with pytest.raises(guard.Stopped):
        stage.run()
    assert stage.watcher.phases == []


def test_a_stop_condition_is_looked_at_while_the_load_drains() -> None:
    stage = Stage("guard.latency_p99_s_max=2")
    stage.world.p99_s = lambda now: 3.0 if now > 21.0 else 0.1

    async def slow(limit_s: float) -> bool:
        await stage.world.sleep(60.0)
        return True

    stage.world.finish_load = slow  # type: ignore[method-assign]
    with pytest.raises(guard.Stopped, match="p99"):
        stage.run()
    assert stage.world.now() <= 22.0


def test_a_look_that_hangs_keeps_no_stop_file_and_no_phase_waiting(tmp_path: Path) -> None:
    file = tmp_path / "stop"
    stage = Stage(f"guard.stop_file={file}")

    async def hangs() -> Snapshot:
        if stage.world.now() > 7.5:
            file.touch()
        await stage.world.sleep(5.0)
        return Snapshot(elapsed_s=stage.world.now(), phase="", workers=stage.world.liveness)

    stage.world.look = hangs  # type: ignore[method-assign]
    with pytest.raises(guard.Stopped):
        stage.run()
    assert ("phase_started", "fault", 6.0) in stage.world.events()
    assert stage.world.now() < 10.0 + 1.0


def test_the_same_on_asyncio_where_a_cancelled_run_is_still_cancelled(tmp_path: Path) -> None:
    """The stop file ends a start that hangs, and so does a Ctrl-C, which is no word of the guard."""
    file = tmp_path / "stop"

    class RealStub(StubWorld, RealTime):
        def __init__(self) -> None:
            StubWorld.__init__(self)
            RealTime.__init__(self)

        now, clock, sleep, spawn = RealTime.now, RealTime.clock, RealTime.sleep, RealTime.spawn  # type: ignore[assignment]

        async def start(self) -> None:
            await asyncio.sleep(60.0)

    async def ended(by_file: bool) -> tuple[BaseException, list[Row]]:
        world = RealStub()
        director = Director(cast(World, world), experiment(*SETTINGS, f"guard.stop_file={file}"), 1, Quiet())
        run = asyncio.create_task(director.conduct())
        await asyncio.sleep(0.05)
        if by_file:
            file.touch()
        else:
            run.cancel()
        (found,) = await asyncio.gather(run, return_exceptions=True)
        assert len(asyncio.all_tasks()) <= 2, "what watched has ended"
        return cast(BaseException, found), world.rows

    found, rows = asyncio.run(ended(by_file=False))
    assert isinstance(found, asyncio.CancelledError)
    assert rows == []
    found, rows = asyncio.run(ended(by_file=True))
    assert isinstance(found, guard.Stopped)
    assert len(rows) == 1


def test_a_worker_is_not_struck_where_no_controller_has_said_for_long_who_is_well() -> None:
    stage = Stage("guard.liveness_age_s_max=3", "faults.cut.targets=[worker-0]")
    stage.run()
    assert struck(stage) == [INJECTED_S]
    for silent_s, strikes in ((INJECTED_S - 2.0, 1), (INJECTED_S - 4.0, 0)):
        stage = Stage("guard.liveness_age_s_max=3", "faults.cut.targets=[worker-0]")
        quick = stage.world.look

        async def look(stage: Stage = stage, silent_s: float = silent_s, quick: Any = quick) -> Snapshot:
            if stage.world.now() > silent_s:
                stage.world.liveness = {}
            return cast(Snapshot, await quick())

        stage.world.look = look  # type: ignore[method-assign]
        stage.run()
        assert len(struck(stage)) == strikes, silent_s
        (fault,) = stage.world.faults()
        assert ("no controller says which workers are healthy" in fault.evidence) == (not strikes)
