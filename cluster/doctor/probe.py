"""What a host says of itself. Runs there also where this project is not installed: it is sent there as it is.

So it imports nothing but the standard library at its top, and what else it asks may be missing.
"""

import hashlib
import importlib.metadata
import importlib.util
import os
import platform
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

PACKAGES = ("ray", "mlx", "mlx-lm", "nats-py", "msgspec", "pyarrow", "numpy", "transformers")
PROJECT = ("analysis", "chaos", "cluster", "workloads")
CONNECT_S = 2.0
_COMMAND_S = 5.0
_FIREWALL = "/usr/libexec/ApplicationFirewall/socketfilterfw"


def look(model: str, ports: Sequence[tuple[str, int]], address: str) -> dict[str, Any]:
    """Facts about the host where this runs; nothing is changed, and nothing raises.

    ports: TCP addresses that it must reach. address: of this host, as the cluster knows it. Bytes in bytes.
    """
    place, digest = _project()
    cache = _cache()
    return {
        "address": address,
        "interface": _interface(address),
        "system": platform.system(),
        "machine": platform.machine(),
        "python": ".".join(platform.python_version_tuple()[:2]),
        "versions": {package: _version(package) for package in PACKAGES},
        "project": digest,
        "project_at": place,
        "model": _model(model),
        "memory_available_bytes": _memory(),
        "disk_free_bytes": shutil.disk_usage(cache).free,
        "reach": {f"{host}:{port}": _reach(host, port) for host, port in ports},
        "ray_cluster_allowed": os.environ.get("RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER", ""),
        "sleep": _sleep(),
        "firewall": _firewall(),
        "unix_s": time.time(),
    }


def _project() -> tuple[str, str]:
    """Where the project is, and a digest of its sources; empty where it is not installed."""
    digest = hashlib.sha256()
    place = ""
    for package in PROJECT:
        try:
            spec = importlib.util.find_spec(package)
        except (ImportError, ValueError):
            spec = None
        if spec is None or not spec.submodule_search_locations:
            return "", ""
        root = Path(next(iter(spec.submodule_search_locations)))
        place = place or str(root.parent)
        for path in sorted(root.rglob("*")):
            if path.suffix in (".py", ".yaml") and path.is_file():
                digest.update(f"{package}/{path.relative_to(root).as_posix()}\0".encode())
                digest.update(path.read_bytes())
    return place, digest.hexdigest()[:12]


def _version(package: str) -> str:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return ""


def _model(name: str) -> str:
    """Why a model is not there, empty when it is, or when it is built where it is needed."""
    try:
        from cluster.engine.weights import ModelUnavailable, model_directory
    except ImportError as error:
        return f"cannot be looked for: {error}"
    if name == "tiny":
        return ""
    try:
        model_directory(name, download=False)
    except (ModelUnavailable, OSError, ValueError) as error:
        return " ".join(str(error).split())[:300]
    return ""


def _memory() -> int | None:
    try:
        import psutil
    except ImportError:
        return None
    return int(psutil.virtual_memory().available)


def _cache() -> Path:
    named = os.environ.get("MLX_CHAOS_CACHE")
    path = Path(named) if named else Path.home() / ".cache"
    while not path.exists():
        path = path.parent
    return path


def _interface(address: str) -> str:
    """The name of the interface with this address, empty when there is none."""
    try:
        import psutil
    except ImportError:
        return "unknown"
    for name, addresses in psutil.net_if_addrs().items():
        if any(each.address == address for each in addresses):
            return name
    return ""


def _reach(host: str, port: int) -> str:
    """Why a TCP connection cannot be made, empty when it can."""
    try:
        with socket.create_connection((host, port), CONNECT_S):
            return ""
    except OSError as error:
        # 65 on macOS: what a missing permission for the local network looks like, even where ping works.
        return "no route to host" if error.errno == 65 and sys.platform == "darwin" else _text(error)


def _text(error: OSError) -> str:
    return "timed out" if isinstance(error, TimeoutError) else (error.strerror or str(error)).lower()


def _sleep() -> str:
    """Of a Mac: after how many minutes it sleeps, as pmset says; empty elsewhere, `unknown` if it does not say."""
    if platform.system() != "Darwin":
        return ""
    for line in _said("pmset", "-g").splitlines():
        words = line.split()
        if len(words) >= 2 and words[0] == "sleep":
            return words[1]
    return "unknown"


def _firewall() -> str:
    """Of a Mac: `on`, `off` or `unknown`; empty elsewhere."""
    if platform.system() != "Darwin":
        return ""
    said = _said(_FIREWALL, "--getglobalstate").lower()
    return "on" if "enabled" in said else "off" if "disabled" in said else "unknown"


def _said(*argv: str) -> str:
    try:
        done = subprocess.run(argv, capture_output=True, text=True, timeout=_COMMAND_S, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return done.stdout
