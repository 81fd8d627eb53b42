"""Predicted detection: what the policy promises, by mechanism, and that the simulated cluster keeps it."""

from pathlib import Path

import pytest

from analysis.recovery import fault_times
from chaos.experiment import FaultSpec
from chaos.prediction import predict
from cluster.policy import Policy
from cluster.profiles import load_policy
from tests.chaos.simulated_runs import conduct

DEFAULT = Policy()
TRAVEL_S = 0.1
"""Of messages, and of the director's own commands to the world."""


def predicted(kind: str, target: str, mode: str | None = None, policy: Policy = DEFAULT) -> float | None:
    spec = FaultSpec(kind=kind, phase="fault", targets=(target,), duration_s=10, ttl_s=60, mode=mode)
    found = predict(spec, policy)
    return None if found is None else found.detection_s


@pytest.mark.parametrize(
    ("kind", "target", "mode", "due_s"),
    [
        ("partition", "worker-0", "black_hole", 1.6),
        ("partition", "worker-0", "upstream", 1.6),
        ("partition", "worker-0", "downstream", 3.0),
        ("partition", "worker-0", "refuse", 0.0),
        ("partition", "controller", "black_hole", 2.5),
        ("freeze", "worker-0", None, 1.6),
        ("freeze", "controller", None, 2.5),
        ("kill", "controller-1", None, 2.5),
        ("broker_freeze", "broker", None, 1.6),
        ("broker_kill", "broker", None, 0.0),
        ("engine_dies", "worker-0", "silent", 4.0),
        ("slow_down", "worker-0", None, None),
    ],
)
def test_each_mechanism_follows_from_the_policy(kind: str, target: str, mode: str | None, due_s: float | None) -> None:
    assert predicted(kind, target, mode) == due_s


def test_a_trusting_policy_notices_late_or_never() -> None:
    trusting = load_policy("mlx_serving")
    assert predicted("partition", "worker-0", "black_hole", trusting) == 15.0
    assert predicted("engine_dies", "worker-0", "silent", trusting) is None


@pytest.mark.simulated
@pytest.mark.parametrize("target", ["worker-0", "controller"])
@pytest.mark.parametrize("mode", ["black_hole", "upstream", "refuse"])
def test_what_is_measured_keeps_what_was_predicted(tmp_path: Path, mode: str, target: str) -> None:
    done = conduct(tmp_path, f"faults.cut.mode={mode}", f"faults.cut.targets=[{target}]")
    (times,) = fault_times(done.history)
    assert times.predicted_s is not None
    assert times.detection_s is not None
    assert times.detection_s <= times.predicted_s + TRAVEL_S
    assert times.late is False
    assert "by its policy after" in times.explanation()
