"""What an OpenAI-compatible endpoint answers to one streamed request, and the row that becomes of it."""

import math
from itertools import accumulate, pairwise

import msgspec

from analysis.schema import RequestRow, Segment
from cluster.errors import TRAITS, Code
from cluster.node import Ask
from workloads.event_stream import ServerEvent

TOKEN_UNKNOWN = -1
"""In the place of every token: an endpoint tells text, and not which tokens it is made of."""

CONNECT_FAILED = "CONNECT_FAILED"
CONNECTION_BROKEN = "CONNECTION_BROKEN"
BAD_RESPONSE = "BAD_RESPONSE"
ERROR_EVENT = "ERROR_EVENT"
PIECES_MAX = 100_000
TOKENS_TOLD_MAX = 100_000
"""An endpoint that says more of one answer is not believed."""
_DETAIL_MAX = 200


_NOTHING = msgspec.Raw(b"null")


class _Delta(msgspec.Struct):
    content: str | None = None
    reasoning_content: str | None = None


class _Choice(msgspec.Struct):
    delta: _Delta | None = None
    text: str | None = None
    finish_reason: str | None = None


class _PromptDetails(msgspec.Struct):
    cached_tokens: int | None = None


class _Usage(msgspec.Struct):
    prompt_tokens: int | None = None
    completion_tokens: int | None = None
    prompt_tokens_details: _PromptDetails | None = None


class _Event(msgspec.Struct):
    choices: list[_Choice] | None = None
    usage: _Usage | None = None
    error: msgspec.Raw = _NOTHING


class _Error(msgspec.Struct):
    code: str | int | None = None
    type: str | None = None
    message: str | None = None


class _ErrorBody(msgspec.Struct):
    error: _Error | str | None = None
    message: str | None = None


_events = msgspec.json.Decoder(_Event)
_errors = msgspec.json.Decoder(_Error | str | None)
_error_bodies = msgspec.json.Decoder(_ErrorBody)


class Answer:
    """Fed with events while they come. Times are of the caller's clock, seconds."""

    def __init__(self) -> None:
        self.pieces: list[tuple[float, int]] = []
        """When each piece of text came, and how many characters it had."""
        self.finish = ""
        self.code = ""
        self.detail = ""
        """One line about a failure."""
        self.refused = False
        self.done_s: float | None = None
        """When [DONE] came."""
        self.strays = 0
        """Pieces of text that came after the reason to finish."""
        self._usage: _Usage | None = None

    def take(self, event: ServerEvent, now: float) -> None:
        """One event of the stream. What comes after its end does not count."""
        if self.done or self.code:
            return None
        if event.data == b"[DONE]":
            self.done_s = now
            return None
        try:
            body = _events.decode(event.data)
        except msgspec.DecodeError as error:
            return self.fail(ERROR_EVENT if event.kind == "error" else BAD_RESPONSE, f"{error}: {_text(event.data)}")
        told = bytes(body.error) != b"null"
        if told or event.kind == "error":
            return self._fail_as_told(bytes(body.error) if told else event.data)
        if body.usage is not None:
            self._usage = body.usage
        for choice in (body.choices or ())[:1]:
            self._take_choice(choice, now)
        return None

    def close(self) -> None:
        """The stream has ended: whole, or in the middle."""
        if self.code:
            return
        if not self.done and not self.finish:
            self.fail(CONNECTION_BROKEN, "the stream ended without a finish reason and without [DONE]")
        elif not self.finish:
            self.finish = "stop"

    def fail(self, code: str, detail: str = "") -> None:
        """It failed, if it is not over already. The first failure counts."""
        if not self.code and not self.done:
            self.code, self.detail = code, _line(detail)

    def refuse(self, status: int, body: bytes) -> None:
        """An answer with an HTTP status that is no success. A code of this project's own gateway is kept."""
        code, detail = f"HTTP_{status}", _text(body)
        try:
            told = _error_bodies.decode(body)
        except msgspec.DecodeError:
            pass
        else:
            if isinstance(told.error, _Error):
                detail = told.error.message or detail
                code = _known(told.error.code) or code
            else:
                detail = told.error or told.message or detail
        self.fail(code, detail)
        # The server took no work on: it is busy, or what was asked is none of its.
        known = _known(code)
        self.refused = TRAITS[Code(known)].refusal if known else (400 <= status < 500 or status == 503)

    @property
    def done(self) -> bool:
        """Whether [DONE] came."""
        return self.done_s is not None

    @property
    def first_s(self) -> float | None:
        """When the first content came."""
        return self.pieces[0][0] if self.pieces else None

    @property
    def tokens_told(self) -> int | None:
        """Completion tokens as the server counts them, None where it does not say, or says what cannot be."""
        told = self._usage.completion_tokens if self._usage is not None else None
        return told if told is not None and 0 < told <= TOKENS_TOLD_MAX else None

    @property
    def prompt_tokens_told(self) -> int | None:
        """Prompt tokens as the server counts them."""
        return self._usage.prompt_tokens if self._usage is not None else None

    @property
    def cached_tokens(self) -> int:
        """Of the prompt, as the server says; 0 where it does not."""
        details = self._usage.prompt_tokens_details if self._usage is not None else None
        return (details.cached_tokens or 0) if details is not None else 0

    def row(self, ask: Ask, sent_s: float, ended_s: float, prompt_tokens: int) -> RequestRow:
        """The row of the request. prompt_tokens: our own estimate, where the server does not say."""
        completed = not self.code
        segments = _segments(self.pieces, self.tokens_told)
        outcome = "completed" if completed else "cancelled" if self.code == Code.CANCELLED else "failed"
        return RequestRow(
            request_id=ask.request_id,
            model=ask.model,
            session_id=ask.session_id or "",
            turn=ask.turn,
            prompt_id=ask.prompt_id,
            prompt_tokens=self.prompt_tokens_told or prompt_tokens,
            max_tokens=ask.max_tokens,
            intended_s=ask.intended_s,
            sent_s=sent_s,
            first_token_s=self.first_s,
            ended_s=ended_s,
            deadline_s=ask.intended_s + ask.timeout_s,
            outcome="refused" if self.refused else outcome,
            code=self.code,
            finish=("length" if self.finish == "length" else "stop") if completed else "",
            submissions=1,
            cached_tokens=self.cached_tokens,
            strays=self.strays,
            tokens=[TOKEN_UNKNOWN] * sum(segment.count for segment in segments),
            segments=segments,
        )

    def _take_choice(self, choice: _Choice, now: float) -> None:
        text = choice.text or ""
        if choice.delta is not None:
            text += (choice.delta.reasoning_content or "") + (choice.delta.content or "")
        if text and self.finish:
            self.strays += 1
            return None
        if text:
            if len(self.pieces) >= PIECES_MAX:
                return self.fail(BAD_RESPONSE, f"the answer comes in more than {PIECES_MAX} pieces")
            self.pieces.append((now, len(text)))
        if choice.finish_reason:
            self.finish = choice.finish_reason
        return None

    def _fail_as_told(self, error: bytes) -> None:
        try:
            told = _errors.decode(error)
        except msgspec.DecodeError:
            told = None
        if isinstance(told, _Error):
            return self.fail(_known(told.code) or ERROR_EVENT, told.message or _text(error))
        return self.fail(ERROR_EVENT, told or _text(error))


def _segments(pieces: list[tuple[float, int]], told: int | None) -> list[Segment]:
    """The pieces with their numbers of tokens: one each, or the told number, spread over the pieces by their length."""
    counts = [1] * len(pieces)
    if told is not None and told != len(pieces) and pieces:
        reached = list(accumulate(size for _, size in pieces))
        edges = [0, *(math.ceil(told * characters / reached[-1]) for characters in reached)]
        counts = [after - before for before, after in pairwise(edges)]
    starts = accumulate(counts, initial=0)
    return [
        Segment(index, count, 1, 1, "", 0, received_s)
        for index, count, (received_s, _) in zip(starts, counts, pieces, strict=False)
        if count
    ]


def _known(code: object) -> str:
    """A code of this project, else nothing."""
    return code if isinstance(code, str) and code in Code.__members__ else ""


def _text(body: bytes) -> str:
    return body[: 4 * _DETAIL_MAX].decode("utf-8", "replace")


def _line(text: str) -> str:
    return " ".join(text.split())[:_DETAIL_MAX]
