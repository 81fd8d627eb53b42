"""Every tunable of the cluster, with unit and default. Seconds, bytes and counts; the unit is last in the name."""

from typing import Annotated, Literal

import msgspec

from cluster.numbers import demand_finite

Seconds = Annotated[float, msgspec.Meta(gt=0, le=86_400)]
Count = Annotated[int, msgspec.Meta(ge=1, le=1_000_000)]
Bytes = Annotated[int, msgspec.Meta(ge=0, le=2**50)]
NodeName = Annotated[str, msgspec.Meta(pattern=r"^[A-Za-z0-9_-]{1,64}$")]
Share = Annotated[float, msgspec.Meta(ge=0, le=1)]


class _Section(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    pass


class LinkPolicy(_Section, frozen=True):
    """The bus connection of every node. A silent link is noticed after about `ping_s * (pings_outstanding_max + 1)`.

    The broker does the same with `broker_ping_s` and `broker_pings_outstanding_max`. A node whose connection is lost
    tries `reconnects_max` times to make another (null: for ever), then it stays off the bus.
    """

    ping_s: Seconds = 1.0
    pings_outstanding_max: Count = 2
    broker_ping_s: Seconds = 2.0
    broker_pings_outstanding_max: Count = 2
    reconnect_s: Seconds = 0.25
    reconnects_max: Count | None = None
    connect_s: Seconds = 1.0
    pending_messages_max: Count = 65_536


class ClientPolicy(_Section, frozen=True):
    """What a caller of the cluster does to get its answer.

    A submission that is not accepted within `accept_s`, or an accepted request without any news for `silence_s`
    (longer than the controller needs to give up an attempt), is submitted again, `resubmit_max` times at most.
    controller: the only one that it speaks to, as of callers on whom a new policy is tried first; null: any that
    answers, and another when that one is gone.
    """

    deadline_s: Seconds = 10.0
    ping_s: Seconds = 0.5
    contact_lost_s: Seconds = 2.0
    accept_s: Seconds = 1.0
    silence_s: Seconds = 5.0
    resubmit_max: Count = 8
    controller: NodeName | None = None
    open_requests_max: Count = 2_000


class MembershipPolicy(_Section, frozen=True):
    """Liveness by the controller's own clock.

    `dead_after_s` is longer than it takes a node to notice its own lost link, so that a controller which is cut off
    itself does not bury its workers. A worker whose heartbeats say that its engine has owed an answer for longer than
    `engine_silent_max_s` (longer than any step takes; null: however long) is suspected until it has answered.
    """

    heartbeat_s: Seconds = 0.5
    suspect_after_s: Seconds = 1.6
    dead_after_s: Seconds = 5.0
    engine_silent_max_s: Seconds | None = 3.0
    workers_max: Count = 10_000


class TimeoutPolicy(_Section, frozen=True):
    """Three timeouts of an attempt; the total is the request's own deadline. null: none.

    While its worker says that it loads a model, an attempt has `load_s` instead.
    """

    first_token_s: Seconds | None = 2.0
    between_tokens_s: Seconds | None = 1.5
    load_s: Seconds = 60.0


class RetryPolicy(_Section, frozen=True):
    """Retries wait `uniform(0, min(backoff_max_s, backoff_s * 2**n))` (full jitter) and are paid from a budget.

    The budget is a token bucket: each new request adds `budget_share`, each retry takes one, `budget_burst` at most.
    jitter: without it a retry waits the whole ceiling. exclude_failed: whether a worker on which the request has failed
    is not asked again.
    """

    max_attempts: Count = 3
    backoff_s: Seconds = 0.05
    backoff_max_s: Seconds = 1.0
    budget_share: Share = 0.2
    budget_burst: Count = 100
    jitter: bool = True
    exclude_failed: bool = True


class BreakerPolicy(_Section, frozen=True):
    """Circuit breaker per worker. Open times double up to `open_max_s`.

    judged_by: `stream` counts what became of a request; `dispatch` counts only whether somebody received it, so a
    worker that answers nothing keeps its breaker closed.
    """

    enabled: bool = True
    judged_by: Literal["stream", "dispatch"] = "stream"
    failures_to_open: Count = 3
    successes_to_close: Count = 1
    open_s: Seconds = 1.0
    open_max_s: Seconds = 4.0


class RoutingPolicy(_Section, frozen=True):
    """Who gets the next attempt. A session's worker is left when it has `affinity_slack` more open than the least.

    A request that nobody may take although somebody could (open breakers) is held for `hold_s` at most, looked at again
    every `hold_poll_s`; one that nobody has room for waits in line until its deadline. A worker has room for
    `outstanding_max` attempts of all controllers: a full batch and the next one. More would wait behind others for so
    long that their first token is late, and the worker would be blamed for a queue that we made.
    """

    affinity: bool = True
    affinity_slack: Count = 4
    outstanding_max: Count = 16
    hold_s: Seconds = 1.0
    hold_poll_s: Seconds = 0.1
    sessions_max: Count = 10_000
    session_ttl_s: Seconds = 1_800.0
    requests_max: Count = 4_000


class StreamPolicy(_Section, frozen=True):
    """Streams: how long tokens are gathered, and whether a broken stream goes on elsewhere."""

    flush_s: Seconds = 0.05
    migration: bool = True


class WorkerPolicy(_Section, frozen=True):
    """Limits of one worker.

    A step computes at most `prefill_step_tokens` tokens of prompts (of `prefill_batch_max` prompts), so running streams
    never wait longer than that takes and one step of decoding. A waiting request rises by one priority every
    `ageing_s`, here and at the controller.
    """

    batch_max: Count = 8
    prefill_batch_max: Count = 8
    prefill_step_tokens: Count = 512
    queue_max: Count = 64
    ageing_s: Seconds = 5.0
    context_max_tokens: Count = 4_096
    prewarm: bool = True


class MemoryPolicy(_Section, frozen=True):
    """What one worker may hold: weights, KV reservations of requests, kept caches. Its own, not the whole host's.

    bytes_max: null lets whoever starts the worker choose by the host's memory. Above `soft_share` of it caches are
    evicted and low priority is refused, until below `resume_share`. What does not fit at all is refused.
    Kept caches have `cache_bytes_max`, of which one session has `session_share_max` at most.
    """

    bytes_max: Bytes | None = None
    soft_share: Share = 0.85
    resume_share: Share = 0.7
    cache_bytes_max: Bytes = 512 * 2**20
    session_share_max: Share = 0.25
    sessions_told_max: Count = 64


class Policy(_Section, frozen=True):
    """All of it, in finite numbers. Profiles are YAML files in `cluster/policies/` that name only what differs.

    Raises ValueError naming the field (msgspec.ValidationError when decoded).
    """

    link: LinkPolicy = LinkPolicy()
    client: ClientPolicy = ClientPolicy()
    membership: MembershipPolicy = MembershipPolicy()
    timeout: TimeoutPolicy = TimeoutPolicy()
    retry: RetryPolicy = RetryPolicy()
    breaker: BreakerPolicy = BreakerPolicy()
    routing: RoutingPolicy = RoutingPolicy()
    stream: StreamPolicy = StreamPolicy()
    worker: WorkerPolicy = WorkerPolicy()
    memory: MemoryPolicy = MemoryPolicy()

    def __post_init__(self) -> None:
        demand_finite(self)
