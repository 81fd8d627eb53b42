"""Whether the hosts that a run has chosen are fit for it, by the same checks as `python -m cluster.doctor`."""

import asyncio
from collections.abc import Sequence

from ray.exceptions import RayError

from chaos.worlds.host_agent import weigh_model
from chaos.worlds.joined_host import JoinedHost
from chaos.worlds.processes import cause
from chaos.worlds.world import InfrastructureError
from cluster.doctor import probe
from cluster.doctor.findings import Facts, examine, facts_of, problems
from cluster.live.actors import RayHost, run_on

_LOOK_S = 60.0
"""Ray starts a process for the first task of a host, which takes seconds where it is busy."""


async def inspect_hosts(own: RayHost, others: Sequence[JoinedHost], model: str) -> None:
    """Raises InfrastructureError with the first of what is wrong with a host, and how it is mended."""
    weights_bytes = await asyncio.to_thread(weigh_model, model)
    here = facts_of(await asyncio.to_thread(probe.look, model, (), own.address))
    looks = await asyncio.gather(*(_look(host, model) for host in others))
    for host, there in zip(others, looks, strict=True):
        host.about = {"system": there.system, "machine": there.machine, "interface": there.interface}
    found = [
        line
        for host, there in zip(others, looks, strict=True)
        for line in problems(
            examine(host.name, here, there, model=model, weights_bytes=weights_bytes, nodes=len(host.nodes))
        )
    ]
    if found:
        more = f" (and {len(found) - 3} more; see `python -m cluster.doctor`)" if len(found) > 3 else ""
        raise InfrastructureError("; ".join(found[:3]) + more)


async def _look(host: JoinedHost, model: str) -> Facts:
    asked = run_on(host.ray_host.ray_node, probe.look, model, (), host.address, by_value=probe)
    try:
        return facts_of(await asyncio.wait_for(asked, _LOOK_S))
    except (RayError, TimeoutError) as error:
        said = cause(error) if isinstance(error, RayError) else f"no answer within {_LOOK_S:g} s"
        raise InfrastructureError(f"{host.name} ({host.address}): it cannot be looked at: {said}") from error
