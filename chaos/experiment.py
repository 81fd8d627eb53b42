"""The experiment file: what it may say, and how a wrong one is refused.

Everything is validated before anything starts, and an error names the file, the field and what was expected.
"""

import re
from importlib import resources
from pathlib import Path
from typing import Annotated

import msgspec

from analysis.criterion import Criterion
from cluster.policy import Policy, Seconds

Positive = Annotated[int, msgspec.Meta(ge=1, le=10_000)]
_RATE = re.compile(r"^(?P<value>\d+(\.\d+)?)\s*(?P<unit>/s|%)$")


class ExperimentError(Exception):
    """The user's experiment file or setting is wrong. The message is one line: which file, which field, what."""


class Rate(msgspec.Struct, frozen=True):
    """Requests per second, absolute or as a share of measured capacity; exactly one is set."""

    per_s: float | None = None
    share: float | None = None

    @classmethod
    def parse(cls, text: str) -> "Rate":
        """From `12/s` or `60%`. Raises ValueError."""
        match = _RATE.match(text.strip())
        if match is None or float(match["value"]) <= 0:
            raise ValueError(f"expected a positive rate such as 12/s or 60%, got {text!r}")
        value = float(match["value"])
        return cls(per_s=value) if match["unit"] == "/s" else cls(share=value / 100)


class _Section(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    pass


class ClusterSpec(_Section, frozen=True):
    """Which cluster to bring up. Ports: 0 means any free one. toxiproxy_url: one that runs already."""

    workers: Positive = 3
    model: str = "tiny"
    start_limit_s: Seconds = 60.0
    broker_port: Annotated[int, msgspec.Meta(ge=0, le=65_535)] = 0
    toxiproxy_port: Annotated[int, msgspec.Meta(ge=0, le=65_535)] = 0
    toxiproxy_url: str | None = None


class WorkloadSpec(_Section, frozen=True):
    """Open-loop chat traffic. Token ranges are inclusive [least, most]."""

    arrivals: str = "poisson"
    rate: str = "35%"
    rate_min: str | None = None
    rate_max: str | None = None
    sessions: Positive = 24
    turns_max: Positive = 6
    prompt_tokens: tuple[Positive, Positive] = (24, 64)
    output_tokens: tuple[Positive, Positive] = (12, 24)
    generators: Annotated[int, msgspec.Meta(ge=1, le=64)] = 2


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
        raise ExperimentError(f"{name}: no such experiment; the catalogue has {', '.join(known)} (or give a .yaml file)")
    return known[name]
