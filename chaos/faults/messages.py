"""Faults on single messages: a seeded share of them is lost, late, doubled, out of order or damaged on its way.

Target nodes whose link carries the messages. Option `message` names one kind of message (see cluster/protocol.py:
heartbeat, report, dispatch, submit, delivery, ...; without it all are meant), `direction` is upstream (what the node
sends) or downstream (what it gets), and need not be said where the message says it; `share` of them is hit (0 to 1,
default 1), by the run's seed. The connection itself stays well: its pings are answered.

Proof: the messages that the proxy has counted as hit, and, where an end of the link can tell, that end's word: of what
one end has sent, the other has got fewer (drop) or more (duplicate), or a receiver could not understand what came
(corrupt). Whether messages were late or out of order no receiver can tell. When no such message passes, nothing is
proved.
"""

from collections.abc import Mapping, Sequence
from typing import ClassVar, cast

from chaos.experiment import FaultSpec
from chaos.faults.fault import Evidence, Lasting
from chaos.faults.roles import LINKED, demand_options, demand_roles, number, role_of
from chaos.toxiproxy.embedded.message_choice import check_message_attributes
from chaos.worlds.messages import toxic_attributes, toxic_kind
from chaos.worlds.world import Direction, HandleError, LinkState, Meddling, MessageCounts, MessageRule, World
from cluster.errors import Code

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

_WAYS: Mapping[str, Mapping[str, tuple[str, ...]]] = {"upstream": SENT, "downstream": RECEIVED}
_SHARE_MIN = 1e-6
_DURATION_S_MIN = 3.0
_WATCH_S = 2.0
_HITS = 2.0
"""So many hits are waited for, on average, where a small share of one message in half a second makes them rare."""
_MARGIN_S = 0.5
_POLL_S = 0.2


class MessageFault(Lasting):
    """Meddles with the messages of every target."""

    KIND: ClassVar[str]
    COLOUR: ClassVar[str]
    MEDDLING: ClassVar[Meddling]
    OPTIONS: ClassVar[Mapping[str, str]] = {}
    """The kind's own options, and what the proxy calls them."""

    def __init__(self, spec: FaultSpec, nodes: Sequence[str]) -> None:
        demand_roles(spec, LINKED)
        demand_options(spec, ("message", "direction", "share", *self.OPTIONS))
        if spec.duration_s < _DURATION_S_MIN:
            raise ValueError(f"duration_s: expected at least {_DURATION_S_MIN:g} s, for that long the proof takes")
        self._share = number(spec, "share", 1.0, _SHARE_MIN, 1.0)
        self._rules = {target: self._rule(spec, target) for target in spec.targets}
        self._nodes = nodes
        self._all_workers = all(node in spec.targets for node in nodes if role_of(node) == "worker")
        self._ttl_s = spec.ttl_s
        self._watch_s = min(max(_WATCH_S, _HITS / self._share), spec.duration_s - _MARGIN_S)
        self._before: dict[str, LinkState] = {}
        self._garbled: dict[str, int] = {}
        self._hits: dict[str, MessageCounts | None] = {}

    @property
    def explains(self) -> tuple[str, ...]:
        """See Fault."""
        codes = [Code.DEADLINE_EXCEEDED]
        # A retry is not owed to a request that had used up its attempts or its deadline.
        codes += [Code.FIRST_TOKEN_TIMEOUT, Code.STREAM_STALLED, Code.STREAM_BROKEN, Code.WORKER_LOST]
        roles = {role_of(target) for target in self._rules}
        if roles != {"worker"}:
            codes.append(Code.CONTROLLER_UNREACHABLE)
        # A controller that hears no heartbeats knows no workers.
        if self._all_workers or "controller" in roles:
            codes.append(Code.NO_WORKERS_AVAILABLE)
        return tuple(codes)

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
        began_s = world.now()
        facts: dict[str, object] = {}
        for target, rule in self._rules.items():
            while True:
                gone = await world.messages(target).meddled(rule) is None
                state = await world.link(target).inspect()
                healed = gone and state.connected and state.answered and state.broker_in is not None
                after_s = round(world.now() - began_s, 3) if healed else None
                facts[target] = {"gone": gone, "answers_after_s": after_s, "undecoded": state.undecoded}
                if healed:
                    break
                if world.now() - began_s > limit_s:
                    return Evidence(False, facts)
                await world.sleep(_POLL_S)
        return Evidence(True, facts)

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

    def _rule(self, spec: FaultSpec, target: str) -> MessageRule:
        message, direction = spec.options.get("message", ""), spec.options.get("direction")
        known = sorted({name for way in _WAYS.values() for names in way.values() for name in names})
        if message not in ("", *known):
            raise ValueError(f"options.message: expected one of {', '.join(known)}, got {message!r}")
        if direction not in (None, *_WAYS):
            raise ValueError(f"options.direction: expected upstream or downstream, got {direction!r}")
        ways = [way for way, of in _WAYS.items() if message in ("", *of[role_of(target)]) and direction in (None, way)]
        if not ways:
            raise ValueError(f"options.message: {target} has no {message} {direction or 'in either direction'}")
        if len(ways) > 1:
            raise ValueError("options.direction: expected upstream or downstream where no message is named")
        attributes = tuple(
            (name, cast(int, spec.options[option])) for option, name in self.OPTIONS.items() if option in spec.options
        )
        rule = MessageRule(self.MEDDLING, cast(Direction, ways[0]), str(message), self._share, attributes)
        try:
            check_message_attributes(toxic_kind(rule), toxic_attributes(rule))
        except ValueError as error:
            name, _, what = str(error).removeprefix("attribute ").partition(": ")
            option = next((option for option, called in self.OPTIONS.items() if called == name), name)
            raise ValueError(f"options.{option}: {what}") from None
        return rule


class DropMessages(MessageFault):
    """A share of the messages is lost, and nobody is told."""

    KIND: ClassVar[str] = "drop_messages"
    COLOUR: ClassVar[str] = "#0077bb"
    MEDDLING: ClassVar[Meddling] = Meddling.DROP


class DelayMessages(MessageFault):
    """A share of the messages comes `delay_ms` late (default 100), give or take `jitter_ms`; others overtake them."""

    KIND: ClassVar[str] = "delay_messages"
    COLOUR: ClassVar[str] = "#77aadd"
    MEDDLING: ClassVar[Meddling] = Meddling.DELAY
    OPTIONS: ClassVar[Mapping[str, str]] = {"delay_ms": "delay", "jitter_ms": "jitter"}


class DuplicateMessages(MessageFault):
    """A share of the messages comes more than once: `copies` more (default 1), right behind the message itself."""

    KIND: ClassVar[str] = "duplicate_messages"
    COLOUR: ClassVar[str] = "#bb5566"
    MEDDLING: ClassVar[Meddling] = Meddling.DUPLICATE
    OPTIONS: ClassVar[Mapping[str, str]] = {"copies": "copies"}


class ReorderMessages(MessageFault):
    """A share of the messages is held until `window` of them wait (default 8), or for `hold_ms` (default 100).

    Then they go on, shuffled.
    """

    KIND: ClassVar[str] = "reorder_messages"
    COLOUR: ClassVar[str] = "#88ccee"
    MEDDLING: ClassVar[Meddling] = Meddling.REORDER
    OPTIONS: ClassVar[Mapping[str, str]] = {"window": "window", "hold_ms": "hold"}


class CorruptMessages(MessageFault):
    """A share of the messages comes with other `bytes` (default 1 of them changed) in its payload."""

    KIND: ClassVar[str] = "corrupt_messages"
    COLOUR: ClassVar[str] = "#661100"
    MEDDLING: ClassVar[Meddling] = Meddling.CORRUPT
    OPTIONS: ClassVar[Mapping[str, str]] = {"bytes": "bytes"}


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
