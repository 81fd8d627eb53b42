"""From events to a row: what completes, what fails and under which code, and what is said of tokens."""

import json

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cluster.node import Ask
from workloads.answer import PIECES_MAX, TOKEN_UNKNOWN, Answer
from workloads.event_stream import ServerEvent

ASK = Ask("r1", "m", (1, 2, 3), 16, 10.0, 5.0, "s1", 2, "p1")


def event(body: object, kind: str = "message") -> ServerEvent:
    return ServerEvent(kind, json.dumps(body).encode())


def piece(text: str | None, finish: str | None = None) -> ServerEvent:
    return event({"choices": [{"index": 0, "delta": {"content": text}, "finish_reason": finish}]})


def usage(completion: int, prompt: int = 9, cached: int | None = 4) -> ServerEvent:
    details = {"cached_tokens": cached}
    told = {"prompt_tokens": prompt, "completion_tokens": completion, "prompt_tokens_details": details}
    return event({"choices": [], "usage": told})


DONE = ServerEvent("message", b"[DONE]")


def answered(*events: ServerEvent) -> Answer:
    answer = Answer()
    for number, each in enumerate(events):
        answer.take(each, 11.0 + number)
    answer.close()
    return answer


def test_a_whole_answer_becomes_a_row() -> None:
    role = event({"choices": [{"delta": {"role": "assistant", "content": ""}}]})
    answer = answered(role, piece("ba"), piece("do", "length"), usage(2), DONE, piece("late"))
    row = answer.row(ASK, 10.1, 15.0, 3)
    assert (row.outcome, row.code, row.finish, row.first_token_s) == ("completed", "", "length", 12.0)
    assert (row.intended_s, row.sent_s, row.deadline_s) == (10.0, 10.1, 15.0)
    assert row.tokens == [TOKEN_UNKNOWN] * 2
    assert [(part.index, part.count, part.received_s) for part in row.segments] == [(0, 1, 12.0), (1, 1, 13.0)]
    assert (row.prompt_tokens, row.cached_tokens, answer.done_s) == (9, 4, 15.0)


def test_text_and_reasoning_are_content_too() -> None:
    text = event({"choices": [{"text": "ba", "finish_reason": None}]})
    reasoning = event({"choices": [{"delta": {"reasoning_content": "hm"}}]})
    assert answered(text, DONE).first_s == answered(reasoning, DONE).first_s == 11.0


@settings(deadline=None)
@given(st.lists(st.integers(1, 50), min_size=1, max_size=30), st.integers(1, 500))
def test_told_tokens_are_spread_over_the_pieces_and_none_is_lost(sizes: list[int], told: int) -> None:
    answer = answered(*(piece("x" * size) for size in sizes), piece(None, "stop"), usage(told), DONE)
    row = answer.row(ASK, 10.0, 50.0, 3)
    assert len(row.tokens) == told == sum(part.count for part in row.segments)
    assert row.segments[0].index == 0
    assert row.segments[0].received_s == row.first_token_s
    for before, after in zip(row.segments, row.segments[1:], strict=False):
        assert after.index == before.index + before.count
        assert after.count > 0


@pytest.mark.parametrize("told", [0, -3, 10**15])
def test_an_unbelievable_count_is_not_believed(told: int) -> None:
    answer = answered(piece("ba"), piece("do", "stop"), usage(told), DONE)
    assert answer.tokens_told is None
    assert len(answer.row(ASK, 10.0, 13.0, 3).tokens) == 2


@pytest.mark.parametrize(
    ("events", "code"),
    [
        ([piece("ba")], "CONNECTION_BROKEN"),
        ([], "CONNECTION_BROKEN"),
        ([ServerEvent("message", b"{no json")], "BAD_RESPONSE"),
        ([ServerEvent("message", b"[1]")], "BAD_RESPONSE"),
        ([piece("ba"), event({"error": {"message": "m", "code": "WORKER_LOST"}})], "WORKER_LOST"),
        ([event({"error": {"message": "m", "code": 500}})], "ERROR_EVENT"),
        ([event({"error": "it broke"})], "ERROR_EVENT"),
        ([event({"message": "it broke"}, "error")], "ERROR_EVENT"),
        ([ServerEvent("error", b"it broke")], "ERROR_EVENT"),
    ],
)
def test_what_is_no_whole_answer_has_failed(events: list[ServerEvent], code: str) -> None:
    answer = answered(*events)
    row = answer.row(ASK, 10.0, 12.0, 3)
    assert (row.outcome, row.code, row.finish) == ("failed", code, "")
    assert answer.detail
    assert "\n" not in answer.detail


def test_an_error_that_is_null_is_none() -> None:
    assert answered(event({"error": None, "choices": []}), piece("x", "stop")).code == ""


@pytest.mark.parametrize(
    ("status", "body", "code", "outcome"),
    [
        (429, b'{"error": {"message": "slow down", "code": "rate_limit_exceeded"}}', "HTTP_429", "refused"),
        (429, b'{"error": {"message": "full", "code": "QUEUE_FULL"}}', "QUEUE_FULL", "refused"),
        (504, b'{"error": {"message": "late", "code": "DEADLINE_EXCEEDED"}}', "DEADLINE_EXCEEDED", "failed"),
        (404, b"<html>nothing\n\nhere</html>", "HTTP_404", "refused"),
        (503, b"", "HTTP_503", "refused"),
        (500, b'{"error": "oh"}', "HTTP_500", "failed"),
        (422, b'{"detail": [{"msg": "wrong"}]}', "HTTP_422", "refused"),
    ],
)
def test_a_status_tells_a_refusal_from_a_failure(status: int, body: bytes, code: str, outcome: str) -> None:
    answer = Answer()
    answer.refuse(status, body)
    row = answer.row(ASK, 10.0, 12.0, 3)
    assert (row.code, row.outcome) == (code, outcome)
    assert msgspec.json.encode(row)


def test_an_answer_without_end_is_cut() -> None:
    answer = Answer()
    text = piece("x")
    for number in range(PIECES_MAX + 1):
        answer.take(text, float(number))
    assert answer.code == "BAD_RESPONSE"
    assert len(answer.pieces) == PIECES_MAX


def test_nothing_fails_after_its_end() -> None:
    answer = answered(piece("x", "stop"), DONE)
    answer.fail("DEADLINE_EXCEEDED")
    assert answer.code == ""


def test_text_after_the_reason_to_finish_is_counted_and_not_delivered() -> None:
    answer = answered(piece("ba"), piece("do", "stop"), piece("gu"), piece("", None), piece("ku"), usage(2), DONE)
    row = answer.row(ASK, 10.1, 17.0, 3)
    assert (row.outcome, row.strays, len(row.tokens)) == ("completed", 2, 2)
