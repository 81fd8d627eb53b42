"""One case for each way of hurting an engine or a clock: the settings that make tests/live/engine_fault.yaml it."""

from pathlib import Path

EXPERIMENT = Path(__file__).parent / "live" / "engine_fault.yaml"

# Name: settings, and whether the run has to fail because invariant 3 sees the fault.
WAYS: dict[str, tuple[str, ...]] = {
    "slow_down": ("faults.hurt.kind=slow_down", "faults.hurt.options={factor: 8}"),
    "engine_dies_silent": ("faults.hurt.kind=engine_dies", "faults.hurt.mode=silent"),
    "engine_dies_loud": ("faults.hurt.kind=engine_dies", "faults.hurt.mode=loud"),
    "load_fails": ("faults.hurt.kind=load_fails",),
    "memory_pressure": ("faults.hurt.kind=memory_pressure", "faults.hurt.options={room_bytes: 0}"),
    "wrong_token": ("faults.hurt.kind=wrong_token", "faults.hurt.options={share: 0.05}"),
    "clock_ahead": ("faults.hurt.kind=clock_skew", "faults.hurt.options={ahead_s: 3600}"),
    "clock_behind": ("faults.hurt.kind=clock_skew", "faults.hurt.options={ahead_s: -3600}"),
    "controller_clock_behind": (
        "faults.hurt.kind=clock_skew",
        "faults.hurt.options={ahead_s: -3600}",
        "faults.hurt.targets=[controller]",
    ),
}
FAILS = ("wrong_token",)
"""Nothing in the cluster can mend these: the run has to fail, by invariant 3."""

EXPERIMENTS = ("slow_worker", "engine_death", "memory_pressure")
