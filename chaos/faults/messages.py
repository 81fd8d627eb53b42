"""Faults on single messages: a seeded share of them is lost, late, doubled, out of order or damaged on its way.

Target nodes whose link carries the messages. `message` names one kind of message (see cluster/protocol.py),
`direction` is upstream (what the node sends) or downstream (what it gets), and need not be said where the message says
it; `share` of them is hit, by the run's seed. The connection itself stays well: its pings are answered.

Proof: the messages that the proxy has counted as hit, and, where an end of the link can tell, that end's word: of what
one end has sent, the other has got fewer (drop) or more (duplicate), or a receiver could not understand what came
(corrupt). Whether messages were late or out of order no receiver can tell. When no such message passes, nothing is
proved.
"""

from collections.abc import Mapping, Sequence
from typing import Annotated, Any, ClassVar, Literal

import msgspec

from chaos.experiment import FaultSpec
from chaos.faults.codes import LATE, explained
from chaos.faults.fault import Evidence, Lasting
from chaos.faults.lines import until_healed
from chaos.faults.roles import LINKED, role_of
from chaos.faults.terms import Options, Terms
from chaos.worlds.world import Direction, HandleError, LinkState, Meddling, MessageCounts, MessageRule, World
from cluster.errors import Code

MessageName = Literal[
    "accepted",
    "cancel",
    "delivery",
    "dispatch",
    "drain",
    "evict",
    "heartbeat",
    "ping",
    "pong",
    "prewarm",
    "report",
    "submit",
    "withdraw",
]
SENT: Mapping[str, tuple[str, ...]] = {
    "worker": ("heartbeat", "report"),
    "controller": ("accepted", "delivery", "dispatch", "pong", "withdraw"),
    "client": ("cancel", "ping", "submit"),
}
RECEIVED: Mapping[str, tuple[str, ...]] = {
    "worker": ("dispatch", "drain", "evict", "prewarm", "withdraw"),
    "controller": ("cancel", "heartbeat", "ping", "report", "submit"),
    "client": ("accepted", "delivery", "pong"),
}
"""Messages by the roles between which they travel; drain, evict and prewarm come from whoever operates a worker."""

_WAYS: Mapping[Direction, Mapping[str, tuple[str, ...]]] = {"upstream": SENT, "downstream": RECEIVED}
_DURATION_S_MIN = 3.0
_WAIT_MS_MAX = 60_000
"""What comes later than that comes after every deadline."""
_WATCH_S = 2.0
_HITS = 2.0
"""So many hits are waited for, on average, where a small share of one message in half a second makes them rare."""
_MARGIN_S = 0.5
_POLL_S = 0.2


class MessageOptions(Options, frozen=True):
    """What all of these kinds can be told."""

    message: Annotated[MessageName, msgspec.Meta(description="without it all are meant")] | None = None
    direction: Annotated[Direction, msgspec.Meta(description="of which the message says its own")] | None = None
    share: Annotated[float, msgspec.Meta(ge=0.001, le=1)] = 1.0

    @property
    def attributes(self) -> tuple[tuple[str, int], ...]:
        """What the kind adds to the rule, in the proxy's words."""
        return ()


class MessageFault(Lasting):
    """Meddles with the messages of every target."""

    KIND: ClassVar[str]
    COLOUR: ClassVar[str]
    MEDDLING: ClassVar[Meddling]
    TERMS: ClassVar[Terms[MessageOptions]]

    def __init__(self, spec: FaultSpec, nodes: Sequence[str]) -> None:
        options = self.TERMS.read(spec)
        self._share = options.share
        self._rules = {target: self._rule(options, target) for target in spec.targets}
        self._targets = spec.targets
        self._nodes = nodes
        self._ttl_s = spec.ttl_s
        self._watch_s = min(max(_WATCH_S, _HITS / self._share), spec.duration_s - _MARGIN_S)
        self._before: dict[str, LinkState] = {}
        self._garbled: dict[str, int] = {}
        self._hits: dict[str, MessageCounts | None] = {}

    @property
    def explains(self) -> tuple[str, ...]:
        """See Fault."""
        codes = [*LATE, Code.STREAM_BROKEN, Code.WORKER_LOST]
        # A controller that hears no heartbeats knows no workers.
        if any(role_of(target) == "controller" for target in self._targets):
            codes.append(Code.NO_WORKERS_AVAILABLE)
        return explained(self._targets, self._nodes, *codes)

    async def inject(self, world: World) -> None:
        """See Fault."""
        for target in self._rules:
            self._before[target] = await world.link(target).inspect()
        if self.MEDDLING is Meddling.CORRUPT:
            self._garbled = await self._undecoded(world)
        for target, rule in self._rules.items():
            await world.messages(target).meddle(rule, self._ttl_s)

    async def verify(self, world: World) -> Evidence:
        """See Fault."""
        end_s = world.now() + self._watch_s
        while True:
            await world.sleep(_POLL_S)
            evidence = await self._look(world)
            if evidence.proved or world.now() >= end_s:
                return evidence

    async def verify_end(self, world: World) -> Evidence:
        """See Fault. The same rule is still in force, and has hit what it has hit."""
        facts: dict[str, object] = {}
        proved = True
        for target, rule in self._rules.items():
            before, now = self._hits.get(target), await world.messages(target).meddled(rule)
            works = now is not None and (before is None or now.affected >= before.affected)
            proved = proved and works
            facts[target] = {"works": works, "counts": _told(now)}
        return Evidence(proved, facts)

    async def heal(self, world: World) -> None:
        """See Fault."""
        for target, rule in self._rules.items():
            await world.messages(target).restore(rule)

    async def verify_healed(self, world: World, limit_s: float) -> Evidence:
        """See Fault. Healed means that the rule is gone and the node's connection answers."""

        async def look(target: str) -> tuple[bool, dict[str, object]]:
            gone = await world.messages(target).meddled(self._rules[target]) is None
            state = await world.link(target).inspect()
            healed = gone and state.connected and state.answered and state.broker_in is not None
            return healed, {"gone": gone, "undecoded": state.undecoded}

        return await until_healed(world, self._targets, look, limit_s)

    async def _look(self, world: World) -> Evidence:
        facts: dict[str, object] = {}
        proved = True
        garbled = await self._undecoded(world) if self.MEDDLING is Meddling.CORRUPT else {}
        for target, rule in self._rules.items():
            # First the count, then the ends: what was counted has arrived by then, or it never will.
            counts = self._hits[target] = await world.messages(target).meddled(rule)
            before, now = self._before[target], await world.link(target).inspect()
            if now.cid != before.cid and now.connected:
                # The broker counts each connection for itself.
                self._before[target] = now
            grown = sum(count - self._garbled.get(node, 0) for node, count in garbled.items())
            bites, why = judge(rule, counts, lacking(rule.direction, before, now), grown)
            proved = proved and bites
            facts[target] = {
                "bites": bites,
                "because": why,
                "counts": _told(counts),
                "lacking_at_receiver": lacking(rule.direction, before, now),
                **({"undecoded_at_receivers": grown} if garbled else {}),
            }
        return Evidence(proved, facts)

    async def _undecoded(self, world: World) -> dict[str, int]:
        """By node, of those that may receive what is damaged: what it could not understand so far."""
        receivers = [target for target, rule in self._rules.items() if rule.direction == "downstream"]
        for target, rule in self._rules.items():
            if rule.direction == "upstream":
                receivers += [node for node in self._nodes if _hears(role_of(node), role_of(target), rule.message)]
        found: dict[str, int] = {}
        for node in dict.fromkeys(receivers):
            try:
                found[node] = (await world.link(node).inspect()).undecoded
            except HandleError:
                # Whoever is gone has understood nothing new, and one that hears is enough.
                continue
        return found

    def _rule(self, options: MessageOptions, target: str) -> MessageRule:
        message, direction = options.message or "", options.direction
        role = role_of(target)
        ways: list[Direction] = [
            way for way, of in _WAYS.items() if message in ("", *of[role]) and direction in (None, way)
        ]
        if not ways:
            raise ValueError(f"options.message: {target} has no {message} {direction or 'in either direction'}")
        if len(ways) > 1:
            raise ValueError("options.direction: expected upstream or downstream where no message is named")
        return MessageRule(self.MEDDLING, ways[0], message, self._share, options.attributes)


def _terms(options: type[MessageOptions]) -> Terms[Any]:
    return Terms(roles=LINKED, duration_s_min=_DURATION_S_MIN, options=options)


class DropMessages(MessageFault):
    """A share of the messages is lost, and nobody is told."""

    KIND: ClassVar[str] = "drop_messages"
    COLOUR: ClassVar[str] = "#0077bb"
    MEDDLING: ClassVar[Meddling] = Meddling.DROP
    TERMS: ClassVar[Terms[MessageOptions]] = _terms(MessageOptions)


class DelayOptions(MessageOptions, frozen=True):
    """See DelayMessages."""

    delay_ms: Annotated[int, msgspec.Meta(ge=1, le=_WAIT_MS_MAX)] = 100
    jitter_ms: Annotated[int, msgspec.Meta(ge=0, le=_WAIT_MS_MAX, description="at most delay_ms")] = 0

    @property
    def attributes(self) -> tuple[tuple[str, int], ...]:
        """See MessageOptions."""
        return (("delay", self.delay_ms), ("jitter", self.jitter_ms))


class DelayMessages(MessageFault):
    """A share of the messages comes `delay_ms` late, give or take `jitter_ms`; others overtake them."""

    KIND: ClassVar[str] = "delay_messages"
    COLOUR: ClassVar[str] = "#77aadd"
    MEDDLING: ClassVar[Meddling] = Meddling.DELAY
    TERMS: ClassVar[Terms[DelayOptions]] = _terms(DelayOptions)

    def __init__(self, spec: FaultSpec, nodes: Sequence[str]) -> None:
        super().__init__(spec, nodes)
        options = self.TERMS.read(spec)
        if options.jitter_ms > options.delay_ms:
            said = f"expected at most delay_ms = {options.delay_ms}, got {options.jitter_ms}"
            raise ValueError(f"options.jitter_ms: {said}")


class DuplicateOptions(MessageOptions, frozen=True):
    """See DuplicateMessages."""

    copies: Annotated[int, msgspec.Meta(ge=1, le=10)] = 1

    @property
    def attributes(self) -> tuple[tuple[str, int], ...]:
        """See MessageOptions."""
        return (("copies", self.copies),)


class DuplicateMessages(MessageFault):
    """A share of the messages comes more than once: `copies` more, right behind the message itself."""

    KIND: ClassVar[str] = "duplicate_messages"
    COLOUR: ClassVar[str] = "#bb5566"
    MEDDLING: ClassVar[Meddling] = Meddling.DUPLICATE
    TERMS: ClassVar[Terms[DuplicateOptions]] = _terms(DuplicateOptions)


class ReorderOptions(MessageOptions, frozen=True):
    """See ReorderMessages."""

    window: Annotated[int, msgspec.Meta(ge=2, le=64)] = 8
    hold_ms: Annotated[int, msgspec.Meta(ge=1, le=_WAIT_MS_MAX)] = 100

    @property
    def attributes(self) -> tuple[tuple[str, int], ...]:
        """See MessageOptions."""
        return (("window", self.window), ("hold", self.hold_ms))


class ReorderMessages(MessageFault):
    """A share of the messages is held until `window` of them wait, or for `hold_ms`. Then they go on, shuffled."""

    KIND: ClassVar[str] = "reorder_messages"
    COLOUR: ClassVar[str] = "#88ccee"
    MEDDLING: ClassVar[Meddling] = Meddling.REORDER
    TERMS: ClassVar[Terms[ReorderOptions]] = _terms(ReorderOptions)


class CorruptOptions(MessageOptions, frozen=True):
    """See CorruptMessages."""

    bytes: Annotated[int, msgspec.Meta(ge=1, le=64)] = 1

    @property
    def attributes(self) -> tuple[tuple[str, int], ...]:
        """See MessageOptions."""
        return (("bytes", self.bytes),)


class CorruptMessages(MessageFault):
    """A share of the messages comes with so many `bytes` of its payload changed."""

    KIND: ClassVar[str] = "corrupt_messages"
    COLOUR: ClassVar[str] = "#661100"
    MEDDLING: ClassVar[Meddling] = Meddling.CORRUPT
    TERMS: ClassVar[Terms[CorruptOptions]] = _terms(CorruptOptions)


def lacking(direction: Direction, before: LinkState, now: LinkState) -> int | None:
    """How many messages the receiving end has got less than the other has sent since `before`; negative: more.

    None when the broker's counts are not of one connection.
    """
    states = (before, now)
    ins, outs = [state.broker_in for state in states], [state.broker_out for state in states]
    if before.cid != now.cid or ins[0] is None or ins[1] is None or outs[0] is None or outs[1] is None:
        return None
    if direction == "upstream":
        return now.node_out - before.node_out - (ins[1] - ins[0])
    return outs[1] - outs[0] - (now.node_in - before.node_in)


def judge(rule: MessageRule, counts: MessageCounts | None, lack: int | None, undecoded: int) -> tuple[bool, str]:
    """Whether the rule bites, and why one may say so.

    lack: see `lacking`. undecoded: messages that receivers could not understand since the injection. The two ends of a
    link are not read in the same instant, so half of what the proxy has counted is enough of what they say.
    """
    what = rule.message or "message"
    if counts is None:
        return False, "the rule is not in force at the proxy"
    if counts.matched == 0:
        return False, f"no {what} passed, so nothing is proved"
    if counts.affected == 0:
        return False, f"{counts.matched} of {what} passed and none was hit"
    hits = f"the proxy has hit {counts.affected} of {counts.matched} of {what}"
    match rule.meddling:
        case Meddling.DROP:
            found, said = (0 if lack is None else lack), "fewer came out at one end than went in at the other"
        case Meddling.DUPLICATE:
            found, said = (0 if lack is None else -lack), "more came out at one end than went in at the other"
        case Meddling.CORRUPT:
            found, said = undecoded, "receivers did not understand what came"
        case _:
            return True, f"{hits}; no receiver can tell"
    if found < 1 or 2 * found < counts.affected:
        return False, f"{hits}, and the ends of the link do not show it"
    return True, f"{hits}, and {said}"


def _hears(role: str, sender: str, message: str) -> bool:
    """Whether a node of the role may get what a sender of the other role says; message: empty for anything."""
    sent = (message,) if message else SENT[sender]
    return any(name in RECEIVED[role] for name in sent)


def _told(counts: MessageCounts | None) -> object:
    return None if counts is None else {name: getattr(counts, name) for name in counts.__struct_fields__}
