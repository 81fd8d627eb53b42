"""What tests.verify expects when a whole host vanishes: two of four workers, with the Ray node below which they run."""

import contextlib
from collections.abc import Iterable

import psutil

from analysis.verdict import Outcome, Verdict

EXPERIMENT = "host_failure"
# Short phases and a low rate, for cases about what is left and what is proved, and not about what is measured.
SHORT = (
    "phases.warm_up.duration_s=3",
    "phases.baseline.duration_s=5",
    "phases.fault.duration_s=8",
    "phases.recovery.duration_s=12",
    "faults.host.duration_s=4",
    "workload.rate=10/s",
    "workload.rate_min=8/s",
    "workload.rate_max=12/s",
)
# Name: a line of the runner's output, and seconds after it. 4 s after the injection a new Ray node is started.
KILLED_AT: dict[str, tuple[str, float]] = {
    "start": (r"^phase start", 4.0),
    "baseline": (r"^phase baseline", 1.0),
    "heal": (r"^injected", 5.0),
}
# By name of a case: file in tests/hosts, and test there. They need Linux, root, iproute2 and iptables.
THREE_HOSTS = {
    "partition": "test_three_hosts.py::nobody_suffers",
    "filter_and_kill": "test_three_hosts.py::packet_filter",
    "cut_and_frozen": "test_three_hosts.py::those_of_another_frozen",
    "sabotage": "test_three_hosts.py::nobody_has_touched",
    "head_dies": "test_three_hosts.py::is_gone",
    "kill_9": "test_three_hosts.py::kill_9",
    "doctor": "test_doctor.py::finds",
}
SABOTAGED: dict[str, tuple[str, ...]] = {
    "host": (),
    "host_cut": ("faults.host.kind=host_cut", "faults.host.mode=black_hole"),
    "host_freeze": ("faults.host.kind=host_freeze",),
}
"""What is not done to a host, on one machine: settings of `EXPERIMENT`. On three hosts see `THREE_HOSTS`."""
WHOLE_AT = "baseline"
"""When both Ray nodes, the head and the host beside it, are there for certain."""
_VICTIMS = {"worker-1", "worker-3"}


def ray_nodes(processes: Iterable[str]) -> int:
    """How many of these lines, which begin with a pid, are about a Ray node."""
    found = 0
    for line in processes:
        with contextlib.suppress(psutil.Error):
            found += psutil.Process(int(line.split()[0])).name() == "raylet"
    return found


def problems(code: int | None, verdict: Verdict) -> list[str]:
    """What is not as expected of a run of the whole experiment."""
    found = [] if code == 0 else [f"exit code {code}"]
    found += [] if verdict.verdict is Outcome.PASS else verdict.reasons[:3]
    if [fault.verified and fault.healed_s is not None for fault in verdict.faults] != [True]:
        return [*found, "the fault is not verified, or not healed"]
    bite = verdict.faults[0].evidence.get("bite")
    told = bite if isinstance(bite, dict) else {}
    if set(told) != {*_VICTIMS, "host-1"}:
        found.append(f"the proof is about {', '.join(told) or 'nobody'}")
    if told.get("host-1", {}).get("state", {}).get("processes") != 0:
        found.append("a process of the host is still there")
    if any(told.get(victim, {}).get("state", {}).get("connections") != {} for victim in _VICTIMS):
        found.append("the broker lists a connection of a node that is gone")
    broken = [each.number for each in verdict.invariants if each.violations]
    return found + ([f"invariants {broken} are violated"] if broken else [])
