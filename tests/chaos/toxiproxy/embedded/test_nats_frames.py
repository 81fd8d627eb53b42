import asyncio
import itertools
import subprocess
from collections.abc import Iterator, Sequence
from pathlib import Path

import nats
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from chaos.toxiproxy.embedded.nats_frames import (
    LINE_BYTES_MAX,
    PAYLOAD_BYTES_MAX,
    ConnectionTap,
    Frame,
    FrameKind,
    FrameParser,
    Stream,
    frame_of,
)
from cluster.live.broker import Broker

quick = settings(max_examples=150, deadline=None, derandomize=True)

MESSAGES = (FrameKind.PUB, FrameKind.HPUB, FrameKind.MSG, FrameKind.HMSG)
Seen = list[tuple[FrameKind, bytes, str | None, str | None, bytes, bytes]]

payloads = st.binary(max_size=60) | st.sampled_from([b"\r\n", b"PING\r\n", b"MSG a 1 5\r\n", b"\x16\x03"])
subjects = st.sampled_from(["a", "mlxc.worker-0.in", "_INBOX.x.1", "größe.1"])
spaces = st.sampled_from([b" ", b"\t", b"  ", b" \t "])
streams: st.SearchStrategy[Stream] = st.sampled_from(["upstream", "downstream"])


@st.composite
def messages(draw: st.DrawFn, stream: Stream) -> bytes:
    verb = draw(st.sampled_from(["PUB", "pub", "Pub"] if stream == "upstream" else ["MSG", "msg", "mSg"]))
    header = draw(st.sampled_from([b"", b"NATS/1.0\r\nA: b\r\n\r\n", b"NATS/1.0 503\r\n\r\n"]))
    payload = draw(payloads)
    words = [("H" if header else "") + verb, draw(subjects), *([] if stream == "upstream" else ["17"])]
    words += draw(st.sampled_from([[], ["reply.to"]]))
    words += [*([str(len(header))] if header else []), str(len(header) + len(payload))]
    line = draw(spaces).join(word.encode() for word in words) + draw(st.sampled_from([b"", b" "]))
    return line + draw(st.sampled_from([b"\r\n", b"\n"])) + header + payload + b"\r\n"


def lines(stream: Stream) -> st.SearchStrategy[bytes]:
    ends = [b"PING\r\n", b"pong\r\n", b"PING \n"]
    if stream == "upstream":
        return st.sampled_from([*ends, b'CONNECT {"name":"n"}\r\n', b"sub\ta.>\t1\r\n", b"UNSUB 1\r\n"])
    return st.sampled_from([*ends, b'INFO {"a":1}\r\n', b"+OK\r\n", b"-ERR 'Slow Consumer'\r\n"])


def conversations(stream: Stream) -> st.SearchStrategy[list[bytes]]:
    return st.lists(messages(stream) | lines(stream), max_size=12)


def chunked(data: bytes, cuts: Sequence[int]) -> Iterator[bytes]:
    edges = [0, *sorted(cut % (len(data) + 1) for cut in cuts), len(data)]
    return (data[start:end] for start, end in itertools.pairwise(edges))


def joined(frames: list[Frame]) -> Seen:
    """What the frames say, neighbouring OPAQUE ones as one."""
    seen: Seen = []
    for frame in frames:
        if frame.kind is FrameKind.OPAQUE and seen and seen[-1][0] is FrameKind.OPAQUE:
            seen[-1] = (FrameKind.OPAQUE, seen[-1][1] + frame.raw, None, None, b"", b"")
        else:
            seen.append((frame.kind, frame.raw, frame.subject, frame.reply, frame.header, frame.payload))
    return seen


def fed(parser: FrameParser, chunks: Iterator[bytes] | list[bytes]) -> list[Frame]:
    """All frames, checked with every chunk against what has been put in."""
    frames: list[Frame] = []
    given_bytes = passed_bytes = 0
    for chunk in chunks:
        new = parser.feed(chunk)
        frames += new
        given_bytes += len(chunk)
        passed_bytes += sum(len(frame.raw) for frame in new)
        assert given_bytes == passed_bytes + parser.pending
    return frames


@given(st.data(), streams, st.lists(st.integers(0, 10_000), max_size=40))
@quick
def test_frames_do_not_depend_on_chunks(data: st.DataObject, stream: Stream, cuts: list[int]) -> None:
    raws = data.draw(conversations(stream))
    whole = b"".join(raws)
    frames = fed(FrameParser(stream), chunked(whole, cuts))
    assert [frame.raw for frame in frames] == raws
    assert joined(frames) == joined(fed(FrameParser(stream), [whole]))
    assert joined(frames) == joined(fed(FrameParser(stream), [whole[at : at + 1] for at in range(len(whole))]))
    assert [frame_of(raw, stream).kind for raw in raws] == [frame.kind for frame in frames]


@given(st.data(), streams, st.binary(max_size=200), st.lists(st.integers(0, 10_000), max_size=20))
@quick
def test_any_bytes_pass_unchanged(data: st.DataObject, stream: Stream, noise: bytes, cuts: list[int]) -> None:
    whole = b"".join(data.draw(conversations(stream))) + noise + b"".join(data.draw(conversations(stream)))
    parser, tap = FrameParser(stream), ConnectionTap(stream)
    frames = fed(parser, chunked(whole, cuts))
    held = parser.flush()
    assert b"".join(frame.raw for frame in frames) + held == whole
    assert parser.pending == 0
    once = FrameParser(stream)
    assert joined(frames) == joined(once.feed(whole))
    assert (parser.opaque, held) == (once.opaque, once.flush())
    for chunk in chunked(whole, cuts):
        tap.feed(chunk)
    assert tap.messages >= sum(frame.kind in MESSAGES for frame in frames)


@given(st.data(), streams, st.lists(st.integers(0, 10_000), max_size=40), st.integers(1, 30))
@quick
def test_the_tap_counts_each_message_with_its_last_byte(
    data: st.DataObject, stream: Stream, cuts: list[int], times: int
) -> None:
    # Conversations repeat themselves, so that most lines have been seen before.
    raws = data.draw(conversations(stream)) * times
    ends = list(itertools.accumulate(map(len, raws)))
    is_message = [frame_of(raw, stream).kind in MESSAGES for raw in raws]
    tap, passed_bytes = ConnectionTap(stream), 0
    for chunk in chunked(b"".join(raws), cuts):
        tap.feed(chunk)
        passed_bytes += len(chunk)
        whole = sum(message for message, end in zip(is_message, ends, strict=True) if end <= passed_bytes)
        assert (tap.messages, tap.why) == (whole, "")


@given(st.data(), streams, st.binary(max_size=200), st.lists(st.integers(0, 10_000), max_size=20))
@quick
def test_what_the_tap_tells_does_not_depend_on_chunks(
    data: st.DataObject, stream: Stream, noise: bytes, cuts: list[int]
) -> None:
    whole = b"".join(data.draw(conversations(stream))) * 2 + noise + b"".join(data.draw(conversations(stream)))
    told = []
    for chunks in ([whole], chunked(whole, cuts), [whole[at : at + 1] for at in range(len(whole))]):
        tap = ConnectionTap(stream)
        for chunk in chunks:
            tap.feed(chunk)
        told.append((tap.messages, tap.client_name, bool(tap.why)))
    assert told == [told[0]] * 3


def test_the_tap_keeps_a_limited_number_of_lines() -> None:
    tap = ConnectionTap("upstream")
    for turn in range(3):
        for number in range(2_500):
            tap.feed(b"PUB %s.%d 1\r\nx\r\n" % (b"long" * 200 if number % 2 else b"short", number))
            assert len(tap._body_bytes) <= 2_048
            assert sum(map(len, tap._body_bytes)) <= 2_048 * 512
        assert (tap.messages, tap.why) == (2_500 * (turn + 1), "")


@given(st.data(), streams, st.lists(st.integers(0, 10_000), max_size=6), st.integers(0, 6))
@quick
def test_a_parser_may_begin_in_the_middle(data: st.DataObject, stream: Stream, cuts: list[int], late: int) -> None:
    raws = data.draw(conversations(stream))
    chunks = list(chunked(b"".join(raws), cuts))
    tap = ConnectionTap(stream)
    for chunk in chunks[:late]:
        tap.feed(chunk)
    before = sum(map(len, chunks[:late]))
    parser = tap.parser()
    frames = fed(parser, chunks[late:])
    assert b"".join(frame.raw for frame in frames) == b"".join(chunks[late:])
    assert not parser.opaque
    starts = [sum(map(len, raws[:count])) for count in range(len(raws))]
    whole = [frame.raw for frame in frames if frame.kind is not FrameKind.OPAQUE]
    assert whole == [raw for raw, start in zip(raws, starts, strict=True) if start >= before]


@pytest.mark.parametrize(
    ("passed", "rest", "whole"),
    [
        (b"PU", b"B a 1\r\nx\r\nPING\r\n", True),
        (b"PUB a 1\r", b"\nx\r\nPING\r\n", True),
        (b"PUB a 1\r\n", b"x\r\nPING\r\n", True),
        (b"PUB a 1\r\nx\r", b"\nPING\r\n", True),
        (b"PU", b"T / HTTP/1.1\r\nPING\r\n", False),
        (b"PUB a ", b"x\r\nPING\r\n", False),
        (b"GET", b" /\r\nPING\r\n", False),
    ],
)
@pytest.mark.parametrize("chunk_bytes", [1, 2, 100])
def test_the_rest_of_a_frame_passes_to_a_later_parser(
    passed: bytes, rest: bytes, whole: bool, chunk_bytes: int
) -> None:
    tap = ConnectionTap("upstream")
    tap.feed(passed)
    parser = tap.parser()
    frames = fed(parser, [rest[at : at + chunk_bytes] for at in range(0, len(rest), chunk_bytes)])
    ping = [(FrameKind.PING, b"PING\r\n", None, None, b"", b"")]
    passing = rest.removesuffix(b"PING\r\n") if whole else rest
    assert joined(frames) == [(FrameKind.OPAQUE, passing, None, None, b"", b""), *(ping if whole else [])]
    assert parser.opaque is not whole


def test_the_parts_of_each_kind() -> None:
    up = FrameParser("upstream").feed(
        b"hpub a.b\tre.ply  12 17\r\nNATS/1.0\r\n\r\nhello\r\nPUB x 0\r\n\r\nSUB s.> group 9\r\nUNSUB 9 5\r\n"
    )
    assert [frame.kind for frame in up] == [FrameKind.HPUB, FrameKind.PUB, FrameKind.SUB, FrameKind.UNSUB]
    assert (up[0].subject, up[0].reply, up[0].header, up[0].payload) == ("a.b", "re.ply", b"NATS/1.0\r\n\r\n", b"hello")
    assert (up[1].subject, up[1].reply, up[1].payload) == ("x", None, b"")
    assert (up[2].subject, up[2].payload, up[3].subject) == ("s.>", b"", None)
    down = FrameParser("downstream").feed(b"MSG s 3 r 2\r\nhi\r\nHMSG s 3 r 12 13\r\nNATS/1.0\r\n\r\n!\r\n-ERR 'x'\r\n")
    assert [(frame.kind, frame.subject, frame.reply, frame.payload) for frame in down] == [
        (FrameKind.MSG, "s", "r", b"hi"),
        (FrameKind.HMSG, "s", "r", b"!"),
        (FrameKind.ERR, None, None, b""),
    ]


@pytest.mark.parametrize(
    ("stream", "first", "why"),
    [
        ("upstream", b"G", "begins with b'G'"),
        ("upstream", b"POST / HTTP/1.1\r\n", "begins with"),
        ("upstream", b"\x16\x03\x01", "TLS"),
        ("upstream", b"\x16", "TLS"),
        ("downstream", b"HTTP/1.1 200", "begins with"),
        ("upstream", b"\x00\x01", "begins with"),
        ("upstream", b"\r\n", "without a verb"),
        ("upstream", b" PING\r\n", "without a verb"),
        ("upstream", b"MSG a 1 0\r\n\r\n", "begins with"),
        ("downstream", b"PUB a 0\r\n\r\n", "begins with"),
        ("upstream", b"PUB a -1\r\n", "no number"),
        ("upstream", b"PUB a 1_0\r\n", "no number"),
        ("upstream", b"PUB a 9999999999\r\n", "no number"),
        ("upstream", b"PUB 5\r\n", "2 words"),
        ("upstream", b"PUB a b c 5\r\n", "5 words"),
        ("upstream", b"HPUB a 6 5\r\n", "headers of 6"),
        ("upstream", b"PUB a 2\r\nxyz\r\n", "no line end"),
        ("upstream", b"PUB a %d\r\n" % (PAYLOAD_BYTES_MAX + 1), "above"),
        ("upstream", b"CONNECT " + b"x" * LINE_BYTES_MAX, "longer"),
    ],
)
def test_what_is_not_nats_passes_for_good(stream: Stream, first: bytes, why: str) -> None:
    parser = FrameParser(stream)
    assert joined(parser.feed(b"PING\r\n" + first)) == [
        (FrameKind.PING, b"PING\r\n", None, None, b"", b""),
        (FrameKind.OPAQUE, first, None, None, b"", b""),
    ]
    assert parser.opaque
    assert why in parser.why
    assert [(frame.kind, frame.raw) for frame in parser.feed(b"PING\r\n")] == [(FrameKind.OPAQUE, b"PING\r\n")]


@pytest.mark.parametrize("chunks", [[b"P", b"UT"], [b" PING"], [b"PUB", b"X"], [b"CONNECT", b"S"], [b"\r"]])
def test_a_stranger_is_let_go_before_its_line_ends(chunks: list[bytes]) -> None:
    parser, tap = FrameParser("upstream"), ConnectionTap("upstream")
    for chunk in chunks:
        assert not parser.opaque
        parser.feed(chunk)
        tap.feed(chunk)
    assert parser.opaque
    assert parser.pending == 0
    assert tap.why == parser.why
    later = tap.parser()
    assert [frame.kind for frame in later.feed(b"PING\r\n")] == [FrameKind.OPAQUE]


def test_a_line_without_end_is_not_held_for_ever() -> None:
    parser, tap = FrameParser("upstream"), ConnectionTap("upstream")
    chunks = [b"CONNECT ", *[b"x" * 1_000] * 100]
    for chunk in chunks:
        parser.feed(chunk)
        tap.feed(chunk)
        assert parser.pending < LINE_BYTES_MAX
    assert "longer" in parser.why
    assert tap.why == parser.why


def test_tls_after_the_greeting() -> None:
    parser = FrameParser("downstream")
    frames = fed(parser, [b'INFO {"tls_required":true}\r\n', b"\x16\x03\x03\x00\x7a", b"PING\r\n"])
    assert [frame.kind for frame in frames] == [FrameKind.INFO, FrameKind.OPAQUE, FrameKind.OPAQUE]
    assert parser.why == "TLS handshake"


@pytest.mark.parametrize("chunk_bytes", [1_000, LINE_BYTES_MAX, 3 * LINE_BYTES_MAX])
def test_the_longest_control_line(chunk_bytes: int) -> None:
    for extra, opaque in ((0, False), (1, True)):
        line = b"CONNECT " + b"x" * (LINE_BYTES_MAX - 10 + extra) + b"\r\n"
        parser, tap = FrameParser("upstream"), ConnectionTap("upstream")
        chunks = [line[at : at + chunk_bytes] for at in range(0, len(line), chunk_bytes)]
        assert b"".join(frame.raw for frame in fed(parser, chunks)) == line
        for chunk in chunks:
            tap.feed(chunk)
        assert (parser.opaque, bool(tap.why)) == (opaque, opaque)


def test_the_largest_payload_in_many_chunks() -> None:
    payload = bytes(2**16)
    parser, tap = FrameParser("downstream"), ConnectionTap("downstream")
    line = b"MSG a 1 %d\r\n" % PAYLOAD_BYTES_MAX
    parts = [line, *[payload] * (PAYLOAD_BYTES_MAX // len(payload)), b"\r"]
    assert fed(parser, parts) == []
    assert parser.pending == sum(map(len, parts))
    [frame] = parser.feed(b"\n")
    assert len(frame.raw) == len(line) + PAYLOAD_BYTES_MAX + 2
    for part in [*parts, b"\n"]:
        assert tap.messages == 0
        tap.feed(part)
    assert tap.messages == 1


@pytest.mark.parametrize(
    ("arguments", "name"),
    [
        (b'{"verbose":false,"name":"worker-0"}', "worker-0"),
        (b"{}", None),
        (b'{"name":7}', None),
        (b"{", None),
        (b'{"name":"\xff"}', None),
    ],
)
def test_the_tap_learns_the_clients_name(arguments: bytes, name: str | None) -> None:
    tap = ConnectionTap("upstream")
    for byte in b"CONNECT " + arguments + b"\r\nPUB a 1\r\nx\r\nPING\r\n":
        tap.feed(bytes([byte]))
    assert (tap.client_name, tap.messages, tap.why) == (name, 1, "")


def test_another_payload_keeps_everything_else() -> None:
    [frame] = FrameParser("upstream").feed(b"HPUB a r 12 15\r\nNATS/1.0\r\n\r\nabc\r\n")
    changed = frame.with_payload(b"xyz")
    assert changed.raw == b"HPUB a r 12 15\r\nNATS/1.0\r\n\r\nxyz\r\n"
    assert (changed.header, changed.payload) == (frame.header, b"xyz")
    with pytest.raises(ValueError, match="expected the length"):
        frame.with_payload(b"wxyz")
    with pytest.raises(ValueError, match="expected the length"):
        frame_of(b"PING\r\n", "upstream").with_payload(b"")


@pytest.fixture
def broker(tmp_path: Path) -> Iterator[Broker]:
    processes: list[subprocess.Popen[bytes]] = []

    def spawn(name: str, argv: Sequence[str]) -> int:
        processes.append(subprocess.Popen(argv, stdin=subprocess.DEVNULL))
        return processes[-1].pid

    broker = Broker(tmp_path, ["worker-0"])
    try:
        broker.start(spawn)
        yield broker
    finally:
        for process in processes:
            process.kill()
            process.wait()


class Relay:
    """Passes one connection on and keeps what passed, in the chunks in which it came."""

    def __init__(self, host: str, port: int) -> None:
        self.chunks: dict[Stream, list[bytes]] = {"upstream": [], "downstream": []}
        self._host, self._port = host, port

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        there_reader, there_writer = await asyncio.open_connection(self._host, self._port)
        await asyncio.gather(
            self._pass("upstream", reader, there_writer), self._pass("downstream", there_reader, writer)
        )

    async def _pass(self, stream: Stream, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while chunk := await reader.read(1_000):
            self.chunks[stream].append(chunk)
            writer.write(chunk)
        writer.close()


async def _talk(broker: Broker, relay: Relay) -> None:
    server = await asyncio.start_server(relay.serve, "127.0.0.1", 0)
    async with server:
        address = f"127.0.0.1:{server.sockets[0].getsockname()[1]}"
        client = await nats.connect(broker.url("worker-0", address), name="worker-0", allow_reconnect=False)
        inbox = await client.subscribe("mlxc.worker-0.>")
        await client.publish("mlxc.worker-0.in", b"PING\r\n" * 1_000, reply="mlxc.worker-0.nr.1")
        await client.publish("mlxc.worker-0.in", b"", headers={"A": "b"})
        await client.publish("mlxc.nobody.in", b"x", reply="mlxc.worker-0.nr.2")
        for _ in range(3):
            await inbox.next_msg(timeout=5)
        await inbox.unsubscribe()
        await client.flush()
        await client.close()


@pytest.mark.live
def test_a_real_conversation(broker: Broker) -> None:
    host, _, port = broker.address.partition(":")
    relay = Relay(host, int(port))
    asyncio.run(_talk(broker, relay))
    said: dict[str, list[Frame]] = {}
    for stream, chunks in relay.chunks.items():
        parser, tap = FrameParser(stream), ConnectionTap(stream)
        said[stream] = fed(parser, chunks)
        for chunk in chunks:
            tap.feed(chunk)
        assert (parser.why, parser.pending, tap.why) == ("", 0, "")
        assert (tap.messages, tap.client_name) == (3, "worker-0" if stream == "upstream" else None)
    up, down = said["upstream"], said["downstream"]
    assert up[0].kind is FrameKind.CONNECT
    assert down[0].kind is FrameKind.INFO
    assert {frame.kind for frame in up} >= {FrameKind.SUB, FrameKind.UNSUB, FrameKind.PING}
    assert [(frame.kind, frame.subject, frame.reply, len(frame.payload)) for frame in up if frame.payload] == [
        (FrameKind.PUB, "mlxc.worker-0.in", "mlxc.worker-0.nr.1", 6_000),
        (FrameKind.PUB, "mlxc.nobody.in", "mlxc.worker-0.nr.2", 1),
    ]
    delivered = [frame for frame in down if frame.kind in (FrameKind.MSG, FrameKind.HMSG)]
    assert [(frame.kind, frame.subject, frame.header[:12]) for frame in delivered] == [
        (FrameKind.MSG, "mlxc.worker-0.in", b""),
        (FrameKind.HMSG, "mlxc.worker-0.in", b"NATS/1.0\r\nA:"),
        (FrameKind.HMSG, "mlxc.worker-0.nr.2", b"NATS/1.0 503"),
    ]
