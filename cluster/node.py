"""The one contract between the pure nodes (client, controller, worker) and the shells that drive them.

A node is a plain synchronous object. The shell calls `handle(event, now)` and carries out the returned commands in
order; it asks `next_wake()` afterwards and sends a `Wake` at that time. `now` is the node's own monotonic clock in
seconds. A node never sleeps, awaits, opens a socket, reads a clock, starts a thread or uses global randomness.
"""

from collections.abc import Sequence
from typing import Protocol

import msgspec

from analysis.schema import Gauges, Row
from cluster.protocol import GREEDY, Message, Sampling, Token


class Event(msgspec.Struct, frozen=True, array_like=True, tag=True):
    """Something that happened to a node."""


class Received(Event, frozen=True):
    """A message arrived on the node's inbox."""

    message: Message


class LinkUp(Event, frozen=True):
    """The bus is reachable and the node's subscription has been flushed: it may announce itself."""


class LinkDown(Event, frozen=True):
    """The bus connection is lost. Sends fail until the next LinkUp; nothing is buffered."""

    reason: str = ""


class SendFailed(Event, frozen=True):
    """A Send of this node was not put on the wire."""

    to: str
    message: Message


class NoResponders(Event, frozen=True):
    """The broker said that nobody subscribes to the addressee of this Send."""

    to: str
    message: Message


class Stopping(Event, frozen=True):
    """The process ends in an orderly way: record how what is open has ended here. Nothing is sent any more."""


class Wake(Event, frozen=True):
    """The time that `next_wake` named has come (or passed)."""


class SequenceProgress(msgspec.Struct, frozen=True):
    """New tokens of one engine sequence.

    tokens and times_s have equal length; times are in the node's clock, seconds. finish: None while it runs, else
    `stop` (an end token came; it is not among the tokens), `length`, or `error`. cached_tokens: tokens of the prompt
    that were taken from a kept cache. kept_tokens, kept_bytes: what the cache holds that the engine has kept of a
    finished sequence under its `keep_as`: the beginning of its prompt and completion, usually all of them; 0: nothing.
    """

    sequence: int
    tokens: tuple[Token, ...]
    times_s: tuple[float, ...]
    finish: str | None = None
    cached_tokens: int = 0
    kept_tokens: int = 0
    kept_bytes: int = 0


class EngineReport(Event, frozen=True):
    """The engine's news: at a first token, at a finish, and `stream.flush_s` after its last report.

    One report names all sequences that have news, in order of insertion. Since the last report: steps of decoding and
    the seconds they took, tokens of prompts and the seconds they took. active_bytes: what the engine holds in memory
    now, 0 when it cannot say.
    """

    progress: tuple[SequenceProgress, ...]
    steps: int = 0
    decode_s: float = 0.0
    prefill_tokens: int = 0
    prefill_s: float = 0.0
    active_bytes: int = 0


class ModelLoaded(Event, frozen=True):
    """A Load has ended: the model is in memory and has run one token.

    load_s: the whole of it; weights_s: reading the weights; first_token_s: compiling kernels and running one token.
    kv_tokens_step: a sequence's memory grows by so many tokens at a time.
    """

    model: str
    load_s: float = 0.0
    kv_bytes_per_token: int = 0
    weights_bytes: int = 0
    weights_s: float = 0.0
    first_token_s: float = 0.0
    kv_tokens_step: int = 1


class ModelFailed(Event, frozen=True):
    """A Load has failed for good."""

    model: str
    reason: str


class EngineDied(Event, frozen=True):
    """The engine's thread has ended. All its sequences are lost; it makes no more reports."""

    reason: str


class EngineAnswered(Event, frozen=True):
    """The engine has come to a step boundary after a ProbeEngine: it lives, whether or not it has news."""


class MemoryLimit(Event, frozen=True):
    """To a worker, from its host: from now on it may hold so many bytes; None: as many as it likes."""

    bytes_max: int | None


class Ask(Event, frozen=True):
    """To a client, from its caller: complete this prompt. `intended_s` is when it should have been sent.

    worker: the wished one, see Submit.
    """

    request_id: str
    model: str
    prompt: tuple[Token, ...]
    max_tokens: int
    intended_s: float
    timeout_s: float
    session_id: str | None = None
    turn: int = 0
    prompt_id: str = ""
    priority: int = 0
    sampling: Sampling = GREEDY
    worker: str = ""


class Abandon(Event, frozen=True):
    """To a client, from its caller: the answer is not wanted any more."""

    request_id: str


class Command(msgspec.Struct, frozen=True, array_like=True, tag=True):
    """Something that a node wants done."""


class Send(Command, frozen=True):
    """Publish to a node, at most once. With `needs_responder` a missing subscriber comes back as NoResponders."""

    to: str
    message: Message
    needs_responder: bool = False


class Insert(Command, frozen=True):
    """Start a sequence in the engine at its next step boundary. `max_tokens` new tokens at most.

    cache: the number of a kept cache whose first `cached_tokens` tokens are those of `tokens`; fewer than all of them.
    The engine works on a copy, and may use less or nothing of it. keep_as: under which number the engine keeps the
    sequence's own cache when it has finished (`stop` or `length`); None: not at all. Numbers are never used twice.
    """

    sequence: int
    model: str
    tokens: tuple[Token, ...]
    max_tokens: int
    sampling: Sampling = GREEDY
    cache: int | None = None
    cached_tokens: int = 0
    keep_as: int | None = None


class Remove(Command, frozen=True):
    """Take a sequence out of the engine at its next step boundary; its later tokens are dropped."""

    sequence: int


class DropCache(Command, frozen=True):
    """Free a kept cache. One that is not there is ignored."""

    cache: int


class Load(Command, frozen=True):
    """Load a model and run one token. Ends in ModelLoaded or ModelFailed."""

    model: str


class Unload(Command, frozen=True):
    """Drop a model from memory, and the caches kept of its sequences. It has no running sequence."""

    model: str


class ProbeEngine(Command, frozen=True):
    """Have the engine say EngineAnswered at its next step boundary."""


class Record(Command, frozen=True):
    """Append a row to the history."""

    row: Row


class Deliver(Command, frozen=True):
    """From a client to its caller: tokens of a request, and its end (`finish` or `code`) at most once.

    total: tokens delivered so far, these included. cached_tokens: of the prompt, known from the first token on.
    """

    request_id: str
    tokens: tuple[Token, ...]
    total: int
    finish: str | None = None
    code: str | None = None
    cached_tokens: int = 0


AnyEvent = (
    Received
    | LinkUp
    | LinkDown
    | SendFailed
    | NoResponders
    | Stopping
    | Wake
    | EngineReport
    | ModelLoaded
    | ModelFailed
    | EngineDied
    | EngineAnswered
    | MemoryLimit
    | Ask
    | Abandon
)
"""All there are, to be read from a file."""


class Node(Protocol):
    """What a shell can drive."""

    name: str
    incarnation: int

    def handle(self, event: Event, now: float) -> Sequence[Command]:
        """Change the node's state and say what is to be done, in order."""

    def next_wake(self) -> float | None:
        """When the node wants a Wake, in its own clock; None while it waits for nothing."""

    def gauges(self) -> Gauges:
        """The node's present levels, for sampling. Changes nothing."""
