"""Server-sent events: the same events however the bytes are cut, and nothing that grows without a limit."""

from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from workloads.event_stream import EventStreamDecoder, EventStreamError, ServerEvent

STREAM = (
    b"\xef\xbb\xbf: hello\n\ndata: one\n\r\nevent: error\r\ndata:two\r\ndata:  three\r\rid: 4\rretry: 5\r\r"
    b"data\n\nevent: lost\n\ndata: \xc3\xa4\n\ndata: [DONE]\n\ndata: cut"
)
EVENTS = [
    ServerEvent("message", b"one"),
    ServerEvent("error", b"two\n three"),
    ServerEvent("message", b""),
    ServerEvent("message", "ä".encode()),
    ServerEvent("message", b"[DONE]"),
]


def read(pieces: list[bytes]) -> list[ServerEvent]:
    decoder = EventStreamDecoder()
    return [event for piece in pieces for event in decoder.feed(piece)]


def test_an_event_is_what_the_specification_says() -> None:
    assert read([STREAM]) == EVENTS


def test_single_bytes_are_enough() -> None:
    assert read([bytes([byte]) for byte in STREAM]) == EVENTS


@settings(deadline=None)
@given(st.lists(st.integers(0, len(STREAM)), max_size=12))
def test_it_does_not_matter_where_the_stream_is_cut(cuts: list[int]) -> None:
    edges = [0, *sorted(cuts), len(STREAM)]
    assert read([STREAM[start:end] for start, end in pairwise(edges)]) == EVENTS


@settings(deadline=None)
@given(st.lists(st.binary(max_size=40), max_size=8))
def test_no_bytes_break_it(pieces: list[bytes]) -> None:
    assert read(pieces) == read([b"".join(pieces)])


@pytest.mark.parametrize("end", [b"", b"\n"])
def test_an_event_has_a_largest_size(end: bytes) -> None:
    decoder = EventStreamDecoder(event_bytes_max=1000)
    line = b"data: 34567890" + end
    fits = sum(decoder.feed(line) == [] for _ in range(1000 // len(b"data: 34567890")))
    assert fits > 60
    with pytest.raises(EventStreamError, match="longer than 1000 bytes"):
        decoder.feed(line)


def test_comments_without_end_are_no_large_event() -> None:
    decoder = EventStreamDecoder(event_bytes_max=1000)
    assert all(decoder.feed(b": still here\n\n") == [] for _ in range(1000))
    assert decoder.feed(b"data: x\n\n") == [ServerEvent("message", b"x")]
