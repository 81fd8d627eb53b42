"""On the wire: every message comes back as it was, foreign bytes are refused, deadlines are never too late."""

import zlib

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cluster.protocol import (
    VERSION,
    Accepted,
    AttemptId,
    Cancel,
    Chunk,
    ClockBound,
    Delivery,
    Dispatch,
    Drain,
    Evict,
    Heartbeat,
    Message,
    ModelState,
    Ping,
    Pong,
    StreamReport,
    Subject,
    Submit,
    Withdraw,
    decode,
    encode,
)
from tests.cluster import QUICK

NAMES = st.text(max_size=12)
COUNTS = st.integers(0, 2**62)
TIMES = st.floats(allow_nan=False, allow_infinity=False, width=64)
TOKENS = st.lists(st.integers(0, 2**31), max_size=6).map(tuple)
SESSIONS = st.none() | NAMES
ATTEMPTS = st.builds(AttemptId, NAMES, COUNTS, COUNTS)
CHUNKS = st.builds(
    Chunk,
    ATTEMPTS,
    COUNTS,
    TOKENS,
    st.lists(TIMES, max_size=3).map(tuple),
    st.none() | st.sampled_from(["stop", "length"]),
    st.none() | NAMES,
    NAMES,
    COUNTS,
    COUNTS,
)
STATES = st.builds(ModelState, NAMES, st.sampled_from(["cold", "loading", "warm", "failed"]))
SUBMITS = st.builds(Submit, NAMES, COUNTS, NAMES, COUNTS, NAMES, TOKENS, TOKENS, COUNTS, TIMES, SESSIONS, worker=NAMES)
HEARTBEATS = st.builds(
    Heartbeat,
    NAMES,
    COUNTS,
    TIMES,
    st.lists(STATES, max_size=3).map(tuple),
    COUNTS,
    COUNTS,
    COUNTS,
    st.booleans(),
    TIMES,
)
MESSAGES: st.SearchStrategy[Message] = st.one_of(
    st.builds(Ping, NAMES),
    st.builds(Pong, NAMES, COUNTS, TIMES),
    SUBMITS,
    st.builds(Accepted, NAMES, COUNTS),
    st.builds(Cancel, NAMES, NAMES),
    st.builds(Delivery, COUNTS, st.lists(st.tuples(COUNTS, CHUNKS), max_size=3).map(tuple)),
    HEARTBEATS,
    st.builds(Dispatch, ATTEMPTS, NAMES, COUNTS, NAMES, TOKENS, TOKENS, COUNTS, TIMES, SESSIONS),
    st.builds(Withdraw, ATTEMPTS),
    st.just(Drain()),
    st.builds(Evict, NAMES),
    st.builds(StreamReport, NAMES, COUNTS, TIMES, st.lists(CHUNKS, max_size=3).map(tuple)),
)


@QUICK
@given(MESSAGES)
def test_every_message_comes_back_as_it_was(message: Message) -> None:
    assert decode(encode(message)) == message


def checked(body: bytes) -> bytes:
    """A body whose checksum fits, as only a sender of ours makes them."""
    return body + zlib.crc32(body).to_bytes(4, "little")


def test_text_that_is_no_utf_8_is_a_decode_error() -> None:
    payload = encode(Ping("client-0"))[:-4].replace(b"client-0", b"client-\x80")
    with pytest.raises(msgspec.DecodeError, match="UTF-8"):
        decode(checked(payload))


@QUICK
@given(MESSAGES, st.data())
def test_a_message_with_any_changed_byte_is_refused_although_it_would_still_have_a_shape(
    message: Message, data: st.DataObject
) -> None:
    payload = bytearray(encode(message))
    payload[data.draw(st.integers(0, len(payload) - 1))] ^= data.draw(st.integers(1, 255))
    with pytest.raises(msgspec.DecodeError):
        decode(bytes(payload))


def test_a_changed_token_is_no_token() -> None:
    told = StreamReport("worker-0", 1, 1.0, (Chunk(AttemptId("r", 1, 1), 0, (17, 18)),))
    other = StreamReport("worker-0", 1, 1.0, (Chunk(AttemptId("r", 1, 1), 0, (17, 19)),))
    body = encode(other)[:-4]
    assert decode(checked(body)) == other
    with pytest.raises(msgspec.DecodeError, match="checksum"):
        decode(body + encode(told)[-4:])


@QUICK
@given(st.binary(max_size=80))
def test_foreign_bytes_raise_nothing_but_decode_error(payload: bytes) -> None:
    try:
        message = decode(payload)
    except msgspec.DecodeError:
        return
    assert isinstance(message, Message)


@QUICK
@given(MESSAGES, st.data())
def test_a_cut_message_is_refused(message: Message, data: st.DataObject) -> None:
    payload = encode(message)
    length = data.draw(st.integers(0, len(payload) - 1))
    with pytest.raises(msgspec.DecodeError):
        decode(payload[:length])


@pytest.mark.parametrize("wrong", [["ping"], ["ping", 3], ["nothing", "x"], {"type": "ping"}, "ping", None, 1, []])
def test_well_formed_bytes_of_the_wrong_shape_are_refused(wrong: object) -> None:
    with pytest.raises(msgspec.DecodeError):
        decode(checked(msgspec.msgpack.encode(wrong)))


MESSAGE_TIMES = st.lists(st.tuples(st.floats(0, 1_000), st.floats(0, 30)), min_size=1, max_size=20)


@QUICK
@given(st.floats(-1e6, 1e6), MESSAGE_TIMES, st.floats(0, 2_000))
def test_a_translated_deadline_is_never_too_late_whatever_the_offset_and_the_delays(
    offset_s: float, messages: list[tuple[float, float]], deadline_s: float
) -> None:
    """Messages: (when sent on our clock, how long under way). Their clock is ours plus the offset."""
    clock = ClockBound()
    for sent_s, delay_s in messages:
        clock.observe(sent_s + offset_s, sent_s + delay_s)
        assert clock.to_theirs(deadline_s) <= deadline_s + offset_s + 1e-6
    fastest_s = min(delay_s for _, delay_s in messages)
    assert clock.to_theirs(deadline_s) == pytest.approx(deadline_s + offset_s - fastest_s, abs=1e-6)


def test_an_unknown_clock_translates_nothing() -> None:
    with pytest.raises(ValueError, match="clock is unknown"):
        ClockBound().to_theirs(1.0)


@QUICK
@given(st.lists(ATTEMPTS, min_size=2, max_size=8))
def test_attempts_of_one_request_are_ordered_by_submission_and_then_by_attempt(attempts: list[AttemptId]) -> None:
    def by_hand(attempt: AttemptId) -> tuple[str, int, int]:
        return attempt.request_id, attempt.submission, attempt.attempt

    assert sorted(attempts) == sorted(attempts, key=by_hand)


def test_a_node_listens_where_others_publish() -> None:
    assert Subject.of("worker-1").startswith(Subject.inbox("worker-1") + ".")
    assert not Subject.of("worker-10").startswith(Subject.inbox("worker-1") + ".")


def test_a_heartbeat_of_an_older_version_is_read_although_it_has_no_checksum() -> None:
    """Or nobody could say which node has to be updated."""
    old = Heartbeat("worker-0", 1, 1.5, (ModelState("tiny", "warm"),), 3, 8, 8, False, version=2)
    assert decode(encode(old)[:-4]) == old
    assert decode(encode(msgspec.structs.replace(old, version=VERSION - 1))).version == VERSION - 1  # type: ignore[union-attr]
    for message in (msgspec.structs.replace(old, version=VERSION), Ping("b")):
        with pytest.raises(msgspec.DecodeError):
            decode(encode(message)[:-4])
