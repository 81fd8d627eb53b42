"""Faults on single messages: what may be asked for, and what proves one and what does not."""

from typing import Any, get_args

import pytest
from msgspec.structs import replace

from chaos import faults
from chaos.experiment import FaultSpec
from chaos.faults.messages import RECEIVED, SENT, MessageFault, judge, lacking
from chaos.worlds.messages import KINDS, toxic_attributes, toxic_kind
from chaos.worlds.world import LinkState, Meddling, MessageCounts, MessageRule
from cluster.errors import Code
from cluster.protocol import Message

NODES = ("controller", "worker-0", "worker-1", "client-0")
TAGS = {str(kind.__struct_config__.tag) for kind in get_args(Message)}


def spec(kind: str = "drop_messages", **fields: Any) -> FaultSpec:
    whole: dict[str, Any] = {"kind": kind, "phase": "fault", "targets": ("worker-0",), "duration_s": 9.0, "ttl_s": 20.0}
    return FaultSpec(**(whole | {"options": {"message": "heartbeat"}} | fields))


def rules(fault: faults.Fault) -> dict[str, MessageRule]:
    assert isinstance(fault, MessageFault)
    return fault._rules


def test_every_message_of_the_protocol_has_its_roles() -> None:
    assert {tag for of in RECEIVED.values() for tag in of} == TAGS
    assert {tag for of in SENT.values() for tag in of} == TAGS - {"drain", "evict", "prewarm"}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("role", ["worker", "controller", "client"])
def test_the_message_says_the_direction(kind: str, role: str) -> None:
    target = "controller" if role == "controller" else f"{role}-0"
    for way, of in (("upstream", SENT), ("downstream", RECEIVED)):
        for message in of[role]:
            fault = faults.make(spec(kind, targets=(target,), options={"message": message}), NODES)
            (rule,) = rules(fault).values()
            assert (rule.direction, rule.message, rule.share) == (way, message, 1.0)
            assert kind == fault.KIND == f"{rule.meddling}_messages"


def test_one_message_is_upstream_of_one_target_and_downstream_of_another() -> None:
    found = rules(faults.make(spec(targets=("worker-0", "controller")), NODES))
    assert [rule.direction for rule in found.values()] == ["upstream", "downstream"]


def test_without_a_message_all_are_meant_of_the_direction_that_is_named() -> None:
    (rule,) = rules(faults.make(spec(options={"direction": "downstream", "share": 0.25}), NODES)).values()
    assert toxic_attributes(rule) == {"subject": "mlxc.*.in", "message": "", "share_ppm": 250_000}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"targets": ("broker",)}, r"^targets: \w+ is for worker and controller and client, got broker"),
        ({"mode": "hard"}, r"^mode: \w+ has no modes"),
        ({"duration_s": 2.0}, r"^duration_s: expected at least 3 s"),
        ({"options": {"message": "heartbeat", "speed": 1}}, r"^options: \w+ has no speed; there is message, direction"),
        (
            {"options": {"message": "stream_report"}},
            r"^options.message: expected one of accepted, .*, got 'stream_report'",
        ),
        ({"options": {"message": 7}}, r"^options.message: expected one of"),
        ({"options": {"message": "submit"}}, r"^options.message: worker-0 has no submit in either direction"),
        ({"options": {"message": "heartbeat", "direction": "downstream"}}, r"worker-0 has no heartbeat downstream"),
        (
            {"options": {"direction": "sideways"}},
            r"^options.direction: expected one of downstream, upstream, got 'sideways'",
        ),
        ({"options": {}}, r"^options.direction: expected upstream or downstream where no message is named"),
        ({"targets": ("worker-0", "client-0")}, r"^options.message: client-0 has no heartbeat"),
    ],
)
def test_what_a_kind_does_not_allow_is_refused_by_field(kind: str, fields: dict[str, Any], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        faults.make(spec(kind, **fields), NODES)


@pytest.mark.parametrize(
    ("kind", "option", "wrong", "right"),
    [
        ("drop_messages", "share", (0, -0.1, 1.1, "all", True), (0.01, 1)),
        ("delay_messages", "delay_ms", (0, 60_001, 0.5, "long", True), (1, 60_000)),
        ("delay_messages", "jitter_ms", (-1, 60_001), (0, 50)),
        ("duplicate_messages", "copies", (0, 11, 1.5), (1, 10)),
        ("reorder_messages", "window", (1, 65), (2, 64)),
        ("reorder_messages", "hold_ms", (0, 60_001), (1, 500)),
        ("corrupt_messages", "bytes", (0, 65, "some"), (1, 64)),
    ],
)
def test_options_out_of_bounds_are_refused_by_name(
    kind: str, option: str, wrong: tuple[Any, ...], right: tuple[Any, ...]
) -> None:
    for value in wrong:
        with pytest.raises(ValueError, match=rf"^options\.{option}: expected an? .*, got {value!r}"):
            faults.make(spec(kind, options={"message": "heartbeat", option: value}), NODES)
    for value in right:
        faults.make(spec(kind, options={"message": "heartbeat", option: value}), NODES)


def test_it_explains_no_more_errors_than_its_targets_can_cause() -> None:
    of_worker = faults.make(spec(), NODES).explains
    assert not {Code.CONTROLLER_UNREACHABLE, Code.NO_WORKERS_AVAILABLE, Code.INVALID_REQUEST} & set(of_worker)
    assert Code.NO_WORKERS_AVAILABLE in faults.make(spec(targets=("worker-0", "worker-1")), NODES).explains
    of_client = faults.make(spec(targets=("client-0",), options={"message": "submit"}), NODES).explains
    assert Code.CONTROLLER_UNREACHABLE in of_client
    assert Code.NO_WORKERS_AVAILABLE not in of_client
    assert Code.NO_WORKERS_AVAILABLE in faults.make(spec(targets=("controller",)), NODES).explains


BEFORE = LinkState(True, 7, True, 100, 100, 100, 100, 0)


def test_what_one_end_lacks_is_counted_for_one_connection_only() -> None:
    now = replace(BEFORE, node_in=120, node_out=130, broker_in=124, broker_out=123)
    assert lacking("upstream", BEFORE, now) == 6
    assert lacking("downstream", BEFORE, now) == 3
    assert lacking("upstream", BEFORE, replace(now, cid=8)) is None
    assert lacking("upstream", BEFORE, replace(now, broker_in=None, broker_out=None)) is None


@pytest.mark.parametrize(
    ("meddling", "counts", "lack", "undecoded", "bites"),
    [
        *((meddling, None, 9, 9, False) for meddling in Meddling),
        *((meddling, (40, 0, 0), 9, 9, False) for meddling in Meddling),
        *((meddling, (40, 12, 0), 9, 9, False) for meddling in Meddling),
        (Meddling.DROP, (40, 12, 6), 6, 0, True),
        (Meddling.DROP, (40, 12, 6), 3, 0, True),
        (Meddling.DROP, (40, 12, 6), 2, 0, False),
        (Meddling.DROP, (40, 12, 1), 0, 0, False),
        (Meddling.DROP, (40, 12, 6), None, 0, False),
        (Meddling.DROP, (40, 12, 6), -6, 0, False),
        (Meddling.DUPLICATE, (40, 12, 6), -6, 0, True),
        (Meddling.DUPLICATE, (40, 12, 6), 0, 0, False),
        (Meddling.DUPLICATE, (40, 12, 6), 6, 0, False),
        (Meddling.CORRUPT, (40, 12, 6), 0, 5, True),
        (Meddling.CORRUPT, (40, 12, 6), 6, 0, False),
        (Meddling.DELAY, (40, 12, 6), 0, 0, True),
        (Meddling.REORDER, (40, 12, 6), None, 0, True),
    ],
)
def test_the_proxys_count_alone_proves_nothing_that_an_end_could_tell(
    meddling: Meddling, counts: tuple[int, int, int] | None, lack: int | None, undecoded: int, bites: bool
) -> None:
    rule = MessageRule(meddling, "upstream", "report", 0.5)
    proved, why = judge(rule, None if counts is None else MessageCounts(*counts), lack, undecoded)
    assert proved == bites, why
    assert why
    assert toxic_kind(rule) == f"nats_{meddling}"
