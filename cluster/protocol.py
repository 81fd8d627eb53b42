"""Every message on the wire and every subject name.

Messages are msgspec structs in MessagePack, told apart by a tag, with a checksum behind them: what was damaged on the
way is no message, or a changed byte would be a token that no model made.

Clocks: every node has its own monotonic clock in seconds and no two are assumed equal. A field named `deadline_s` is in
the *receiver's* clock (see `ClockBound`), and only the incarnation it was computed for may believe it, so the message
names that incarnation too.
"""

import zlib
from typing import ClassVar

import msgspec

Token = int
"""A token id of the model's vocabulary."""

VERSION = 4
"""Of this protocol. Raised whenever a message changes; nodes of different versions do not work together."""

CONTROLLERS = "controllers"
"""Address of one controller, whichever the broker picks (a queue group)."""

EVERY_CONTROLLER = "every-controller"
"""Address of all controllers at once."""

PRIORITIES = (-1, 0, 1)
"""Low, normal, high."""


class ClockBound:
    """A lower bound of another node's clock, learnt from the times it puts into its messages.

    A message that says `sent_s` and arrives at our `now` proves `their clock - our clock >= sent_s - now`, because
    travel takes time. The largest such value is the tightest bound. A deadline translated with it is never too late.
    """

    __slots__ = ("ahead_s",)

    def __init__(self) -> None:
        self.ahead_s: float | None = None

    def observe(self, sent_s: float, now: float) -> None:
        """Learn from a message sent at `sent_s` (their clock) and received at `now` (ours), both in seconds."""
        ahead = sent_s - now
        if self.ahead_s is None or ahead > self.ahead_s:
            self.ahead_s = ahead

    def to_theirs(self, time_s: float) -> float:
        """Our time in seconds as a not later time of their clock. Raises ValueError before the first observation."""
        if self.ahead_s is None:
            raise ValueError("no message from that node yet: its clock is unknown")
        return time_s + self.ahead_s


class AttemptId(msgspec.Struct, frozen=True, array_like=True, order=True):
    """Names one execution of a request on one worker.

    submission: how often the client has submitted the request (from 1). attempt: the controller's count (from 1).
    """

    request_id: str
    submission: int
    attempt: int


class Sampling(msgspec.Struct, frozen=True, array_like=True):
    """How tokens are chosen. temperature 0 is greedy; top_p: the smallest set of tokens with this probability."""

    temperature: float = 0.0
    top_p: float = 1.0


GREEDY = Sampling()


class _Message(msgspec.Struct, frozen=True, array_like=True, tag_field="type"):
    pass


class Ping(_Message, frozen=True, array_like=True, tag="ping"):
    """Client to a controller: are you there, and what does your clock say?"""

    client: str


class Pong(_Message, frozen=True, array_like=True, tag="pong"):
    """Controller to client. `sent_s` is the controller's clock."""

    controller: str
    incarnation: int
    sent_s: float


class Submit(_Message, frozen=True, array_like=True, tag="submit"):
    """Client to controller: complete `prompt`, of which `delivered` tokens have reached the caller already.

    worker: the wished one; empty: whichever the controller chooses. It is asked as long as it may take the request,
    and waited for while it is only full. Otherwise, and after a failure there, the request goes wherever it can.
    """

    client: str
    controller_incarnation: int
    request_id: str
    submission: int
    model: str
    prompt: tuple[Token, ...]
    delivered: tuple[Token, ...]
    max_tokens: int
    deadline_s: float
    session_id: str | None = None
    priority: int = 0
    sampling: Sampling = GREEDY
    worker: str = ""


class Accepted(_Message, frozen=True, array_like=True, tag="accepted"):
    """Controller to client: the request is in the ledger."""

    request_id: str
    submission: int


class Cancel(_Message, frozen=True, array_like=True, tag="cancel"):
    """Client to controller: nobody waits for this request any more."""

    client: str
    request_id: str


class Chunk(msgspec.Struct, frozen=True, array_like=True):
    """A run of consecutive tokens of one request, made by one attempt on one worker.

    index: position of the first token in the completion (prompt excluded, tokens of earlier attempts included).
    times_s: when the engine made each token, worker's clock. finish: `stop` or `length` on the last chunk.
    code: set instead of finish when the attempt (worker to controller) or the request (controller to client) failed.
    """

    attempt: AttemptId
    index: int
    tokens: tuple[Token, ...] = ()
    times_s: tuple[float, ...] = ()
    finish: str | None = None
    code: str | None = None
    worker: str = ""
    worker_incarnation: int = 0
    cached_tokens: int = 0


class Delivery(_Message, frozen=True, array_like=True, tag="delivery"):
    """Controller to client: news of its streams. Each chunk comes with the submission that the client last made."""

    controller_incarnation: int
    chunks: tuple[tuple[int, Chunk], ...]


class ModelState(msgspec.Struct, frozen=True, array_like=True):
    """A model on a worker. state: cold, loading, warm or failed."""

    model: str
    state: str


class Heartbeat(_Message, frozen=True, array_like=True, tag="heartbeat"):
    """Worker to every controller, complete in itself: whoever hears one can route to the worker.

    `sent_s` is the worker's clock. `engine_silent_s`: for how long the engine has owed a report or the answer to a
    probe, 0 when it owes nothing.
    pressure: of memory, 0 none, 1 soft (no low priority), 2 hard (nothing new). sessions: some of the sessions whose
    cache the worker holds: those of the last requests first, then the others in turn from one heartbeat to the next.
    shares: how many of the attempts that wait or run here each controller has given.
    """

    worker: str
    incarnation: int
    sent_s: float
    models: tuple[ModelState, ...]
    queue_depth: int
    active: int
    batch_max: int
    draining: bool
    engine_silent_s: float = 0.0
    pressure: int = 0
    sessions: tuple[str, ...] = ()
    shares: tuple[tuple[str, int], ...] = ()
    version: int = VERSION


class Dispatch(_Message, frozen=True, array_like=True, tag="dispatch"):
    """Controller to worker: continue `prompt` + `delivered`. `max_tokens` counts the delivered ones too."""

    attempt: AttemptId
    controller: str
    worker_incarnation: int
    model: str
    prompt: tuple[Token, ...]
    delivered: tuple[Token, ...]
    max_tokens: int
    deadline_s: float
    session_id: str | None = None
    priority: int = 0
    sampling: Sampling = GREEDY


class Withdraw(_Message, frozen=True, array_like=True, tag="withdraw"):
    """Controller to worker: nobody waits for this attempt any more; free its slot."""

    attempt: AttemptId


class Drain(_Message, frozen=True, array_like=True, tag="drain"):
    """To a worker: finish what you have, take nothing new."""


class Prewarm(_Message, frozen=True, array_like=True, tag="prewarm"):
    """To a worker: have this model warm, before those of lower priority."""

    model: str
    priority: int = 0


class Evict(_Message, frozen=True, array_like=True, tag="evict"):
    """To a worker: drop this model from memory as soon as nobody waits for it, until somebody asks for it again."""

    model: str


class StreamReport(_Message, frozen=True, array_like=True, tag="report"):
    """Worker to controller: news of all streams that the controller gave it, in one message."""

    worker: str
    incarnation: int
    sent_s: float
    chunks: tuple[Chunk, ...]


Message = (
    Ping
    | Pong
    | Submit
    | Accepted
    | Cancel
    | Delivery
    | Heartbeat
    | Dispatch
    | Withdraw
    | Drain
    | Prewarm
    | Evict
    | StreamReport
)

_CHECKSUM_BYTES = 4
_CHECKED_SINCE = 3
"""The first version of the protocol with checksums."""
_encoder = msgspec.msgpack.Encoder()
_decoder: msgspec.msgpack.Decoder[Message] = msgspec.msgpack.Decoder(Message)
_heartbeat_decoder = msgspec.msgpack.Decoder(Heartbeat)


def encode(message: Message) -> bytes:
    """The message as MessagePack, and its CRC-32."""
    body = _encoder.encode(message)
    return body + _checksum(body)


def decode(payload: bytes) -> Message:
    """The message in `payload`. Raises msgspec.DecodeError (ValidationError when the shape is wrong)."""
    body = payload[:-_CHECKSUM_BYTES]
    if payload[-_CHECKSUM_BYTES:] != _checksum(body):
        stranger = _older_heartbeat(payload)
        if stranger is None:
            raise msgspec.DecodeError("its checksum does not fit")
        return stranger
    try:
        return _decoder.decode(body)
    except UnicodeDecodeError as error:
        raise msgspec.DecodeError(f"text that is not UTF-8: {error}") from error


def _older_heartbeat(payload: bytes) -> Heartbeat | None:
    """Nodes of older versions send no checksum. Their heartbeats are read, so that somebody can say who they are."""
    try:
        heartbeat = _heartbeat_decoder.decode(payload)
    except (msgspec.DecodeError, UnicodeDecodeError):
        return None
    return heartbeat if heartbeat.version < _CHECKED_SINCE else None


def _checksum(body: bytes) -> bytes:
    return zlib.crc32(body).to_bytes(_CHECKSUM_BYTES, "little")


class Subject:
    """Subject names. A node subscribes to `inbox(node).>`; what is sent to it goes to `of(node)`.

    Controllers also subscribe to `of(EVERY_CONTROLLER)`, and to `of(CONTROLLERS)` as one queue group.
    """

    PREFIX: ClassVar[str] = "mlxc"

    @classmethod
    def inbox(cls, node: str) -> str:
        """Root of all subjects of one node."""
        return f"{cls.PREFIX}.{node}"

    @classmethod
    def of(cls, node: str) -> str:
        """Where messages to a node are published."""
        return f"{cls.PREFIX}.{node}.in"
