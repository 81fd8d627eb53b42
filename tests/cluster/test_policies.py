"""The profiles in cluster/policies: each loads, says exactly what it stands for, and does what that leads to."""

from pathlib import Path
from typing import Any

import msgspec
import pytest

from analysis.judge import judge
from analysis.reader import load_history
from analysis.verdict import Outcome, Verdict
from chaos import run
from chaos.experiment import find
from chaos.resolve import load
from chaos.results import ResultsDirectory
from cluster import serve
from cluster.live.openai import DEFAULT_TIMEOUT_S
from cluster.policy import Policy
from cluster.profiles import load_policy, profile_names
from tests.chaos.simulated_runs import SHORT, Quiet

# A cut that is longer than mlx-serving takes to call a worker offline.
LONG_CUT = ("phases.fault.duration_s=24", "faults.cut.duration_s=22")

MLX_SERVING = {
    "link": {
        "ping_s": 120,
        "broker_ping_s": 120,
        "reconnect_s": 2,
        "reconnects_max": 10,
    },
    "client": {"silence_s": 20},
    "membership": {"heartbeat_s": 5, "suspect_after_s": 15, "dead_after_s": 15, "engine_silent_max_s": None},
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


def test_there_are_the_defaults_those_of_mlx_serving_and_those_for_serving() -> None:
    assert profile_names() == ["default", "mlx_serving", "serving"]
    assert load_policy("default") == Policy()


def test_serving_is_patient_with_slow_prompts_and_says_nothing_else() -> None:
    serving = load_policy(serve._parser().parse_args([]).policy)
    assert differences(serving, Policy()) == {
        "timeout": {"first_token_s": 120, "between_tokens_s": 20},
        "client": {"silence_s": 25},
        "routing": {"outstanding_max": 8},
        "membership": {"engine_silent_max_s": 20},
        "worker": {"prefill_step_tokens": 128},
    }
    assert serving.timeout.first_token_s == DEFAULT_TIMEOUT_S
    assert serving.timeout.between_tokens_s is not None
    assert serving.client.silence_s > serving.timeout.between_tokens_s
    assert serving.routing.outstanding_max == serving.worker.batch_max


def test_mlx_serving_differs_from_the_defaults_in_what_it_publishes_and_in_nothing_else() -> None:
    assert differences(load_policy("mlx_serving"), Policy()) == MLX_SERVING


@pytest.mark.parametrize("name", profile_names())
def test_an_experiment_under_a_profile_has_its_policy(name: str) -> None:
    assert load(find("network_partition"), policy=name).policy == load_policy(name)


def partitioned(profile: str, out: Path) -> Verdict:
    """`network_partition` with a black hole, in the simulated world, judged."""
    experiment = load(find("network_partition"), [*SHORT, *LONG_CUT], profile)
    results = ResultsDirectory(out, experiment, "simulated", 1)
    run._execute(experiment, "simulated", 1, results, Quiet(), None)  # type: ignore[arg-type]
    return judge(load_history(results.path))


@pytest.mark.simulated
def test_a_black_hole_is_survived_by_the_defaults_and_not_by_mlx_serving(tmp_path: Path) -> None:
    ours = partitioned("default", tmp_path / "default")
    assert ours.verdict is Outcome.PASS, ours.reasons
    theirs = partitioned("mlx_serving", tmp_path / "mlx_serving")
    assert theirs.verdict is Outcome.FAIL
    failed = {each.name: each for each in theirs.criteria if each.verdict is Outcome.FAIL}
    assert set(failed) == {"success_during_fault", "lost_on_the_victim", "detection", "mitigation"}
    assert all(any(each.explanation in reason for reason in theirs.reasons) for each in failed.values())
    detected_s = failed["detection"].measured
    assert detected_s is not None
    assert 9 < detected_s < 16, "15 s after the last heartbeat, and they come every 5 s"
    broken = [each.name for each in theirs.invariants if each.verdict is Outcome.FAIL]
    assert not broken, "it is slow and loses requests, and never delivers a wrong token"
