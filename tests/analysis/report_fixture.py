"""A made-up run of `network_partition` for tests of plots and reports, and its verdict."""

import json
from collections.abc import Sequence

import msgspec
import numpy as np
import pandas as pd
import pyarrow as pa

from analysis.facts import counts
from analysis.history import History, RunInfo
from analysis.schema import ROW_TYPES
from analysis.tables import SCHEDULE_SCHEMA, SCHEMAS
from analysis.verdict import CriterionResult, FaultResult, InvariantResult, Outcome, Verdict, Violation

PHASES = (("warm_up", 0.0, 6.0), ("baseline", 6.0, 20.0), ("fault", 20.0, 52.0), ("recovery", 52.0, 72.0))
INJECTED_S, HEALED_S, END_S, CUT_S = 21.0, 51.0, 72.0, 40.0
EXPERIMENT: dict[str, object] = {
    "name": "network_partition",
    "title": "A node is cut off from NATS and comes back",
    "question": "When the link of one node goes silent, is the loss detected, is its work done elsewhere, is nothing "
    "executed late, and is the cluster whole again soon after the link is back?",
    "cluster": {"workers": 3, "model": "tiny"},
    "expectations": {
        "success_during_fault": {"metric": "success_rate", "phase": "fault", "at_least": 0.99},
        "detection": {"metric": "detection_s", "at_most": 3.0},
        "mitigation": {"metric": "mitigation_s", "at_most": 4.0},
        "return_to_steady": {"metric": "return_to_steady_s", "at_most": 12.0},
    },
}
ENVIRONMENT: dict[str, object] = {
    "python": "3.11.9",
    "packages": {"mlx": "0.32.4", "mlx-lm": "0.32.2", "ray": "2.60.0"},
    "hosts": [{"name": "host-0", "cores": 2, "memory_bytes": 8_000_000_000}],
    "toxiproxy": "toxiproxy-server 2.12.0",
}


def frame(table: str, rows: Sequence[dict[str, object]]) -> pd.DataFrame:
    """Rows as `load_history` gives them: the columns and types of the schema, also when there are none."""
    schema = SCHEMAS[table]
    plain = _defaults(table)
    stamped = [{"node": "", "incarnation": 1, "sequence": number, **plain, **row} for number, row in enumerate(rows)]
    read: pd.DataFrame = pa.Table.from_pylist(stamped, schema=schema).to_pandas()
    return read


def _defaults(table: str) -> dict[str, object]:
    """Nothing in every column that must hold something."""
    (row_type,) = (each for each in ROW_TYPES if table == each.TABLE)
    nothing: dict[object, object] = {str: "", int: 0, float: 0.0, bool: False, list[str]: []}
    return {field.name: nothing[field.type] for field in msgspec.structs.fields(row_type) if field.type in nothing}


def history(*, workers: Sequence[str] = ("worker-0", "worker-1", "worker-2"), complete: bool = True) -> History:
    """About 1,400 requests over 72 s, the first worker cut off from 21 s to 51 s."""
    rng = np.random.default_rng(7)
    requests, attempts = _load(rng, list(workers))
    end_s = float("inf") if complete else CUT_S
    schedule = _schedule(requests)
    requests, attempts = ([row for row in rows if float(str(row["ended_s"])) <= end_s] for rows in (requests, attempts))
    phase_events = [
        _event(at, kind, "director", name)
        for name, start, end in PHASES
        for at, kind in ((start, "phase_started"), (end, "phase_ended"))
        if at < end_s
    ]
    if complete:
        phase_events.append(_event(END_S + 1.5, "run_ended", "director", ""))
    events = [*phase_events, *(row for row in _states(list(workers)) if float(str(row["time_s"])) <= end_s)]
    samples = [row for row in _samples(rng, list(workers)) if float(str(row["time_s"])) <= end_s]
    fault = {
        "name": "cut", "kind": "partition", "targets": [workers[0]], "parameters": json.dumps({"mode": "black_hole"}),
        "injected_s": INJECTED_S, "verified": True, "verified_s": 21.9,
        "healed_s": HEALED_S if complete else None, "heal_verified": complete,
        "explains": ["WORKER_LOST"], "evidence": json.dumps({"pings_lost": 3}),
    }  # fmt: skip
    return History(
        info=RunInfo(
            run_id="20260101-120000-network_partition", experiment="network_partition", world="simulated", seed=7,
            complete=complete, ended_by="end of the last phase" if complete else "signal SIGINT",
            invariants=[1, 2, 3, 4, 5, 6, 7, 9], notes=["capacity probe: 78 requests/s"],
        ),
        experiment=EXPERIMENT,
        requests=frame("requests", requests),
        attempts=frame("attempts", attempts),
        events=frame("events", events),
        nodes=frame("nodes", samples),
        faults=frame("faults", [fault]),
        schedule=schedule,
        references=None,
    )  # fmt: skip


def empty_history() -> History:
    """A run that was cut before anything happened."""
    return History(
        info=RunInfo(
            run_id="nothing", experiment="network_partition", world="live", seed=1, complete=False,
            ended_by="no worker came up", invariants=[],
        ),
        experiment={},
        requests=frame("requests", []),
        attempts=frame("attempts", []),
        events=frame("events", []),
        nodes=frame("nodes", []),
        faults=frame("faults", []),
        schedule=_schedule([]),
        references=None,
    )  # fmt: skip


def _load(rng: np.random.Generator, workers: list[str]) -> tuple[list[dict[str, object]], list[dict[str, object]]]:
    requests: list[dict[str, object]] = []
    attempts: list[dict[str, object]] = []
    at = 0.0
    while True:
        at += float(rng.exponential(1 / (20 + 6 * np.sin(at / 5))))
        if at >= END_S:
            return requests, attempts
        cut = INJECTED_S <= at < HEALED_S
        alive = workers[1:] if cut and len(workers) > 1 else workers
        worker = alive[int(rng.integers(len(alive)))]
        latency = float(rng.lognormal(np.log(0.26 if not cut else 0.36), 0.22))
        outcome, code = "completed", ""
        if INJECTED_S - 0.3 <= at < INJECTED_S + 2.2 and rng.random() < 0.4:
            latency += float(rng.uniform(1.4, 2.4))
        if cut and at < INJECTED_S + 2 and rng.random() < 0.08:
            outcome, code, latency = "failed", "DEADLINE_EXCEEDED", 6.0
        elif cut and rng.random() < 0.004:
            outcome, code, latency = "refused", "QUEUE_FULL", 0.02
        tokens = int(rng.integers(12, 25)) if outcome == "completed" else 0
        name = f"r-{len(requests):05d}"
        first = at + latency * 0.3 if tokens else None
        requests.append({
            "node": "client-0", "request_id": name, "model": "tiny", "session_id": f"s-{len(requests) % 24}",
            "turn": 1, "prompt_id": f"p-{len(requests) % 90}", "prompt_tokens": 40, "max_tokens": 24,
            "intended_s": at, "sent_s": at + 0.001, "first_token_s": first, "ended_s": at + latency,
            "deadline_s": at + 6, "outcome": outcome, "code": code, "finish": "length" if tokens else "",
            "submissions": 1, "cached_tokens": 0, "strays": 0, "tokens": [1] * tokens, "segments": [],
        })  # fmt: skip
        attempts.append({
            "node": worker, "side": "worker", "request_id": name, "submission": 1,
            "attempt": 2 if latency > 1 else 1, "worker": worker, "worker_incarnation": 1, "begun_s": at + 0.002,
            "started_s": at + 0.01, "first_token_s": first, "ended_s": at + latency, "deadline_s": at + 6, "index": 0,
            "tokens": tokens, "outcome": outcome, "code": code,
        })  # fmt: skip


def _schedule(requests: list[dict[str, object]]) -> pd.DataFrame:
    read: pd.DataFrame = pa.Table.from_pylist(requests, schema=SCHEDULE_SCHEMA).to_pandas()
    return read


def _event(at: float, kind: str, node: str, subject: str, detail: str = "") -> dict[str, object]:
    return {
        "node": node, "time_s": at, "kind": kind, "subject": subject, "request_id": "", "submission": 0, "attempt": 0,
        "detail": detail,
    }  # fmt: skip


def _states(workers: list[str]) -> list[dict[str, object]]:
    events = [_event(0.05, "link_up", node, node) for node in (*workers, "controller", "client-0")]
    for worker in workers:
        events.append(_event(0.3, "worker_joined", "controller", worker))
        events.append(_event(1.4, "worker_ready", "controller", worker))
    lost = workers[0]
    events += [
        _event(22.2, "worker_suspected", "controller", lost),
        _event(22.6, "breaker_opened", "controller", lost),
        _event(24.1, "worker_dead", "controller", lost),
        _event(26.0, "link_down", lost, lost),
        _event(51.8, "link_up", lost, lost),
        _event(52.3, "worker_joined", "controller", lost),
        _event(52.6, "worker_ready", "controller", lost),
        _event(53.0, "breaker_half_open", "controller", lost),
        _event(53.9, "breaker_closed", "controller", lost),
    ]
    return events


def _samples(rng: np.random.Generator, workers: list[str]) -> list[dict[str, object]]:
    samples = []
    for at in np.arange(0, END_S, 0.5):
        cut = INJECTED_S <= at < HEALED_S
        for node, role in (*((worker, "worker") for worker in workers), ("controller", "controller")):
            idle = cut and node == workers[0]
            active = 0 if idle else int(rng.integers(1, 5)) + (2 if cut else 0)
            queue = 0 if idle or not cut else int(rng.poisson(0.8))
            samples.append({
                "node": node, "time_s": float(at), "role": role, "queue_depth": queue, "queue_max": 64,
                "active": active if role == "worker" else 0, "active_max": 8, "open_requests": active * len(workers),
                "open_requests_max": 512, "kv_bytes": 0, "kv_bytes_max": -1, "workers_ready": 3, "breakers_open": 0,
                "tokens_made": 0, "link_up": not idle, "messages_in": 0, "messages_out": 0, "subscriptions": 1,
                "loop_lag_s": 0.001, "cpu_share": 0.2 + 0.1 * active, "gpu_busy_reason": "no counter here",
                "resident_bytes": 2**28 + int(at) * 2**18, "mlx_active_bytes": 2**27 if role == "worker" else None,
            })  # fmt: skip
    return samples


def verdict(run: History, outcome: Outcome = Outcome.PASS) -> Verdict:
    """A verdict on such a run, with every kind of part in it."""
    bad = run.requests[run.requests["outcome"] != "completed"]["request_id"].tolist()
    good = Outcome.PASS
    return Verdict(
        verdict=outcome, experiment="network_partition", world="simulated", seed=7, complete=run.info.complete,
        reasons=[
            "99.03 % of the 621 requests offered during the fault completed; at least 99 % was asked for.",
            "The fault was in place from 21.0 s to 51.0 s and proved itself on worker-0's existing link.",
        ],
        counts=counts(run),
        criteria=[
            CriterionResult("success_during_fault", outcome, 0.9903, ">= 0.99", "share", 621, (0.982, 0.997),
                            "615 of 621 requests completed."),
            CriterionResult("detection", good, 1.234, "<= 3", "s", 1, None, "Suspected 1.2 s after the injection."),
            CriterionResult("mitigation", good, 2.75, "<= 4", "s", 1, None, "No request met the lost worker after."),
            CriterionResult("return_to_steady", good, 2.9, "<= 12", "s", 1, None, "Whole again 2.9 s after the heal."),
            CriterionResult("baseline.latency", Outcome.INCONCLUSIVE, None, "<= 3", "s", 12, None, "Too few samples."),
        ],
        invariants=[
            InvariantResult(1, "every request ends once", good, 0, "All requests ended once, by their deadline."),
            InvariantResult(5, "nothing superseded is delivered", Outcome.FAIL, 2, "Two attempts ran twice.", [
                Violation(24.5, "r-00012", "worker-0", "attempt 1 was executed twice"),
                Violation(None, "", "", "superseded work exceeds the budget"),
            ]),
            InvariantResult(10, "byte-identical history", Outcome.NOT_APPLICABLE, 0, "Not judged in one run."),
        ],
        faults=[FaultResult("partition", "worker-0", INJECTED_S, True, HEALED_S, {"pings_lost": 3, "mode": "stall"})],
        suffered=bad,
    )  # fmt: skip
