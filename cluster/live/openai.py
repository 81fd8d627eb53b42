"""OpenAI's chat and completion API: what a request may say, what the answers look like. Pure; knows no HTTP server."""

import json
from typing import Annotated, Any, ClassVar, Literal, NoReturn, TypeVar

import msgspec
from msgspec import UNSET, Meta, UnsetType

from cluster.errors import TRAITS, Code
from cluster.protocol import GREEDY, Sampling, Token

T = TypeVar("T", bound="GenerationRequest")

DEFAULT_MAX_TOKENS = 512
"""Of an answer whose caller names no limit; less where the context ends earlier."""
DEFAULT_TIMEOUT_S = 120.0
TIMEOUT_S_MAX = 3_600.0
SESSION_ID_MAX = 128
"""Characters."""
WORKER_MAX = 128
"""Characters."""
_PATH_TOLD_MAX = 100
RETRY_AFTER_S = 1
"""What a caller that was refused for load, or while nobody was there, is told to wait."""

# Codes of the gateway itself; all others are those of cluster.errors.
INTERNAL_ERROR = "INTERNAL_ERROR"
INVALID_API_KEY = "INVALID_API_KEY"
CONTEXT_LENGTH_EXCEEDED = "context_length_exceeded"
NOT_FOUND = "NOT_FOUND"
METHOD_NOT_ALLOWED = "METHOD_NOT_ALLOWED"
REQUEST_TOO_LARGE = "REQUEST_TOO_LARGE"
UNSUPPORTED_MEDIA_TYPE = "UNSUPPORTED_MEDIA_TYPE"
REQUEST_TIMEOUT = "REQUEST_TIMEOUT"
STOPPING = "GATEWAY_STOPPING"

_STATUS = {
    INTERNAL_ERROR: 500,
    INVALID_API_KEY: 401,
    CONTEXT_LENGTH_EXCEEDED: 400,
    NOT_FOUND: 404,
    METHOD_NOT_ALLOWED: 405,
    REQUEST_TOO_LARGE: 413,
    UNSUPPORTED_MEDIA_TYPE: 415,
    REQUEST_TIMEOUT: 408,
    STOPPING: 503,
}
# What changes the answer and is not offered, with the values that ask for nothing.
_UNSUPPORTED: dict[str, tuple[object, ...]] = {
    "n": (1,),
    "best_of": (1,),
    "tools": ([],),
    "tool_choice": ("none", "auto"),
    "functions": ([],),
    "function_call": ("none", "auto"),
    "logprobs": (False,),
    "top_logprobs": (0,),
    "seed": (),
    "response_format": ({"type": "text"},),
    "modalities": (["text"],),
    "audio": (),
    "prediction": (),
    "reasoning_effort": ("none",),
    "stop_token_ids": ([],),
    "ignore_eos": (False,),
    "web_search_options": (),
    "logit_bias": ({},),
    "presence_penalty": (0,),
    "frequency_penalty": (0,),
    "repetition_penalty": (1,),
    "top_k": (0, -1),
    "min_p": (0,),
    "echo": (False,),
    "suffix": ("",),
}
_TEXT_BYTES = {"maxLength": 2**20}

MaxTokens = Annotated[int, Meta(ge=1, le=1_000_000, description="tokens of the answer at most")]
Stop = Annotated[str, Meta(min_length=1, max_length=256)]
Stops = Stop | Annotated[list[Stop], Meta(max_length=4)]
TokenId = Annotated[int, Meta(ge=0, lt=2**31)]


class Refusal(Exception):
    """A request that is answered with an error: our code, one line for people, and the field that it is about."""

    def __init__(self, code: str, message: str, param: str | None = None) -> None:
        super().__init__(message)
        self.code = str(code)
        self.message = message
        self.param = param

    @property
    def status(self) -> int:
        """The HTTP status."""
        return status_of(self.code)


def status_of(code: str) -> int:
    """The HTTP status of a code of the cluster or of the gateway."""
    return _STATUS[code] if code in _STATUS else TRAITS[Code(code)].http_status


def refusal_of(code: str) -> Refusal:
    """For a code that came from the cluster."""
    return Refusal(code, TRAITS[Code(code)].meaning)


class TextPart(msgspec.Struct, frozen=True, tag_field="type", tag="text"):
    """A part of a message's content."""

    text: Annotated[str, Meta(extra_json_schema=_TEXT_BYTES)]


class ChatMessage(msgspec.Struct, frozen=True):
    """One message of a chat. `developer` is taken as `system`."""

    role: Literal["system", "developer", "user", "assistant"]
    content: str | Annotated[list[TextPart], Meta(min_length=1)]

    def plain(self) -> dict[str, str]:
        """Role and text, as a chat template takes them."""
        role = "system" if self.role == "developer" else self.role
        if isinstance(self.content, str):
            return {"role": role, "content": self.content}
        return {"role": role, "content": "".join(part.text for part in self.content)}


class StreamOptions(msgspec.Struct, frozen=True):
    """include_usage: a last event counts the tokens."""

    include_usage: bool | None = None


class GenerationRequest(msgspec.Struct, frozen=True, kw_only=True):
    """What chat and completion have in common. Unlike OpenAI's, the default temperature is 0.

    session_id, priority, timeout (seconds) and worker are extensions: requests of one session find its cache again; a
    worker that is named is asked while it may take the request, and waited for while it is only full.
    """

    model: Annotated[str, Meta(min_length=1, max_length=256)]
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    max_tokens: MaxTokens | None = None
    temperature: Annotated[float, Meta(ge=0, le=2)] | None = None
    top_p: Annotated[float, Meta(gt=0, le=1)] | None = None
    stop: Stops | None = None
    user: Annotated[str, Meta(max_length=256)] | None = None
    session_id: Annotated[str, Meta(min_length=1, max_length=SESSION_ID_MAX)] | None = None
    priority: Literal[-1, 0, 1] | None = None
    timeout: Annotated[float, Meta(gt=0, le=TIMEOUT_S_MAX)] | None = None
    worker: Annotated[str, Meta(max_length=WORKER_MAX, description="who is to answer, if it can")] | None = None

    def sampling(self) -> Sampling:
        """How tokens are chosen."""
        return Sampling(
            GREEDY.temperature if self.temperature is None else self.temperature,
            GREEDY.top_p if self.top_p is None else self.top_p,
        )

    def stops(self) -> list[str]:
        """The strings that end the answer."""
        return [self.stop] if isinstance(self.stop, str) else list(self.stop or ())

    def limit(self) -> tuple[str, int | None]:
        """The field that limits the answer, and the limit."""
        return "max_tokens", self.max_tokens

    @property
    def wants_usage(self) -> bool:
        """Whether a stream ends with a count of tokens."""
        return self.stream_options is not None and bool(self.stream_options.include_usage)


class ChatRequest(GenerationRequest, frozen=True, kw_only=True):
    """Body of POST /v1/chat/completions. Fields that are not listed and would not change the answer are ignored."""

    ID_PREFIX: ClassVar[str] = "chatcmpl"
    messages: Annotated[list[ChatMessage], Meta(min_length=1, max_length=4_096)]
    max_completion_tokens: MaxTokens | None = None

    def limit(self) -> tuple[str, int | None]:
        """See GenerationRequest. The newer name counts where both are given."""
        if self.max_completion_tokens is not None:
            return "max_completion_tokens", self.max_completion_tokens
        return super().limit()


class CompletionRequest(GenerationRequest, frozen=True, kw_only=True):
    """Body of POST /v1/completions. prompt: a text, or the ids of its tokens."""

    ID_PREFIX: ClassVar[str] = "cmpl"
    prompt: Annotated[str, Meta(min_length=1)] | Annotated[list[TokenId], Meta(min_length=1)]


class CachedTokens(msgspec.Struct, frozen=True):
    """Of the prompt, not computed again."""

    cached_tokens: int


class Usage(msgspec.Struct, frozen=True):
    """Tokens of one request."""

    prompt_tokens: int
    completion_tokens: int
    total_tokens: int
    prompt_tokens_details: CachedTokens

    @classmethod
    def of(cls, prompt: int, completion: int, cached: int) -> "Usage":
        """From the counts."""
        return cls(prompt, completion, prompt + completion, CachedTokens(cached))


class AssistantMessage(msgspec.Struct, frozen=True):
    """The answer."""

    content: str
    role: Literal["assistant"] = "assistant"
    refusal: None = None


class ChatChoice(msgspec.Struct, frozen=True):
    """The one choice of a chat completion."""

    message: AssistantMessage
    finish_reason: Literal["stop", "length"]
    index: int = 0
    logprobs: None = None


class ChatCompletion(msgspec.Struct, frozen=True):
    """Answer to a chat request without `stream`."""

    id: str
    created: int
    model: str
    choices: list[ChatChoice]
    usage: Usage
    object: Literal["chat.completion"] = "chat.completion"


class Delta(msgspec.Struct, frozen=True):
    """What is new in the answer."""

    role: Literal["assistant"] | UnsetType = UNSET
    content: str | UnsetType = UNSET


class DeltaChoice(msgspec.Struct, frozen=True):
    """The one choice of a chat event."""

    delta: Delta
    finish_reason: Literal["stop", "length"] | None = None
    index: int = 0
    logprobs: None = None


class ChatEvent(msgspec.Struct, frozen=True):
    """An event of a chat stream. usage: in the last one, if asked for."""

    id: str
    created: int
    model: str
    choices: list[DeltaChoice]
    usage: Usage | UnsetType | None = UNSET
    object: Literal["chat.completion.chunk"] = "chat.completion.chunk"


class TextChoice(msgspec.Struct, frozen=True):
    """The one choice of a text completion, or of an event of its stream."""

    text: str
    finish_reason: Literal["stop", "length"] | None = None
    index: int = 0
    logprobs: None = None


class TextCompletion(msgspec.Struct, frozen=True):
    """Answer to a completion request, or an event of its stream."""

    id: str
    created: int
    model: str
    choices: list[TextChoice]
    usage: Usage | UnsetType | None = UNSET
    object: Literal["text_completion"] = "text_completion"


class Model(msgspec.Struct, frozen=True):
    """A model that is served. context_tokens: of prompt and answer together."""

    id: str
    created: int
    context_tokens: int
    object: Literal["model"] = "model"
    owned_by: str = "cluster"


class ModelList(msgspec.Struct, frozen=True):
    """Answer to GET /v1/models."""

    data: list[Model]
    object: Literal["list"] = "list"


class ErrorDetail(msgspec.Struct, frozen=True):
    """What went wrong: one line, the kind of it, the field of the request, and the code."""

    message: str
    type: str
    param: str | None
    code: str


class ErrorBody(msgspec.Struct, frozen=True):
    """Body of every answer that is an error, and the last event of a stream that breaks."""

    error: ErrorDetail


def error_body(refusal: Refusal) -> ErrorBody:
    """The body for a refusal."""
    return ErrorBody(ErrorDetail(refusal.message, _type(refusal.status), refusal.param, refusal.code))


def parse(body: bytes, kind: type[T]) -> T:
    """The request in a body. Raises Refusal that names the field."""
    try:
        document = msgspec.json.decode(body)
    except RecursionError:
        raise Refusal(Code.INVALID_REQUEST, "the body is nested too deeply") from None
    except (msgspec.DecodeError, UnicodeError) as error:
        _refuse_broken_text(body)
        raise Refusal(Code.INVALID_REQUEST, f"the body is not JSON: {error}") from None
    if not isinstance(document, dict):
        raise Refusal(Code.INVALID_REQUEST, f"the body must be a JSON object, got {type(document).__name__}")
    _refuse_unsupported(document)
    try:
        return msgspec.convert(document, kind)
    except msgspec.ValidationError as error:
        _refuse_invalid(str(error))


def check_tokens(request: GenerationRequest, prompt: tuple[Token, ...], context: int, vocabulary_size: int) -> int:
    """How many tokens the answer may have. Raises Refusal when the prompt or the answer does not fit.

    context: tokens of prompt and answer together. vocabulary_size: ids from there on mean nothing.
    """
    field = "prompt" if isinstance(request, CompletionRequest) else "messages"
    if not prompt:
        raise Refusal(Code.INVALID_REQUEST, f"{field}: expected at least one token", field)
    if max(prompt) >= vocabulary_size:
        raise Refusal(Code.INVALID_REQUEST, f"{field}: the model's tokens are 0 to {vocabulary_size - 1}", field)
    room = context - len(prompt)
    if room < 1:
        message = f"{field}: {len(prompt)} tokens leave no room for an answer in a context of {context} tokens"
        raise Refusal(CONTEXT_LENGTH_EXCEEDED, message, field)
    name, limit = request.limit()
    if limit is None:
        return min(DEFAULT_MAX_TOKENS, room)
    if limit > room:
        message = f"{name}: {len(prompt)} tokens of prompt and {limit} of answer exceed the context of {context} tokens"
        raise Refusal(CONTEXT_LENGTH_EXCEEDED, message, name)
    return limit


def is_unicode(text: str) -> bool:
    """Whether it can be sent on. What cannot: halves of surrogate pairs, and bytes of a header that are no UTF-8."""
    return not any("\ud800" <= character <= "\udfff" for character in text)


def _refuse_unsupported(document: dict[str, Any]) -> None:
    for field, neutral in _UNSUPPORTED.items():
        value = document.get(field)
        if value is None or any(_same(value, accepted) for accepted in neutral):
            continue
        allowed = f"; only {', '.join(map(repr, neutral))} can be given" if neutral else ""
        raise Refusal(Code.INVALID_REQUEST, f"{field}: is not supported here{allowed}", field)


def _refuse_broken_text(body: bytes) -> None:
    """Of a body that the decoder did not take: name the field whose text is no Unicode, if that is what is wrong."""
    try:
        # This decoder lets through what is no Unicode: half of a surrogate pair, and with the option bytes too.
        document = json.loads(body.decode("utf-8", "surrogateescape"))
    except (ValueError, RecursionError):
        return
    left: list[tuple[str, object]] = [("", document)]
    while left:
        path, value = left.pop()
        match value:
            case str() if not is_unicode(value):
                field = path if path and len(path) <= _PATH_TOLD_MAX and path.isprintable() else None
                what = "is not valid Unicode text (half of a surrogate pair, or bytes that are no UTF-8)"
                raise Refusal(Code.INVALID_REQUEST, f"{field or 'the body'}: {what}", field)
            case list():
                left += [(f"{path}[{index}]", each) for index, each in enumerate(value)]
            case dict():
                # A name that is none is the fault of whatever holds it.
                left += [(path, name) for name in value]
                left += [(f"{path}.{name}".lstrip("."), each) for name, each in value.items()]


def _same(value: object, accepted: object) -> bool:
    # In Python true equals 1; in a request it is something else.
    return value == accepted and isinstance(value, bool) == isinstance(accepted, bool)


def _refuse_invalid(text: str) -> NoReturn:
    """From msgspec's message: `what - at `$.path``, or `... missing required field `name``."""
    what, _, path = text.partition(" - at `$")
    field = path.rstrip("`").lstrip(".")
    if "missing required field" in what:
        field = ".".join(part for part in (field, what.rpartition(" ")[2].strip("`")) if part)
        what = "is required"
    message = f"{field}: {what[0].lower()}{what[1:]}" if field else what
    raise Refusal(Code.INVALID_REQUEST, message.replace("`", ""), field or None)


def _type(status: int) -> str:
    """OpenAI's kind of error for a status."""
    kinds = {401: "authentication_error", 404: "not_found_error", 429: "rate_limit_error"}
    return kinds.get(status) or ("invalid_request_error" if status < 500 else "server_error")
