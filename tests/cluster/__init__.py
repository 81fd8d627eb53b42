"""Tests of the cluster. Properties run few examples, none against the wall clock, and in CI always the same ones."""

import os

from hypothesis import HealthCheck, settings

_CI = bool(os.environ.get("CI"))
_SLOW = [HealthCheck.too_slow, HealthCheck.filter_too_much, HealthCheck.data_too_large]

QUICK = settings(max_examples=60, deadline=None, derandomize=_CI)
"""For properties of one function or object."""

WALK = settings(
    max_examples=int(os.environ.get("WALKS", "100")),
    stateful_step_count=50,
    deadline=None,
    derandomize=_CI,
    suppress_health_check=_SLOW,
)
"""For state machines: random interleavings of everything that can happen to a node. WALKS asks for more of them."""
