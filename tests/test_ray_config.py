"""`ray_config.yaml` stays a file that Ray's cluster launcher accepts."""

import ipaddress
import json
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import jsonschema  # type: ignore[import-untyped]
import pytest
import yaml

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
        assert """--resources='{"mlx": 1}'""" in start


def test_addresses_are_nobodys(config: dict[str, Any]) -> None:
    documentation = ipaddress.ip_network("192.0.2.0/24")
    provider = config["provider"]
    assert all(ipaddress.ip_address(text) in documentation for text in [provider["head_ip"], *provider["worker_ips"]])
