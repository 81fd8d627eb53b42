"""To which of the failures known from the field (chaos.robustness) something belongs that a search has found.

A table and nothing else: the first sign that fits names the class, and what fits none is `unclassified`. Of some
failures no sign is known here: a slow link paid for with every token (11), work for a caller who has left (18), one
long prompt that stalls all streams (23), one tenant who evicts all caches (24), a node taken for its own ghost (26) and
the return of all at once (27) are looked for by experiments of the catalogue and by mutants.
"""

import re

import msgspec

from chaos.robustness import CLASSES
from chaos.searching.breach import Breach

UNCLASSIFIED = "unclassified"

SHORT: dict[int, str] = {
    1: "pile_behind_silent_link",
    2: "executed_again",
    3: "off_the_bus_for_good",
    4: "silent_link_unnoticed",
    5: "crash_leaves_hanging",
    6: "drain_loses_work",
    7: "restart_knows_nobody",
    8: "quarantine_too_long",
    9: "refusals_stay_put",
    10: "clock_declares_dead",
    12: "tokens_lost",
    13: "attempts_mingle",
    14: "no_backpressure",
    15: "retry_storm",
    16: "left_behind",
    17: "work_before_ready",
    19: "session_stays_put",
    20: "hopeless_retried",
    21: "dead_engine_fed",
    22: "frozen_looks_alive",
    25: "memory_kept",
    28: "overload_stays",
}
"""A name for files and tables; the sentence is chaos.robustness.CLASSES'."""

_LINK = ("partition", "flap", "latency", "bandwidth", "slicer", "slow_consumer")
_PROCESS = ("kill", "restart", "stop")


class Sign(msgspec.Struct, frozen=True):
    """by: of the breach. kinds: one of them must have touched it; empty: any may. words: a pattern in the sentence."""

    number: int
    by: str
    kinds: tuple[str, ...] = ()
    words: str = ""

    def fits(self, breach: Breach) -> bool:
        """Whether it is one of these."""
        if self.by != breach.by or (self.kinds and not set(self.kinds) & set(breach.kinds)):
            return False
        return re.search(self.words, breach.what) is not None


SIGNS: tuple[Sign, ...] = (
    Sign(3, "off_the_bus"),
    Sign(4, "unnoticed"),
    Sign(5, "hung", _PROCESS),
    Sign(5, "fed", _PROCESS),
    Sign(21, "hung", ("engine_dies",)),
    Sign(21, "fed", ("engine_dies",)),
    Sign(22, "hung", ("freeze",)),
    Sign(22, "fed", ("freeze",)),
    Sign(1, "fed", _LINK),
    Sign(1, "hung", _LINK),
    Sign(9, "peer_not_asked", ("memory_pressure",)),
    Sign(2, "executed_again"),
    Sign(15, "storm"),
    Sign(15, "lockstep"),
    Sign(14, "piled"),
    Sign(19, "lopsided"),
    Sign(22, "invariant 5", ("freeze",), "after its deadline"),
    Sign(1, "invariant 5", _LINK, "after its deadline"),
    Sign(2, "invariant 5", (), r"was executed \d+ times"),
    Sign(13, "invariant 5", (), "had been superseded"),
    Sign(15, "invariant 5", (), "more than the budget"),
    Sign(12, "invariant 2", (), "are missing"),
    Sign(13, "invariant 4", (), "came from worker-.* another worker"),
    Sign(17, "invariant 6", (), "was sent to .* not yet ready"),
    Sign(10, "invariant 6", ("clock_skew",), "declared dead"),
    Sign(7, "invariant 7", (), "ever joined"),
    Sign(8, "invariant 7", (), "^[^:]*: breaker of"),
    Sign(28, "invariant 7", (), "requests wait on"),
    Sign(25, "invariant 8", (), "(kv|memory|cache)_bytes of .* still"),
    Sign(16, "invariant 8", (), "subscriptions|open_requests of .* still"),
    Sign(20, "invariant 9", (), "can never succeed"),
    Sign(6, "invariant 9", ("stop", "restart"), "WORKER_DRAINING|WORKER_LOST"),
)


def class_of(breach: Breach) -> int | None:
    """Its number, None where no sign fits."""
    return next((sign.number for sign in SIGNS if sign.fits(breach)), None)


def label(number: int | None) -> str:
    """For file names and tables."""
    return UNCLASSIFIED if number is None else f"{number}_{SHORT[number]}"


def told(number: int | None) -> str:
    """For people."""
    return UNCLASSIFIED if number is None else f"class {number}, {CLASSES[number]}"
