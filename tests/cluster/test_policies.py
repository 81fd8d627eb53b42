"""The profiles in cluster/policies: each loads, and says exactly what it stands for."""

from typing import Any

import msgspec
import pytest

from chaos.experiment import find
from chaos.resolve import load
from cluster.policy import Policy
from cluster.profiles import load_policy, profile_names

MLX_SERVING = {
    "link": {
        "ping_s": 120,
        "broker_ping_s": 120,
        "reconnect_s": 2,
        "reconnects_max": 10,
    },
    "client": {"silence_s": 20},
    "membership": {"heartbeat_s": 5, "suspect_after_s": 15, "dead_after_s": 15},
    "timeout": {"first_token_s": None, "between_tokens_s": None},
    "retry": {
        "backoff_s": 0.1,
        "jitter": False,
        "exclude_failed": False,
        "budget_share": 1,
        "budget_burst": 1_000_000,
    },
    "breaker": {
        "judged_by": "dispatch",
        "failures_to_open": 5,
        "successes_to_close": 2,
        "open_s": 30,
        "open_max_s": 30,
    },
    "routing": {"affinity_slack": 1_000_000, "outstanding_max": 1_000_000},
    "stream": {"migration": False},
    "worker": {"queue_max": 100},
}


def differences(policy: Policy, base: Policy) -> dict[str, dict[str, Any]]:
    """Section to field to the policy's value, where it is not that of `base`."""
    told: dict[str, dict[str, Any]] = {}
    for section, fields in msgspec.to_builtins(base).items():
        own = msgspec.to_builtins(getattr(policy, section))
        changed = {name: own[name] for name, value in fields.items() if own[name] != value}
        if changed:
            told[section] = changed
    return told


def test_there_are_the_defaults_and_those_of_mlx_serving() -> None:
    assert profile_names() == ["default", "mlx_serving"]
    assert load_policy("default") == Policy()


def test_mlx_serving_differs_from_the_defaults_in_what_it_publishes_and_in_nothing_else() -> None:
    assert differences(load_policy("mlx_serving"), Policy()) == MLX_SERVING


@pytest.mark.parametrize("name", profile_names())
def test_an_experiment_under_a_profile_has_its_policy(name: str) -> None:
    assert load(find("network_partition"), policy=name).policy == load_policy(name)
