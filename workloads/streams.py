"""The independent random streams of a load: a draw more in one moves nothing in another."""

from enum import IntEnum

import numpy as np


class Stream(IntEnum):
    """What a stream is for. The numbers are part of what a seed means: they are never changed, only added to."""

    ARRIVALS = 0
    SESSIONS = 1
    CONTENT = 2
    THINKING = 3
    SYSTEM_CHOICE = 4
    SYSTEM_CONTENT = 5
    BLOCKS = 6
    ARMS = 7


def stream(seed: int, *key: int) -> np.random.Generator:
    """The stream of a key: a Stream, then whatever distinguishes its streams. Neither seed nor key may be negative."""
    return np.random.Generator(np.random.PCG64(np.random.SeedSequence(seed, spawn_key=key)))
