"""RequestQueue and ContinuousBatcher: who waits, and who is in the engine's batch."""

from collections import OrderedDict

from cluster.protocol import AttemptId, Chunk, Dispatch, Token


class Work:
    """One attempt on this worker. Times in the worker's clock, seconds."""

    __slots__ = ("dispatch", "first_token_s", "received_s", "sequence", "started_s", "tokens_made")

    def __init__(self, dispatch: Dispatch, now: float) -> None:
        self.dispatch = dispatch
        self.received_s = now
        self.sequence: int | None = None
        self.started_s: float | None = None
        self.first_token_s: float | None = None
        self.tokens_made = 0

    def chunk(
        self,
        tokens: tuple[Token, ...] = (),
        times_s: tuple[float, ...] = (),
        finish: str | None = None,
        code: str | None = None,
        cached_tokens: int = 0,
    ) -> Chunk:
        """The next chunk of this attempt's stream; counts its tokens."""
        index = len(self.dispatch.delivered) + self.tokens_made
        self.tokens_made += len(tokens)
        return Chunk(
            self.dispatch.attempt, index, tokens, times_s, finish=finish, code=code, cached_tokens=cached_tokens
        )


class RequestQueue:
    """First in, first out, bounded."""

    def __init__(self, queue_max: int) -> None:
        self.queue_max = queue_max
        self._waiting: OrderedDict[AttemptId, Work] = OrderedDict()

    def __len__(self) -> int:
        return len(self._waiting)

    @property
    def full(self) -> bool:
        """Whether one more would be too many."""
        return len(self._waiting) >= self.queue_max

    def push(self, work: Work) -> None:
        """Append; the caller has checked `full`."""
        assert not self.full
        self._waiting[work.dispatch.attempt] = work

    def pop(self) -> Work:
        """Take the next one out."""
        return self._waiting.popitem(last=False)[1]

    def take(self, attempt: AttemptId) -> Work | None:
        """Take a certain one out, None when it does not wait here."""
        return self._waiting.pop(attempt, None)

    def works(self) -> list[Work]:
        """All that wait, oldest first."""
        return list(self._waiting.values())


class ContinuousBatcher:
    """The slots of the engine's batch: a waiting attempt joins as soon as another leaves, in mid-decode."""

    def __init__(self, batch_max: int) -> None:
        self.batch_max = batch_max
        self._running: dict[int, Work] = {}
        self._sequences: dict[AttemptId, int] = {}
        self._next_sequence = 0

    def __len__(self) -> int:
        return len(self._running)

    @property
    def full(self) -> bool:
        """Whether every slot is taken."""
        return len(self._running) >= self.batch_max

    def start(self, work: Work, now: float) -> int:
        """Give the attempt a slot; the sequence id for the engine, never used again."""
        assert not self.full
        self._next_sequence += 1
        work.sequence = self._next_sequence
        work.started_s = now
        self._running[work.sequence] = work
        self._sequences[work.dispatch.attempt] = work.sequence
        return work.sequence

    def get(self, sequence: int) -> Work | None:
        """The attempt in this sequence, None when it has left."""
        return self._running.get(sequence)

    def find(self, attempt: AttemptId) -> Work | None:
        """The running attempt of this id."""
        sequence = self._sequences.get(attempt)
        return None if sequence is None else self._running[sequence]

    def leave(self, work: Work) -> None:
        """Free the slot."""
        assert work.sequence is not None
        del self._running[work.sequence]
        del self._sequences[work.dispatch.attempt]

    def running(self) -> list[Work]:
        """All in the batch, in order of insertion."""
        return list(self._running.values())
