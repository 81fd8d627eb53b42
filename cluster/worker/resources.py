"""ResourceManager: what a worker's memory is promised to, what still fits, and what has to go for it."""

from collections.abc import Callable, Sequence

import msgspec

from cluster.policy import MemoryPolicy
from cluster.protocol import AttemptId
from cluster.worker.prewarm import ModelPreWarmer
from cluster.worker.session_cache import SessionCache

_PROBE_TOKENS = 2
"""Of the smallest request there is: one of prompt, one to make."""


class Room(msgspec.Struct, frozen=True):
    """What has to go, in order: kept caches by number, then models. Cache and models are told already."""

    caches: tuple[int, ...] = ()
    models: tuple[str, ...] = ()


class ResourceManager:
    """A ledger in bytes: weights of models, reservations of accepted requests, kept caches.

    A reservation covers all that its request may come to hold, so what has been accepted never runs out of memory.
    What the engine has measured beyond the ledger counts as used too. That measure is as old as the last report: it is
    forgotten when the last request ends, or a worker that refuses everybody would never measure again.
    """

    def __init__(self, policy: MemoryPolicy, cache: SessionCache, models: ModelPreWarmer) -> None:
        self._policy = policy
        self._held_from_before = False
        self.bytes_max = policy.bytes_max
        """The limit; None: there is none."""
        self._cache = cache
        self._models = models
        self._weights: dict[str, int] = {}
        self._reserved: dict[AttemptId, int] = {}
        self._unexplained_bytes = 0
        self._soft = False
        self.reserved_bytes = 0

    def limit(self, bytes_max: int | None) -> None:
        """Another limit from now on. What is held already may be more than that, until its owners have ended."""
        self.bytes_max = bytes_max
        self._held_from_before = bytes_max is not None and self.ledger_bytes > bytes_max

    def bound_bytes(self) -> int | None:
        """What the ledger may not exceed now: the limit, or all that is held from before a lower limit came."""
        if self.bytes_max is None:
            return None
        return max(self.bytes_max, self.ledger_bytes) if self._held_from_before else self.bytes_max

    @property
    def used_bytes(self) -> int:
        """The ledger and what was measured beyond it: what room is made by. Nobody can promise the second part."""
        return self.ledger_bytes + self._unexplained_bytes

    @property
    def ledger_bytes(self) -> int:
        """All that is promised or held: it never exceeds `bound_bytes`."""
        return self.weights_bytes + self.reserved_bytes + self._cache.size_bytes

    @property
    def weights_bytes(self) -> int:
        """Of all models in memory, or about to be."""
        return sum(self._weights.values())

    def hold_weights(self, model: str, size_bytes: int) -> None:
        """A model is in memory, or is about to be."""
        self._weights[model] = size_bytes

    def free_weights(self, model: str) -> None:
        """A model has left."""
        self._weights.pop(model, None)

    def reserve(self, attempt: AttemptId, size_bytes: int) -> None:
        """Promise memory to an attempt, instead of what it had been promised before."""
        self.reserved_bytes += size_bytes - self._reserved.get(attempt, 0)
        self._reserved[attempt] = size_bytes

    def release(self, attempt: AttemptId) -> None:
        """The attempt has ended."""
        self.reserved_bytes -= self._reserved.pop(attempt, 0)
        if not self._reserved:
            self._unexplained_bytes = 0
        self._settle()

    def measured(self, active_bytes: int) -> None:
        """The engine says how much it holds; 0 when it cannot say."""
        if active_bytes and self._reserved:
            self._unexplained_bytes = max(0, active_bytes - self.ledger_bytes)

    def exceeds(self, size_bytes: int) -> bool:
        """Whether so much can never fit, however empty the memory is."""
        return self.bytes_max is not None and size_bytes > self.bytes_max

    def make_room(self, more_bytes: int, model: str, busy: Sequence[str], below: int | None = None) -> Room | None:
        """Make so much fit for the sake of a model: kept caches go first, then idle models (`ModelPreWarmer.idle`).

        None, and nothing has changed, when it does not fit even so.
        """
        idle = self._models.idle(busy, model, below)
        if not self._could_fit(more_bytes, idle):
            return None
        caches: list[int] = []
        models: list[str] = []
        while not self._fits(more_bytes):
            dropped = self._cache.evict()
            if dropped is not None:
                caches.append(dropped)
            else:
                models.append(idle.pop(0))
                self._models.unloaded(models[-1])
                self.free_weights(models[-1])
        return Room(tuple(caches), tuple(models))

    def let_go(self, busy: Callable[[], Sequence[str]]) -> Room:
        """Models that are to leave do so as soon as nobody waits for them, and their kept caches with them."""
        if not self._models.leaving:
            return Room()
        models = self._models.ready_to_leave(busy())
        for model in models:
            self._cache.forget_model(model)
            self._models.unloaded(model)
            self.free_weights(model)
        return Room(models=tuple(models))

    def relieve(self) -> Room:
        """Above the soft limit kept caches go, until usage is well below it."""
        caches: list[int] = []
        while self.strained() and (dropped := self._cache.evict()) is not None:
            caches.append(dropped)
        self._settle()
        return Room(tuple(caches))

    def _settle(self) -> None:
        """Once the ledger has come down to the limit, the limit is its bound again."""
        if self.bytes_max is None or self.ledger_bytes <= self.bytes_max:
            self._held_from_before = False

    def pressure(self, busy: Sequence[str]) -> int:
        """See Heartbeat. 2: not even the smallest request would fit, of whatever model is warm."""
        if self.bytes_max is None:
            return 0
        smallest = [
            (self._models.kv_bytes(state.model, _PROBE_TOKENS), self._models.idle(busy, state.model))
            for state in self._models.states()
            if state.state == "warm"
        ]
        if not any(self._could_fit(size_bytes, idle) for size_bytes, idle in smallest or [(0, [])]):
            return 2
        return 1 if self.strained() else 0

    def strained(self) -> bool:
        """Whether usage is above the soft limit, or has been and is not yet below the level at which that is over.

        With nothing left to give back it is over too: else weights above that level would keep it up for ever.
        """
        if self.bytes_max is None:
            return False
        used = self.used_bytes
        at_base = not self._reserved and not self._cache.size_bytes
        if used > self._policy.soft_share * self.bytes_max:
            self._soft = True
        elif used < self._policy.resume_share * self.bytes_max or at_base:
            self._soft = False
        return self._soft

    def _fits(self, more_bytes: int) -> bool:
        return self.bytes_max is None or self.used_bytes + more_bytes <= self.bytes_max

    def _could_fit(self, more_bytes: int, idle: list[str]) -> bool:
        """Whether it would fit without kept caches and without these models."""
        return self._fits(more_bytes - self._cache.size_bytes - sum(self._weights.get(model, 0) for model in idle))
