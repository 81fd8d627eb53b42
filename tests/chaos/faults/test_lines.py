"""What makes a line bad, flapping or slow to read: what may be asked for, and what proves it and what does not."""

from typing import Any

import pytest

from chaos import faults
from chaos.experiment import FaultSpec
from chaos.faults.shaped import Probe, ShapedLine, judge
from chaos.worlds.world import PAYLOAD_BYTES_MAX
from cluster.errors import Code

NODES = ("controller", "worker-0", "worker-1", "client-0")
GOOD: dict[str, dict[str, Any]] = {
    "latency": {"options": {"latency_ms": 100, "jitter_ms": 20}},
    "bandwidth": {"options": {"kb_per_s": 40}},
    "slicer": {"options": {"average_bytes": 100, "variation_bytes": 20, "delay_us": 2_000}},
    "flap": {"options": {"up_s": 2, "down_s": 3}, "mode": "black_hole"},
    "slow_consumer": {},
}
SHAPED = ("latency", "bandwidth", "slicer")


def spec(kind: str, **fields: Any) -> FaultSpec:
    whole: dict[str, Any] = {"kind": kind, "phase": "fault", "targets": ("worker-0",), "duration_s": 9.0, "ttl_s": 20.0}
    return FaultSpec(**(whole | GOOD[kind] | fields))


@pytest.mark.parametrize("kind", GOOD)
@pytest.mark.parametrize("target", ["worker-0", "controller", "client-0"])
def test_every_node_with_a_link_may_be_aimed_at(kind: str, target: str) -> None:
    fault = faults.make(spec(kind, targets=(target,)), NODES)
    assert kind == fault.KIND
    assert (Code.CONTROLLER_UNREACHABLE in fault.explains) == (target != "worker-0")


@pytest.mark.parametrize("kind", GOOD)
def test_nobody_is_left_to_serve_when_all_workers_have_a_bad_line(kind: str) -> None:
    assert Code.NO_WORKERS_AVAILABLE in faults.make(spec(kind, targets=("worker-0", "worker-1")), NODES).explains
    assert Code.NO_WORKERS_AVAILABLE not in faults.make(spec(kind), NODES).explains


@pytest.mark.parametrize("kind", GOOD)
def test_a_controller_that_answers_but_hears_too_late_knows_no_workers(kind: str) -> None:
    explains = faults.make(spec(kind, targets=("controller",)), NODES).explains
    assert (Code.NO_WORKERS_AVAILABLE in explains) == (kind in ("bandwidth", "slicer", "slow_consumer"))


@pytest.mark.parametrize("kind", GOOD)
@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"targets": ("broker",)}, r"^targets: \w+ is for worker and controller and client, got broker"),
        ({"mode": "hard"}, r"^mode: "),
        ({"options": {"speed": 1}}, r"^options: \w+ has no speed; "),
        ({"duration_s": 2.0}, r"^duration_s: expected at least \d"),
    ],
)
def test_what_a_kind_does_not_allow_is_refused_by_field(kind: str, fields: dict[str, Any], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        faults.make(spec(kind, **fields), NODES)


@pytest.mark.parametrize(
    ("kind", "option", "values"),
    [
        ("latency", "latency_ms", (None, 0, 19, 801, -5, "long", True, float("nan"))),
        ("latency", "jitter_ms", (-1, 51, "some")),
        ("bandwidth", "kb_per_s", (None, 0, -1, 1_501, 2.5, float("inf"), "wide")),
        ("slicer", "average_bytes", (None, 0, -1, 1.5, 40_000, "thin")),
        ("slicer", "variation_bytes", (-1, 101, 0.5)),
        ("slicer", "delay_us", (None, 0, 999, 1_000_001, 1_000.5)),
        ("flap", "up_s", (None, 0, 0.9, "up")),
        ("flap", "down_s", (None, 0, 2.4, "down")),
        ("latency", "direction", ("sideways", 1)),
        ("bandwidth", "direction", ("up",)),
        ("slicer", "direction", (None.__class__.__name__,)),
    ],
)
def test_options_out_of_bounds_are_refused_by_name(kind: str, option: str, values: tuple[Any, ...]) -> None:
    for value in values:
        options = {**GOOD[kind]["options"], option: value}
        if value is None:
            del options[option]
        with pytest.raises(ValueError, match=rf"^options\.{option}: expected"):
            faults.make(spec(kind, options=options), NODES)


def test_pieces_too_large_for_their_pause_to_be_seen_are_refused() -> None:
    options = {"average_bytes": 20_000, "delay_us": 1_000}
    with pytest.raises(ValueError, match=r"^options\.delay_us: expected at least 6667 for such large pieces"):
        faults.make(spec("slicer", options=options), NODES)
    faults.make(spec("slicer", options={**options, "delay_us": 6_667}), NODES)


def test_a_flap_needs_time_for_two_strikes_and_a_loud_one_less_time_for_each() -> None:
    with pytest.raises(ValueError, match=r"^duration_s: expected at least 8 s, for two times down"):
        faults.make(spec("flap", duration_s=7.9), NODES)
    for mode in ("refuse", "reset"):
        faults.make(spec("flap", mode=mode, options={"up_s": 1, "down_s": 0.5}, duration_s=3.0), NODES)
    with pytest.raises(ValueError, match=r"^mode: expected one of refuse, reset"):
        faults.make(spec("flap", mode=None), NODES)


@pytest.mark.parametrize("kind", SHAPED)
@pytest.mark.parametrize(("direction", "ways"), [("both", 2), ("upstream", 1), ("downstream", 1)])
def test_the_proof_asks_for_as_much_as_the_directions_must_add(kind: str, direction: str, ways: int) -> None:
    fault = faults.make(spec(kind, options={**GOOD[kind]["options"], "direction": direction}), NODES)
    assert isinstance(fault, ShapedLine)
    least_s = {"latency": 0.08, "bandwidth": 0.6, "slicer": 0.3}[kind]
    assert fault._probe.least_s == pytest.approx(ways * least_s)
    assert 0 <= fault._probe.payload_bytes <= PAYLOAD_BYTES_MAX
    assert len(fault._shape.directions) == ways


@pytest.mark.parametrize("delay_us", [1_000, 50_000, 1_000_000])
def test_a_probe_for_any_pause_can_be_told_from_a_lost_message(delay_us: int) -> None:
    options = {"average_bytes": 1, "variation_bytes": 1, "delay_us": delay_us}
    fault = faults.make(spec("slicer", options=options), NODES)
    assert isinstance(fault, ShapedLine)
    assert 0 < fault._probe.least_s <= 1.0


@pytest.mark.parametrize(
    ("before_s", "now_s", "bites"),
    [
        (0.001, 0.181, True),
        (0.001, 0.162, True),
        (0.001, 0.151, False),
        (0.001, 0.001, False),
        (0.1, 0.2, False),
        (0.001, None, True),
        (None, 0.5, False),
        (None, None, False),
    ],
)
def test_an_echo_must_take_longer_than_before_by_most_of_what_the_shape_adds(
    before_s: float | None, now_s: float | None, bites: bool
) -> None:
    proved, why = judge(Probe(0, 0.2), before_s, now_s)
    assert proved == bites
    assert why
