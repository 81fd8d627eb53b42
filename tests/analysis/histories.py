"""Synthetic histories: a clean run with one fault, whose rows a test may change before it reads them back."""

from typing import Any

import msgspec
import pandas as pd
import pyarrow as pa

from analysis.history import History, RunInfo
from analysis.schema import AttemptRow, EventRow, FaultRow, Gauges, NodeRow, RequestRow, Row, Segment
from analysis.tables import REFERENCES_SCHEMA, SCHEDULE_SCHEMA, SCHEMAS, to_batch

WORKERS = ("worker-0", "worker-1", "worker-2")
PHASES = {"warm_up": (0.0, 2.0), "baseline": (2.0, 8.0), "fault": (8.0, 16.0), "recovery": (16.0, 28.0)}
INJECTED_S, HEALED_S, RUN_END_S = 9.0, 14.0, 29.0
BREAKER_OPENED_S, READY_AGAIN_S = 10.2, 15.0
MAX_TOKENS = 12
INTERVAL_S = 0.08
LATENCY_S = 0.2

EXPERIMENT: dict[str, Any] = {
    "name": "network_partition",
    "cluster": {"workers": 3},
    "phases": {name: {"duration_s": end - start} for name, (start, end) in PHASES.items()},
    "baseline_phase": "baseline",
    "recovery_phase": "recovery",
    "recovery_limit_s": 6.0,
    "faults": {"cut": {"kind": "partition", "targets": ["worker-0"]}},
    "steady_state": {
        "success": {"metric": "success_rate", "at_least": 0.95, "confidence": 0.8},
        "latency": {"metric": "latency_p95_s", "at_most": 1.0, "confidence": 0.9},
    },
    "expectations": {
        "success_during_fault": {"metric": "success_rate", "phase": "fault", "at_least": 0.95, "samples_min": 90},
        "detection": {"metric": "detection_s", "at_most": 3.0},
        "mitigation": {"metric": "mitigation_s", "at_most": 4.0, "when_target": "worker"},
        "return_to_steady": {"metric": "return_to_steady_s", "at_most": 6.0},
        "told_in_time": {
            "metric": "told_in_time_rate",
            "phase": "fault",
            "at_least": 0.95,
            "when_target": "controller",
        },
    },
    "policy": {
        "membership": {"heartbeat_s": 0.5, "suspect_after_s": 1.6, "dead_after_s": 5.0},
        "retry": {"budget_share": 0.2, "budget_burst": 100},
    },
}
INFO = RunInfo(
    run_id="r1",
    experiment="network_partition",
    world="simulated",
    seed=7,
    complete=True,
    ended_by="the last phase was over",
    invariants=[1, 2, 3, 4, 5, 6, 7, 8, 9],
)


class Run:
    """The rows of a run by table, each with its writer: change them, then read `history()`."""

    def __init__(self) -> None:
        self.rows: dict[str, list[tuple[str, int, Row]]] = {table: [] for table in SCHEMAS}
        self.schedule: list[dict[str, Any]] = []
        self.references: list[dict[str, Any]] | None = []
        self.info = INFO
        self.experiment: dict[str, Any] = EXPERIMENT

    def add(self, node: str, row: Row, incarnation: int = 1) -> None:
        """Append a row that `node` wrote."""
        self.rows[row.TABLE].append((node, incarnation, row))

    def find(self, table: str, **equal: Any) -> list[Any]:
        """The rows with these field values."""
        return [
            row for _, _, row in self.rows[table] if all(getattr(row, name) == value for name, value in equal.items())
        ]

    def change(self, old: Row, **fields: Any) -> None:
        """Put a changed copy in the place of a row."""
        rows = self.rows[old.TABLE]
        at = next(at for at, (_, _, row) in enumerate(rows) if row is old)
        rows[at] = (*rows[at][:2], msgspec.structs.replace(old, **fields))

    def drop(self, old: Row) -> None:
        """Take a row out."""
        self.rows[old.TABLE] = [entry for entry in self.rows[old.TABLE] if entry[2] is not old]

    def event(self, node: str, time_s: float, kind: str, subject: str = "", **fields: Any) -> None:
        """Append an event."""
        self.add(node, EventRow(time_s, kind, subject, **fields))

    def history(self) -> History:
        """The run as the checkers see it."""
        references = None if self.references is None else _frame(self.references, REFERENCES_SCHEMA)
        return History(
            info=self.info,
            experiment=self.experiment,
            schedule=_frame(self.schedule, SCHEDULE_SCHEMA),
            references=references,
            **{table: self._table(table) for table in SCHEMAS},
        )

    def _table(self, table: str) -> pd.DataFrame:
        written: dict[tuple[str, int], list[tuple[int, Row]]] = {}
        for sequence, (node, incarnation, row) in enumerate(self.rows[table]):
            written.setdefault((node, incarnation), []).append((sequence, row))
        batches = [to_batch(table, *writer, rows) for writer, rows in written.items()]
        frame: pd.DataFrame = pa.Table.from_batches(batches, schema=SCHEMAS[table]).to_pandas()
        return frame.sort_values(["node", "incarnation", "sequence"], ignore_index=True)


def _frame(rows: list[dict[str, Any]], schema: Any) -> pd.DataFrame:
    frame: pd.DataFrame = pa.Table.from_pylist(rows, schema=schema).to_pandas()
    return frame


def clean_run(target: str = "worker-0") -> Run:
    """A run in which `worker-0` is cut off from 9 s to 14 s, noticed after 1.2 s, and back at 15 s; nobody suffers."""
    run = Run()
    _add_events(run, target)
    number = 0
    intended_s = 0.02
    while intended_s < PHASES["recovery"][1] - 0.5:
        _add_request(run, number, intended_s)
        number += 1
        intended_s = 0.02 + number * INTERVAL_S
    _add_samples(run)
    return run


def _add_events(run: Run, target: str) -> None:
    run.event("director", 0.0, "run_started")
    for name, (start_s, end_s) in PHASES.items():
        run.event("director", start_s, "phase_started", name)
        run.event("director", end_s, "phase_ended", name)
    run.event("controller", -3.0, "node_started", "controller")
    for worker in WORKERS:
        run.event("controller", -2.0, "worker_joined", worker)
        run.event("controller", -2.0, "worker_ready", worker)
    run.event("controller", BREAKER_OPENED_S, "breaker_opened", "worker-0")
    run.event("controller", 10.6, "worker_suspected", "worker-0")
    run.event("controller", 13.9, "worker_dead", "worker-0")
    run.event("controller", READY_AGAIN_S, "worker_ready", "worker-0")
    run.event("controller", READY_AGAIN_S, "breaker_half_open", "worker-0")
    run.event("controller", 15.4, "breaker_closed", "worker-0")
    run.event("director", RUN_END_S, "run_ended")
    for node in (*WORKERS, "controller", "client-0"):
        run.event(node, RUN_END_S + 0.2, "node_stopped", node)
    run.add(
        "director",
        FaultRow(
            name="cut",
            kind="partition",
            targets=[target],
            parameters="{}",
            injected_s=INJECTED_S,
            verified=True,
            verified_s=9.5,
            healed_s=HEALED_S,
            heal_verified=True,
            explains=["FIRST_TOKEN_TIMEOUT"],
            evidence='{"pings_lost": 3}',
        ),
    )


def _add_request(run: Run, number: int, intended_s: float) -> None:
    request_id, prompt_id = f"r{number}", f"p{number}"
    tokens = [1000 * number + index for index in range(MAX_TOKENS)]
    cut = BREAKER_OPENED_S <= intended_s < READY_AGAIN_S
    worker = WORKERS[1 + number % 2] if cut else WORKERS[number % 3]
    ended_s = intended_s + LATENCY_S
    attempt = 1
    if worker == "worker-0" and INJECTED_S - LATENCY_S < intended_s < BREAKER_OPENED_S:
        failed_s = intended_s + 1.0
        _add_attempt(run, request_id, 1, worker, intended_s, failed_s, 0, "FIRST_TOKEN_TIMEOUT")
        run.event("controller", failed_s, "retry", "worker-1", request_id=request_id, submission=1, attempt=2)
        attempt, worker, ended_s = 2, "worker-1", failed_s + LATENCY_S
    _add_attempt(run, request_id, attempt, worker, ended_s - 0.18, ended_s - 0.01, MAX_TOKENS, "")
    half = MAX_TOKENS // 2
    run.add(
        "client-0",
        RequestRow(
            request_id=request_id,
            model="tiny",
            session_id=f"s{number % 8}",
            turn=0,
            prompt_id=prompt_id,
            prompt_tokens=30,
            max_tokens=MAX_TOKENS,
            intended_s=intended_s,
            sent_s=intended_s + 0.001,
            first_token_s=ended_s - 0.1,
            ended_s=ended_s,
            deadline_s=intended_s + 10.0,
            outcome="completed",
            code="",
            finish="length",
            submissions=1,
            cached_tokens=0,
            strays=0,
            tokens=tokens,
            segments=[
                Segment(0, half, 1, attempt, worker, 1, ended_s - 0.1),
                Segment(half, MAX_TOKENS - half, 1, attempt, worker, 1, ended_s),
            ],
        ),
    )
    run.schedule.append(
        {
            "request_id": request_id,
            "intended_s": intended_s,
            "session_id": f"s{number % 8}",
            "turn": 0,
            "prompt_id": prompt_id,
            "prompt_tokens": 30,
            "max_tokens": MAX_TOKENS,
        }
    )
    assert run.references is not None
    run.references.append({"prompt_id": prompt_id, "tokens": [*tokens, *range(20)]})


def _add_attempt(
    run: Run, request_id: str, attempt: int, worker: str, begun_s: float, ended_s: float, tokens: int, code: str
) -> None:
    fields: dict[str, Any] = {
        "request_id": request_id,
        "submission": 1,
        "attempt": attempt,
        "worker": worker,
        "worker_incarnation": 1,
        "ended_s": ended_s,
        "first_token_s": None,
        "deadline_s": begun_s + 9.0,
        "index": 0,
        "tokens": tokens,
        "code": code,
    }
    outcome = "failed" if code else "completed"
    run.add("controller", AttemptRow(side="controller", begun_s=begun_s, started_s=None, outcome=outcome, **fields))
    if code:
        return
    started_s = begun_s + 0.02
    run.event(worker, started_s, "attempt_started", worker, request_id=request_id, submission=1, attempt=attempt)
    run.add(worker, AttemptRow(side="worker", begun_s=begun_s + 0.01, started_s=started_s, outcome=outcome, **fields))


def _add_samples(run: Run) -> None:
    for step in range(60):
        time_s = step * 0.5
        for node in (*WORKERS, "controller"):
            run.add(node, sample(node, time_s, active=1 if time_s < 28 else 0))


def sample(node: str, time_s: float, **fields: Any) -> NodeRow:
    """A node sample within its bounds."""
    values: dict[str, Any] = {
        "role": node.split("-")[0],
        "queue_depth": 0,
        "queue_max": 64,
        "active": 0,
        "active_max": 8,
        "open_requests": 0,
        "open_requests_max": 4000,
        "kv_bytes": 0,
        "kv_bytes_max": -1,
        "workers_ready": 3,
        "breakers_open": 0,
        "tokens_made": 0,
        "link_up": True,
        "messages_in": 0,
        "messages_out": 0,
        "subscriptions": 1,
        "loop_lag_s": 0.0,
    }
    return NodeRow(time_s=time_s, **(msgspec.structs.asdict(Gauges()) | values | fields))
