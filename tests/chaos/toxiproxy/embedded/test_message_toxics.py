import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from chaos.toxiproxy.embedded.message_choice import MESSAGE_KINDS as KINDS_OF_CHOICE
from chaos.toxiproxy.embedded.message_choice import MessageChoice
from chaos.toxiproxy.embedded.message_fault import MessageFault
from chaos.toxiproxy.embedded.message_toxics import MESSAGE_KINDS, MessageStage
from chaos.toxiproxy.embedded.nats_frames import Frame, FrameKind, FrameParser, Stream, frame_of
from cluster.protocol import Ping, Pong, encode

quick = settings(max_examples=100, deadline=None, derandomize=True)
OTHERS = [b"PING\r\n", b"PONG\r\n", b'CONNECT {"name":"n"}\r\n', b"SUB a.> 1\r\n", b"UNSUB 1\r\n"]


def pub(number: int, subject: str = "a.b") -> Frame:
    payload = b"%d" % number
    return frame_of(b"PUB %s %d\r\n%s\r\n" % (subject.encode(), len(payload), payload), "upstream")


def numbers(raws: list[bytes]) -> list[int]:
    return [int(frame_of(raw, "upstream").payload) for raw in raws]


def stage(kind: str, seed: int = 0, **attributes: object) -> MessageStage:
    return MessageStage(kind, attributes, "upstream", seed)


def test_the_kinds_are_those_of_the_choice() -> None:
    assert MESSAGE_KINDS is KINDS_OF_CHOICE
    assert set(MESSAGE_KINDS) == {"nats_drop", "nats_delay", "nats_duplicate", "nats_reorder", "nats_corrupt"}
    with pytest.raises(ValueError, match=r"^stream: expected upstream or downstream, got 'sideways'$"):
        MessageStage("nats_drop", {}, "sideways", 0)


@given(st.sampled_from(sorted(MESSAGE_KINDS)), st.lists(st.sampled_from(OTHERS), max_size=9), st.integers())
@quick
def test_other_frames_pass_at_once_and_in_order(kind: str, raws: list[bytes], seed: int) -> None:
    worker = stage(kind, seed)
    worker.feed(pub(1), 0)
    passed = [raw for other in raws for raw in worker.feed(frame_of(other, "upstream"), 0)]
    assert passed == raws
    assert worker.counts["seen"] == 1


@pytest.mark.parametrize(
    ("stream", "raw", "touched"),
    [
        ("upstream", b"PUB a 1\r\nx\r\n", True),
        ("upstream", b"HPUB a 12 13\r\nNATS/1.0\r\n\r\nx\r\n", True),
        ("downstream", b"MSG a 1 1\r\nx\r\n", True),
        ("downstream", b"HMSG a 1 12 13\r\nNATS/1.0\r\n\r\nx\r\n", True),
        ("downstream", b"INFO {}\r\n", False),
        ("downstream", b"+OK\r\n", False),
        ("downstream", b"-ERR 'x'\r\n", False),
    ],
)
def test_messages_alone_are_touched(stream: Stream, raw: bytes, touched: bool) -> None:
    worker = MessageStage("nats_drop", {"subject": "a"}, stream, 0)
    assert worker.feed(frame_of(raw, stream), 0) == ([] if touched else [raw])
    assert worker.feed(Frame(raw, FrameKind.OPAQUE), 0) == [raw]
    count = int(touched)
    assert worker.counts == {"seen": count, "matched": count, "affected": count, "overflowed": 0}


def test_drop_takes_the_named_message_only() -> None:
    worker = stage("nats_drop", subject="mlxc.*.in", message="ping")
    passed = []
    for subject in ("mlxc.w.in", "other"):
        for message in (Ping("c"), Pong("c", 1, 0.0)):
            payload = encode(message)
            raw = b"PUB %s %d\r\n%s\r\n" % (subject.encode(), len(payload), payload)
            passed += worker.feed(frame_of(raw, "upstream"), 0)
    assert len(passed) == 3
    assert worker.counts == {"seen": 4, "matched": 1, "affected": 1, "overflowed": 0}


def test_duplicates_follow_at_once() -> None:
    worker = stage("nats_duplicate", copies=2)
    assert numbers(worker.feed(pub(1), 0) + worker.feed(pub(2), 0)) == [1, 1, 1, 2, 2, 2]


def test_a_delayed_message_is_overtaken() -> None:
    worker = stage("nats_delay", subject="late", delay=50)
    assert worker.due_s() is None
    assert worker.feed(pub(1, "late"), 1.0) == []
    assert worker.feed(pub(2, "late"), 1.0) == []
    assert numbers(worker.feed(pub(3), 1.01)) == [3]
    assert worker.due_s() == 1.05
    assert worker.release(1.049) == []
    assert numbers(worker.release(1.05)) == [1, 2]
    assert worker.due_s() is None


def test_what_is_due_goes_before_what_arrives() -> None:
    worker = stage("nats_delay", subject="late", delay=50)
    worker.feed(pub(1, "late"), 0)
    assert worker.feed(frame_of(b"PING\r\n", "upstream"), 0.05) == [pub(1, "late").raw, b"PING\r\n"]
    worker.feed(pub(2, "late"), 1)
    assert numbers(worker.feed(pub(3), 2)) == [2, 3]


@given(st.integers(), st.integers(2, 64), st.integers(0, 150))
@quick
def test_reordering_loses_nothing_and_stays_in_the_window(seed: int, window: int, count: int) -> None:
    worker, again = (stage("nats_reorder", seed, window=window) for _ in range(2))
    passed = [raw for number in range(count) for raw in worker.feed(pub(number), 0)]
    assert len(passed) == count - count % window
    passed += worker.release(0.1)
    order = numbers(passed)
    for at in range(0, count, window):
        assert sorted(order[at : at + window]) == list(range(at, min(at + window, count)))
    assert passed == [raw for number in range(count) for raw in again.feed(pub(number), 0)] + again.release(0.1)


def test_reordering_makes_every_order_alike() -> None:
    worker = stage("nats_reorder", 3, window=3)
    passed = numbers([raw for number in range(18_000) for raw in worker.feed(pub(number % 3), 0)])
    orders = [tuple(passed[at : at + 3]) for at in range(0, len(passed), 3)]
    # Five standard deviations of 6000 draws of one in six.
    assert all(abs(orders.count(order) - 1_000) < 5 * 29 for order in set(orders))
    assert len(set(orders)) == 6


def test_corruption_spares_lines_and_headers() -> None:
    raw = b"HPUB a.b r 12 20\r\nNATS/1.0\r\n\r\nabcdefgh\r\n"
    [changed] = stage("nats_corrupt", bytes=64).feed(frame_of(raw, "upstream"), 0)
    assert (changed[:-10], changed[-2:], len(changed)) == (raw[:-10], raw[-2:], len(raw))
    assert all(one != other for one, other in zip(changed[-10:-2], raw[-10:-2], strict=True))
    parser = FrameParser("upstream")
    assert [frame.kind for frame in parser.feed(changed + b"PING\r\n")] == [FrameKind.HPUB, FrameKind.PING]


@pytest.mark.parametrize("kind", ["nats_delay", "nats_reorder"])
def test_flush_gives_all_in_order_and_nothing_twice(kind: str) -> None:
    jitter: dict[str, object] = {"jitter": 90} if kind == "nats_delay" else {}
    worker = stage(kind, 5, **jitter)
    for number in range(5):
        worker.feed(pub(number), 0)
    assert numbers(worker.flush()) == [0, 1, 2, 3, 4]
    assert (worker.flush(), worker.release(1e9), worker.due_s()) == ([], [], None)


def test_too_many_go_on_early_and_are_counted() -> None:
    worker = stage("nats_delay", delay=600_000)
    passed = [raw for number in range(4_100) for raw in worker.feed(pub(number), 0)]
    assert numbers(passed) == [0, 1, 2, 3]
    assert worker.counts == {"seen": 4_100, "matched": 4_100, "affected": 4_100, "overflowed": 4}


def test_the_same_fate_for_messages_that_are_no_frames() -> None:
    """The simulated network has messages and subjects; the same seed does to them what it does to frames."""
    attributes: dict[str, object] = {"share_ppm": 400_000, "subject": "a.*"}
    for kind in MESSAGE_KINDS:
        fault = MessageFault(MessageChoice(kind, attributes, 9), lambda _, payload: payload)
        worker = stage(kind, 9, **attributes)
        for number in range(200):
            frame = pub(number)
            simulated = fault.feed(frame.payload, "a.b", frame.payload, 1, number / 1e3)
            assert simulated == [frame_of(raw, "upstream").payload for raw in worker.feed(frame, number / 1e3)]
            assert fault.due_s() == worker.due_s()
        assert fault.counts == worker.counts
        assert fault.flush() == [frame_of(raw, "upstream").payload for raw in worker.flush()]
