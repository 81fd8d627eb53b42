"""kill -9 of a runner at fifty random instants of a run with faults: nothing may stay in place past its TTL.

The Toxiproxy is not the run's own and stays up, so that what a dead runner leaves behind can be seen.
"""

import random
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import msgspec

from chaos.toxiproxy.adapter import Toxiproxy
from chaos.worlds.world import Cut
from tests.processes import Run
from tests.toxiproxy.real_server import real_server

KILLS = 50
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
    "faults.cut.duration_s=2.5",
    f"faults.cut.ttl_s={TTL_S:g}",
    "faults.cut.repeat={times: 4, every_s: 4}",
    "workload.rate_min=4/s",
    "workload.rate=4/s",
)


class Kill(msgspec.Struct, frozen=True):
    """One killed runner. faults: toxics and switched-off proxies at the kill. gone_s: after the kill, seconds."""

    cut: str
    at_s: float
    faults: int
    gone_s: float | None
    problems: list[str]


def kill_fifty(out: Path, seed: int = 1) -> list[Kill]:
    """Play them, three at a time, each in a folder of its own below `out`."""
    source = random.Random(seed)
    plan = [(number, list(Cut)[number % len(Cut)], source.uniform(0, _FAULTED_S)) for number in range(KILLS)]
    with real_server() as api, ThreadPoolExecutor(AT_ONCE) as pool:
        return list(pool.map(lambda part: _kill(api, out / f"{part[0]}", part[1], part[2]), plan))


def told(kills: Sequence[Kill]) -> str:
    """The figures of all of them."""
    struck = [kill for kill in kills if kill.faults]
    gone = sorted(kill.gone_s for kill in kills if kill.gone_s is not None)
    most = f"{gone[-1]:.2f} s" if gone else "never"
    return (
        f"{len(gone)} of {len(kills)} gone in time, {len(struck)} were killed under a fault, the last gone after {most}"
    )


def _kill(api: Toxiproxy, out: Path, cut: Cut, at_s: float) -> Kill:
    out.mkdir(parents=True)
    settings = [*_SETTINGS, f"cluster.toxiproxy_url={api.url}", f"faults.cut.mode={cut.value}"]
    arguments = ["network_partition", *(word for setting in settings for word in ("--set", setting))]
    problems: list[str] = []
    with Run(arguments, out) as run:
        if not run.await_line(r"^phase fault", _LINE_S_MAX):
            return Kill(cut.value, at_s, 0, None, [f"no fault phase: {run.tail()}"])
        time.sleep(at_s)
        results = run.results
        mine = results.name if results is not None else "?"
        run.kill()
        killed_s = time.monotonic()
        faults = _in_place(api, mine)
        gone_s: float | None = None
        while time.monotonic() - killed_s < TTL_S + GRACE_S:
            if _in_place(api, mine) == 0:
                gone_s = time.monotonic() - killed_s
                break
            time.sleep(0.05)
        # And they stay gone: nobody of the run comes back to inject.
        time.sleep(max(0.0, killed_s + TTL_S + GRACE_S - time.monotonic()))
        if left := _in_place(api, mine):
            problems.append(f"{cut.value}: {left} faults in place {TTL_S + GRACE_S:g} s after the kill at {at_s:.2f} s")
            gone_s = None
        alive, _ = run.left()
        problems += [f"left running: {line}" for line in alive]
    return Kill(cut.value, at_s, faults, gone_s, problems)


def _in_place(api: Toxiproxy, run_id: str) -> int:
    """Toxics on the run's proxies, and its proxies that are switched off."""
    proxies = [proxy for name, proxy in api.proxies().items() if name.startswith(run_id)]
    return sum(len(proxy.toxics) + (not proxy.enabled) for proxy in proxies)
