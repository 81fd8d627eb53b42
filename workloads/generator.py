"""The Ray actor that offers a load: a client node, and the source that tells it what to ask."""

from collections.abc import Sequence

from analysis.schema import PROBE_PREFIX
from cluster.live.actors import NodeActor
from cluster.live.host import NodeSpec
from cluster.protocol import Token
from workloads.capacity import Completion
from workloads.load import ClosedLoop, PlannedLoad
from workloads.plan import LoadPlan, closed_ids
from workloads.watch import LoadWatch, ProbeWatch, Standing


class GeneratorActor(NodeActor):
    """Hosts a client and the load that it offers. Times are on this host's monotonic clock, seconds."""

    def __init__(self, spec: NodeSpec) -> None:
        super().__init__(spec)
        self._watch = LoadWatch()
        self._plan = LoadPlan(())
        self._completions: list[Completion] = []

    async def take_plan(self, plan: LoadPlan) -> None:
        """Keep a plan, whose way here takes its time, until `begin`."""
        self._plan = plan

    async def begin(self, start_s: float, window_s: float) -> None:
        """Carry out the plan; its zero is `start_s`. window_s: how far back `standing` looks."""
        spec, plan = self.host.spec, self._plan
        watch = self._watch = LoadWatch(closed_ids(plan), self.host.record, spec.name, window_s)
        timeout_s = spec.policy.client.deadline_s
        self.host.drive(PlannedLoad(plan, start_s, spec.models[0].model, timeout_s, watch.ran_dry), watch)

    async def closed_loop(
        self, prompts: Sequence[tuple[tuple[Token, ...], int]], in_flight: int, start_s: float, stop_s: float
    ) -> None:
        """Keep requests in flight until `stop_s`."""
        spec = self.host.spec
        prefix = f"{PROBE_PREFIX}{spec.name}-"
        timeout_s = spec.policy.client.deadline_s
        load = ClosedLoop(prompts, in_flight, start_s, stop_s, spec.models[0].model, timeout_s, prefix)
        self._completions = []
        self.host.drive(load, ProbeWatch(self._completions, start_s))

    async def completions(self) -> list[Completion]:
        """What the closed loop has completed."""
        return self._completions

    async def standing(self, now: float) -> tuple[Standing, bool]:
        """The load's standing, and whether the client is idle."""
        idle = self.host.idle()
        return self._watch.standing(now, idle), idle
