"""RequestQueue and ContinuousBatcher: who waits, and who is in the engine's batch."""

from collections.abc import Callable

from cluster.protocol import AttemptId, Chunk, Dispatch, Token


class Work:
    """One attempt on this worker. Times in the worker's clock, seconds.

    made: the tokens that it has made. batch_sum: over these tokens, how many sequences made one in the same step.
    """

    __slots__ = (
        "batch_sum",
        "cached_tokens",
        "dispatch",
        "first_token_s",
        "made",
        "received_s",
        "sequence",
        "started_s",
    )

    def __init__(self, dispatch: Dispatch, now: float) -> None:
        self.dispatch = dispatch
        self.received_s = now
        self.sequence: int | None = None
        self.started_s: float | None = None
        self.first_token_s: float | None = None
        self.made: list[Token] = []
        self.cached_tokens = 0
        self.batch_sum = 0

    @property
    def tokens(self) -> tuple[Token, ...]:
        """What the engine goes on from: the prompt, and what earlier attempts have delivered."""
        return self.dispatch.prompt + self.dispatch.delivered

    @property
    def session(self) -> str:
        """Its session; those without one share the nameless session."""
        return self.dispatch.session_id or ""

    @property
    def batch_mean(self) -> float:
        """Sequences in a decode step, averaged over the steps of this attempt; 0 when it made none."""
        return self.batch_sum / len(self.made) if self.made else 0.0

    def chunk(
        self,
        tokens: tuple[Token, ...] = (),
        times_s: tuple[float, ...] = (),
        finish: str | None = None,
        code: str | None = None,
        cached_tokens: int = 0,
    ) -> Chunk:
        """The next chunk of this attempt's stream; counts its tokens."""
        index = len(self.dispatch.delivered) + len(self.made)
        self.made += tokens
        return Chunk(
            self.dispatch.attempt, index, tokens, times_s, finish=finish, code=code, cached_tokens=cached_tokens
        )


class RequestQueue:
    """Bounded. Higher priority first, and whoever waits rises by one priority every `ageing_s` seconds.

    All rise alike, so who comes first is settled on arrival: whoever arrived first, had each priority brought it
    `ageing_s` earlier. Nobody is overtaken by what arrives later than that, hence nobody starves.
    """

    def __init__(self, queue_max: int, ageing_s: float) -> None:
        self.queue_max = queue_max
        self._ageing_s = ageing_s
        self._waiting: dict[AttemptId, tuple[float, Work]] = {}

    def __len__(self) -> int:
        return len(self._waiting)

    @property
    def full(self) -> bool:
        """Whether one more would be too many."""
        return len(self._waiting) >= self.queue_max

    def push(self, work: Work) -> None:
        """Add one; the caller has checked `full`."""
        assert not self.full
        dispatch = work.dispatch
        self._waiting[dispatch.attempt] = (work.received_s - dispatch.priority * self._ageing_s, work)

    def pop(self, ready: Callable[[str], bool]) -> Work | None:
        """Take out the next one whose model is `ready`; None when there is none.

        The queue is short, so it is searched: ties go to the first in it.
        """
        waiting = [rank for rank in self._waiting.values() if ready(rank[1].dispatch.model)]
        if not waiting:
            return None
        work = min(waiting, key=lambda rank: rank[0])[1]
        del self._waiting[work.dispatch.attempt]
        return work

    def take(self, attempt: AttemptId) -> Work | None:
        """Take a certain one out, None when it does not wait here."""
        rank = self._waiting.pop(attempt, None)
        return None if rank is None else rank[1]

    def works(self) -> list[Work]:
        """All that wait, the next one first."""
        return [work for _, work in sorted(self._waiting.values(), key=lambda rank: rank[0])]

    def models(self) -> list[str]:
        """The models that somebody waits for, that of the next one first."""
        return list(dict.fromkeys(work.dispatch.model for work in self.works()))


class ContinuousBatcher:
    """The slots of the engine's batch: a waiting attempt joins as soon as another leaves, in mid-decode."""

    def __init__(self, batch_max: int) -> None:
        self.batch_max = batch_max
        self._running: dict[int, Work] = {}
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
        return work.sequence

    def get(self, sequence: int) -> Work | None:
        """The attempt in this sequence, None when it has left."""
        return self._running.get(sequence)

    def leave(self, work: Work) -> None:
        """Free the slot."""
        assert work.sequence is not None
        del self._running[work.sequence]
