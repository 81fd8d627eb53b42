"""What `chaos.run --world staging` does before a run: read the target's file, look at the target, tell, and refuse."""

import sys
from pathlib import Path

from chaos.experiment import Experiment
from chaos.staging.ask import AskError
from chaos.staging.preflight import preflight
from chaos.target import Target, TargetError, load_target
from workloads.http import BadTarget

EXIT_USAGE, EXIT_INFRASTRUCTURE = 2, 5


def chosen_target(world: str, file: str | None, address: str | None) -> Target | None:
    """The target of a command line, None for other worlds than staging. Raises TargetError."""
    if (file is not None) != (world == "staging"):
        raise TargetError("--target: expected a target's file with --world staging, and with no other world")
    if file is None:
        return None
    if address is not None:
        raise TargetError("--address: a staging target has no Ray cluster of ours")
    target = load_target(Path(file))
    try:
        for api in target.api.targets():
            api.headers()
    except BadTarget as error:
        raise TargetError(f"{file}: api.key_env: {error}") from None
    return target


def announce(experiment: Experiment, target: Target, seed: int) -> int:
    """Print what would be done to what; 0 when it may be done, else an exit code, with a line for each reason."""
    try:
        found = preflight(experiment, target, seed)
    except AskError as error:
        print(f"chaos.run: {target.name}: {error}", file=sys.stderr)
        return EXIT_INFRASTRUCTURE
    for line in found.lines:
        print(line, flush=True)
    for line in found.refusals:
        print(f"chaos.run: {target.name}: {line}", file=sys.stderr)
    return EXIT_USAGE if found.refusals else 0
