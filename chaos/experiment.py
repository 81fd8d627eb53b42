"""The experiment file: what it may say, and how a wrong one is refused.

Everything is validated before anything starts, and an error names the file, the field and what was expected.
"""

from collections.abc import Sequence
from importlib import resources
from pathlib import Path
from typing import Annotated, Any, Literal, cast

import msgspec

from analysis.criterion import Criterion
from cluster.engine.timed import StepCosts
from cluster.numbers import demand_finite
from cluster.policy import Policy, Seconds
from cluster.simulation.condition import NetworkCosts
from workloads.arms import ArmSpec, ComparisonSpec, arm_of_generator
from workloads.plan import PhaseLoad
from workloads.spec import Positive, WorkloadSpec

BROKER = "broker"
"""The broker as a fault's target."""

HOSTS_MAX = 8
"""A Ray node costs a quarter of a gigabyte."""


class ExperimentError(Exception):
    """The experiment file or a setting is wrong. The message is one line: which file, which field, what."""


class _Section(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    pass


class ClusterSpec(_Section, frozen=True):
    """Which cluster to bring up. Ports: 0 means any free one. toxiproxy_url: one that runs already.

    hosts: over how many hosts the nodes are spread, see Experiment.host_of. Live each is a Ray node of its own: of the
    cluster that --address joins, or else started on this machine. placement: of workers on hosts, `spread` in turn or
    `pack` so that those with neighbouring numbers are together.
    engine: of live workers: `mlx` computes, `timed` computes nothing and takes the time that `costs` say, as every
    simulated worker does. A run with it says of itself that it measured no model.
    costs, bus: of the simulated world; in place of costs a file may name a calibration, which says both.
    """

    workers: Positive = 3
    controllers: Positive = 1
    hosts: Annotated[int, msgspec.Meta(ge=1, le=HOSTS_MAX)] = 1
    placement: Literal["spread", "pack"] = "spread"
    model: str = "tiny"
    engine: Literal["mlx", "timed"] = "mlx"
    costs: StepCosts = StepCosts()
    bus: NetworkCosts = NetworkCosts()
    start_limit_s: Seconds = 60.0
    broker_port: Annotated[int, msgspec.Meta(ge=0, le=65_535)] = 0
    toxiproxy_port: Annotated[int, msgspec.Meta(ge=0, le=65_535)] = 0
    toxiproxy_url: str | None = None


class PhaseSpec(_Section, frozen=True):
    """A stretch of the run under load.

    load: what it does instead of the workload's load; `none` offers nothing.
    """

    duration_s: Seconds
    load: PhaseLoad | Literal["none"] | None = None


class Repeat(_Section, frozen=True):
    """Several strikes: every `every_s` seconds, or at seeded random times within `within_s` seconds."""

    times: Annotated[int, msgspec.Meta(ge=1, le=100)]
    every_s: Seconds | None = None
    within_s: Seconds | None = None


class Trigger(_Section, frozen=True):
    """A fault strikes when `state` (see chaos.timing.STATES) of `node` is at least `at_least`.

    node: the fault's first target unless named. within_s: how long that is waited for; without it the fault is void.
    """

    state: str
    within_s: Seconds
    at_least: Annotated[float, msgspec.Meta(gt=0)] = 1.0
    node: str | None = None


class GuardSpec(_Section, frozen=True):
    """How far a run may hurt the cluster, and when it must stop.

    targets_max: how many nodes may be under a fault at once. last_worker: whether no healthy worker need be left;
    healthy is whom a controller has called ready within the last `liveness_age_s_max` seconds and no fault has struck
    since. From before the cluster starts until all is over the run stops as soon as `stop_file` exists, and with
    `stop_when_unrecovered` when a heal is not proven; both are looked at four times a second. From the first request to
    the end it stops, looked at twice a second, on two conditions over the last `window_s` seconds of the load:

    error_share_max: more than this share of the requests that ended did not complete. A refused request counts as one
    that did not, and so does one in flight beyond its deadline; a cancelled one does not count at all.
    latency_p99_s_max: above it is the 99th percentile, over the requests that completed or failed and those in flight,
    of the seconds from the time a request was to be sent until its end, or until now where it has none: so a cluster
    that hangs is noticed before any request has ended. No client waits longer than `policy.client.deadline_s`, so a
    limit above that is never met.

    Either says nothing of fewer than `requests_min` requests. The window stands still while nothing is asked, and holds
    the last 20,000 ended requests of each client at most.
    """

    targets_max: Positive | None = None
    last_worker: bool = False
    error_share_max: Annotated[float, msgspec.Meta(ge=0, le=1)] | None = None
    latency_p99_s_max: Seconds | None = None
    window_s: Seconds = 5.0
    requests_min: Positive = 20
    stop_when_unrecovered: bool = False
    stop_file: str | None = None
    liveness_age_s_max: Seconds = 30.0


class FaultSpec(_Section, frozen=True):
    """A fault of a kind, at `start_s` into a phase for `duration_s`; `ttl_s` bounds its life if we die.

    enabled: false leaves it out, as if the file did not have it: the same experiment without the fault.
    repeat: it strikes more than once. when: each strike waits for a state from its time on.
    The other fields belong to the kind, which validates them: `options` holds what is not listed here.
    """

    kind: str
    phase: str
    targets: tuple[str, ...]
    duration_s: Seconds
    ttl_s: Seconds
    enabled: bool = True
    start_s: Annotated[float, msgspec.Meta(ge=0)] = 0.0
    repeat: Repeat | None = None
    when: Trigger | None = None
    mode: str | None = None
    options: dict[str, float | int | str | bool] = {}


class Experiment(_Section, frozen=True):
    """A whole experiment, resolved: every default filled in, and every number finite.

    robustness: numbers of chaos.robustness.CLASSES, the failures that it would show. Raises ValueError naming the field
    (msgspec.ValidationError when decoded).
    """

    name: Annotated[str, msgspec.Meta(pattern=r"^[a-z0-9_]{1,64}$")]
    title: str
    question: str
    cluster: ClusterSpec
    workload: WorkloadSpec
    phases: dict[str, PhaseSpec]
    steady_state: dict[str, Criterion]
    expectations: dict[str, Criterion]
    recovery_limit_s: Seconds
    faults: dict[str, FaultSpec] = {}
    guard: GuardSpec = GuardSpec()
    arms: dict[str, ArmSpec] = {}
    comparison: ComparisonSpec | None = None
    robustness: tuple[int, ...] = ()
    policy: Policy = Policy()
    baseline_phase: str = "baseline"
    recovery_phase: str = "recovery"

    def __post_init__(self) -> None:
        demand_finite(self)

    def latency_limits_s(self) -> dict[str, float]:
        """By phase, the lowest limit that an expectation sets the latency of its requests, seconds."""
        limits_s: dict[str, float] = {}
        for criterion in self.expectations.values():
            end_to_end = criterion.metric.startswith("latency_p") and criterion.metric.endswith("_s")
            if end_to_end and criterion.versus is None and criterion.phase and criterion.at_most is not None:
                known_s = limits_s.get(criterion.phase, criterion.at_most)
                limits_s[criterion.phase] = min(known_s, criterion.at_most)
        return limits_s

    def controller_names(self) -> list[str]:
        """The controllers: `controller` where there is only one."""
        count = self.cluster.controllers
        return ["controller"] if count == 1 else [f"controller-{number}" for number in range(count)]

    def worker_names(self) -> list[str]:
        """The workers."""
        return [f"worker-{number}" for number in range(self.cluster.workers)]

    def node_names(self) -> list[str]:
        """Every node of the cluster and its clients, as faults may name them."""
        clients = [f"client-{number}" for number in range(self.workload.generators)]
        return [*self.controller_names(), *self.worker_names(), *clients]

    def host_names(self) -> list[str]:
        """The hosts; the first one is the runner's own."""
        return [f"host-{number}" for number in range(self.cluster.hosts)]

    def host_of(self, node: str) -> str:
        """Where a node is; controllers and clients, which judge, are on host-0.

        Spread, worker-i is on host-(i mod cluster.hosts). Packed, each host has the next part of them, as equal in size
        as can be.
        """
        role, _, number = node.partition("-")
        if role != "worker":
            return "host-0"
        cluster = self.cluster
        if cluster.placement == "pack":
            return f"host-{int(number) * cluster.hosts // cluster.workers}"
        return f"host-{int(number) % cluster.hosts}"

    def nodes_on(self, host: str) -> tuple[str, ...]:
        """The nodes of a host."""
        return tuple(node for node in self.node_names() if self.host_of(node) == host)

    def hurt_with(self, targets: Sequence[str]) -> tuple[str, ...]:
        """The targets of a fault, with the nodes of a host in place of it."""
        hosts = self.host_names()
        nodes = [self.nodes_on(target) if target in hosts else (target,) for target in targets]
        return tuple(dict.fromkeys(node for part in nodes for node in part))

    def policy_of(self, node: str) -> Policy:
        """The policy that a node lives by: what an arm has for its own may have one that differs.

        That is its controller with the clients that speak to it alone, else its worker.
        """
        role, _, number = node.partition("-")
        if role == "client" and (name := arm_of_generator(self.arms, int(number))):
            arm = self.arms[name]
            return overlaid(self.policy, merged(arm.policy, {"client": {"controller": arm.controller}}))
        over = [arm.policy for arm in self.arms.values() if (arm.controller or arm.worker) == node and arm.policy]
        return overlaid(self.policy, over[0]) if over else self.policy

    def prewarmed_names(self) -> list[str]:
        """Workers that load their model before anybody asks for it."""
        return [name for name in self.worker_names() if self.policy_of(name).worker.prewarm]

    def target_names(self) -> list[str]:
        """Whatever a fault may name: every node, the broker, and every host but the runner's own."""
        return [*self.node_names(), BROKER, *self.host_names()[1:]]


def overlaid(policy: Policy, over: dict[str, Any]) -> Policy:
    """A policy with some fields changed. Raises msgspec.ValidationError."""
    return msgspec.convert(merged(msgspec.to_builtins(policy), over), Policy)


def merged(base: dict[str, Any], over: dict[str, Any]) -> dict[str, Any]:
    """Nested mappings, the second laid over the first."""
    result = dict(base)
    for key, value in over.items():
        present = result.get(key)
        both = isinstance(present, dict) and isinstance(value, dict)
        result[key] = merged(cast(dict[str, Any], present), value) if both else value
    return result


def catalogue() -> dict[str, Path]:
    """Name to file of every shipped experiment."""
    folder = resources.files("chaos") / "experiments"
    return {path.stem: path for path in sorted(Path(str(folder)).glob("*.yaml"))}


def find(name: str) -> Path:
    """The file of a catalogue name, or of a path ending in .yaml. Raises ExperimentError."""
    if name.endswith((".yaml", ".yml")):
        path = Path(name)
        if not path.is_file():
            raise ExperimentError(f"{name}: no such file")
        return path
    known = catalogue()
    if name not in known:
        names = ", ".join(known)
        raise ExperimentError(f"{name}: no such experiment; the catalogue has {names} (or give a .yaml file)")
    return known[name]
