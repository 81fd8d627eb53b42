"""What tests.verify expects of a serving cluster: its processes hurt one after the other, 2,000 requests served."""

from pathlib import Path

import msgspec
import pyarrow.compute as pc
import pyarrow.parquet as pq

from analysis.verdict import Outcome as VerdictOutcome
from analysis.verdict import Verdict

CENSUS = "census.json"
MODULE = "tests.serving_soak"
PROCESSES = Path(__file__).parent / "live" / "processes.yaml"
BROKERS = Path(__file__).parent / "live" / "brokers.yaml"
LINKS = Path(__file__).parent / "live" / "links.yaml"
MESSAGES = Path(__file__).parent / "live" / "messages.yaml"
SOAK = Path(__file__).parent / "live" / "soak.yaml"
RUN_S_MAX = 600.0
REQUESTS_MIN = 2_000
FAULTS = {PROCESSES: 7, BROKERS: 4, LINKS: 5, MESSAGES: 5}
SUBSCRIPTIONS = {"client": 1, "controller": 3, "worker": 1}
# Nothing that is kept per request fits in here: each node sees hundreds of them.
GROWTH_MAX = 64
# Kept per session or per prompt on purpose, within a bound of its own (invariant 8).
BOUNDED = ("session", "cache", "tree")
KEPT, KNOWN = "._kept", "node._cache._entries"
"""The caches that the engine keeps, and those that its worker knows of and bounds."""


class Census(msgspec.Struct):
    """By node and collection: how much it held before any load and after all of it. problem: why it is not known."""

    before: dict[str, dict[str, int]] = {}
    after: dict[str, dict[str, int]] = {}
    problem: str = ""


def hurt_processes(verdict: Verdict, experiment: Path = PROCESSES) -> list[str]:
    """Why a run of one of these experiments did not show what it should: no request hung, no stream broken, whole
    each time."""
    problems = [] if verdict.verdict is VerdictOutcome.PASS else list(verdict.reasons[:3])
    count = FAULTS[experiment]
    if len(verdict.faults) != count or not all(fault.verified and fault.healed_s for fault in verdict.faults):
        problems.append(f"{sum(fault.verified for fault in verdict.faults)} of {count} faults verified and healed")
    judged = {each.number: each for each in verdict.invariants}
    for number in (1, 2, 7, 8):
        if judged[number].verdict is not VerdictOutcome.PASS:
            problems.append(f"invariant {number}: {judged[number].explanation}")
    return problems


def left_behind(results: Path) -> tuple[list[str], str]:
    """What 2,000 requests have left in a cluster that they should not, and the figures of the soak."""
    census = msgspec.json.decode((results / CENSUS).read_bytes(), type=Census)
    problems = [census.problem] if census.problem else []
    if not census.after:
        return [*problems, "nothing was counted after the load"], ""
    compared = 0
    for node, after in census.after.items():
        before, role = census.before[node], node.split("-")[0]
        if after["link.subscriptions"] != SUBSCRIPTIONS[role]:
            problems.append(f"{node} has {after['link.subscriptions']} subscriptions")
        kept = sum(after.pop(name) for name in list(after) if name.endswith(KEPT))
        known = after.get(KNOWN, 0)
        if kept != known:
            problems.append(f"{node}: the engine keeps {kept} caches, its worker knows of {known}")
        for name, held in after.items():
            compared += 1
            exact = name.startswith("gauge.")
            if not exact and any(word in name for word in BOUNDED):
                continue
            if held > before.get(name, 0) + (0 if exact else GROWTH_MAX):
                problems.append(f"{node}: {name} holds {held}, at the beginning {before.get(name, 0)}")
    requests = pq.read_table(results / "requests.parquet", columns=["outcome"])
    completed = pc.sum(pc.equal(requests["outcome"], "completed")).as_py() or 0
    if completed < REQUESTS_MIN:
        problems.append(f"{completed} requests completed, {REQUESTS_MIN} are needed")
    figures = f"{completed} requests completed, {compared} collections of {len(census.after)} nodes at their base"
    return problems, figures
