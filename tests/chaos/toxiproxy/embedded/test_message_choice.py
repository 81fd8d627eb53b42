import itertools
import math
from collections import Counter
from typing import get_args

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from chaos.toxiproxy.embedded.message_choice import (
    MESSAGE_KINDS,
    Corrupt,
    Delay,
    Drop,
    Duplicate,
    Hold,
    MessageChoice,
    Pass,
    Verdict,
    check_message_attributes,
    message_tag,
)
from cluster.protocol import Drain, Message, Ping, Pong, encode

quick = settings(max_examples=100, deadline=None, derandomize=True)
seeds = st.integers(-(2**70), 2**70)


class AsMap(msgspec.Struct, tag="as-map", tag_field="type"):
    value: int


def fates(kind: str, attributes: dict[str, object], seed: int, payloads: list[bytes]) -> list[Verdict]:
    choice = MessageChoice(kind, attributes, seed)
    return [choice.decide("a.b", payload) for payload in payloads]


@pytest.mark.parametrize("shape", get_args(Message), ids=lambda shape: shape.__name__)
def test_the_tag_of_each_of_our_messages(shape: type[msgspec.Struct]) -> None:
    tag = shape.__struct_config__.tag
    payload = msgspec.msgpack.encode([tag, *range(len(shape.__struct_fields__))])
    assert message_tag(payload) == tag


def test_the_tag_of_arrays_and_maps_of_any_length() -> None:
    assert message_tag(encode(Ping("client"))) == "ping"
    assert message_tag(encode(Drain())) == "drain"
    assert message_tag(msgspec.msgpack.encode(AsMap(1))) == "as-map"
    for length in (1, 15, 16, 70_000):
        tag = "t" * min(length, 200)
        assert message_tag(msgspec.msgpack.encode([tag] * length)) == tag
        assert message_tag(msgspec.msgpack.encode({"type": tag} | dict.fromkeys(range(length)))) == tag
    others = (
        b"",
        b"hello",
        b"\x91",
        b"\x92\xa4pin",
        b"\x90",
        b"\x91\x01",
        b"\x91\xa1\xff",
        b"\x81\xa4type",
        b"\xdc",
        b"\x91\xd9",
    )
    assert [message_tag(other) for other in others] == [None] * len(others)
    assert message_tag(msgspec.msgpack.encode({"other": "x"})) is None


@given(st.binary(max_size=40))
@quick
def test_no_bytes_confuse_the_tag(payload: bytes) -> None:
    tag = message_tag(payload)
    assert tag is None or tag.encode() in payload


@pytest.mark.parametrize("kind", MESSAGE_KINDS)
def test_defaults_are_complete_and_good(kind: str) -> None:
    complete = check_message_attributes(kind, {})
    assert complete == MESSAGE_KINDS[kind]
    assert check_message_attributes(kind, complete) == complete
    assert (complete["subject"], complete["message"], complete["share_ppm"]) == (">", "", 1_000_000)


@pytest.mark.parametrize(
    ("kind", "attributes", "message"),
    [
        ("nats_eat", {}, "kind: expected one of nats_drop, .*, got 'nats_eat'"),
        ("nats_drop", {"delay": 1}, "attribute delay: expected one of subject, message, share_ppm, got 'delay'"),
        (
            "nats_drop",
            {"share_ppm": 1_000_001},
            r"attribute share_ppm: expected an integer in 0\.\.1000000, got 1000001",
        ),
        ("nats_drop", {"share_ppm": 1.0}, r"attribute share_ppm: expected an integer .*, got 1\.0"),
        ("nats_drop", {"share_ppm": True}, "attribute share_ppm: expected an integer .*, got True"),
        ("nats_drop", {"message": None}, "attribute message: expected the name of a message.*, got None"),
        ("nats_drop", {"message": "x" * 256}, "attribute message: expected .* at most 255 bytes, got 'xxx.*"),
        ("nats_drop", {"subject": 1}, "attribute subject: expected a NATS subject.*, got 1"),
        ("nats_delay", {"delay": -1}, r"attribute delay: expected an integer in 0\.\.600000, got -1"),
        ("nats_duplicate", {"copies": 0}, r"attribute copies: expected an integer in 1\.\.10, got 0"),
        ("nats_reorder", {"window": 65}, r"attribute window: expected an integer in 2\.\.64, got 65"),
        ("nats_reorder", {"hold": 0}, r"attribute hold: expected an integer in 1\.\.600000, got 0"),
        ("nats_corrupt", {"bytes": 65}, r"attribute bytes: expected an integer in 1\.\.64, got 65"),
    ],
)
def test_what_attributes_may_not_be(kind: str, attributes: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=f"^{message}$"):
        check_message_attributes(kind, attributes)


@pytest.mark.parametrize("subject", ["", ".", "a.", "a..b", ">.a", "a.>.b", "a b", "a*", "a.b>", "a\n", "x" * 1_025])
def test_what_is_no_pattern(subject: str) -> None:
    with pytest.raises(ValueError, match=r"^attribute subject: expected a NATS subject"):
        MessageChoice("nats_drop", {"subject": subject}, 0)


@pytest.mark.parametrize(
    ("pattern", "matching", "others"),
    [
        (">", ["a", "a.b", ""], []),
        ("a.>", ["a.b", "a.b.c"], ["a", "b.a", "ab.c"]),
        ("a.*", ["a.b", "a.größe"], ["a", "a.b.c", "a."]),
        ("*.in", ["x.in"], ["in", "x.in.y"]),
        ("mlxc.*.in", ["mlxc.worker-0.in"], ["mlxc.a.b.in", "MLXC.worker-0.in"]),
        ("a+.b", ["a+.b"], ["aa.b"]),
    ],
)
def test_patterns(pattern: str, matching: list[str], others: list[str]) -> None:
    choice = MessageChoice("nats_drop", {"subject": pattern}, 0)
    assert [choice.decide(subject, b"") for subject in matching] == [Drop()] * len(matching)
    assert [choice.decide(subject, b"") for subject in others] == [Pass()] * len(others)
    assert choice.counts == {"seen": len(matching) + len(others), "matched": len(matching), "affected": len(matching)}


def test_the_message_is_told_by_its_tag() -> None:
    choice = MessageChoice("nats_drop", {"message": "ping"}, 0)
    payloads = [encode(Ping("c")), encode(Pong("c", 1, 0.5)), b"ping", b"", encode(Ping("d"))]
    assert [choice.decide("a", payload) for payload in payloads] == [Drop(), Pass(), Pass(), Pass(), Drop()]


@given(seeds, st.integers(0, 1_000_000), st.lists(st.booleans(), max_size=60))
@quick
def test_fate_depends_on_seed_and_ordinal_of_the_matched_alone(seed: int, ppm: int, ours: list[bool]) -> None:
    attributes = {"subject": "ours", "share_ppm": ppm}
    mixed, alone = MessageChoice("nats_drop", attributes, seed), MessageChoice("nats_drop", attributes, seed)
    verdicts = [mixed.decide("ours" if our else "theirs", b"x" * place) for place, our in enumerate(ours)]
    assert [verdict for verdict, our in zip(verdicts, ours, strict=True) if our] == [
        alone.decide("ours", b"") for our in ours if our
    ]
    assert all(verdict == Pass() for verdict, our in zip(verdicts, ours, strict=True) if not our)


def test_the_exact_draws() -> None:
    """Published results name their seeds: the same ones must go on to mean the same messages."""
    hit = fates("nats_drop", {"share_ppm": 300_000}, 7, [b""] * 24)
    assert "".join("x" if verdict == Drop() else "." for verdict in hit) == ".xx...x...x.x........x.x"
    delays = fates("nats_delay", {"delay": 100, "jitter": 50}, 7, [b""] * 3)
    assert delays == [Delay(0.068224), Delay(0.111694), Delay(0.106349)]
    corrupted = fates("nats_corrupt", {"bytes": 2}, 7, [bytes(8)] * 2)
    assert corrupted == [Corrupt(bytes([0, 0, 0, 0, 0, 0, 0x71, 0xA7])), Corrupt(bytes([0, 0, 0, 0, 0, 0x64, 0, 0x4F]))]


@pytest.mark.parametrize("ppm", [0, 1, 10_000, 250_000, 500_000, 999_999, 1_000_000])
def test_the_share(ppm: int) -> None:
    count, share = 20_000, ppm / 1e6
    for seed in (0, 1, 2, -5, 2**63):
        choice = MessageChoice("nats_drop", {"share_ppm": ppm}, seed)
        for _ in range(count):
            choice.decide("a", b"")
        # Five standard deviations, and a little for the rarest.
        bound = 5 * math.sqrt(count * share * (1 - share)) + (3 if 0 < ppm < 1_000_000 else 0)
        assert abs(choice.counts["affected"] - count * share) <= bound


def test_neighbouring_seeds_and_kinds_of_draws_are_independent() -> None:
    def hits(seed: int) -> list[bool]:
        return [verdict == Drop() for verdict in fates("nats_drop", {"share_ppm": 500_000}, seed, [b""] * 4_000)]

    drawn = [hits(seed) for seed in range(6)]
    for one, other in itertools.combinations(drawn, 2):
        assert abs(sum(map(bool.__eq__, one, other)) - 2_000) < 5 * math.sqrt(1_000)
    for row in drawn:
        assert abs(sum(map(bool.__eq__, row, row[1:])) - 2_000) < 5 * math.sqrt(1_000)


@given(seeds, st.integers(0, 600_000), st.integers(0, 600_000))
@quick
def test_delays_stay_within_the_jitter(seed: int, delay: int, jitter: int) -> None:
    for verdict in fates("nats_delay", {"delay": delay, "jitter": jitter}, seed, [b""] * 20):
        assert isinstance(verdict, Delay)
        assert max(0, delay - jitter) / 1e3 <= verdict.delay_s <= (delay + jitter) / 1e3


def test_jitter_is_spread_evenly() -> None:
    verdicts = fates("nats_delay", {"delay": 100, "jitter": 100}, 1, [b""] * 10_000)
    tenths = Counter(int(verdict.delay_s * 50) for verdict in verdicts if isinstance(verdict, Delay))
    assert all(abs(tenths[tenth] - 1_000) < 5 * math.sqrt(900) for tenth in range(10))


@given(seeds, st.integers(1, 64), st.binary(max_size=100))
@quick
def test_corruption_changes_that_many_bytes(seed: int, count: int, payload: bytes) -> None:
    [verdict] = fates("nats_corrupt", {"bytes": count}, seed, [payload])
    if not payload:
        assert verdict == Pass()
        return
    assert isinstance(verdict, Corrupt)
    assert len(verdict.payload) == len(payload)
    changed = sum(one != other for one, other in zip(payload, verdict.payload, strict=True))
    assert changed == min(count, len(payload))


def test_corruption_reaches_every_place_alike() -> None:
    places: Counter[int] = Counter()
    for verdict in fates("nats_corrupt", {"bytes": 3}, 1, [bytes(10)] * 5_000):
        assert isinstance(verdict, Corrupt)
        places.update(place for place, byte in enumerate(verdict.payload) if byte)
    assert all(abs(places[place] - 1_500) < 5 * math.sqrt(5_000 * 0.3 * 0.7) for place in range(10))


def test_an_empty_payload_cannot_be_corrupted() -> None:
    choice = MessageChoice("nats_corrupt", {}, 0)
    assert choice.decide("a", b"") == Pass()
    assert choice.counts == {"seen": 1, "matched": 1, "affected": 0}


def test_the_other_verdicts() -> None:
    assert fates("nats_duplicate", {"copies": 3}, 0, [b"x"]) == [Duplicate(3)]
    [first, second] = fates("nats_reorder", {"window": 4, "hold": 250}, 0, [b"", b""])
    assert isinstance(first, Hold)
    assert isinstance(second, Hold)
    assert (first.window, first.hold_s) == (4, 0.25)
    assert first.rank != second.rank
