"""kill -9 of a runner at fifty random instants of a run with faults: nothing may stay in place past its TTL.

Links are cut, a worker's process is stopped (SIGSTOP), or a worker's messages are dropped, each in a third of the runs.
The Toxiproxy is not the run's own and stays up, so that what a dead runner leaves behind on links can be seen. The
server that drops messages is the run's: it has to drop none any more, or to be gone.
"""

import random
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import msgspec

from chaos.toxiproxy.adapter import Toxiproxy, ToxiproxyError
from chaos.toxiproxy.messages import MessageToxiproxy
from chaos.undo import ToxicEntry, UndoError, read_log, undo_directory
from chaos.worlds.world import Cut
from tests.processes import Run
from tests.toxiproxy.real_server import real_server

KILLS = 50
STRUCK_MIN = 20
"""So many have to have been killed while a fault was in force: the others show nothing."""
STRUCK_EACH_MIN = 3
EXPECTED = f"all {KILLS} without a fault in time, {STRUCK_MIN} of them killed under one"
AT_ONCE = 3
TTL_S = 3.0
GRACE_S = 5.0
_FAULTED_S = 15.0
_LINE_S_MAX = 180.0
_SETTINGS = (
    "cluster.workers=1",
    "cluster.start_limit_s=150",
    "guard.last_worker=true",
    "workload.generators=1",
    "phases.warm_up.duration_s=1",
    "phases.baseline.duration_s=2",
    "phases.fault.duration_s=17",
    "phases.recovery.duration_s=1",
    "faults.cut.start_s=0.5",
    f"faults.cut.ttl_s={TTL_S:g}",
    "faults.cut.repeat={times: 4, every_s: 4}",
    "workload.rate_min=2/s",
    "workload.rate=2/s",
)


# By what a fault hurts.
_FAULTS: dict[str, tuple[str, ...]] = {
    "link": ("faults.cut.duration_s=2.5",),
    "process": ("faults.cut.duration_s=2.5", "faults.cut.kind=freeze", "faults.cut.mode=null"),
    "messages": (
        f"faults.cut.duration_s={TTL_S:g}",  # its proof takes so long
        *("faults.cut.kind=drop_messages", "faults.cut.mode=null"),
        "faults.cut.options={message: heartbeat, share: 1}",
    ),
}


class Kill(msgspec.Struct, frozen=True):
    """One killed runner. hurt: what its faults hurt. in_force: what they had in force at the kill. gone_s: when nothing
    was in force any more, after the kill, seconds."""

    hurt: str
    at_s: float
    in_force: list[str]
    gone_s: float | None
    problems: list[str]


def kill_fifty(out: Path, seed: int = 1, kills: int = KILLS) -> list[Kill]:
    """Play them, three at a time, each in a folder of its own below `out`."""
    source = random.Random(seed)
    plan = [(number, source.uniform(0, _FAULTED_S)) for number in range(kills)]
    with real_server() as api, ThreadPoolExecutor(AT_ONCE) as pool:
        return list(pool.map(lambda part: _kill(api, out / f"{part[0]}", *_fault(part[0]), part[1]), plan))


def problems(kills: Sequence[Kill]) -> list[str]:
    """Why they do not show that no fault outlives its runner."""
    found = [problem for kill in kills for problem in kill.problems]
    in_time = sum(kill.gone_s is not None for kill in kills)
    if in_time < len(kills):
        found.append(f"only {in_time} of {len(kills)} without a fault in time")
    struck = [kill.hurt for kill in kills if kill.in_force]
    if len(struck) < STRUCK_MIN:
        found.append(f"only {len(struck)} of {len(kills)} were killed under a fault, {STRUCK_MIN} are needed")
    found += [
        f"only {struck.count(hurt)} were killed under a fault of {hurt}, {STRUCK_EACH_MIN} are needed"
        for hurt in _FAULTS
        if struck.count(hurt) < STRUCK_EACH_MIN
    ]
    return found


def told(kills: Sequence[Kill]) -> str:
    """The figures of all of them."""
    struck = [kill.hurt for kill in kills if kill.in_force]
    gone = sorted(kill.gone_s for kill in kills if kill.gone_s is not None)
    most = f"{gone[-1]:.2f} s" if gone else "never"
    each = ", ".join(f"{hurt} {struck.count(hurt)}" for hurt in _FAULTS)
    return (
        f"{len(gone)} of {len(kills)} gone in time, {len(struck)} were killed under a fault ({each}), "
        f"the last gone after {most}"
    )


def _fault(number: int) -> tuple[str, tuple[str, ...]]:
    """What is hurt in a run, and its settings."""
    hurt = list(_FAULTS)[number % len(_FAULTS)]
    cut = list(Cut)[number // len(_FAULTS) % len(Cut)]
    return hurt, (*_FAULTS[hurt], *([f"faults.cut.mode={cut.value}"] if hurt == "link" else ()))


def _kill(api: Toxiproxy, out: Path, hurt: str, faults: Sequence[str], at_s: float) -> Kill:
    out.mkdir(parents=True)
    settings = [*_SETTINGS, f"cluster.toxiproxy_url={api.url}", *faults]
    arguments = ["network_partition", *(word for setting in settings for word in ("--set", setting))]
    found: list[str] = []
    with Run(arguments, out) as run:
        if not run.await_line(r"^phase fault", _LINE_S_MAX):
            return Kill(hurt, at_s, [], None, [f"no fault phase: {run.tail()}"])
        time.sleep(at_s)
        results = run.results
        mine = results.name if results is not None else "?"
        rules = _message_rules(api, mine)
        in_force = _in_force(api, mine, rules, run)
        run.kill()
        killed_s = time.monotonic()
        gone_s: float | None = None
        while time.monotonic() - killed_s < TTL_S + GRACE_S:
            if not _in_force(api, mine, rules, run):
                gone_s = time.monotonic() - killed_s
                break
            time.sleep(0.05)
        # And they stay gone: nobody of the run comes back to inject.
        time.sleep(max(0.0, killed_s + TTL_S + GRACE_S - time.monotonic()))
        if left := _in_force(api, mine, rules, run):
            after = f"{TTL_S + GRACE_S:g} s after the kill at {at_s:.2f} s"
            found.append(f"{hurt}: {', '.join(left)} in force {after}")
            gone_s = None
        alive, _ = run.left()
        found += [f"left running: {line}" for line in alive]
    return Kill(hurt, at_s, in_force, gone_s, found)


def _message_rules(api: Toxiproxy, run_id: str) -> list[ToxicEntry]:
    """The toxics that the run has, by its own log, at a server other than ours: that is the one that knows messages."""
    try:
        entries = read_log(undo_directory() / f"{run_id}.jsonl").entries
    except UndoError:
        return []
    return [entry for entry in entries if isinstance(entry, ToxicEntry) and entry.api_url != api.url]


def _in_force(api: Toxiproxy, run_id: str, rules: Sequence[ToxicEntry], run: Run) -> list[str]:
    """Toxics on the run's proxies, its proxies that are switched off, its processes that stand still, its rules."""
    proxies = [proxy for name, proxy in api.proxies().items() if name.startswith(run_id)]
    found = [f"toxic {toxic.name}" for proxy in proxies for toxic in proxy.toxics]
    found += [f"{proxy.name} switched off" for proxy in proxies if not proxy.enabled]
    found += [f"standing still: {line}" for line in run.family.standing_still()]
    return found + [f"rule {rule.toxic}" for rule in rules if _drops(rule)]


def _drops(rule: ToxicEntry) -> bool:
    try:
        return MessageToxiproxy(rule.api_url).message_counts(rule.proxy, rule.toxic) is not None
    except ToxiproxyError:
        # Its server is gone, and with it the link.
        return False
