"""Which parts of a cluster a fault kind can be aimed at."""

from collections.abc import Collection, Sequence

from chaos.experiment import FaultSpec

LINKED = ("worker", "controller", "client")
"""Roles of nodes that have a link to the broker."""

HOSTED = ("worker", "controller")
"""Roles of nodes whose process may be hurt; the load is not to be hurt, it judges."""


def role_of(target: str) -> str:
    """`worker`, `controller` or `client` of a node's name, `host`, or `broker`."""
    return target.split("-")[0]


def is_worker(target: str) -> bool:
    """Whether the name is that of a worker."""
    return role_of(target) == "worker"


def demand_roles(spec: FaultSpec, roles: Collection[str]) -> None:
    """Raises ValueError (field, then what was expected) unless every target plays one of `roles`."""
    for target in spec.targets:
        if role_of(target) not in roles:
            raise ValueError(f"targets: {spec.kind} is for {' and '.join(roles)}, got {target}")


def demand_options(spec: FaultSpec, known: Collection[str], *, modes: Sequence[str] = ()) -> None:
    """Raises ValueError unless the options are all known, and the mode is one of `modes`, or none without any."""
    for option in spec.options:
        if option not in known:
            there = f"there is {', '.join(known)}" if known else "it has none"
            raise ValueError(f"options: {spec.kind} has no {option}; {there}")
    if not modes and spec.mode is not None:
        raise ValueError(f"mode: {spec.kind} has no modes, got {spec.mode!r}")
    if modes and spec.mode not in modes:
        raise ValueError(f"mode: expected one of {', '.join(modes)}, got {spec.mode!r}")
