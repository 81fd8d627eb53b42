"""What a spec may say to a kind: every option of every kind has limits that are kept, and are told as they are."""

import math
import re
from typing import Annotated, Any, cast

import msgspec
import pytest
from msgspec import inspect

from chaos import faults
from chaos.experiment import FaultSpec
from chaos.faults.listing import listing
from chaos.faults.terms import Options, Terms, told
from chaos.toxiproxy.embedded.message_choice import check_message_attributes
from chaos.worlds.messages import toxic_attributes, toxic_kind
from tests.chaos.faults.test_messages import rules

NODES = ("controller", "worker-0", "worker-1", "client-0")
DURATION_S = 20_000.0
"""Long enough for the most that any option can be."""
REQUIRED: dict[str, dict[str, Any]] = {
    "latency": {"latency_ms": 800},
    "bandwidth": {"kb_per_s": 40},
    "slicer": {"average_bytes": 32_768, "delay_us": 100_000},
    "flap": {"up_s": 2, "down_s": 3},
    "clock_skew": {"ahead_s": 9},
    "delay_messages": {"delay_ms": 60_000},
}
"""What else has to be given, such that it allows every value of each other option."""
SMALL_PIECES = {"average_bytes": 1}
"""Such as allow the shortest pause after each."""


def terms(kind: str) -> Terms[Options]:
    return cast(Terms[Options], cast(Any, faults.KINDS[kind]).TERMS)


def numbers() -> list[tuple[str, str, Any]]:
    """Kind, option and type of each numeric option there is."""
    found = []
    for kind in faults.KINDS:
        for field in msgspec.structs.fields(terms(kind).options):
            info: Any = inspect.type_info(field.type)
            parts = info.types if isinstance(info, inspect.UnionType) else (info,)
            bare = [part.type if isinstance(part, inspect.Metadata) else part for part in parts]
            found += [
                (kind, field.name, part) for part in bare if isinstance(part, inspect.IntType | inspect.FloatType)
            ]
    return found


def mode(kind: str) -> str | None:
    return next(iter(terms(kind).modes), None)


def make(kind: str, **options: Any) -> faults.Fault:
    target = {"host": "host-1", "broker": "broker"}.get(terms(kind).roles[0], "worker-0")
    if kind.endswith("_messages"):
        options = {"message": "report", **options}
    if "delay_us" in options:
        options = {**SMALL_PIECES, **options}
    whole = options if terms(kind).exactly_one else {**REQUIRED.get(kind, {}), **options}
    spec = FaultSpec(
        kind=kind,
        phase="fault",
        targets=(target,),
        duration_s=DURATION_S,
        ttl_s=DURATION_S,
        mode=mode(kind),
        options=whole,
    )
    return faults.make(spec, NODES)


def test_every_kind_declares_its_terms_and_every_number_has_two_limits() -> None:
    assert all(isinstance(terms(kind), Terms) for kind in faults.KINDS)
    assert len(numbers()) >= 25
    for kind, option, number in numbers():
        assert number.ge is not None, f"{kind}.{option}"
        assert number.le is not None, f"{kind}.{option}"


@pytest.mark.parametrize(("kind", "option", "number"), numbers(), ids=[f"{k}.{o}" for k, o, _ in numbers()])
def test_the_least_and_the_most_are_accepted_and_what_lies_beyond_is_refused(
    kind: str, option: str, number: Any
) -> None:
    least, most = number.ge, number.le
    for good in (least, most):
        make(kind, **{option: good})
    whole = isinstance(number, inspect.IntType)
    beyond: list[Any] = (
        [least - 1, most + 1] if whole else [math.nextafter(least, -math.inf), math.nextafter(most, math.inf)]
    )
    nonsense: list[Any] = [math.nan, math.inf, -math.inf, True, "some", "1e12"]
    for bad in [*beyond, *nonsense, *([least + 0.5] if whole else [])]:
        with pytest.raises(
            ValueError, match=rf"^options\.{option}: expected a (whole )?number from .*, got "
        ) as refused:
            make(kind, **{option: bad})
        assert "\n" not in str(refused.value)
    if whole:
        make(kind, **{option: float(least)})


@pytest.mark.parametrize("kind", list(faults.KINDS))
def test_what_has_no_default_must_be_given_and_nothing_else_need_be(kind: str) -> None:
    if terms(kind).exactly_one:
        with pytest.raises(ValueError, match=r"^options: expected exactly one of "):
            make(kind)
        return
    make(kind)
    for field in msgspec.structs.fields(terms(kind).options):
        if field.required:
            others = {name: value for name, value in REQUIRED[kind].items() if name != field.name}
            spec = FaultSpec(
                kind=kind,
                phase="fault",
                targets=("worker-0",),
                duration_s=9.0,
                ttl_s=9.0,
                mode=mode(kind),
                options=others,
            )
            with pytest.raises(ValueError, match=rf"^options\.{field.name}: expected .*, got nothing"):
                faults.make(spec, NODES)


@pytest.mark.parametrize(
    ("kind", "options", "said"),
    [
        ("memory_pressure", {"bytes": 0}, "options.bytes: expected a whole number from 1048576 to 549755813888, got 0"),
        (
            "memory_pressure",
            {"bytes": 1e12},
            "options.bytes: expected a whole number from 1048576 to 549755813888, got",
        ),
        ("memory_pressure", {"share": 0}, "options.share: expected a number from 0.01 to 1, got 0"),
        ("wrong_token", {"seed": 1.5}, "options.seed: expected a whole number from 0 to 2147483647, got 1.5"),
        ("kill", {"restart_after_s": 20_001}, "options.restart_after_s: expected a number from 2 to "),
        ("latency", {"latency_ms": 100, "jitter_ms": 51}, "options.jitter_ms: expected at most 50, half of latency_ms"),
        ("delay_messages", {"delay_ms": 5, "jitter_ms": 6}, "options.jitter_ms: expected at most delay_ms = 5, got 6"),
        ("slicer", {"average_bytes": 5, "variation_bytes": 6}, "options.variation_bytes: expected at most average_byt"),
    ],
)
def test_what_contradicts_itself_or_does_nothing_costs_one_line(kind: str, options: dict[str, Any], said: str) -> None:
    with pytest.raises(ValueError, match=f"^{re.escape(said)}"):
        make(kind, **options)


def test_a_kill_cannot_end_before_its_restart() -> None:
    spec = FaultSpec(
        kind="kill", phase="fault", targets=("worker-0",), duration_s=5.0, ttl_s=9.0, options={"restart_after_s": 5.5}
    )
    with pytest.raises(
        ValueError, match=r"^options\.restart_after_s: expected a number from 2 to the fault's duration"
    ):
        faults.make(spec, NODES)


@pytest.mark.parametrize("kind", [kind for kind in faults.KINDS if kind.endswith("_messages")])
def test_what_a_message_fault_allows_the_proxy_takes(kind: str) -> None:
    for of, option, number in numbers():
        if of == kind:
            for value in (number.ge, number.le):
                (rule,) = rules(make(kind, **{option: value})).values()
                check_message_attributes(toxic_kind(rule), toxic_attributes(rule))


def test_the_listing_names_every_mode_option_limit_and_default_and_says_nothing_twice() -> None:
    text = " ".join(listing(faults.kinds()).split())
    for kind in faults.KINDS:
        assert f"`{kind}`" in text
        for name, said in terms(kind).lines():
            assert f"{name} {said}" in text, kind
    assert "mode one of refuse, reset, stall, black_hole, upstream, downstream; must be given" in text
    assert text.count("Faults on single messages") == 1
    assert text.count("pong, prewarm, report") == 1


def test_limits_that_are_changed_are_told_changed() -> None:
    class Changed(Options, frozen=True):
        depth: Annotated[int, msgspec.Meta(ge=3, le=4, description="or else")] = 3

    (line,) = Terms(roles=("worker",), duration_s_min=1.0, options=Changed).lines()
    assert line == ("depth", "whole number from 3 to 4; default 3; or else")
    assert told(float) == "number"
