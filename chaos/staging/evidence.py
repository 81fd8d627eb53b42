"""Whether a fault on somebody else's link bites, from what can be seen from outside. Pure functions.

Two witnesses: the broker, which counts the messages of the node's own connections, and a connection of ours through the
same proxy. The broker's word is about the node and has precedence; ours is about the proxy.
"""

import math

import msgspec

from chaos.faults.shaped import SHARE_MIN
from chaos.staging.witness import GREETING_BYTES, PADDED_BYTES, Reading
from chaos.worlds.world import Cut, Shape

LEAST_S = 0.1
"""What a shape must add to a connection of ours, or it could not be told from chance on a busy host."""
PATIENCE_S = 1.0
"""For how long a connection of ours waits for what a cut must keep from it."""

Heard = dict[int, int]
"""Of a node, by connection id: messages that the broker has from it."""


class Before(msgspec.Struct, frozen=True):
    """How a link was. heard: None without a monitoring endpoint. spoke: messages that came in the last while."""

    heard: Heard | None
    spoke: int
    reading: Reading


class During(msgspec.Struct, frozen=True):
    """How a link is under a cut. early and late: two looks of the broker. held_cut: whether a connection of ours that
    was there before has been ended; None: there was none."""

    early: Heard | None
    late: Heard | None
    reading: Reading
    held_cut: bool | None


def judge_cut(cut: Cut, before: Before, during: During) -> tuple[bool, str]:
    """Whether a cut bites, and by whose word."""
    told, why = _by_broker(cut, before, during)
    if told is not None:
        return told, f"{why} (the broker, of the node's own connection)"
    bites, seen = _by_ourselves(cut, before, during)
    return bites, f"{seen} (a connection of ours through the same proxy; {why})"


def _by_broker(cut: Cut, before: Before, during: During) -> tuple[bool | None, str]:
    if before.heard is None or during.early is None or during.late is None:
        return None, "the node's own connection is not looked at: no nats_monitoring with client_name"
    if not before.heard:
        return None, "the broker listed no connection of the node before"
    if cut in (Cut.REFUSE, Cut.RESET):
        left = [cid for cid in before.heard if cid in during.late]
        if left:
            return False, "the broker still lists the connection of before"
        if cut is Cut.REFUSE and during.late:
            return False, "the node has another connection to the broker"
        return True, "the broker has dropped the connection of before"
    if cut is Cut.DOWNSTREAM:
        return None, "the broker cannot see what does not arrive at the node"
    if spoken(during.early, during.late):
        return False, f"the broker still hears the node: {spoken(during.early, during.late)} messages meanwhile"
    if not before.spoke:
        return None, "the node said nothing before either, so its silence at the broker proves nothing"
    return True, f"nothing of the node arrives any more, {before.spoke} messages did in the same time before"


def _by_ourselves(cut: Cut, before: Before, during: During) -> tuple[bool, str]:
    if before.reading.both_s is None:
        return False, f"it was not answered before either{before.reading.why and ': ' + before.reading.why}"
    now = during.reading
    if cut is Cut.RESET:
        if during.held_cut:
            return True, "one that was there before has been ended"
        return False, "one that was there before lives on" if during.held_cut is False else "none was there before"
    if cut is Cut.UPSTREAM:
        if now.greeting_s is not None and now.answer_s is None:
            return True, f"it is greeted and not answered within {PATIENCE_S:g} s"
        return False, "it is answered" if now.answer_s is not None else "it is not even greeted"
    if now.greeting_s is not None:
        return False, f"it is greeted after {now.greeting_s:.3f} s"
    if cut is Cut.REFUSE:
        return (True, f"it is refused: {now.why}") if now.why else (True, "it is ended without a greeting")
    if now.why:
        return False, f"it should be silent, not ended: {now.why}"
    return True, f"it is not greeted within {PATIENCE_S:g} s, {before.reading.greeting_s or 0.0:.3f} s before"


def spoken(early: Heard, late: Heard) -> int:
    """Messages that came between two looks. A connection that is new at the second has said all of its own."""
    return sum(max(0, count - early.get(cid, 0)) for cid, count in late.items())


def least_s(shape: Shape) -> float:
    """What a shape adds at least to greeting and answer of a connection of ours, seconds; see `padded`.

    The greeting goes down, the request up, and the answer, of a few bytes, down again.
    """
    down, up = "downstream" in shape.directions, "upstream" in shape.directions
    found = max(0.0, shape.latency_s - shape.jitter_s) * (2 * down + up)
    sent = PADDED_BYTES if padded(shape) else 0
    if shape.bytes_per_s is not None:
        found += (GREETING_BYTES * down + sent * up) / shape.bytes_per_s
    if shape.slice_bytes is not None:
        largest = shape.slice_bytes + shape.slice_variation_bytes
        pieces = sum(max(0, math.ceil(size / largest) - 1) for size in (GREETING_BYTES * down, sent * up))
        found += pieces * shape.slice_delay_s
    return found


def padded(shape: Shape) -> bool:
    """Whether much has to be sent for the shape to show."""
    return shape.bytes_per_s is not None or shape.slice_bytes is not None


def judge_shape(shape: Shape, before: Reading, now: Reading, limit_s: float) -> tuple[bool, str]:
    """Whether a shape bites, from the quickest readings before and under it."""
    if before.both_s is None:
        return False, f"a connection of ours was not answered before either{before.why and ': ' + before.why}"
    if now.why:
        return False, f"a connection of ours is not slow but broken: {now.why}"
    if now.both_s is None:
        return True, f"a connection of ours, answered after {before.both_s:.3f} s before, has none within {limit_s:g} s"
    longer_s, wanted_s = now.both_s - before.both_s, least_s(shape)
    said = (
        f"greeting and answer of a connection of ours through the same proxy take {longer_s:.3f} s longer than before"
    )
    if longer_s >= SHARE_MIN * wanted_s:
        return True, said
    return False, f"{said}, not the {wanted_s:.3f} s that they must"
