"""The injector: carries each fault of an experiment out, from its time to the proof that it is gone."""

import json
from collections.abc import Coroutine, Sequence
from random import Random
from typing import Any, Protocol

from analysis.schema import FaultRow
from chaos import faults, timing
from chaos.experiment import Experiment, FaultSpec
from chaos.faults import Evidence, Fault
from chaos.guard import Guard, Stopped
from chaos.prediction import Prediction, predict
from chaos.worlds.world import HandleError, Job, World
from workloads.capacity import Capacity

_HASTY_HEAL_S = 3.0
"""For how long the proof of a heal is waited for when the run is being abandoned."""


class Notes(Protocol):
    """Who is told what happens; chaos.progress.Progress is one."""

    def note(self, text: str) -> None:
        """A remark."""


class HouseRules(Protocol):
    """What whoever owns the cluster lays down for faults; the world of somebody else's cluster does."""

    @property
    def lead_s(self) -> float:
        """How long before a fault `permit` has to be asked, seconds."""

    @property
    def capacity(self) -> Capacity:
        """What shares of an experiment's rates are shares of; it is not measured."""

    def make(self, spec: FaultSpec) -> Fault:
        """The fault as it is there."""

    async def permit(self, spec: FaultSpec, fault: Fault) -> str | None:
        """Why it may not strike now, None if it may; within about `lead_s`."""


class Injector:
    """Everything that is injected is healed, whatever ends the run: see `end`."""

    def __init__(
        self,
        world: World,
        experiment: Experiment,
        guard: Guard,
        seed: int,
        notes: Notes,
        rules: HouseRules | None = None,
    ) -> None:
        """rules: None where the cluster is ours."""
        self._world = world
        self._rules = rules
        self._experiment = experiment
        self._guard = guard
        self._seed = seed
        self._notes = notes
        self._begun: list[_Injection] = []
        self._active: list[_Injection] = []
        self._jobs: list[Job] = []
        self._ended = False
        self._failed: Exception | KeyboardInterrupt | None = None
        self.stopped: Stopped | None = None
        """Why a heal that is not proven has to end the run, None if it has not."""

    def begin(self, phase: str, start_s: float) -> None:
        """Let the faults of a phase strike at their times; the phase begins at the world's time `start_s`.

        None of them strikes after `end`.
        """
        if self._ended:
            return
        nodes = self._experiment.node_names()
        for name, spec in self._experiment.faults.items():
            if spec.phase != phase:
                continue
            # Of its own, so that one fault more changes nothing about the others.
            offsets_s = timing.strikes(spec, Random(f"{self._seed}/faults/{name}"))
            for number, offset_s in enumerate(offsets_s, 1):
                label = name if number == 1 else f"{name} ({number})"
                rules = self._rules
                # Of the policy of somebody else's cluster nobody knows.
                prediction = predict(spec, self._experiment.policy) if rules is None else None
                hurt = self._experiment.hurt_with(spec.targets)
                fault = faults.make(spec, nodes) if rules is None else rules.make(spec)
                injection = _Injection(label, spec, hurt, fault, prediction)
                self._jobs.append(self._world.spawn(self._guarded(self._carry_out(injection, start_s + offset_s))))

    def in_force(self) -> list[str]:
        """Kind, mode and targets of the faults in force, for people."""
        struck = [injection for injection in self._active if injection.injected_s is not None]
        return [f"{injection.spec.kind} {injection.aim}" for injection in struck]

    def check(self) -> None:
        """Raises what has gone wrong with a fault, and Stopped when a heal that is not proven has to end the run."""
        if self._failed is not None:
            raise self._failed
        if self.stopped is not None:
            raise self.stopped

    async def finish(self) -> None:
        """Wait until every fault has come and gone; what went wrong with one is for `check` to say."""
        for job in self._jobs:
            await job

    async def end(self) -> bool:
        """Heal everything that has begun; a fault whose time had not come does not begin any more.

        All at once, so that no heal waits for the proof of another. Returns whether each is proved. Raises what went
        wrong with one that was healed here, once all others are healed.
        """
        self._ended = True
        for job in self._jobs:
            job.cancel()
        before, self._failed = self._failed, None
        # What a job was healing when it was cancelled may be half healed: it is healed again.
        begun = [injection for injection in self._begun if not injection.over]
        heals = [self._world.spawn(self._guarded(self._heal(injection, _HASTY_HEAL_S))) for injection in begun]
        for heal in heals:
            await heal
        if self._failed is not None:
            raise self._failed
        self._failed = before
        return all(injection.healed for injection in self._begun)

    async def _guarded(self, coroutine: Coroutine[Any, Any, None]) -> None:
        try:
            await coroutine
        except (Exception, KeyboardInterrupt) as error:
            # Nobody waits for this job before the end: `check` says it. On virtual time Ctrl-C may come in its turn.
            self._failed = self._failed or error

    async def _carry_out(self, injection: "_Injection", due_s: float) -> None:
        """The life of one strike: wait, inject, prove, keep up, heal, prove."""
        world, spec, fault = self._world, injection.spec, injection.fault
        refused = await self._ask_permission(injection, due_s)
        await world.sleep(due_s - world.now())
        refused = refused or await self._await_moment(injection)
        if self._ended:
            return
        if refused is not None:
            self._notes.note(f"NOT INJECTED: {spec.kind} {injection.aim}: {refused}; the run will be invalid")
            injection.bite = Evidence(False, {"not_injected": refused})
            world.record(injection.row(Evidence(False, {})))
            return
        self._begun.append(injection)
        injection.injected_s = world.clock()
        end_s = world.now() + spec.duration_s
        try:
            await fault.inject(world)
            self._notes.note(f"injected {spec.kind} {injection.aim}")
            injection.bite = await fault.verify(world)
        except HandleError as error:
            injection.bite = Evidence(False, {"error": str(error)})
        injection.verified_s = world.clock()
        if not injection.bite.proved:
            self._notes.note(f"NOT PROVED: {spec.kind} {injection.aim} shows no effect; the run will be invalid")
        try:
            await fault.sustain(world, end_s)
            injection.end = await fault.verify_end(world)
        except HandleError as error:
            injection.end = Evidence(False, {"error": str(error)})
        if injection.bite.proved and not injection.end.proved:
            self._notes.note(f"NOT IN FORCE until its end: {spec.kind} {injection.aim}; the run will be invalid")
        await self._heal(injection, self._experiment.recovery_limit_s)

    async def _ask_permission(self, injection: "_Injection", due_s: float) -> str | None:
        """Why the owner of the cluster does not let it strike, None if he does; asked before it is due."""
        if self._rules is None:
            return None
        await self._world.sleep(due_s - self._rules.lead_s - self._world.now())
        return await self._rules.permit(injection.spec, injection.fault)

    async def _await_moment(self, injection: "_Injection") -> str | None:
        """Wait for the state that the strike needs; why it may not strike, None if it may."""
        world, spec = self._world, injection.spec
        seen = ""
        if spec.when is not None:
            try:
                seen = await timing.wait_for(world, spec.when, injection.hurt)
            except timing.NeverReached as error:
                return str(error)
        self._guard.heard((await world.look()).workers, world.clock())
        # Of somebody else's cluster no controller tells us anything; its owner has permitted the fault.
        now = world.clock() if self._rules is None else None
        # Looked at and taken in one step: two faults that wait for one state must not both find the last place free.
        hurt = [target for other in self._active for target in other.hurt]
        refused = self._guard.forbids(injection.hurt, hurt, now)
        if refused is None:
            self._active.append(injection)
            controllers = self._experiment.controller_names()
            injection.states = await timing.moment(world, injection.hurt, controllers, seen)
        return refused

    async def _heal(self, injection: "_Injection", limit_s: float) -> None:
        world = self._world
        if injection.over:
            return
        if injection in self._active:
            self._active.remove(injection)
            self._guard.struck(injection.hurt)
        try:
            await injection.fault.heal(world)
            injection.healed_s = world.clock()
            healed = await injection.fault.verify_healed(world, limit_s)
        except HandleError as error:
            healed = Evidence(False, {"error": str(error)})
        if injection.over:
            return
        injection.over = True
        injection.healed = healed.proved
        said = "healed" if healed.proved else "NOT HEALED:"
        self._notes.note(f"{said} {injection.spec.kind} {injection.aim}")
        world.record(injection.row(healed))
        if not healed.proved:
            try:
                self._guard.unrecovered(f"{injection.spec.kind} {injection.aim}")
            except Stopped as stopped:
                self.stopped = self.stopped or stopped


class _Injection:
    """One strike of a fault in this run. Times on the nodes' clock, seconds."""

    def __init__(
        self, name: str, spec: FaultSpec, hurt: tuple[str, ...], fault: Fault, prediction: Prediction | None
    ) -> None:
        """hurt: the nodes that are hit."""
        self.name = name
        self.spec = spec
        self.hurt = hurt
        self.fault = fault
        self.prediction = prediction
        self.states: Sequence[str] = ()
        self.injected_s: float | None = None
        self.bite = Evidence(False, {})
        self.end: Evidence | None = None
        self.verified_s: float | None = None
        self.healed_s: float | None = None
        self.over = False
        self.healed = False

    @property
    def aim(self) -> str:
        """Mode and targets, for people."""
        return " ".join(filter(None, (self.spec.mode, ", ".join(self.spec.targets))))

    def row(self, healed: Evidence) -> FaultRow:
        """The fault as it went."""
        spec = self.spec
        parameters: dict[str, object] = {
            "mode": spec.mode,
            "duration_s": spec.duration_s,
            "ttl_s": spec.ttl_s,
            **spec.options,
        }
        if self.hurt != spec.targets:
            parameters["hosts"] = list(spec.targets)
        # Only a kind that goes from one target to the next says it.
        at_once = getattr(self.fault, "AT_ONCE", len(self.hurt))
        if at_once < len(self.hurt):
            parameters["at_once"] = at_once
        evidence = {"bite": self.bite.facts, "heal": healed.facts}
        if self.end is not None:
            evidence["end"] = self.end.facts
        return FaultRow(
            name=self.name,
            kind=spec.kind,
            targets=list(self.hurt),
            parameters=json.dumps(parameters),
            injected_s=self.injected_s,
            # A fault that went away by itself was not the fault of this experiment. None: the run ended before.
            verified=self.bite.proved and (self.end is None or self.end.proved),
            verified_s=self.verified_s,
            healed_s=self.healed_s,
            heal_verified=healed.proved,
            explains=[str(code) for code in self.fault.explains],
            evidence=json.dumps(evidence),
            states=list(self.states),
            predicted_detection_s=None if self.prediction is None else self.prediction.detection_s,
            predicted_by="" if self.prediction is None else self.prediction.by,
        )
