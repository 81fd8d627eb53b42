"""Failures that clusters of this kind have shown in the field: what an experiment may name in `robustness`, and which
of them a verdict shows, whatever the experiment has named."""

import re
from collections.abc import Iterable, Sequence
from typing import NamedTuple

from analysis.verdict import Outcome, Verdict

CLASSES: dict[int, str] = {
    1: "requests pile up behind a silent link and all run late",
    2: "a request is executed again after its controller was cut off",
    3: "a broker outage longer than the reconnect limit ends clients for good",
    4: "a silent link is noticed only after the default ping interval",
    5: "a crash in mid-stream leaves callers hanging",
    6: "a graceful stop loses what is in flight",
    7: "a restarted controller knows no workers although all are alive",
    8: "a worker that failed for a while is never used again",
    9: "memory refusals count as failures, and the healthy peer is never asked",
    10: "a clock that is off declares a healthy worker dead",
    11: "the link's round trip is paid for every token",
    12: "tokens are lost that were published before anybody listened",
    13: "the tokens of two attempts mingle",
    14: "a burst waits on one worker without backpressure",
    15: "retries without jitter, and a half-open breaker that lets everything through",
    16: "something is left behind by every request",
    17: "a worker gets work before it can hear of it",
    18: "a worker goes on for a caller who has left",
    19: "a hot session stays with a slow worker",
    20: "an unknown model is tried again as if it were unavailable",
    21: "the generation thread is dead and the port still answers",
    22: "a frozen worker looks alive, and serves stale work when it wakes",
    23: "one long prompt stalls all streams of its worker",
    24: "one tenant evicts everybody's caches",
    25: "memory taken by a burst never comes back",
    26: "a restarted node is taken for its own ghost",
    27: "everybody returns at once after a reconnect",
    28: "after a spike, retries keep the system overloaded",
}


class Sign(NamedTuple):
    """What tells of a failure. kinds: one of them was on, empty: any or none; role: and on whom, empty: on anybody.

    words: a pattern in a sentence that says what was refuted.
    """

    number: int
    kinds: tuple[str, ...]
    words: str
    role: str = ""


_LINK = ("partition", "flap", "host_cut")
_AWAY = ("kill", "restart", "stop", "host_kill")
_LOST = "lost requests|success rate"
_BROKER = ("broker_kill", "broker_restart", "broker_freeze", "lame_duck")
_MESSAGES = ("drop_messages", "delay_messages", "duplicate_messages", "reorder_messages", "corrupt_messages")

SIGNS: tuple[Sign, ...] = (
    Sign(1, _LINK, _LOST),
    Sign(3, _BROKER, "return to steady.*never"),
    Sign(4, _LINK, "detection|mitigation"),
    # Whoever waits for an answer waits until the deadline: the one who had it is gone, or the message is.
    Sign(5, _AWAY, _LOST),
    Sign(5, _MESSAGES, _LOST),
    Sign(7, _AWAY, "return to steady", "controller"),
    Sign(15, (), "retry amplification"),
    Sign(15, ("fail_attempts",), "wasted attempts"),
    Sign(19, ("slow_down",), "session moves"),
    Sign(21, ("engine_dies",), ""),
    Sign(22, ("freeze", "host_freeze"), ""),
    Sign(27, _BROKER, "QUEUE_FULL"),
)
"""Of the failures that are not here no experiment of the catalogue has a sentence of its own."""


def shown_by(verdict: Verdict) -> tuple[int, ...]:
    """The failures that a verdict shows, by number; none where nothing is refuted or no sign fits."""
    refuted = [each.explanation for each in verdict.criteria if each.verdict is Outcome.FAIL]
    refuted += [each.explanation for each in verdict.invariants if each.verdict is Outcome.FAIL]
    return classes(((fault.kind, fault.target) for fault in verdict.faults), refuted)


def classes(faults: Iterable[tuple[str, str]], refuted: Sequence[str]) -> tuple[int, ...]:
    """See shown_by. faults: kind and targets of each, with commas between. refuted: sentences."""
    on = list(faults)
    found = {
        sign.number
        for sign in SIGNS
        if (not sign.kinds or any(kind in sign.kinds and sign.role in target for kind, target in on))
        and any(re.search(sign.words, sentence) for sentence in refuted)
    }
    return tuple(sorted(found))
