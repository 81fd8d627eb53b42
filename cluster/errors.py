"""Error codes of the cluster: what each means, who may retry it, and its HTTP status."""

from enum import StrEnum
from typing import NamedTuple


class Code(StrEnum):
    """A code keeps its identity from the node that found the fault to the caller that reads it."""

    NO_WORKERS_AVAILABLE = "NO_WORKERS_AVAILABLE"
    QUEUE_FULL = "QUEUE_FULL"
    RESOURCE_LIMIT_EXCEEDED = "RESOURCE_LIMIT_EXCEEDED"
    WORKER_DRAINING = "WORKER_DRAINING"
    OVERLOADED = "OVERLOADED"
    FIRST_TOKEN_TIMEOUT = "FIRST_TOKEN_TIMEOUT"
    STREAM_STALLED = "STREAM_STALLED"
    STREAM_BROKEN = "STREAM_BROKEN"
    WORKER_LOST = "WORKER_LOST"
    WORKER_UNREACHABLE = "WORKER_UNREACHABLE"
    ENGINE_ERROR = "ENGINE_ERROR"
    DEADLINE_EXCEEDED = "DEADLINE_EXCEEDED"
    CONTROLLER_UNREACHABLE = "CONTROLLER_UNREACHABLE"
    MODEL_NOT_FOUND = "MODEL_NOT_FOUND"
    INVALID_REQUEST = "INVALID_REQUEST"
    CANCELLED = "CANCELLED"


class Traits(NamedTuple):
    """How the cluster treats a code.

    retryable: the controller may try another worker.
    blames_worker: it counts as a failure of the worker in its circuit breaker.
    refusal: the cluster said no before it did any work (reported as `refused`, not `failed`).
    http_status: what the gateway answers.
    meaning: one line for people.
    """

    retryable: bool
    blames_worker: bool
    refusal: bool
    http_status: int
    meaning: str


TRAITS: dict[Code, Traits] = {
    Code.NO_WORKERS_AVAILABLE: Traits(True, False, True, 503, "no worker is alive and ready for this model"),
    Code.QUEUE_FULL: Traits(True, False, True, 429, "the worker's queue is full"),
    Code.RESOURCE_LIMIT_EXCEEDED: Traits(True, False, True, 429, "the worker's memory limit forbids the request"),
    Code.WORKER_DRAINING: Traits(True, False, True, 503, "the worker finishes its work and takes no more"),
    Code.OVERLOADED: Traits(False, False, True, 429, "the cluster holds as many requests as it may"),
    Code.FIRST_TOKEN_TIMEOUT: Traits(True, True, False, 504, "the worker made no first token in time"),
    Code.STREAM_STALLED: Traits(True, True, False, 504, "the worker stopped in the middle of a stream"),
    Code.STREAM_BROKEN: Traits(True, True, False, 502, "a part of the worker's stream was lost on the way"),
    Code.WORKER_LOST: Traits(True, True, False, 502, "the worker died or restarted with the request on it"),
    Code.WORKER_UNREACHABLE: Traits(True, True, False, 502, "nobody listens on the worker's subject"),
    Code.ENGINE_ERROR: Traits(True, True, False, 500, "the engine failed while it computed"),
    Code.DEADLINE_EXCEEDED: Traits(False, False, False, 504, "the request's deadline passed"),
    Code.CONTROLLER_UNREACHABLE: Traits(False, False, False, 503, "the client had no contact with a controller"),
    Code.MODEL_NOT_FOUND: Traits(False, False, True, 404, "the cluster does not serve this model"),
    Code.INVALID_REQUEST: Traits(False, False, True, 400, "the request is malformed"),
    Code.CANCELLED: Traits(False, False, False, 499, "the caller went away"),
}
