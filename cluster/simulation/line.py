"""One direction of one connection: what is on its way over it, over a good line or a bad one."""

import math
from collections import deque
from collections.abc import Callable
from random import Random

import msgspec

from cluster.simulation.kernel import Kernel

FRAME_BYTES = 48
"""Of a message on the wire beside its payload: the verb, the subjects, the sizes."""
_PIECE_BYTES_MAX = 32 * 1024
"""The proxy reads no more at once."""


class Shaping(msgspec.Struct, frozen=True):
    """What a bad line does in one direction.

    Everything arrives `latency_s` later, give or take `jitter_s` (uniform). `bytes_per_s` pass, and after each piece of
    `slice_bytes` the line is quiet for `slice_delay_s`. None: no such limit.
    """

    latency_s: float = 0.0
    jitter_s: float = 0.0
    bytes_per_s: float | None = None
    slice_bytes: int | None = None
    slice_delay_s: float = 0.0

    def one_way_s(self, size_bytes: int) -> float:
        """How long so many bytes take over an idle line, without any jitter."""
        return self.transmission_s(size_bytes) + self.latency_s

    @property
    def counts_bytes(self) -> bool:
        """Whether the size of what is sent makes a difference."""
        return self.bytes_per_s is not None or self.slice_bytes is not None

    def transmission_s(self, size_bytes: int) -> float:
        """For how long so many bytes keep the line busy."""
        busy_s = 0.0
        if self.bytes_per_s is not None:
            busy_s += size_bytes / self.bytes_per_s
        if self.slice_bytes is not None:
            busy_s += math.ceil(size_bytes / min(self.slice_bytes, _PIECE_BYTES_MAX)) * self.slice_delay_s
        return busy_s


class _Parcel:
    """Something on its way over a shaped line."""

    __slots__ = ("arrive", "size_bytes", "through_s")

    def __init__(self, arrive: Callable[[], None], size_bytes: int, through_s: float) -> None:
        self.arrive: Callable[[], None] | None = arrive
        self.size_bytes = size_bytes
        self.through_s = through_s


class Line:
    """Whatever is sent over it arrives, in order. Seeded randomness beyond `travel_s` is drawn only for a jitter."""

    def __init__(self, kernel: Kernel, random: Random, travel_s: Callable[[], float]) -> None:
        """travel_s: how long the way takes without any shaping, drawn anew for each message."""
        self._kernel = kernel
        self._random = random
        self._travel_s = travel_s
        self._shaping: Shaping | None = None
        self._parcels: deque[_Parcel] = deque()
        self._free_s = 0.0
        self.last_s = 0.0
        """When what was sent last arrives."""

    def shape(self, shaping: Shaping | None) -> None:
        """From now on; what is on its way over a shaped line is let go, and overtaken by nothing."""
        if self._shaping is not None:
            self.last_s = self._kernel.now
        self._shaping = shaping
        released, self._parcels = self._parcels, deque()
        self._free_s = self._kernel.now
        for parcel in released:
            arrive, parcel.arrive = parcel.arrive, None
            if arrive is not None:
                self._send(arrive, parcel.size_bytes)

    @property
    def good(self) -> bool:
        """Whether nothing is wrong with it."""
        return self._shaping is None

    def carry(self, arrive: Callable[[], None], size_bytes: Callable[[], int]) -> None:
        """Send something; `arrive` is called when it is there. size_bytes: asked only where it makes a difference."""
        self._send(arrive, size_bytes() if self._shaping is not None and self._shaping.counts_bytes else 0)

    def _send(self, arrive: Callable[[], None], size: int) -> None:
        shaping = self._shaping
        if shaping is None:
            arrives_s = self._kernel.now + self._travel_s()
            if arrives_s > self.last_s:
                self.last_s = arrives_s
            self._kernel.at(self.last_s, arrive)
            return
        self._free_s = max(self._free_s, self._kernel.now) + shaping.transmission_s(size)
        late_s = shaping.latency_s
        if shaping.jitter_s:
            late_s += self._random.uniform(-shaping.jitter_s, shaping.jitter_s)
        self.last_s = max(self.last_s, self._free_s + max(0.0, late_s) + self._travel_s())
        parcel = _Parcel(arrive, size, self._free_s)
        self._parcels.append(parcel)
        self._kernel.at(self.last_s, lambda: self._arrived(parcel))

    def waiting_bytes(self) -> int:
        """Of what was sent, how much is not through the line yet (whole messages)."""
        now = self._kernel.now
        return sum(parcel.size_bytes for parcel in self._parcels if parcel.through_s > now)

    def _arrived(self, parcel: _Parcel) -> None:
        arrive, parcel.arrive = parcel.arrive, None
        if arrive is None:
            return
        # In order, so it is the first one.
        self._parcels.popleft()
        arrive()
