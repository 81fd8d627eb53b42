"""The documented commands that make a Ray cluster, as `ray_config.yaml` has them and with the tests' addresses."""

import sys
from pathlib import Path
from typing import Any

import yaml

CONFIG = Path(__file__).parent.parent.parent / "ray_config.yaml"
_PROGRAMS = "~/mlx-chaos/.venv/bin/"
_OF_THE_LAUNCHER = "--autoscaling-config=~/ray_bootstrap_config.yaml"
"""A file that `ray up` puts there; without it nobody has it."""


class RayCommands:
    """Read from the launcher file: what is documented is what is run."""

    def __init__(self, config: dict[str, Any] | None = None) -> None:
        loaded: dict[str, Any] = yaml.safe_load(CONFIG.read_text())
        self._config = loaded if config is None else config

    @property
    def port(self) -> int:
        """Of the head's GCS."""
        words = " ".join(self._lines("head")).split()
        (port,) = [word.partition("=")[2] for word in words if word.startswith("--port=")]
        return int(port)

    def head(self, address: str) -> list[str]:
        """Lines of a shell that start Ray on the first host."""
        return [self._here(line, self._config["provider"]["head_ip"], address) for line in self._lines("head")]

    def worker(self, address: str) -> list[str]:
        """Lines of a shell, with RAY_HEAD_IP set, that start Ray on another host."""
        first = self._config["provider"]["worker_ips"][0]
        return [self._here(line, first, address) for line in self._lines("worker")]

    def _lines(self, role: str) -> list[str]:
        lines: list[str] = self._config[f"{role}_start_ray_commands"]
        return lines

    def _here(self, line: str, documented: str, address: str) -> str:
        programs = f"{Path(sys.executable).parent}/"
        return line.replace(_PROGRAMS, programs).replace(f" {_OF_THE_LAUNCHER}", "").replace(documented, address)
