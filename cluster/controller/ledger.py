"""The ledger: every request the controller has accepted and not ended, and its present attempt."""

from cluster.errors import Code
from cluster.protocol import AttemptId, Chunk, Dispatch, Submit, Token

_SAME = ("model", "max_tokens", "priority", "session_id", "sampling", "worker")
"""What no later submission of a request may change."""


class Attempt:
    """One execution on one worker, as the controller sees it. Times in the controller's clock, seconds."""

    __slots__ = (
        "begun_s",
        "cached_tokens",
        "first_token_s",
        "id",
        "index",
        "news_s",
        "tokens",
        "worker",
        "worker_incarnation",
    )

    def __init__(self, attempt: AttemptId, worker: str, worker_incarnation: int, index: int, now: float) -> None:
        self.id = attempt
        self.worker = worker
        self.worker_incarnation = worker_incarnation
        self.index = index
        self.begun_s = now
        self.news_s = now
        self.first_token_s: float | None = None
        self.tokens = 0
        self.cached_tokens = 0


class Entry:
    """A request. `tokens` is the completion so far, `chunks` where each part of it came from.

    accepted_s: when the controller took it in, its clock, seconds. attempts_made numbers the attempts; tries counts how
    often one failed, or nobody could be found for it: an attempt that its client or we gave up is none of these.
    Either `attempt` is set (it runs on a worker), or `retry_s` (it will be tried then), or it waits in line, or for our
    own link; told_s is when its client last heard that it waits.
    """

    __slots__ = (
        "accepted_s",
        "attempt",
        "attempts_made",
        "chunks",
        "deadline_s",
        "excluded",
        "hold_until_s",
        "last_code",
        "retry_s",
        "submit",
        "tokens",
        "told_s",
        "tries",
    )

    def __init__(self, submit: Submit, now: float) -> None:
        self.submit = submit
        self.accepted_s = now
        self.told_s = now
        self.deadline_s = submit.deadline_s
        self.tokens: list[Token] = list(submit.delivered)
        self.chunks: list[Chunk] = []
        self.attempt: Attempt | None = None
        self.attempts_made = 0
        self.tries = 0
        self.excluded: tuple[str, ...] = ()
        self.retry_s: float | None = None
        self.hold_until_s: float | None = None
        self.last_code: Code | None = None

    @property
    def id(self) -> str:
        """The request's id."""
        return self.submit.request_id

    @property
    def wish(self) -> str:
        """The worker that it is to go to if that may take it; empty: routing decides, as it does after a failure."""
        worker = self.submit.worker
        return "" if worker in self.excluded else worker

    def accepts(self, submit: Submit) -> bool:
        """Whether this is a submission of the same request; one that asks for something else, or no more, is none."""
        asked = self.submit
        same = all(getattr(submit, name) == getattr(asked, name) for name in _SAME)
        return same and submit.prompt == asked.prompt and len(submit.delivered) < submit.max_tokens

    def resume(self, submit: Submit) -> bool:
        """Take the client's next submission. Returns whether the present attempt, if any, is of no use any more.

        So it is where the client has been elsewhere meanwhile (a submission is missing here) or knows more than we
        do: then it goes on from what it has, and would take what an older attempt says for news of the past.
        """
        skipped = submit.submission > self.submit.submission + 1
        self.submit = submit
        if not skipped and len(submit.delivered) <= len(self.tokens):
            return False
        self.tokens = list(submit.delivered)
        self.chunks = []
        return True

    def begin_attempt(self, worker: str, worker_incarnation: int, now: float) -> Attempt:
        """The next attempt, on that worker, goes on from what is known of the completion."""
        self.attempts_made += 1
        self.hold_until_s = None
        attempt = AttemptId(self.id, self.submit.submission, self.attempts_made)
        self.attempt = Attempt(attempt, worker, worker_incarnation, len(self.tokens), now)
        return self.attempt

    def dispatch(self, attempt: Attempt, controller: str, deadline_s: float) -> Dispatch:
        """What `controller` asks of the attempt's worker; deadline_s in the worker's clock, seconds."""
        submit = self.submit
        return Dispatch(
            attempt.id,
            controller,
            attempt.worker_incarnation,
            submit.model,
            submit.prompt,
            tuple(self.tokens),
            submit.max_tokens,
            deadline_s,
            submit.session_id,
            submit.priority,
            submit.sampling,
        )

    def take(self, chunk: Chunk, attempt: Attempt, now: float) -> Chunk:
        """Add the next part of the completion, which the present attempt has made.

        Returns it with its origin, which the worker need not repeat: for the client now, and if it misses this, again.
        """
        told = Chunk(
            chunk.attempt,
            chunk.index,
            chunk.tokens,
            finish=chunk.finish,
            worker=attempt.worker,
            worker_incarnation=attempt.worker_incarnation,
            cached_tokens=chunk.cached_tokens,
        )
        if chunk.tokens:
            attempt.news_s = now
            attempt.tokens += len(chunk.tokens)
            if attempt.first_token_s is None:
                attempt.first_token_s = now
                attempt.cached_tokens = chunk.cached_tokens
            self.tokens += chunk.tokens
            self.chunks.append(told)
        return told

    def after(self, index: int) -> list[Chunk]:
        """What the ledger knows of the completion from `index` on, as chunks with their origin."""
        parts: list[Chunk] = []
        for chunk in self.chunks:
            end = chunk.index + len(chunk.tokens)
            if end > index:
                skip = max(0, index - chunk.index)
                parts.append(
                    Chunk(
                        chunk.attempt,
                        chunk.index + skip,
                        chunk.tokens[skip:],
                        worker=chunk.worker,
                        worker_incarnation=chunk.worker_incarnation,
                        cached_tokens=chunk.cached_tokens,
                    )
                )
        return parts


class Ledger:
    """Open requests by id, at most `requests_max`."""

    def __init__(self, requests_max: int) -> None:
        self.requests_max = requests_max
        self._entries: dict[str, Entry] = {}

    def __len__(self) -> int:
        return len(self._entries)

    @property
    def full(self) -> bool:
        """Whether one more would be too many."""
        return len(self._entries) >= self.requests_max

    def get(self, request_id: str) -> Entry | None:
        """The open request, None when it is unknown or has ended."""
        return self._entries.get(request_id)

    def add(self, entry: Entry) -> None:
        """Take a request in; the caller has checked `full` and that it is new."""
        assert entry.id not in self._entries
        assert not self.full
        self._entries[entry.id] = entry

    def remove(self, entry: Entry) -> None:
        """Forget a request that has ended."""
        del self._entries[entry.id]

    def entries(self) -> list[Entry]:
        """All open requests, oldest first."""
        return list(self._entries.values())
