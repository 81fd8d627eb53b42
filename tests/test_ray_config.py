"""`ray_config.yaml` stays a file that Ray's cluster launcher accepts."""

import ipaddress
import json
import sys
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import jsonschema  # type: ignore[import-untyped]
import pytest
import yaml

from tests.hosts.commands import RayCommands

CONFIG = Path(__file__).parent.parent / "ray_config.yaml"


@pytest.fixture
def config() -> dict[str, Any]:
    loaded: dict[str, Any] = yaml.safe_load(CONFIG.read_text())
    return loaded


@pytest.fixture
def schema() -> dict[str, Any]:
    # Found without importing Ray, which takes seconds.
    ray = find_spec("ray")
    assert ray is not None
    assert ray.origin is not None
    loaded: dict[str, Any] = json.loads((Path(ray.origin).parent / "autoscaler" / "ray-schema.json").read_text())
    return loaded


def complaints(config: dict[str, Any], schema: dict[str, Any]) -> list[str]:
    return [error.message for error in jsonschema.Draft7Validator(schema).iter_errors(config)]


def test_ray_accepts_the_file(config: dict[str, Any], schema: dict[str, Any]) -> None:
    assert complaints(config, schema) == []
    assert config["provider"]["type"] == "local"
    assert config["provider"]["worker_ips"]


def test_ray_refuses_settings_of_ours(config: dict[str, Any], schema: dict[str, Any]) -> None:
    (complaint,) = complaints({**config, "chaos": {}}, schema)
    assert "chaos" in complaint


def test_every_mac_brings_its_gpu(config: dict[str, Any]) -> None:
    for commands in (config["head_start_ray_commands"], config["worker_start_ray_commands"]):
        (start,) = [command for command in commands if " start " in command]
        assert "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER=1" in start
        # Ray enables it by itself only for a head whose user has a token; who joins such a head without it is refused.
        assert "RAY_AUTH_MODE=token" in start
        assert """--resources='{"mlx": 1}'""" in start


def test_addresses_are_nobodys(config: dict[str, Any]) -> None:
    documentation = ipaddress.ip_network("192.0.2.0/24")
    provider = config["provider"]
    assert all(ipaddress.ip_address(text) in documentation for text in [provider["head_ip"], *provider["worker_ips"]])


def test_the_commands_that_tests_run_are_those_of_the_file(config: dict[str, Any]) -> None:
    """Other addresses, other place of the programs, and without the launcher's own file; nothing else differs."""
    commands = RayCommands(config)
    programs = f"{Path(sys.executable).parent}/"
    for found, documented, address in (
        (commands.head("10.77.1.1"), config["head_start_ray_commands"], config["provider"]["head_ip"]),
        (commands.worker("10.77.1.1"), config["worker_start_ray_commands"], "nobody"),
    ):
        back = [line.replace(programs, "~/mlx-chaos/.venv/bin/").replace("10.77.1.1", address) for line in found]
        assert back == [line.replace(" --autoscaling-config=~/ray_bootstrap_config.yaml", "") for line in documented]
        assert len(found) == 2
    assert commands.port == 6379
    assert "192.0.2." not in "".join((*commands.head("10.77.1.1"), *commands.worker("10.77.1.2")))
