"""What a request may say: refused with the field's name, or understood; nothing in between, and never a crash."""

import json
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cluster.errors import TRAITS, Code
from cluster.live import openai
from cluster.live.openai import ChatRequest, CompletionRequest, Refusal, check_tokens, error_body, parse, refusal_of

CHAT: dict[str, Any] = {"model": "tiny", "messages": [{"role": "user", "content": "hi"}]}
TEXT: dict[str, Any] = {"model": "tiny", "prompt": "hi"}


def refused(body: object, kind: type[ChatRequest] | type[CompletionRequest] = ChatRequest) -> Refusal:
    with pytest.raises(Refusal) as caught:
        parse(body if isinstance(body, bytes) else json.dumps(body).encode(), kind)
    assert caught.value.status == 400
    assert "\n" not in caught.value.message
    return caught.value


@pytest.mark.parametrize(
    ("change", "field"),
    [
        ({"model": None}, "model"),
        ({"model": ""}, "model"),
        ({"messages": []}, "messages"),
        ({"messages": "hi"}, "messages"),
        ({"messages": [{"role": "user"}]}, "messages[0].content"),
        ({"messages": [{"role": "user", "content": None}]}, "messages[0].content"),
        ({"messages": [{"role": "user", "content": []}]}, "messages[0].content"),
        ({"messages": [{"role": "tool", "content": "hi"}]}, "messages[0].role"),
        ({"messages": [{"content": "hi"}]}, "messages[0].role"),
        ({"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {}}]}]}, "messages[0].content"),
        ({"max_tokens": 0}, "max_tokens"),
        ({"max_tokens": -1}, "max_tokens"),
        ({"max_tokens": "5"}, "max_tokens"),
        ({"max_tokens": 10**30}, "max_tokens"),
        ({"max_completion_tokens": 0}, "max_completion_tokens"),
        ({"temperature": -0.1}, "temperature"),
        ({"temperature": 2.1}, "temperature"),
        ({"top_p": 0}, "top_p"),
        ({"top_p": 1.5}, "top_p"),
        ({"stop": ""}, "stop"),
        ({"stop": ["a", "b", "c", "d", "e"]}, "stop"),
        ({"stop": [""]}, "stop"),
        ({"stream": "yes"}, "stream"),
        ({"stream_options": {"include_usage": 1}}, "stream_options.include_usage"),
        ({"priority": 2}, "priority"),
        ({"worker": "w" * 129}, "worker"),
        ({"timeout": 0}, "timeout"),
        ({"timeout": 1e9}, "timeout"),
        ({"session_id": ""}, "session_id"),
        ({"n": 2}, "n"),
        ({"n": True}, "n"),
        ({"tools": [{"type": "function"}]}, "tools"),
        ({"logprobs": True}, "logprobs"),
        ({"seed": 1}, "seed"),
        ({"response_format": {"type": "json_object"}}, "response_format"),
        ({"modalities": ["audio"]}, "modalities"),
        ({"audio": {"voice": "x"}}, "audio"),
        ({"presence_penalty": 0.5}, "presence_penalty"),
        ({"logit_bias": {"1": 5}}, "logit_bias"),
    ],
)
def test_what_is_wrong_is_refused_by_name(change: dict[str, Any], field: str) -> None:
    refusal = refused({**CHAT, **change})
    assert refusal.code == Code.INVALID_REQUEST
    assert refusal.param is not None
    assert refusal.param.startswith(field)
    assert field in refusal.message


def test_what_is_missing_is_named() -> None:
    assert refused({"model": "tiny"}).param == "messages"
    assert refused({"messages": CHAT["messages"]}).param == "model"
    assert refused({"model": "tiny"}, CompletionRequest).param == "prompt"


@pytest.mark.parametrize(
    "body",
    [b"", b"{", b"[]", b"null", b"\xff\xfe", b'{"model": NaN}', b"[" * 100_000, b'{"user": "\\ud800"}', b"{}" * 2],
)
def test_what_is_no_json_object_is_refused(body: bytes) -> None:
    assert refused(body).code == Code.INVALID_REQUEST


@pytest.mark.parametrize(
    ("body", "field"),
    [
        (b'{"user": "\\ud800"}', "user"),
        (b'{"stop": ["a", "\\udc00 "]}', "stop[1]"),
        (b'{"prompt": "a\xff"}', "prompt"),
        (b'{"messages": [{"content": [{"text": "ok"}, {"text": "\\ud83d"}]}]}', "messages[0].content[1].text"),
        (b'{"metadata": {"\\ud800": 1}}', "metadata"),
        (b'{"\\ud800": 1}', None),
        (b'{"%s": "\\ud800"}' % (b"x" * 1_000), None),
        (b'{"a\\n": "\\ud800"}', None),
    ],
)
def test_text_that_is_no_unicode_is_refused_by_name(body: bytes, field: str | None) -> None:
    refusal = refused(body)
    assert refusal.param == field
    assert refusal.message.startswith(f"{field or 'the body'}: is not valid Unicode text")


def test_whole_surrogate_pairs_are_text_and_broken_json_is_not_called_broken_text() -> None:
    assert parse(b'{"model": "tiny", "prompt": "\\ud83d\\ude00"}', CompletionRequest).prompt == "\U0001f600"
    for body in (b'{"prompt": "\xff"', b"{", b"[" * 100_000 + b"\xff"):
        assert "Unicode text" not in refused(body).message


def test_what_does_not_change_the_answer_is_ignored() -> None:
    ignored = {"metadata": {"a": 1}, "store": True, "user": "u", "service_tier": "auto", "no_such_field": [1]}
    neutral = {"n": 1, "tools": [], "logprobs": False, "response_format": {"type": "text"}, "seed": None, "stop": None}
    assert parse(json.dumps({**CHAT, **ignored, **neutral}).encode(), ChatRequest).model == "tiny"


def test_roles_parts_and_limits_are_understood() -> None:
    messages = [
        {"role": "developer", "content": "be brief"},
        {"role": "user", "content": [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}], "name": "x"},
    ]
    change = {"messages": messages, "max_tokens": 5, "max_completion_tokens": 7, "stop": "end", "temperature": 1}
    request = parse(json.dumps({**CHAT, **change}).encode(), ChatRequest)
    assert [message.plain() for message in request.messages] == [
        {"role": "system", "content": "be brief"},
        {"role": "user", "content": "ab"},
    ]
    assert request.limit() == ("max_completion_tokens", 7)
    assert request.stops() == ["end"]
    assert (request.sampling().temperature, request.sampling().top_p) == (1.0, 1.0)
    assert parse(json.dumps(CHAT).encode(), ChatRequest).sampling().temperature == 0.0


def test_the_answer_must_fit_into_the_context() -> None:
    request = parse(json.dumps({**TEXT, "max_tokens": 10}).encode(), CompletionRequest)
    open_ended = parse(json.dumps(TEXT).encode(), CompletionRequest)
    assert check_tokens(request, (1,) * 90, 100, 50) == 10
    assert check_tokens(open_ended, (1,) * 90, 100, 50) == 10
    assert check_tokens(open_ended, (1,), 10_000, 50) == openai.DEFAULT_MAX_TOKENS
    for prompt, code in (
        ((), Code.INVALID_REQUEST),
        ((1,) * 91, openai.CONTEXT_LENGTH_EXCEEDED),
        ((1,) * 100, openai.CONTEXT_LENGTH_EXCEEDED),
        ((50,), Code.INVALID_REQUEST),
    ):
        with pytest.raises(Refusal) as caught:
            check_tokens(request, prompt, 100, 50)
        assert (caught.value.code, caught.value.status) == (code, 400)


@pytest.mark.parametrize("code", list(Code))
def test_every_code_of_the_cluster_has_a_body_and_a_status(code: Code) -> None:
    refusal = refusal_of(code)
    assert refusal.status == TRAITS[code].http_status
    body = msgspec.json.decode(msgspec.json.encode(error_body(refusal)))
    assert body["error"]["code"] == code.value
    assert set(body["error"]) == {"message", "type", "param", "code"}


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=8,
)
FIELDS = sorted({field.name for kind in (ChatRequest, CompletionRequest) for field in msgspec.structs.fields(kind)})


@given(st.dictionaries(st.sampled_from([*FIELDS, *openai._UNSUPPORTED]), JSON, max_size=6), st.booleans())
def test_any_object_is_understood_or_refused(change: dict[str, Any], chat: bool) -> None:
    body = json.dumps({**(CHAT if chat else TEXT), **change}).encode()
    try:
        request = parse(body, ChatRequest if chat else CompletionRequest)
    except Refusal as refusal:
        status = refusal.status
    else:
        status = 400
        assert request.limit()[1] is None or request.limit()[1] > 0
        assert len(request.stops()) <= 4
    assert status == 400


@given(st.binary(max_size=200))
def test_any_bytes_are_understood_or_refused(body: bytes) -> None:
    with pytest.raises(Refusal):
        parse(body, ChatRequest)
