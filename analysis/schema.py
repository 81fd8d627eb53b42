"""The published schema: one struct per table of a results directory.

Every table starts with the columns of `STAMP`, which the recorder adds: who wrote the row, in which incarnation, and
the row's number there. Times in a struct are seconds of the writing node's monotonic clock; the merge turns every
column whose name ends in `_s` and is listed in `TIME_COLUMNS` into seconds since the run began.

This module is a leaf that everyone may import: it knows neither Arrow nor the cluster.
"""

from typing import Any, ClassVar

import msgspec


class Gauges(msgspec.Struct, frozen=True):
    """Levels of a node that must stay below their bounds and return to base. Bytes and counts; -1 means no bound.

    kv_bytes: reserved for running requests. cache_bytes: kept for prompts to come. memory_bytes: weights and both of
    these. From `tokens_made` on, and where they stand between: counters since the node began, which never fall:
    tokens_made, session_*, retries, migrations, breaker_trips, steps, decode_s, prefill_*, cached_tokens.
    """

    role: str = ""
    queue_depth: int = 0
    queue_max: int = -1
    active: int = 0
    active_max: int = -1
    open_requests: int = 0
    open_requests_max: int = -1
    kv_bytes: int = 0
    kv_bytes_max: int = -1
    workers_ready: int = -1
    breakers_open: int = -1
    tokens_made: int = 0
    cache_bytes: int = 0
    cache_bytes_max: int = -1
    memory_bytes: int = 0
    memory_bytes_max: int = -1
    sessions: int = 0
    sessions_max: int = -1
    session_hits: int = 0
    session_misses: int = 0
    session_moves: int = 0
    retries: int = 0
    migrations: int = 0
    breaker_trips: int = 0
    steps: int = 0
    decode_s: float = 0.0
    prefill_tokens: int = 0
    prefill_s: float = 0.0
    cached_tokens: int = 0


class Segment(msgspec.Struct, frozen=True):
    """Consecutive delivered tokens that came from one attempt in one message."""

    index: int
    count: int
    submission: int
    attempt: int
    worker: str
    worker_incarnation: int
    received_s: float


class RequestRow(msgspec.Struct, frozen=True):
    """One request, written once by its client when it ends.

    outcome: completed, failed, refused or cancelled. code: empty when completed. `first_token_s` is None when no
    token came. `strays` counts chunks that arrived and were not delivered (late, duplicate or superseded).
    """

    TABLE: ClassVar[str] = "requests"
    TIME_COLUMNS: ClassVar[tuple[str, ...]] = ("intended_s", "sent_s", "first_token_s", "ended_s", "deadline_s")

    request_id: str
    model: str
    session_id: str
    turn: int
    prompt_id: str
    prompt_tokens: int
    max_tokens: int
    intended_s: float
    sent_s: float
    first_token_s: float | None
    ended_s: float
    deadline_s: float
    outcome: str
    code: str
    finish: str
    submissions: int
    cached_tokens: int
    strays: int
    tokens: list[int]
    segments: list[Segment]


class AttemptRow(msgspec.Struct, frozen=True):
    """One attempt as one side saw it, written when it ends there.

    side: `controller` or `worker`. begun_s: dispatched (controller) or received (worker). started_s: given to the
    engine (worker only). index: completion position at which the attempt began. tokens: how many it made (worker) or
    how many were taken from it (controller). outcome: completed, failed, refused, withdrawn, superseded or discarded
    (never started: late or duplicate). deadline_s is in the clock of the row's node. Waiting took `started_s -
    begun_s`, prefill `first_token_s - started_s`, decoding the rest. cached_tokens: of the prompt, not computed again.
    batch_mean: sequences in a decode step, averaged over the attempt's steps (worker only, 0 when it made none).
    """

    TABLE: ClassVar[str] = "attempts"
    TIME_COLUMNS: ClassVar[tuple[str, ...]] = ("begun_s", "started_s", "first_token_s", "ended_s", "deadline_s")

    side: str
    request_id: str
    submission: int
    attempt: int
    worker: str
    worker_incarnation: int
    begun_s: float
    started_s: float | None
    first_token_s: float | None
    ended_s: float
    deadline_s: float
    index: int
    tokens: int
    outcome: str
    code: str
    cached_tokens: int = 0
    batch_mean: float = 0.0
    priority: int = 0


class EventRow(msgspec.Struct, frozen=True):
    """Something that happened. kind: see `EVENT_KINDS`. subject: the node (or phase) it is about."""

    TABLE: ClassVar[str] = "events"
    TIME_COLUMNS: ClassVar[tuple[str, ...]] = ("time_s",)

    time_s: float
    kind: str
    subject: str = ""
    request_id: str = ""
    submission: int = 0
    attempt: int = 0
    detail: str = ""


EVENT_KINDS: dict[str, str] = {
    "node_started": "a node's shell began to drive it",
    "node_stopped": "a node's shell ended it on request",
    "link_up": "the node's bus connection is up and its subscription flushed",
    "link_down": "the node noticed that its bus connection is gone",
    "worker_joined": "the controller heard a new incarnation of the worker for the first time",
    "worker_ready": "the controller may route to the worker",
    "worker_suspected": "heartbeats of the worker are overdue: no new work for it",
    "worker_forgotten": "a dead worker is no member any more: a new one needed its place",
    "worker_dead": "the worker is declared dead: its open attempts are given up",
    "breaker_opened": "the worker's circuit breaker opened",
    "breaker_half_open": "one probe may pass",
    "breaker_closed": "the worker's circuit breaker closed",
    "request_accepted": "the controller put a request into its ledger",
    "request_resumed": "the controller took a known request again from its client",
    "attempt_started": "the worker gave an attempt to its engine",
    "attempt_discarded": "the worker refused to start an attempt: late, duplicate, superseded or not for it",
    "retry": "the controller will try a request again",
    "migration": "a broken stream goes on elsewhere from the tokens already delivered",
    "stale_report": "the controller dropped news of an attempt that it had given up",
    "request_asked": "a request of a closed load was sent, and is offered from now on",
    "load_ran_dry": "a closed load (the subject) had no request left to ask before its time was over",
    "resubmitted": "the client submitted a request again",
    "contact_lost": "the client has not heard from a controller (the subject) for too long",
    "stray_chunk": "the client dropped a chunk that it no longer wanted or had already",
    "model_state": "a model changed state on a worker",
    "engine_died": "a worker's engine ended",
    "host_stall": "the host did not run our process for a while; detail begins with its length in seconds",
    "run_started": "the world is up: time zero of all tables",
    "phase_started": "a phase of the experiment began",
    "phase_ended": "a phase of the experiment ended",
    "run_ended": "the last phase is over and the load has drained",
    "fault_repeated": "a fault that strikes again and again struck the subject once more",
    "worker_incompatible": "the controller ignores a worker that speaks another version of the protocol",
    "model_timing": "how long a model took to become warm; detail is a JSON object of seconds by part",
    "block_started": "requests of an arm (the subject) count from now on; detail is the block's number",
    "block_ended": "the last request of a block was asked; detail is its number",
    "worker_action": "a worker was restarted, or told to evict or pre-warm a model; detail is what came of it, in JSON",
    "guard": "a stop condition was met",
    "record_ended": "what the node decides is recorded no longer, though it goes on; detail says why",
    "probe_refuted": "a probe of somebody else's cluster did not hold at the end; detail says which, and how",
    "note": "a remark of the director",
}


class NodeRow(msgspec.Struct, frozen=True):
    """A sample of one node: its gauges, its process and its link. None where a value cannot be had here."""

    TABLE: ClassVar[str] = "nodes"
    TIME_COLUMNS: ClassVar[tuple[str, ...]] = ("time_s",)

    time_s: float
    role: str
    queue_depth: int
    queue_max: int
    active: int
    active_max: int
    open_requests: int
    open_requests_max: int
    kv_bytes: int
    kv_bytes_max: int
    workers_ready: int
    breakers_open: int
    tokens_made: int
    cache_bytes: int
    cache_bytes_max: int
    memory_bytes: int
    memory_bytes_max: int
    sessions: int
    sessions_max: int
    session_hits: int
    session_misses: int
    session_moves: int
    retries: int
    migrations: int
    breaker_trips: int
    steps: int
    decode_s: float
    prefill_tokens: int
    prefill_s: float
    cached_tokens: int
    link_up: bool
    messages_in: int
    messages_out: int
    subscriptions: int
    loop_lag_s: float
    cpu_share: float | None = None
    resident_bytes: int | None = None
    mlx_active_bytes: int | None = None
    mlx_peak_bytes: int | None = None
    gpu_busy: float | None = None
    gpu_busy_reason: str = ""

    @classmethod
    def of(cls, time_s: float, gauges: Gauges, **levels: Any) -> "NodeRow":
        """A sample from a node's gauges and, by name, what its shell knows of its process and its link."""
        return cls(time_s=time_s, **msgspec.structs.asdict(gauges), **levels)


class FaultRow(msgspec.Struct, frozen=True):
    """One fault, written by the director when it ends. None: it never came to that.

    targets: node names. parameters and evidence: JSON objects. explains: error codes that callers may see because of
    this fault, from its injection until the experiment's recovery limit after its heal. states: what its targets and
    the controllers were in the midst of when it struck, as `name at node: value`. predicted_detection_s: when it had to
    be noticed at the latest by what the policy says, after the injection, and predicted_by: by what; None: it need not.
    """

    TABLE: ClassVar[str] = "faults"
    TIME_COLUMNS: ClassVar[tuple[str, ...]] = ("injected_s", "verified_s", "healed_s")

    name: str
    kind: str
    targets: list[str]
    parameters: str
    injected_s: float | None
    verified: bool
    verified_s: float | None
    healed_s: float | None
    heal_verified: bool
    explains: list[str]
    evidence: str
    states: list[str] = []
    predicted_detection_s: float | None = None
    predicted_by: str = ""


Row = RequestRow | AttemptRow | EventRow | NodeRow | FaultRow
ROW_TYPES: tuple[type[Row], ...] = (RequestRow, AttemptRow, EventRow, NodeRow, FaultRow)
STAMP: dict[str, type] = {"node": str, "incarnation": int, "sequence": int}
PROBE_PREFIX = "probe-"
"""Requests whose id begins so belong to the capacity probe before the run, and to no table of the run."""
