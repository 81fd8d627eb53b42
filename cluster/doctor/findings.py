"""From what the hosts say of themselves to what is wrong with each, and how it is mended."""

from collections.abc import Mapping, Sequence
from typing import Any

import msgspec

DISK_BYTES_MIN = 2 * 10**9
NODE_BYTES = 300 * 10**6
"""Of memory for the process of a node, without its model."""
_SLACK = 1.25
"""Of a model's weights: what computing with them takes besides."""
MACOS = "Darwin"
FIREWALL = "/usr/libexec/ApplicationFirewall/socketfilterfw"


class Facts(msgspec.Struct, frozen=True):
    """See cluster.doctor.probe.look."""

    address: str
    interface: str
    system: str
    machine: str
    python: str
    versions: dict[str, str]
    project: str
    project_at: str
    model: str
    memory_available_bytes: int | None
    disk_free_bytes: int
    reach: dict[str, str]
    ray_cluster_allowed: str
    sleep: str
    firewall: str
    unix_s: float


class Finding(msgspec.Struct, frozen=True):
    """One check of one host. said: one line. fix: what to do, empty when nothing has to be done.

    applies: false for a check that has no meaning on the host's system.
    """

    host: str
    check: str
    good: bool
    said: str
    fix: str = ""
    applies: bool = True


def facts_of(said: Mapping[str, Any]) -> Facts:
    """What a probe has said. Raises msgspec.ValidationError."""
    return msgspec.convert(said, Facts)


def examine(name: str, here: Facts, there: Facts, *, model: str, weights_bytes: int, nodes: int) -> list[Finding]:
    """All findings about a host. here: the host where the run is started. nodes: workers that the host shall have."""
    return [
        *_versions(name, here, there),
        _project(name, here, there),
        *_ports(name, there),
        _address(name, there),
        _memory(name, there, weights_bytes, nodes),
        _disk(name, there),
        _model(name, there, model),
        _sleep(name, there),
        _firewall(name, there),
        _ray_allowed(name, there),
    ]


def problems(findings: Sequence[Finding]) -> list[str]:
    """One line for each that is not good, with its fix."""
    return [f"{each.host}: {each.check}: {each.said}; {each.fix}" for each in findings if not each.good]


def _versions(name: str, here: Facts, there: Facts) -> list[Finding]:
    fix = "install what requirements.lock pins, in the environment that started Ray there"
    pairs = [("python", here.python, there.python)]
    pairs += [(package, version, there.versions.get(package, "")) for package, version in here.versions.items()]
    found = []
    for part, ours, theirs in pairs:
        if ours == theirs:
            found.append(Finding(name, f"version of {part}", True, theirs or "nowhere installed"))
        else:
            said = f"{theirs or 'not installed'} there, {ours or 'not installed'} where the run is started"
            found.append(Finding(name, f"version of {part}", False, said, fix))
    return found


def _project(name: str, here: Facts, there: Facts) -> Finding:
    if not there.project:
        fix = "put this project there and run `make setup`, then start Ray from its .venv"
        return Finding(name, "project", False, "not installed there", fix)
    if here.project != there.project:
        said = f"sources {there.project} in {there.project_at}, {here.project} where the run is started"
        return Finding(name, "project", False, said, "check out the same commit there, and start Ray there again")
    return Finding(name, "project", True, f"sources {there.project}")


def _ports(name: str, there: Facts) -> list[Finding]:
    found = []
    for target, why in there.reach.items():
        if not why:
            found.append(Finding(name, f"reaches {target}", True, "yes"))
            continue
        host = target.rpartition(":")[0]
        fix = f"let TCP through from {there.address} to {host}, in the firewalls of both and on the way"
        if there.system == MACOS:
            fix += "; allow the terminal in System Settings, Privacy & Security, Local Network"
        found.append(Finding(name, f"reaches {target}", False, why, fix))
    return found


def _address(name: str, there: Facts) -> Finding:
    if there.address.startswith("127.") or there.address == "::1":
        fix = "start Ray there with --node-ip-address, naming an address that the other hosts reach"
        return Finding(name, "address", False, f"{there.address} is reached from that host alone", fix)
    if not there.interface:
        fix = "start Ray there with --node-ip-address, naming an address of one of its interfaces"
        return Finding(name, "address", False, f"no interface there has {there.address}", fix)
    return Finding(name, "address", True, f"{there.address} on {there.interface}")


def _memory(name: str, there: Facts, weights_bytes: int, nodes: int) -> Finding:
    needed = nodes * (NODE_BYTES + int(weights_bytes * _SLACK))
    free = there.memory_available_bytes
    if free is None:
        return Finding(name, "memory", False, "unknown: psutil is not installed", "install what requirements.lock pins")
    said = f"{free / 1e9:.1f} GB free, {nodes} workers need {needed / 1e9:.1f} GB"
    fix = "" if free >= needed else "end what else runs there, or use fewer workers or a smaller model"
    return Finding(name, "memory", free >= needed, said, fix)


def _disk(name: str, there: Facts) -> Finding:
    said = f"{there.disk_free_bytes / 1e9:.1f} GB free, {DISK_BYTES_MIN / 1e9:.0f} GB are wanted"
    good = there.disk_free_bytes >= DISK_BYTES_MIN
    return Finding(name, "disk", good, said, "" if good else "make room, or let MLX_CHAOS_CACHE name another disk")


def _model(name: str, there: Facts, model: str) -> Finding:
    if not there.model:
        return Finding(name, "model", True, f"{model} is there, or is built when it is needed")
    fix = f"on that host: python -m cluster.models pull {model}"
    return Finding(name, "model", False, f"{model}: {there.model}", fix)


def _sleep(name: str, there: Facts) -> Finding:
    if there.system != MACOS:
        return Finding(name, "sleep", True, f"not applicable on {there.system}", applies=False)
    if there.sleep == "0":
        return Finding(name, "sleep", True, "never sleeps")
    said = f"sleeps after {there.sleep} minutes" if there.sleep.isdigit() else "pmset does not say when it sleeps"
    return Finding(name, "sleep", False, said, "on that host: sudo pmset -a sleep 0")


def _firewall(name: str, there: Facts) -> Finding:
    if there.system != MACOS:
        said = f"macOS firewall and local-network permission are not applicable on {there.system}; see the ports"
        return Finding(name, "firewall", True, said, applies=False)
    if there.firewall == "off":
        return Finding(name, "firewall", True, "the application firewall is off")
    fix = f"allow it: sudo {FIREWALL} --add PATH_OF_PYTHON --unblockapp PATH_OF_PYTHON"
    said = "the application firewall is on" if there.firewall == "on" else "the firewall's state is not known"
    # Whoever has allowed Python already is fine: what counts is whether the ports are reached.
    blocked = any(there.reach.values())
    return Finding(name, "firewall", not blocked, said, fix if blocked else "")


def _ray_allowed(name: str, there: Facts) -> Finding:
    variable = "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER"
    if there.system != MACOS:
        return Finding(name, "Ray on several Macs", True, f"not applicable on {there.system}", applies=False)
    if there.ray_cluster_allowed == "1":
        return Finding(name, "Ray on several Macs", True, f"{variable}=1")
    fix = f"start Ray there with {variable}=1, as ray_config.yaml does"
    return Finding(name, "Ray on several Macs", False, f"{variable} is not 1", fix)
