"""Questions over HTTP to parts of a target, none of which changes anything: bounded in time and size, no redirects."""

import time
from typing import Any, TypeVar

import msgspec
import requests

T = TypeVar("T")

ASK_S = 2.0
_ANSWER_BYTES_MAX = 16 * 2**20
_PIECE_BYTES = 2**16


class AskError(Exception):
    """No answer, or none that can be read. One line with the URL."""


class Answer(msgspec.Struct, frozen=True):
    """status and body."""

    status: int
    body: bytes


def ask(url: str, limit_s: float = ASK_S, **options: Any) -> Answer:
    """GET a URL. options: params and headers, as for requests. Raises AskError.

    A redirect is an answer like another: it could lead out of what is allowed. The environment's proxies are not used.
    """
    ends_s = time.monotonic() + limit_s
    try:
        with requests.Session() as session:
            session.trust_env = False
            with session.get(url, timeout=limit_s, allow_redirects=False, stream=True, **options) as answer:
                body = b""
                for piece in answer.iter_content(_PIECE_BYTES):
                    body += piece
                    if time.monotonic() > ends_s or len(body) > _ANSWER_BYTES_MAX:
                        raise AskError(f"{url}: the answer is too slow or too long")
                return Answer(answer.status_code, body)
    except requests.Timeout:
        raise AskError(f"{url}: no answer within {limit_s:g} s") from None
    except (requests.RequestException, OSError) as error:
        raise AskError(f"{url}: {_reason(error)}") from None


def ask_json(url: str, shape: type[T], limit_s: float = ASK_S, **options: Any) -> T:
    """GET a URL that answers 200 with JSON of a shape. Raises AskError."""
    answer = ask(url, limit_s, **options)
    if answer.status != 200:
        raise AskError(f"{url}: status {answer.status}")
    try:
        return msgspec.json.decode(answer.body, type=shape)
    except msgspec.MsgspecError as error:
        raise AskError(f"{url}: unreadable answer: {' '.join(str(error).split())[:200]}") from None


def _reason(error: BaseException) -> str:
    inner: BaseException | None = error
    for _ in range(8):
        if isinstance(inner, ConnectionRefusedError):
            return "nothing listens there"
        if inner is None:
            break
        inner = inner.__cause__ or inner.__context__
    return " ".join(str(error).split())[:200] or type(error).__name__
