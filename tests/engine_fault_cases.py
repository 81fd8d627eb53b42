"""One case for each way of hurting an engine or a clock: the settings that make tests/live/engine_fault.yaml it."""

from pathlib import Path

from analysis.verdict import Outcome, Verdict

EXPERIMENT = Path(__file__).parent / "live" / "engine_fault.yaml"

# Name: settings.
WAYS: dict[str, tuple[str, ...]] = {
    "slow_down": ("faults.hurt.kind=slow_down", "faults.hurt.options={factor: 8}"),
    "engine_dies_silent": ("faults.hurt.kind=engine_dies", "faults.hurt.mode=silent"),
    "engine_dies_loud": ("faults.hurt.kind=engine_dies", "faults.hurt.mode=loud"),
    "load_fails": ("faults.hurt.kind=load_fails",),
    "memory_pressure": ("faults.hurt.kind=memory_pressure", "faults.hurt.options={room_bytes: 0}"),
    "fail_attempts": ("faults.hurt.kind=fail_attempts", "faults.hurt.options={share: 0.5}"),
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


def expected(way: str) -> str:
    """What is expected of the run, for people."""
    return "exit 1, fail by invariant 3" if way in FAILS else "exit 0, pass, proved and healed"


def problems(way: str, code: int | None, verdict: Verdict) -> list[str]:
    """What is not as expected."""
    found = [] if code == (1 if way in FAILS else 0) else [f"exit code {code}", *verdict.reasons[:3]]
    if verdict.verdict is not (Outcome.FAIL if way in FAILS else Outcome.PASS):
        found.append(f"the verdict is {verdict.verdict}")
    if [fault.verified and fault.healed_s is not None for fault in verdict.faults] != [True]:
        found.append("the fault is not verified, or not healed")
    broken = [each.number for each in verdict.invariants if each.violations]
    if broken != ([3] if way in FAILS else []):
        found.append(f"invariants {broken} are violated")
    return found


def all_at_once() -> tuple[str, ...]:
    """Settings that add every way to the experiment's own fault."""
    hurt = "{kind: slow_down, targets: [worker-0], phase: fault, start_s: 1, duration_s: 8, ttl_s: 40}"
    settings = []
    for way, own in WAYS.items():
        settings += [f"faults.{way}={hurt}", *(setting.replace("faults.hurt.", f"faults.{way}.") for setting in own)]
    return tuple(settings)
