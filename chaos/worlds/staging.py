"""The staging world: a cluster that somebody else runs, hurt only at the links that its owner has named.

It starts nothing there and changes nothing but toxics of its own and whether a proxy is enabled. What is seen of it is
what its callers see, and what NATS's monitoring endpoint and Toxiproxy's API tell.
"""

import asyncio
import contextlib
import time
from collections.abc import Sequence
from pathlib import Path
from typing import NoReturn

from analysis.recorder import MetricsCollector
from analysis.schema import EventRow, FaultRow, RequestRow, Row
from chaos import faults
from chaos.experiment import Experiment, FaultSpec
from chaos.faults import Fault
from chaos.keeper import Keeper, KeeperError
from chaos.progress import Snapshot
from chaos.staging.ask import AskError
from chaos.staging.budget import DayBudget, locked
from chaos.staging.faults import StagedFault, stage
from chaos.staging.greet import greet
from chaos.staging.identity import cluster_key, demand_fingerprint, identify
from chaos.staging.link import PREFIX, StagingLink
from chaos.staging.load import HttpLoad
from chaos.staging.nats import NatsMonitor
from chaos.staging.probes import ask_probes
from chaos.staging.warden import TARGET, Ended, Warden
from chaos.target import Target, TargetError
from chaos.toxiproxy.adapter import Toxiproxy, ToxiproxyError
from chaos.undo import UndoError, UndoLog
from chaos.worlds.real_time import RealTime
from chaos.worlds.world import HandleError, InfrastructureError, Member, snapshot
from cluster.protocol import Token
from workloads.capacity import Capacity, Completion, ProbePlan
from workloads.http import BadTarget
from workloads.plan import LoadPlan
from workloads.words import WordVocabulary

_LEAD_S = 0.5
CHECKS_S = 4.0
"""What the questions before an injection take, beside the looks at its links."""
INVARIANTS = (1, 2, 4, 7, 9)
"""What callers can judge: 2 as far as text tells, 4 without the workers' counts, 7 by what callers feel, 9 with the
codes of strangers."""


class StagingWorld(RealTime):
    """See World. Lives in one asyncio loop. It also lays down the rules for faults, see chaos.injector.HouseRules."""

    kind = "staging"
    invariants: tuple[int, ...] = INVARIANTS
    exact_tokens = True
    token_gap_max_nats = 0.0

    def __init__(self, experiment: Experiment, target: Target, run_id: str, raw: Path, logs: Path) -> None:
        super().__init__()
        self._experiment = experiment
        self._target = target
        self._run_id = run_id
        self._raw = raw.resolve()
        self._logs = logs.resolve()
        self._stack = contextlib.ExitStack()
        self._director = MetricsCollector(self._raw, "director", time.time_ns())
        self._budget: DayBudget | None = None
        window_s = experiment.guard.window_s
        self._load = HttpLoad(target.api.targets(), target.load.in_flight_max, self._raw, self._request_ended, window_s)
        self._watching: Warden | None = None
        self._undo: UndoLog | None = None
        self._keeper: Keeper | None = None
        self._links: dict[str, StagingLink] = {}
        self._foreign: list[str] = []

    @property
    def capacity(self) -> Capacity:
        """What shares of an experiment are shares of: the rate that the owner allows. Nobody measures another's."""
        return Capacity(self._target.rate_per_s(), 0.0, 0, 0.0)

    @property
    def _warden(self) -> Warden:
        assert self._watching is not None, "not before it is known who the target is"
        return self._watching

    @property
    def lead_s(self) -> float:
        """How long before a fault its permission has to be asked for."""
        return CHECKS_S + max(link.speaks_every_s for link in self._target.links.values())

    def make(self, spec: FaultSpec) -> Fault:
        """See HouseRules. Raises HandleError for a kind without a handle here."""
        ordinary = faults.make(spec, self._experiment.node_names())
        return stage(spec, ordinary, {name: self.link(name) for name in spec.targets})

    async def permit(self, spec: FaultSpec, fault: Fault) -> str | None:
        """See HouseRules. A refusal also ends the run."""
        assert isinstance(fault, StagedFault)
        links = [self.link(name) for name in spec.targets]

        def wrong() -> list[str]:
            try:
                return [line for link in links for line in link.wrong()]
            except ToxiproxyError as error:
                return [str(error)]

        refused = await self._warden.permit(spec.duration_s, spec.ttl_s * len(links), wrong)
        if not refused:
            try:
                refused = await fault.prepare()
            except HandleError as error:
                refused = str(error)
            if refused:
                self._warden.trip(TARGET, f"nothing was injected: {refused}")
        return refused or None

    async def start(self) -> None:
        """Starts nothing at the target: looks at it, and raises Stopped when it is not well already. See World."""
        target = self._target
        try:
            await asyncio.to_thread(demand_fingerprint, target)
            key = cluster_key(await asyncio.to_thread(identify, target))
            self._stack.enter_context(locked(key))
            budget = self._budget = DayBudget(key, target.budget, target.hours.day(time.time()))
            budget.spent()
            undo = self._undo = UndoLog.create(self._run_id)
            keeper = self._keeper = await asyncio.to_thread(Keeper.start, undo.path, self._logs)
            self._watching = Warden(target, budget, self.record, self._load.halt, self._load.overdue, keeper)
            await asyncio.to_thread(self._examine)
            wrong = await asyncio.to_thread(ask_probes, target)
            wrong += [line for api in target.api.targets() if (line := await greet(api))]
        except (AskError, BadTarget, KeeperError, OSError, TargetError, ToxiproxyError, UndoError) as error:
            raise InfrastructureError(f"{target.name}: {error}") from error
        self._warden.begin()
        if wrong:
            budget.charge_failed(1)
            self._warden.trip(TARGET, f"the cluster is sick already, nothing was done to it: {wrong[0]}")
        self._warden.check()

    def link(self, node: str) -> StagingLink:
        """See World. Raises HandleError for a link that the target's file does not name."""
        if node not in self._links:
            spec = self._target.links.get(node)
            if spec is None:
                raise HandleError(f"{node}: its link is not in the target's file, so it is not touched")
            monitoring = self._target.nats_monitoring
            self._links[node] = StagingLink(
                node,
                spec,
                Toxiproxy(self._target.toxiproxies[spec.toxiproxy]),
                monitor=None if monitoring is None else NatsMonitor(monitoring),
                undo=self._undo,
                budget=self._budget,
                mark=self._run_id[-4:],
                demand=lambda: demand_fingerprint(self._target),
                allow_public=self._target.allow_public,
            )
        return self._links[node]

    def messages(self, node: str) -> NoReturn:
        """See World: no such handle, as for the others below."""
        raise _no_handle(f"{node}'s single messages")

    def process(self, node: str) -> NoReturn:
        """See World."""
        raise _no_handle(f"the process of {node}")

    def host(self, name: str) -> NoReturn:
        """See World."""
        raise _no_handle(f"the host {name}")

    def engine(self, node: str) -> NoReturn:
        """See World."""
        raise _no_handle(f"the engine of {node}")

    def node_clock(self, node: str) -> NoReturn:
        """See World."""
        raise _no_handle(f"the clock of {node}")

    def broker(self) -> NoReturn:
        """See World."""
        raise _no_handle("the broker's process")

    async def members(self) -> dict[str, dict[str, Member]]:
        """See World: no controller answers us."""
        return {}

    async def stance(self, node: str) -> dict[str, float]:
        """See World."""
        raise _no_handle(f"the state of {node}")

    async def vocabulary(self) -> WordVocabulary:
        """See World."""
        return WordVocabulary()

    async def probe(self, plan: ProbePlan, prompts: Sequence[tuple[tuple[Token, ...], int]]) -> list[Completion]:
        """See World: a target is never loaded to find out what it can do."""
        raise _no_handle("a measurement of its capacity")

    async def begin_load(self, plan: LoadPlan) -> None:
        """See World."""
        self._warden.check()
        self.origin_s = time.monotonic() + _LEAD_S
        self._load.begin(plan, self.origin_s, self._experiment.policy.client.deadline_s)

    async def finish_load(self, limit_s: float) -> bool:
        """See World. The probes have to hold again at the end."""
        end_s = time.monotonic() + limit_s
        while not self._load.idle and time.monotonic() < end_s:
            self._warden.check()
            await asyncio.sleep(0.1)
        try:
            wrong = await asyncio.to_thread(ask_probes, self._target)
        except AskError as error:
            wrong = [str(error)]
        for line in wrong:
            self.record(EventRow(self.clock(), "probe_refuted", detail=line))
        return self._load.idle

    async def look(self) -> Snapshot:
        """See World. Raises Stopped when the target's owner, the hours or the budget end the run."""
        if self._watching is not None:
            self._watching.check()
        return snapshot(self.now(), self._load.standing(), {})

    def record(self, row: Row) -> None:
        """See World."""
        if isinstance(row, FaultRow) and row.injected_s is not None and self._watching is not None:
            self._watching.fault_over(row.injected_s, row.healed_s or time.monotonic())
        self._director.append(row, time.monotonic())
        self._director.flush()

    def environment(self) -> dict[str, object]:
        """See World."""
        target = self._target
        return {
            "target": target.name,
            "owner": target.owner,
            "urls": list(target.api.urls),
            "model": target.api.model,
            "toxiproxy": {name: link.version for name, link in self._links.items()},
            "nats_monitoring": target.nats_monitoring,
            "foreign_toxics": {name: link.foreign for name, link in self._links.items()},
        }

    async def references(self, prompts: dict[str, tuple[tuple[Token, ...], int]]) -> None:
        """See World: nobody knows."""

    async def token_gaps(self, cases: Sequence[tuple[Sequence[Token], Sequence[Token]]]) -> NoReturn:
        """See World."""
        raise _no_handle("its model")

    async def stop(self) -> list[str]:
        """See World. Heals what is open; of what is left of ours, and of what others changed meanwhile, a line each."""
        self._stopping = True
        await self._load.close()
        if self._watching is not None:
            await self._watching.close()
        left = await asyncio.to_thread(self._heal)
        for link in self._links.values():
            try:
                found = await link.differences()
                left += [line for line in found if PREFIX in line or "enabled" in line]
                self._foreign += [f"changed by somebody else meanwhile: {line}" for line in found if line not in left]
            except HandleError as error:
                left.append(f"whether everything is undone is not known: {error}")
        self._director.close()
        self._stack.close()
        return list(dict.fromkeys(left))

    @property
    def notes(self) -> list[str]:
        """What a reader of the results must know."""
        return [*self._load.notes, *self._foreign]

    def _heal(self) -> list[str]:
        left: list[str] = []
        if self._keeper is not None:
            left = [result.text for result in self._keeper.close() if not result.healed]
        if self._undo is not None and not self._undo.close() and not left:
            left.append(f"something is not undone, see {self._undo.path}; python -m chaos.heal")
        return left

    def _examine(self) -> None:
        hit = {name for spec in self._experiment.faults.values() for name in spec.targets}
        for name in sorted(hit):
            self.link(name).examine()

    def _request_ended(self, row: RequestRow) -> None:
        completed, cancelled = row.outcome == "completed", row.outcome == "cancelled"
        self._warden.ended(Ended(row.intended_s, row.ended_s, completed, cancelled))


def _no_handle(what: str) -> HandleError:
    return HandleError(f"a staging target gives no handle on {what}")
