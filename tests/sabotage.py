"""`python -m tests.sabotage ...` is `chaos.run` whose faults are never injected: the verdict must not be fooled.

Everything else is real: the undo log is written, the phases pass, the proof is looked for.
"""

import sys
from collections.abc import Sequence

from chaos.run import main
from chaos.toxiproxy.adapter import Toxic
from chaos.worlds.proxied import ProxiedLink


def _apply(link: ProxiedLink, toxic: Toxic) -> None:
    """In place of ProxiedLink.apply."""


def _switch(link: ProxiedLink, enabled: bool) -> None:
    """In place of ProxiedLink.switch."""


def sabotaged(arguments: Sequence[str]) -> int:
    """Run with both ways of cutting a link taken away; returns the exit code."""
    ProxiedLink.apply = _apply  # type: ignore[method-assign, assignment]
    ProxiedLink.switch = _switch  # type: ignore[method-assign, assignment]
    return main(arguments)


if __name__ == "__main__":
    sys.exit(sabotaged(sys.argv[1:]))
