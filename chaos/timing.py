"""When a fault strikes: at fixed times, at seeded random times, or when a node has come to a state."""

from random import Random

from chaos.experiment import FaultSpec, Trigger
from chaos.faults.roles import role_of
from chaos.worlds.world import HandleError, World

_POLL_S = 0.02

STATES: dict[str, tuple[tuple[str, ...], str]] = {
    "stream_token": (("worker",), "tokens that the furthest of its open streams has made"),
    "prefill": (("worker",), "streams that it has begun and that have no token yet"),
    "loading": (("worker",), "models that it is loading"),
    "queue": (("worker", "controller"), "requests that wait there"),
    "half_open": (("controller",), "circuit breakers that are half open"),
    "handover": (("controller",), "sessions that it has moved to another worker, since the wait began"),
}
"""What a fault can wait for: which roles have it, and what is counted."""

_COUNTERS = ("handover",)
"""States that only ever grow: what counts is the growth."""


class NeverReached(Exception):
    """The state that a fault waits for did not come. One line."""


def check_trigger(trigger: Trigger, targets: tuple[str, ...], known: list[str]) -> None:
    """Raises ValueError (field, then what was expected)."""
    if trigger.state not in STATES:
        raise ValueError(f"when.state: expected one of {', '.join(STATES)}, got {trigger.state!r}")
    node = watched(trigger, targets)
    if node not in known:
        raise ValueError(f"when.node: no node named {node!r}")
    roles, _ = STATES[trigger.state]
    if role_of(node) not in roles:
        raise ValueError(f"when.node: {trigger.state} is a state of a {' or '.join(roles)}, got {node}")


def watched(trigger: Trigger, targets: tuple[str, ...]) -> str:
    """The node whose state is waited for: the first target, unless another is named."""
    return trigger.node or targets[0]


def strikes(spec: FaultSpec, random: Random) -> list[float]:
    """When each strike of a fault is due (with `when`: from when on its state is waited for), seconds into its phase.

    Random strikes are uniform over all that fit into `within_s` without overlapping each other.
    """
    repeat = spec.repeat
    if repeat is None:
        return [spec.start_s]
    if repeat.every_s is not None:
        return [spec.start_s + number * repeat.every_s for number in range(repeat.times)]
    assert repeat.within_s is not None
    slack_s = repeat.within_s - repeat.times * spec.duration_s
    gaps = sorted(random.random() * slack_s for _ in range(repeat.times))
    return [spec.start_s + gap_s + number * spec.duration_s for number, gap_s in enumerate(gaps)]


def latest_end_s(spec: FaultSpec) -> float:
    """The latest that the last strike may end, seconds into the phase."""
    wait_s = spec.when.within_s if spec.when is not None else 0.0
    repeat = spec.repeat
    if repeat is None:
        return spec.start_s + wait_s + spec.duration_s
    if repeat.every_s is not None:
        return spec.start_s + (repeat.times - 1) * repeat.every_s + wait_s + spec.duration_s
    assert repeat.within_s is not None
    return spec.start_s + repeat.within_s + wait_s


async def wait_for(world: World, trigger: Trigger, targets: tuple[str, ...]) -> str:
    """Wait until the state is reached, and say what was seen. Raises NeverReached.

    Live, the node is asked every 20 ms, so what was seen is that old when the fault strikes.
    """
    node, end_s = watched(trigger, targets), world.now() + trigger.within_s
    base = (await _value(world, node, trigger.state)) or 0.0 if trigger.state in _COUNTERS else 0.0
    while True:
        value = await _value(world, node, trigger.state)
        if value is not None and value - base >= trigger.at_least:
            return f"{trigger.state} at {node}: {value - base:g}"
        if world.now() >= end_s:
            seen = "nothing, it does not answer" if value is None else f"{value - base:g}"
            wanted = f"{trigger.state} of {node} at least {trigger.at_least:g}"
            raise NeverReached(f"{wanted} was not reached within {trigger.within_s:g} s; the last was {seen}")
        await world.sleep(_POLL_S)


async def moment(world: World, targets: tuple[str, ...], controllers: list[str], seen: str = "") -> tuple[str, ...]:
    """Which states the targets and the controllers are in now, as `name at node: value`.

    seen: what the fault has waited for. Nodes that do not answer are left out.
    """
    states = [seen] if seen else []
    for node in dict.fromkeys((*targets, *controllers)):
        if role_of(node) not in ("worker", "controller"):
            continue
        try:
            stance = await world.stance(node)
        except HandleError:
            continue
        states += [f"{name} at {node}: {value:g}" for name, value in stance.items() if value and name not in _COUNTERS]
    return tuple(dict.fromkeys(states))


async def _value(world: World, node: str, state: str) -> float | None:
    try:
        return (await world.stance(node)).get(state)
    except HandleError:
        return None
