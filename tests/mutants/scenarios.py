"""Short runs of the simulated world in which a bug has something to spoil: the catalogue's faults, made small.

The engines are as slow as a real small model (about 0.5 s a request), so that faults find streams half-way and a run
needs few requests.
"""

from pathlib import Path
from typing import Any

import yaml

from chaos.experiment import Experiment, merged
from chaos.resolve import load

_BASE: dict[str, Any] = {
    "title": "A short run for a mutant",
    "question": "Does this run tell a sound cluster from one with a bug?",
    "cluster": {"workers": 3, "model": "tiny", "costs": {"step_s": 0.02, "decode_each_s": 0.002}},
    "workload": {
        "rate": "12/s",
        "generators": 2,
        "sessions": 12,
        "turns_max": 4,
        "prompt_tokens": [24, 64],
        "output_tokens": [12, 24],
    },
    "phases": {
        "warm_up": {"duration_s": 1},
        "baseline": {"duration_s": 4},
        "fault": {"duration_s": 8},
        "recovery": {"duration_s": 9},
    },
    "steady_state": {"success": {"metric": "success_rate", "at_least": 0.9, "confidence": 0.8}},
    "recovery_limit_s": 8,
    "expectations": {
        "success": {"metric": "success_rate", "at_least": 0.97, "confidence": 0.8},
        "lost": {"metric": "lost_requests", "at_most": 0},
    },
}


def _fault(kind: str, target: str | list[str] = "worker-0", duration_s: float = 6, **fields: Any) -> dict[str, Any]:
    targets = [target] if isinstance(target, str) else target
    spec = {"kind": kind, "targets": targets, "phase": "fault", "start_s": 1, "duration_s": duration_s, "ttl_s": 60}
    return spec | fields


def _at_most(metric: str, limit: float, **fields: Any) -> dict[str, Any]:
    return {"metric": metric, "at_most": limit} | fields


_ALL = ["worker-0", "worker-1", "worker-2"]
SCENARIOS: dict[str, dict[str, Any]] = {
    "calm": {
        "faults": {},
        "phases": {"fault": None, "recovery": {"duration_s": 2}},
        "policy": {
            "routing": {"sessions_max": 6},
            "memory": {"cache_bytes_max": 2_000_000},
            "worker": {"batch_max": 4},
        },
        "expectations": {"lost": None, "once": _at_most("retry_amplification", 1.01)},
    },
    "kill": {
        "faults": {"kill": _fault("kill")},
        "expectations": {"detection": _at_most("detection_s", 1.0)},
    },
    "kill_patient": {
        "faults": {"kill": _fault("kill", duration_s=7)},
        "policy": {"timeout": {"first_token_s": None, "between_tokens_s": None}},
    },
    "kill_slow_load": {
        "cluster": {"costs": {"load_s": 12}},
        "phases": {"recovery": {"duration_s": 17}},
        "faults": {"kill": _fault("kill", duration_s=6)},
        "policy": {"breaker": {"enabled": False}},
        "recovery_limit_s": 6,
    },
    "cut": {
        "faults": {"cut": _fault("partition", mode="black_hole")},
        "policy": {"link": {"reconnect_s": 0.25}},
        "expectations": {"detection": _at_most("detection_s", 3.0)},
    },
    "cut_without_breaker": {
        "faults": {"cut": _fault("partition", duration_s=7, mode="black_hole")},
        "policy": {"breaker": {"enabled": False}},
        "expectations": {"mitigation": _at_most("mitigation_s", 3.0)},
    },
    "refused": {"faults": {"cut": _fault("partition", mode="refuse")}},
    "reset": {
        "faults": {"cut": _fault("partition", _ALL, mode="reset")},
        "guard": {"last_worker": True},
        "expectations": {"lost": None, "success": {"metric": "success_rate", "at_least": 0.92, "confidence": 0.8}},
    },
    "held": {
        "faults": {"cut": _fault("partition", duration_s=7, mode="stall")},
        "policy": {
            "link": {"ping_s": 30, "broker_ping_s": 30},
            "client": {"deadline_s": 4},
            "timeout": {"first_token_s": 1.0, "between_tokens_s": 1.0},
        },
    },
    "frozen": {"faults": {"freeze": _fault("freeze", duration_s=4)}},
    "lost_reports": {
        "faults": {"lost": _fault("drop_messages", options={"message": "report", "share": 0.05})},
    },
    "lost_withdrawals": {
        "faults": {
            "reports": _fault("drop_messages", options={"message": "report", "share": 0.1}),
            "withdrawals": _fault("drop_messages", options={"message": "withdraw"}),
        },
    },
    "lost_dispatches": {
        "phases": {"fault": {"duration_s": 14}},
        "faults": {"lost": _fault("drop_messages", duration_s=12, options={"message": "dispatch"})},
        "expectations": {"wasted": _at_most("wasted_attempts", 14)},
    },
    "lost_deliveries": {
        "faults": {"lost": _fault("drop_messages", "client-0", options={"message": "delivery", "share": 0.05})},
        "policy": {"client": {"silence_s": 2.5}},
        "expectations": {"lost": None},
    },
    "doubled": {
        "faults": {
            "reports": _fault("duplicate_messages", options={"message": "report", "share": 0.3}),
            "dispatches": _fault("duplicate_messages", "worker-1", options={"message": "dispatch", "share": 0.3}),
            "deliveries": _fault("duplicate_messages", "client-0", options={"message": "delivery", "share": 0.3}),
        },
    },
    "sick": {
        "faults": {"sick": _fault("fail_attempts", options={"share": 1.0})},
        "expectations": {"wasted": _at_most("wasted_attempts", 12)},
    },
    "flaky": {
        "phases": {"fault": {"duration_s": 14}},
        "faults": {"flaky": _fault("fail_attempts", duration_s=12, options={"share": 0.6})},
        "policy": {"breaker": {"enabled": False}},
    },
    "a_few_failures": {
        "phases": {"fault": {"duration_s": 14}},
        "faults": {"few": _fault("fail_attempts", ["worker-0", "worker-1"], 12, options={"share": 0.15})},
        "policy": {"retry": {"budget_burst": 4}},
        "expectations": {"trips": _at_most("breaker_trips", 1)},
    },
    "storm": {
        "faults": {"storm": _fault("fail_attempts", _ALL, options={"share": 0.7})},
        "guard": {"last_worker": True},
        "policy": {"retry": {"budget_burst": 5, "budget_share": 0.05}, "breaker": {"enabled": False}},
        "expectations": {"lost": None, "success": {"metric": "told_in_time_rate", "at_least": 0.97}},
    },
    "silent_engine": {
        "phases": {"fault": {"duration_s": 12}},
        "faults": {"death": _fault("engine_dies", duration_s=10, mode="silent")},
        "policy": {"breaker": {"enabled": False}, "client": {"deadline_s": 6}},
        "expectations": {"wasted": _at_most("wasted_attempts", 14)},
    },
    "slow": {
        "workload": {"sessions": 3, "turns_max": 20},
        "phases": {"fault": {"duration_s": 12}},
        "faults": {"slow": _fault("slow_down", duration_s=10, options={"factor": 6})},
        "policy": {"routing": {"outstanding_max": 100}},
        "expectations": {
            "moved": {"metric": "session_moves", "at_least": 4, "phase": "fault"},
        },
    },
    "small_queue": {
        "faults": {"slow": _fault("slow_down", duration_s=6, options={"factor": 6})},
        "policy": {
            "routing": {"outstanding_max": 100},
            "worker": {"queue_max": 2, "batch_max": 4},
            "retry": {"max_attempts": 5},
        },
    },
    "rolling": {
        "phases": {"fault": {"duration_s": 22}},
        "guard": {"last_worker": True},
        "faults": {"roll": _fault("restart", _ALL, 20, options={"between_s": 1, "drain_limit_s": 5})},
        "expectations": {
            "once": _at_most("retry_amplification", 1.01, phase="fault"),
            "latency": _at_most("latency_p95_s", 2.0, phase="fault", confidence=0.8),
        },
    },
    "skewed": {
        "workload": {"rate": "24/s"},
        "phases": {"fault": {"duration_s": 14}},
        "faults": {"skew": _fault("clock_skew", duration_s=12, options={"ahead_s": -50})},
        "expectations": {"latency": _at_most("latency_p50_s", 1.2, phase="fault", confidence=0.8)},
    },
    "skewed_ahead": {
        "phases": {"fault": {"duration_s": 12}},
        "faults": {"skew": _fault("clock_skew", duration_s=9, options={"ahead_s": 50})},
        "expectations": {"once": _at_most("retry_amplification", 1.1, phase="fault")},
    },
    "short_of_memory": {
        "faults": {"short": _fault("memory_pressure", _ALL, options={"room_bytes": 1_250_000})},
        "guard": {"last_worker": True},
        "expectations": {
            "success": {"metric": "told_in_time_rate", "at_least": 0.97, "confidence": 0.8},
            "lost": None,
            "trips": _at_most("breaker_trips", 0),
        },
    },
    "controller_restart": {
        "phases": {"fault": {"duration_s": 9}},
        "faults": {"restart": _fault("restart", "controller", 7)},
        "expectations": {"lost": None},
    },
    "controller_kill": {
        "phases": {"fault": {"duration_s": 9}, "recovery": {"duration_s": 10}},
        "faults": {"kill": _fault("kill", "controller", 7)},
        "policy": {"client": {"deadline_s": 4}},
        "expectations": {"success": {"metric": "told_in_time_rate", "at_least": 0.97, "confidence": 0.8}, "lost": None},
    },
    "one_of_two_controllers": {
        "cluster": {"controllers": 2},
        "faults": {"kill": _fault("kill", "controller-0", 7)},
        "policy": {"client": {"deadline_s": 5}},
        "expectations": {"lost": None},
    },
    "spike": {
        "phases": {"fault": {"duration_s": 6, "load": {"rate": "4x"}}, "recovery": {"duration_s": 8}},
        "faults": {},
        "policy": {"client": {"deadline_s": 6}},
        "expectations": {"lost": None},
    },
}


def experiment(name: str, folder: Path) -> Experiment:
    """The scenario, checked as any other experiment; `folder` is where its file goes."""
    document = _pruned(merged({"name": name, **_BASE}, SCENARIOS[name]))
    path = folder / f"{name}.yaml"
    path.write_text(yaml.safe_dump(document, sort_keys=False))
    return load(path)


def _pruned(document: dict[str, Any]) -> dict[str, Any]:
    """Without the sections and expectations that a scenario takes out by saying None; a policy's null stays."""
    for section in ("phases", "expectations"):
        document[section] = {name: value for name, value in document[section].items() if value is not None}
    return document
