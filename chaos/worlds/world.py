"""What an experiment asks of a world. Live and simulated worlds answer in their own way; nobody above can tell.

Everything that waits is `async` and awaits only the world, so that one director runs on asyncio and on virtual time.
"""

from collections.abc import Coroutine, Mapping, Sequence
from enum import StrEnum
from typing import Any, Literal, Protocol

import msgspec
import numpy as np

from analysis.schema import Row
from chaos.progress import Snapshot
from cluster.engine.impairment import Death as Death
from cluster.engine.impairment import Impairment as Impairment
from cluster.engine.meter import EngineState as EngineState
from cluster.protocol import Token
from workloads.capacity import Completion, ProbePlan
from workloads.plan import LoadPlan
from workloads.vocabulary import PromptVocabulary
from workloads.watch import Standing


class InfrastructureError(Exception):
    """The world cannot be brought up or kept up. The message is one line that says what to do."""


class HandleError(Exception):
    """A handle of the world could not do or tell what it was asked. One line."""


class Cut(StrEnum):
    """Ways of cutting a node's link to the broker; reference behaviour is in the README's table of modes.

    refuse: the connection is closed and new ones are refused. reset: the connection breaks and may be made again.
    stall: bytes are held both ways, and delivered late after the heal. black_hole: bytes vanish both ways and neither
    end is told. upstream, downstream: bytes vanish in one direction (node to broker, broker to node).
    """

    REFUSE = "refuse"
    RESET = "reset"
    STALL = "stall"
    BLACK_HOLE = "black_hole"
    UPSTREAM = "upstream"
    DOWNSTREAM = "downstream"


PAYLOAD_BYTES_MAX = 900_000
"""Of a message that a node sends to itself; the broker takes no more than 2**20 with everything around it."""

ECHO_S = 2.0
"""For how long a message that a node sends to itself is waited for."""

Direction = Literal["upstream", "downstream"]
"""From the node to the broker, or from the broker to the node."""


class Shape(msgspec.Struct, frozen=True, kw_only=True):
    """What a bad line does to bytes without losing any, in each of its directions.

    Everything arrives `latency_s` later, give or take `jitter_s` (uniform), in order. No more than `bytes_per_s` pass.
    What is sent is cut into pieces of about `slice_bytes` (give or take `slice_variation_bytes`), and after each of
    them the line is quiet for `slice_delay_s`. None: no such limit.
    """

    latency_s: float = 0.0
    jitter_s: float = 0.0
    bytes_per_s: int | None = None
    slice_bytes: int | None = None
    slice_variation_bytes: int = 0
    slice_delay_s: float = 0.0
    directions: tuple[Direction, ...] = ("upstream", "downstream")


class LinkState(msgspec.Struct, frozen=True):
    """A node's link from both ends.

    cid: the connection that `broker_*` are about. answered: something that the node sent over its present connection
    came back. node_in, node_out: the node's message counts over all its connections. broker_in, broker_out: the
    broker's counts for `cid` (from and to the node), None when it does not list that connection any more; then
    broker_reason is why it closed it, in its own words, as long as it remembers.
    """

    connected: bool
    cid: int
    answered: bool
    node_in: int
    node_out: int
    broker_in: int | None
    broker_out: int | None
    broker_pending_bytes: int | None
    broker_reason: str = ""
    undecoded: int = 0
    """Messages that the node has got and that were none of our protocol."""


def snapshot(elapsed_s: float, standing: Standing, workers: Mapping[str, tuple[str, str]]) -> Snapshot:
    """How a run stands, without phase and faults. workers: liveness and breaker state by name."""
    recent, lately = standing.recent_s, standing.lately
    return Snapshot(
        elapsed_s=elapsed_s,
        phase="",
        offered=standing.offered,
        completed=standing.completed,
        failed=standing.failed,
        refused=standing.refused,
        in_flight=standing.in_flight,
        latency_p50_s=float(np.percentile(recent, 50)) if recent else None,
        latency_p95_s=float(np.percentile(recent, 95)) if recent else None,
        ended_lately=lately.ended + lately.overdue,
        bad_lately=lately.bad + lately.overdue,
        waited=len(lately.waited_s),
        waited_p99_s=float(np.percentile(lately.waited_s, 99)) if lately.waited_s else None,
        workers={worker: liveness for worker, (liveness, _) in workers.items()},
        breakers={worker: breaker for worker, (_, breaker) in workers.items()},
    )


class Link(Protocol):
    """The handle of one node's link. Every method may raise HandleError."""

    async def cut(self, cut: Cut, ttl_s: float) -> None:
        """Make the cut; it ends by itself (through the undo log) after `ttl_s` if nobody restores it."""

    async def shape(self, shape: Shape, ttl_s: float) -> None:
        """Make the line bad, in place of an earlier shape; it ends as a cut does. What has no effect is refused."""

    async def restore(self) -> None:
        """Undo whatever was cut or shaped. Harmless when nothing was."""

    async def inspect(self, cid: int | None = None) -> LinkState:
        """Ask both ends about the present connection, or about connection `cid` at the broker's end."""

    async def echo(self, payload_bytes: int = 0) -> float | None:
        """Seconds that a message to itself takes over the node's present connection; None for more than `ECHO_S`.

        payload_bytes: as large as the broker takes them, see PAYLOAD_BYTES_MAX.
        """


class Meddling(StrEnum):
    """What can be done to single messages. corrupt: bytes of the payload are changed."""

    DROP = "drop"
    DELAY = "delay"
    DUPLICATE = "duplicate"
    REORDER = "reorder"
    CORRUPT = "corrupt"


class MessageRule(msgspec.Struct, frozen=True):
    """What is done to a share of the messages of one direction of a link.

    message: the tag of a message of cluster.protocol, empty for any of them. attributes: what else the kind of
    meddling has, see chaos.toxiproxy.embedded.message_choice.MESSAGE_KINDS, in its names and units.
    """

    meddling: Meddling
    direction: Direction
    message: str
    share: float
    attributes: tuple[tuple[str, int], ...] = ()


class MessageCounts(msgspec.Struct, frozen=True):
    """What a rule has met so far: all messages of its direction, those that it is for, and what it hit of them."""

    seen: int
    matched: int
    affected: int


class Messages(Protocol):
    """The handle of the messages on one node's link. Every method may raise HandleError."""

    async def meddle(self, rule: MessageRule, ttl_s: float) -> None:
        """Put a rule in force; it ends by itself (through the undo log) after `ttl_s` if nobody restores it."""

    async def meddled(self, rule: MessageRule) -> MessageCounts | None:
        """What a rule has met so far; None when it is not in force."""

    async def restore(self, rule: MessageRule) -> None:
        """End a rule; what it holds goes on at once. Harmless when it is not in force."""


class Life(StrEnum):
    """What the system says of a process."""

    RUNS = "runs"
    STANDS_STILL = "stands still"
    IS_GONE = "is gone"


class ProcessState(msgspec.Struct, frozen=True):
    """A node's process, as the system, the node itself and the broker tell of it.

    incarnation: as the node says, None when it does not answer. answers: what it sends to itself comes back over its
    link. connections: those of the node that the broker lists, by their ids, with the number of messages that came in
    over each; None when the broker does not tell.
    """

    life: Life
    pid: int
    incarnation: int | None
    answers: bool
    connections: dict[int, int] | None


class Member(msgspec.Struct, frozen=True):
    """A worker in the eyes of a controller."""

    liveness: str
    incarnation: int


class BrokerState(msgspec.Struct, frozen=True):
    """The broker, as the system and the broker itself tell of it.

    identity: which of its lives it is, as it says itself, empty when it does not answer. greets: whether a fresh
    connection gets its greeting. connections, slow_consumers: as it says.
    """

    life: Life
    pid: int
    identity: str
    greets: bool
    connections: int | None
    slow_consumers: int | None


class Broker(Protocol):
    """The handle of the broker's process. Every method may raise HandleError."""

    async def kill(self) -> None:
        """End it at once. It stays away until `restart`."""

    async def restart(self) -> None:
        """A new process in place of this one, at the same address, as soon as that can be; returns when it answers."""

    async def freeze(self, ttl_s: float) -> None:
        """Stop it where it stands, its connections open. It goes on by itself after `ttl_s` if nobody thaws it."""

    async def thaw(self) -> None:
        """Let a frozen one go on. Harmless when it was not frozen."""

    async def lame_duck(self) -> None:
        """Ask it to leave: it takes no new connections, closes the others one after the other, and ends."""

    async def inspect(self) -> BrokerState:
        """How it stands."""


class Process(Protocol):
    """The handle of the process of a worker or a controller. Every method may raise HandleError."""

    async def kill(self) -> None:
        """End it at once; it says nothing to anybody. It stays away until `restart`."""

    async def freeze(self, ttl_s: float) -> None:
        """Stop it where it stands, its connections open. It goes on by itself after `ttl_s` if nobody thaws it."""

    async def thaw(self) -> None:
        """Let a frozen one go on. Harmless when it was not frozen."""

    async def drain(self, limit_s: float) -> bool:
        """Let a worker take nothing new and finish what it has; whether it had within `limit_s`."""

    async def stop(self) -> None:
        """End it in an orderly way. It stays away until `restart`."""

    async def restart(self) -> None:
        """A new incarnation in place of this one, which ends in an orderly way if it can. Returns with a link."""

    async def inspect(self) -> ProcessState:
        """Ask the system, the node and the broker."""

    async def alive(self) -> bool:
        """Whether it runs; what is frozen does not."""


class HostState(msgspec.Struct, frozen=True):
    """A host, as the system and the cluster's scheduler tell of it.

    processes: how many of it run, those of its nodes too. scheduler: what the scheduler says of it; it may be late.
    """

    life: Life
    pid: int
    processes: int
    scheduler: str


class Host(Protocol):
    """The handle of a host and everything that runs there. Every method may raise HandleError."""

    nodes: tuple[str, ...]
    """The nodes that it hosts."""

    async def kill(self) -> None:
        """End every process of it at once, as a power cut does. It stays away until `restart`."""

    async def restart(self) -> None:
        """A new host in place of this one, with new incarnations of its nodes. Returns when they have links."""

    async def inspect(self) -> HostState:
        """How it stands."""


class Engine(Protocol):
    """The handle of a worker's engine. Every method may raise HandleError."""

    async def impair(self, impairment: Impairment, ttl_s: float) -> None:
        """Hurt it in this way instead of any other, in whatever process it is, until `restore` or for `ttl_s`.

        An engine that has died stays dead all the same until its process is restarted.
        """

    async def restore(self) -> None:
        """Hurt it no longer. Harmless when it was not hurt."""

    async def limit_memory(self, bytes_max: int | None, ttl_s: float) -> None:
        """Let its worker hold no more than so many bytes, for `ttl_s` at most; None: as many as it began with."""

    async def evict(self, model: str, limit_s: float) -> bool:
        """Have its worker drop a model from memory; whether it was gone within `limit_s`."""

    async def prewarm(self, model: str, limit_s: float) -> bool:
        """Have its worker load a model and run a token; whether it was warm within `limit_s`."""

    async def inspect(self) -> EngineState:
        """How it stands, by what its worker hears of it."""


class NodeClock(Protocol):
    """The handle of the clock of a worker or a controller. Every method may raise HandleError."""

    async def set_ahead(self, ahead_s: float) -> None:
        """Restart the node with its clocks so many seconds ahead of everybody's; 0: as they were."""

    async def ahead(self) -> float:
        """How far it is ahead by its own word, seconds."""


class Job(Protocol):
    """A coroutine that runs beside the caller."""

    def __await__(self) -> Any:
        """Wait for its end; raises what it raised."""

    def cancel(self) -> object:
        """End it at its present await; nothing if it has ended."""


class World(Protocol):
    """A cluster, its clock, its handles and its evidence."""

    kind: str
    invariants: tuple[int, ...]
    exact_tokens: bool
    """Whether tokens equal the reference's but for near-ties. Where kernels depend on a batch's shape they need not."""

    @property
    def token_gap_max_nats(self) -> float:
        """How far a token that differs from the reference's may lie below its best one: 0 where none may differ."""

    def now(self) -> float:
        """Seconds since the load began; negative before."""

    def clock(self) -> float:
        """The director's own monotonic clock, as rows are stamped, seconds."""

    async def sleep(self, seconds: float) -> None:
        """Let the world go on."""

    def spawn(self, coroutine: Coroutine[Any, Any, None]) -> Job:
        """Run a coroutine beside the caller."""

    async def start(self) -> None:
        """Bring the cluster up until every worker is ready. Raises InfrastructureError."""

    def link(self, node: str) -> Link:
        """The link of a node."""

    def messages(self, node: str) -> Messages:
        """The messages on the link of a node."""

    def process(self, node: str) -> Process:
        """The process of a worker or a controller."""

    def host(self, name: str) -> Host:
        """A host other than the runner's own."""

    def engine(self, node: str) -> Engine:
        """The engine of a worker."""

    def node_clock(self, node: str) -> NodeClock:
        """The clock of a worker or a controller."""

    def broker(self) -> Broker:
        """The broker's process."""

    async def members(self) -> dict[str, dict[str, Member]]:
        """By controller, of those that answer: the workers it knows."""

    async def stance(self, node: str) -> dict[str, float]:
        """How a worker or a controller stands, in the words of chaos.timing.STATES. Raises HandleError."""

    async def vocabulary(self) -> PromptVocabulary:
        """How prompts are made for the model that the cluster serves."""

    async def probe(self, plan: ProbePlan, prompts: Sequence[tuple[tuple[Token, ...], int]]) -> list[Completion]:
        """Run a closed loop over the prompts and wait for its end. Its rows do not belong to the run."""

    async def begin_load(self, plan: LoadPlan) -> None:
        """Start the load; its first instant is the world's time zero. Returns before it."""

    async def finish_load(self, limit_s: float) -> bool:
        """Wait until every request has ended, at most `limit_s`. Returns whether all have."""

    async def look(self) -> Snapshot:
        """How the cluster and the load stand. `phase`, `left_s` and `faults` are left to the caller."""

    def record(self, row: Row) -> None:
        """Append a row of the director to the history."""

    def environment(self) -> dict[str, object]:
        """Versions, hosts, parts and how they were got. Never a secret."""

    async def references(self, prompts: dict[str, tuple[tuple[Token, ...], int]]) -> dict[str, list[Token]] | None:
        """The completion of each prompt id, from (prompt, output cap); None when nobody can tell here."""

    async def token_gaps(self, cases: Sequence[tuple[Sequence[Token], Sequence[Token]]]) -> list[list[float]]:
        """For each (prompt, delivered tokens): how far each token lies below the reference's best one, in nats."""

    async def stop(self) -> list[str] | None:
        """End everything that was started, and say what is left of it, a line each. Never raises for what is gone.

        None: nothing could be left, because nothing was outside of this process.
        """
