"""The director: brings a world up, offers the load, walks through the phases, injects and heals, and writes it down.

It awaits only the world, so the same coroutine runs on asyncio and on virtual time.
"""

import json
from collections.abc import Callable
from typing import Protocol

from msgspec.structs import replace

from analysis.schema import EventRow, FaultRow
from chaos import faults
from chaos.experiment import Experiment, FaultSpec
from chaos.faults import Evidence, Fault
from chaos.progress import Snapshot
from chaos.worlds.world import HandleError, Job, World
from workloads.capacity import InfeasibleRate, ResolvedRate, estimate_capacity, plan_probe, resolve_rate
from workloads.schedule import ScheduledRequest, build_schedule

_TICK_S = 1.0
_MOMENT_S = 1e-6
"""Less is not worth sleeping for, and on a clock of large numbers would not move it."""
_PROBE_PROMPTS = 200
_DRAIN_SLACK_S = 2.0
_HASTY_HEAL_S = 3.0
"""For how long the proof of a heal is waited for when the run is being abandoned."""


class Watcher(Protocol):
    """Who is shown the progress; chaos.progress.Progress is one."""

    def phase(self, name: str, duration_s: float | None = None) -> None:
        """A phase begins."""

    def update(self, snapshot: Snapshot) -> None:
        """How things stand."""

    def note(self, text: str) -> None:
        """A remark."""


class Director:
    """One run of an experiment in a world."""

    def __init__(
        self,
        world: World,
        experiment: Experiment,
        seed: int,
        watcher: Watcher,
        planned: Callable[[list[ScheduledRequest]], None] = lambda schedule: None,
    ) -> None:
        """planned: told of the load before any of it is offered."""
        self._world = world
        self._experiment = experiment
        self._seed = seed
        self._watcher = watcher
        self._planned = planned
        self._begun: list[_Injection] = []
        self._active: dict[str, _Injection] = {}
        self._jobs: list[Job] = []
        self.schedule: list[ScheduledRequest] = []
        self.rate: ResolvedRate | None = None
        self.complete = False

    async def conduct(self) -> None:
        """Run everything. Whatever ends it, what was injected is healed before this returns or raises."""
        world, experiment = self._world, self._experiment
        self._watcher.phase("start")
        await world.start()
        await self._plan_load()
        self._planned(self.schedule)
        await world.begin_load(self.schedule)
        try:
            await self._walk_through_phases()
            self._watcher.phase("drain")
            drained = await world.finish_load(experiment.policy.client.deadline_s + _DRAIN_SLACK_S)
            self._event("run_ended", detail="" if drained else "some requests had not ended")
            self.complete = True
        finally:
            # Only what has begun is healed: a fault whose time had not come must not begin now.
            for job in self._jobs:
                job.cancel()
            # What a job was healing when it was cancelled may be half healed: it is healed again.
            for injection in self._begun:
                await self._heal(injection, _HASTY_HEAL_S)

    async def _plan_load(self) -> None:
        spec, policy = self._experiment.workload, self._experiment.policy
        vocabulary = await self._world.vocabulary()
        duration_s = sum(phase.duration_s for phase in self._experiment.phases.values())
        # Measured even for an absolute rate: an offer that cannot be served is said now, not discovered afterwards.
        self._watcher.phase("capacity probe")
        plan = plan_probe(self._experiment.cluster.workers, policy.worker.batch_max)
        sample = build_schedule(spec, _PROBE_PROMPTS, 1.0, self._seed, vocabulary)
        prompts = [(request.prompt, request.max_tokens) for request in sample]
        capacity = estimate_capacity(await self._world.probe(plan, prompts), plan).requests_per_s
        self.rate = resolve_rate(spec, capacity)
        self._watcher.note(f"offering {self.rate.statement}")
        context = policy.worker.context_max_tokens
        try:
            self.schedule = build_schedule(
                spec, self.rate.per_s, duration_s, self._seed, vocabulary, context_max_tokens=context
            )
        except ValueError as error:
            raise InfeasibleRate(f"workload: {error}") from error

    async def _walk_through_phases(self) -> None:
        world = self._world
        await world.sleep(-world.now())
        self._event("run_started", detail=self.rate.statement if self.rate is not None else "")
        start_s = 0.0
        for name, phase in self._experiment.phases.items():
            self._watcher.phase(name, phase.duration_s)
            self._event("phase_started", name)
            for fault_name, spec in self._experiment.faults.items():
                if spec.phase == name:
                    injection = _Injection(fault_name, spec, faults.make(spec, self._experiment.node_names()))
                    self._jobs.append(world.spawn(self._carry_out(injection, start_s)))
            start_s += phase.duration_s
            while (left_s := start_s - world.now()) > _MOMENT_S:
                await world.sleep(min(_TICK_S, left_s))
                await self._show(name, start_s - world.now())
            self._event("phase_ended", name)
        for job in self._jobs:
            await job

    async def _show(self, phase: str, left_s: float) -> None:
        snapshot = await self._world.look()
        active = [f"{injection.spec.kind} {injection.aim}" for injection in self._active.values()]
        self._watcher.update(replace(snapshot, phase=phase, left_s=max(0.0, left_s), faults=active))

    async def _carry_out(self, injection: "_Injection", phase_start_s: float) -> None:
        """The life of one fault: wait, inject, prove, keep up, heal, prove."""
        world, spec, fault = self._world, injection.spec, injection.fault
        await world.sleep(phase_start_s + spec.start_s - world.now())
        self._begun.append(injection)
        self._active[injection.name] = injection
        injection.injected_s = world.clock()
        end_s = world.now() + spec.duration_s
        try:
            await fault.inject(world)
            self._watcher.note(f"injected {spec.kind} {injection.aim}")
            injection.bite = await fault.verify(world)
        except HandleError as error:
            injection.bite = Evidence(False, {"error": str(error)})
        injection.verified_s = world.clock()
        if not injection.bite.proved:
            self._watcher.note(f"NOT PROVED: {spec.kind} {injection.aim} shows no effect; the run will be invalid")
        try:
            await fault.sustain(world, end_s)
            injection.end = await fault.verify_end(world)
        except HandleError as error:
            injection.end = Evidence(False, {"error": str(error)})
        if injection.bite.proved and not injection.end.proved:
            self._watcher.note(f"NOT IN FORCE until its end: {spec.kind} {injection.aim}; the run will be invalid")
        await self._heal(injection, self._experiment.recovery_limit_s)

    async def _heal(self, injection: "_Injection", limit_s: float) -> None:
        world = self._world
        if injection.over:
            return
        self._active.pop(injection.name, None)
        try:
            await injection.fault.heal(world)
            injection.healed_s = world.clock()
            healed = await injection.fault.verify_healed(world, limit_s)
        except HandleError as error:
            healed = Evidence(False, {"error": str(error)})
        if injection.over:
            return
        injection.over = True
        said = "healed" if healed.proved else "NOT HEALED:"
        self._watcher.note(f"{said} {injection.spec.kind} {injection.aim}")
        world.record(injection.row(healed))

    def _event(self, kind: str, subject: str = "", detail: str = "") -> None:
        self._world.record(EventRow(self._world.clock(), kind, subject, detail=detail))


class _Injection:
    """One fault in this run. Times on the nodes' clock, seconds."""

    def __init__(self, name: str, spec: FaultSpec, fault: Fault) -> None:
        self.name = name
        self.spec = spec
        self.fault = fault
        self.injected_s: float | None = None
        self.bite = Evidence(False, {})
        self.end: Evidence | None = None
        self.verified_s: float | None = None
        self.healed_s: float | None = None
        self.over = False

    @property
    def aim(self) -> str:
        """Mode and targets, for people."""
        return " ".join(filter(None, (self.spec.mode, ", ".join(self.spec.targets))))

    def row(self, healed: Evidence) -> FaultRow:
        """The fault as it went."""
        spec = self.spec
        parameters = {"mode": spec.mode, "duration_s": spec.duration_s, "ttl_s": spec.ttl_s, **spec.options}
        evidence = {"bite": self.bite.facts, "heal": healed.facts}
        if self.end is not None:
            evidence["end"] = self.end.facts
        return FaultRow(
            name=self.name,
            kind=spec.kind,
            targets=list(spec.targets),
            parameters=json.dumps(parameters),
            injected_s=self.injected_s,
            # A fault that went away by itself was not the fault of this experiment. None: the run ended before.
            verified=self.bite.proved and (self.end is None or self.end.proved),
            verified_s=self.verified_s,
            healed_s=self.healed_s,
            heal_verified=healed.proved,
            explains=[str(code) for code in self.fault.explains],
            evidence=json.dumps(evidence),
        )
