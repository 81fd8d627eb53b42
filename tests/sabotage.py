"""`python -m tests.sabotage ...` is `chaos.run` whose faults are never injected: the verdict must not be fooled.

Everything else is real: the undo log is written, the phases pass, the proof is looked for.
"""

import sys
from collections.abc import Sequence

from chaos.run import main, prepare_ray
from chaos.toxiproxy.adapter import Toxic
from chaos.toxiproxy.messages import MessageToxic
from chaos.worlds.proxied import ProxiedLink
from chaos.worlds.proxied_messages import ProxiedMessages


def _apply(link: ProxiedLink, toxic: Toxic) -> None:
    """In place of ProxiedLink.apply."""


def _apply_to_messages(messages: ProxiedMessages, toxic: MessageToxic) -> None:
    """In place of ProxiedMessages.apply."""


def _switch(link: ProxiedLink, enabled: bool) -> None:
    """In place of ProxiedLink.switch."""


async def _untouched(handle: object, *arguments: object) -> bool:
    """In place of what a handle of a process does; a drain that does nothing says that all is well."""
    return True


def sabotaged(arguments: Sequence[str]) -> int:
    """Run with every way of hurting a link or a process taken away; returns the exit code."""
    prepare_ray("" if "--address" in arguments else None)
    # They import Ray.
    from chaos.worlds.brokers import BrokerProcess
    from chaos.worlds.clocks import LiveClock
    from chaos.worlds.engines import LiveEngine
    from chaos.worlds.hosts import RayHost
    from chaos.worlds.joined_host import JoinedHost
    from chaos.worlds.processes import ActorProcess

    for handle, names in (
        (LiveEngine, ("impair", "limit_memory")),
        (LiveClock, ("set_ahead",)),
        (ActorProcess, ("kill", "freeze", "thaw", "drain", "stop", "restart")),
        (RayHost, ("kill", "restart")),
        (JoinedHost, ("kill", "restart")),
        (BrokerProcess, ("kill", "freeze", "thaw", "lame_duck", "restart")),
    ):
        for name in names:
            setattr(handle, name, _untouched)
    ProxiedLink.apply = _apply  # type: ignore[method-assign, assignment]
    ProxiedLink.switch = _switch  # type: ignore[method-assign, assignment]
    ProxiedMessages.apply = _apply_to_messages  # type: ignore[method-assign, assignment]
    return main(arguments)


if __name__ == "__main__":
    sys.exit(sabotaged(sys.argv[1:]))
