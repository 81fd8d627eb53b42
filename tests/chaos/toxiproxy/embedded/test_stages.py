"""What stages do to chunks, on a clock of the test's own."""

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from chaos.toxiproxy.embedded.stages import (
    BYTE_ATTRIBUTES,
    BYTE_STAGES,
    BandwidthStage,
    Chunk,
    LatencyStage,
    LimitDataStage,
    ResetPeerStage,
    SlicerStage,
    SlowCloseStage,
    Stage,
    TimeoutStage,
)


def draws() -> random.Random:
    return random.Random(1)


def run(stage: Stage, now_s: float, until_s: float) -> list[tuple[float, bytes]]:
    """What comes out and when, waking the stage exactly when it asks to be."""
    out = []
    while True:
        while (chunk := stage.pop(now_s)) is not None:
            out.append((round(now_s, 9), chunk.data))
        due_s = stage.due_s()
        if due_s is None or due_s > until_s:
            return out
        now_s = max(due_s, now_s)


def test_every_type_has_its_attributes() -> None:
    assert set(BYTE_STAGES) == set(BYTE_ATTRIBUTES)


def test_latency_counts_from_the_arrival_and_adds_up() -> None:
    stage = LatencyStage({"latency": 100, "jitter": 0}, draws())
    stage.take(Chunk(b"a", 0.0), 0.0)
    stage.take(Chunk(b"b", 0.03), 0.05)
    assert stage.pop(0.099) is None
    assert stage.pop(0.1) == Chunk(b"a", 0.1)
    assert run(stage, 0.1, 1) == [(0.13, b"b")]


def test_jitter_is_drawn_once_for_each_chunk() -> None:
    stage = LatencyStage({"latency": 100, "jitter": 50}, draws())
    stage.take(Chunk(b"a", 0.0), 0.0)
    due_s = stage.due_s()
    assert due_s is not None
    assert 0.05 <= due_s <= 0.15
    assert stage.due_s() == due_s


def test_a_restart_lets_the_head_go_and_keeps_the_others() -> None:
    stage = LatencyStage({"latency": 100, "jitter": 0}, draws())
    for number in range(3):
        stage.take(Chunk(b"%d" % number, 0.0), 0.0)
    assert [chunk.data for chunk in stage.restart(0.01)] == [b"0"]
    assert run(stage, 0.01, 1) == [(0.1, b"1"), (0.1, b"2")]


def test_bandwidth_is_exact_over_many_chunks_even_when_woken_late() -> None:
    stage = BandwidthStage({"rate": 10}, draws())
    now_s = 0.0
    for _ in range(100):
        stage.take(Chunk(b"x" * 500, now_s), now_s)
        due_s = stage.due_s()
        assert due_s is not None
        # Every wake is 2 ms late.
        now_s = due_s + 0.002
        assert stage.pop(now_s) is not None
    assert now_s == pytest.approx(100 * 0.05, abs=0.003)


def test_bandwidth_cuts_a_long_chunk_into_tenths_of_a_second() -> None:
    stage = BandwidthStage({"rate": 1}, draws())
    stage.take(Chunk(b"x" * 250, 0.0), 0.0)
    assert run(stage, 0.0, 9) == [(0.1, b"x" * 100), (0.2, b"x" * 100), (0.25, b"x" * 50)]


def test_bandwidth_zero_asks_for_nothing() -> None:
    stage = BandwidthStage({"rate": 0}, draws())
    stage.take(Chunk(b"x", 0.0), 0.0)
    assert (stage.pop(1e9), stage.due_s(), stage.has_room()) == (None, None, False)
    assert [chunk.data for chunk in stage.flush()] == [b"x"]


def test_slow_close() -> None:
    stage = SlowCloseStage({"delay": 100}, draws())
    stage.take(Chunk(b"x", 0.0), 0.0)
    stage.end_input(1.0)
    assert not stage.is_closed(5.0), "data goes first"
    assert stage.pop(5.0) is not None
    assert (stage.is_closed(1.09), stage.due_s(), stage.is_closed(1.1)) == (False, 1.1, True)


def test_timeout() -> None:
    stage = TimeoutStage({"timeout": 125}, draws())
    stage.begin(1.0)
    assert stage.due_s() == 1.125
    stage.take(Chunk(b"x", 1.0625), 1.0625)
    assert (stage.pop(1.07), stage.is_closed(1.125), stage.is_closed(1.1875)) == (None, False, True)
    assert stage.must_close()


@pytest.mark.parametrize("timeout", [0, -5])
def test_timeout_for_ever(timeout: int) -> None:
    stage = TimeoutStage({"timeout": timeout}, draws())
    stage.begin(0.0)
    assert (stage.due_s(), stage.is_closed(1e9)) == (None, False)
    stage.end_input(1.0)
    assert stage.is_closed(1.0)


def test_reset_peer() -> None:
    stage = ResetPeerStage({"timeout": 100}, draws())
    assert (stage.due_s(), stage.must_close(), stage.has_room()) == (None, False, True)
    stage.take(Chunk(b"x", 1.0), 1.0)
    assert (stage.due_s(), stage.must_close(), stage.has_room()) == (1.1, True, False)
    assert stage.pop(9.0) is None
    assert stage.is_closed(1.1)


@given(
    size=st.integers(1, 5000), average=st.integers(1, 600), variation=st.integers(0, 600), seed=st.integers(0, 2**32)
)
def test_slicer_loses_nothing_and_keeps_its_measure(size: int, average: int, variation: int, seed: int) -> None:
    variation = min(variation, average)
    attributes = {"average_size": average, "size_variation": variation, "delay": 1000}
    stage = SlicerStage(attributes, random.Random(seed))
    data = random.Random(seed).randbytes(size)
    stage.take(Chunk(data, 0.0), 0.0)
    out = run(stage, 0.0, 1e9)
    assert b"".join(piece for _, piece in out) == data
    assert all(0 < len(piece) <= average + variation for _, piece in out)
    assert [at_s for at_s, _ in out] == [pytest.approx(number / 1000) for number in range(len(out))]


def test_slicer_catches_up_when_woken_late() -> None:
    stage = SlicerStage({"average_size": 1, "size_variation": 0, "delay": 10}, draws())
    stage.take(Chunk(b"x" * 200, 0.0), 0.0)
    assert stage.pop(0.0) is not None
    late = [stage.pop(0.001005) for _ in range(200)]
    assert sum(piece is not None for piece in late) == 100


def test_limit_data_counts_what_it_let_through() -> None:
    attributes = {"bytes": 5}
    stage = LimitDataStage(attributes, draws())
    stage.take(Chunk(b"abc", 0.0), 0.0)
    assert stage.pop(0.0) == Chunk(b"abc", 0.0)
    attributes["bytes"] = 4
    assert not stage.is_closed(0.0)
    stage.take(Chunk(b"def", 0.0), 0.0)
    assert stage.pop(0.0) == Chunk(b"d", 0.0)
    assert stage.is_closed(0.0)
    stage.take(Chunk(b"more", 0.0), 0.0)
    assert (stage.pop(0.0), stage.flush()) == (None, [])


@pytest.mark.parametrize("kind", ["noop", "latency", "bandwidth", "slow_close", "slicer", "limit_data"])
def test_what_is_flushed_is_what_was_held_in_order(kind: str) -> None:
    attributes = dict.fromkeys(BYTE_ATTRIBUTES[kind], 600_000)
    stage = BYTE_STAGES[kind](attributes, draws())
    for number in range(4):
        stage.take(Chunk(b"%d" % number * 10, 0.0), 0.0)
    first = stage.pop(0.0)
    held = b"".join(chunk.data for chunk in stage.flush())
    assert (first.data if first else b"") + held == b"".join(b"%d" % number * 10 for number in range(4))
    assert (stage.pop(1e9), stage.flush()) == (None, [])
