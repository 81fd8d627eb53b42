"""The experiment file: what it may say, and how a wrong one is refused.

Everything is validated before anything starts, and an error names the file, the field and what was expected.
"""

from importlib import resources
from pathlib import Path
from typing import Annotated

import msgspec

from analysis.criterion import Criterion
from cluster.policy import Policy, Seconds
from workloads.spec import Positive, WorkloadSpec

BROKER = "broker"
"""The broker as a fault's target."""


class ExperimentError(Exception):
    """The experiment file or a setting is wrong. The message is one line: which file, which field, what."""


class _Section(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    pass


class ClusterSpec(_Section, frozen=True):
    """Which cluster to bring up. Ports: 0 means any free one. toxiproxy_url: one that runs already."""

    workers: Positive = 3
    controllers: Positive = 1
    model: str = "tiny"
    start_limit_s: Seconds = 60.0
    broker_port: Annotated[int, msgspec.Meta(ge=0, le=65_535)] = 0
    toxiproxy_port: Annotated[int, msgspec.Meta(ge=0, le=65_535)] = 0
    toxiproxy_url: str | None = None


class PhaseSpec(_Section, frozen=True):
    """A stretch of the run under load."""

    duration_s: Seconds


class FaultSpec(_Section, frozen=True):
    """A fault of a kind, at `start_s` into a phase for `duration_s`; `ttl_s` bounds its life if we die.

    The other fields belong to the kind, which validates them: `options` holds what is not listed here.
    """

    kind: str
    phase: str
    targets: tuple[str, ...]
    duration_s: Seconds
    ttl_s: Seconds
    start_s: Annotated[float, msgspec.Meta(ge=0)] = 0.0
    mode: str | None = None
    options: dict[str, float | int | str | bool] = {}


class Experiment(_Section, frozen=True):
    """A whole experiment, resolved: every default filled in."""

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
    policy: Policy = Policy()
    baseline_phase: str = "baseline"
    recovery_phase: str = "recovery"

    def controller_names(self) -> list[str]:
        """The controllers: `controller` where there is only one."""
        count = self.cluster.controllers
        return ["controller"] if count == 1 else [f"controller-{number}" for number in range(count)]

    def node_names(self) -> list[str]:
        """Every node of the cluster and its clients, as faults may name them."""
        workers = [f"worker-{number}" for number in range(self.cluster.workers)]
        clients = [f"client-{number}" for number in range(self.workload.generators)]
        return [*self.controller_names(), *workers, *clients]

    def target_names(self) -> list[str]:
        """Whatever a fault may name: every node, and the broker."""
        return [*self.node_names(), BROKER]


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
