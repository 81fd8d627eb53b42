"""A live run whose nodes are played again from the record of what they decided: they have to decide the same."""

import subprocess
import sys
from pathlib import Path

from cluster.record import Record, RecordError, records
from cluster.replay import Replay, replay
from tests.processes import ROOT

EVENTS_MIN = {"controller": 500, "worker": 300, "client": 300}
"""By role, all nodes of it together: fewer would show little."""


def replayed(results: Path) -> tuple[list[str], str]:
    """What is wrong, and the figures."""
    try:
        found = [replay(Record(path)) for path in records(results / "raw")]
    except RecordError as error:
        return [str(error)], ""
    problems = [f"{one.node}: {_why(one)}" for one in found if one.difference is not None or one.end]
    parts = []
    for role, least in EVENTS_MIN.items():
        nodes = [one for one in found if one.role == role]
        events, commands = sum(one.events for one in nodes), sum(one.commands for one in nodes)
        parts.append(f"{role} {events} events and {commands} commands")
        if events < least:
            problems.append(f"{role}: {events} events in {len(nodes)} records, {least} are needed")
    command = [sys.executable, "-m", "chaos.replay", str(results)]
    said = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    if said.returncode != 0:
        problems.append(f"chaos.replay: exit code {said.returncode}: {(said.stdout + said.stderr)[-500:]}")
    kib = sum(path.stat().st_size for path in records(results / "raw")) / 1024
    return problems, f"{len(found)} nodes decide the same again ({'; '.join(parts)}; {kib:.0f} KiB recorded)"


def _why(one: Replay) -> str:
    if one.difference is None:
        return f"its record is not whole: {one.end}"
    return f"another decision at event {one.difference.number}, {type(one.difference.event).__name__}"
