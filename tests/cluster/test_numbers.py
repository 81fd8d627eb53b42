"""No number of an experiment, a policy or a target is infinite or not a number, whichever field it is in."""

from collections.abc import Iterator
from typing import Any

import msgspec
import pytest
from msgspec import inspect

from chaos.experiment import Experiment
from chaos.target import Target
from cluster.numbers import demand_finite
from cluster.policy import Policy
from workloads.spec import WorkloadSpec

Path = tuple[str | int, ...]
SAMPLES = {"name": "a", "rate": "1/s", "zone": "UTC", "begin": "1:00", "end": "2:00", "from": "1:00", "to": "2:00"}


def places(kind: inspect.Type) -> Iterator[Path]:
    """Of every float below a type; of what may be repeated, one."""
    match kind:
        case inspect.FloatType():
            yield ()
        case inspect.StructType():
            for field in kind.fields:
                yield from ((field.encode_name, *rest) for rest in places(field.type))
        case inspect.UnionType():
            for each in kind.types:
                yield from places(each)
        case inspect.DictType():
            yield from (("key", *rest) for rest in places(kind.value_type))
        case inspect.VarTupleType() | inspect.ListType():
            yield from ((0, *rest) for rest in places(kind.item_type))
        case inspect.TupleType():
            for number, each in enumerate(kind.item_types):
                yield from ((number, *rest) for rest in places(each))


def sample(kind: inspect.Type, name: str, place: Path, value: float) -> Any:
    """The least of a type that holds the value in the place."""
    match kind:
        case inspect.FloatType():
            return value if not place else max(kind.ge or 0.0, 1.0)
        case inspect.StructType():
            found = {
                field.encode_name: sample(
                    field.type, field.encode_name, place[1:] if field.encode_name == place[0] else ("",), value
                )
                for field in kind.fields
                if field.required or (place and field.encode_name == place[0])
            }
            if kind.tag_field:
                found[kind.tag_field] = kind.tag
            if place[0] == "options" and kind.cls is WorkloadSpec:
                found["plugin"] = "a"
            return found
        case inspect.UnionType():
            fits = [each for each in kind.types if any(at == place for at in places(each))]
            return sample((fits or list(kind.types))[0], name, place, value)
        case inspect.DictType():
            return {"key": sample(kind.value_type, "key", place[1:], value)} if place[0] == "key" else {}
        case inspect.VarTupleType() | inspect.ListType():
            return [sample(kind.item_type, name, place[1:] if place[0] == 0 else ("",), value)]
        case inspect.TupleType():
            return [
                sample(each, name, place[1:] if place[0] == number else ("",), value)
                for number, each in enumerate(kind.item_types)
            ]
        case inspect.IntType():
            return 1
        case inspect.BoolType():
            return False
        case inspect.LiteralType():
            return kind.values[0]
        case inspect.StrType():
            return SAMPLES.get(name, "a")
        case inspect.AnyType():
            return value if not place else None
        case _:
            return None


def refused(whole: type[Any], place: Path, value: float) -> str:
    """Why, or nothing."""
    try:
        demand_finite(msgspec.convert(sample(inspect.type_info(whole), "", place, value), whole))
    except ValueError as error:
        return str(error)
    return ""


CASES = [
    pytest.param(whole, place, id=f"{whole.__name__}-{'.'.join(map(str, place))}")
    for whole in (Policy, Experiment, Target)
    for place in dict.fromkeys(places(inspect.type_info(whole)))
]


@pytest.mark.parametrize(("whole", "place"), CASES)
def test_no_float_field_takes_what_is_no_number(whole: type[Any], place: Path) -> None:
    sound = [refused(whole, place, value) for value in (1.0, 0.75)]
    for value in (float("nan"), float("inf"), float("-inf")):
        said = refused(whole, place, value)
        assert said
        assert "" in sound or said not in sound
        leaf = next(str(part) for part in reversed(place) if isinstance(part, str))
        assert leaf in said or "[...]" in said, said
        assert "\n" not in said


def test_every_kind_of_place_is_looked_at() -> None:
    found = {place for whole in (Policy, Experiment, Target) for place in places(inspect.type_info(whole))}
    assert len(found) > 60
    for place in (
        ("link", "ping_s"),
        ("faults", "key", "options", "key"),
        ("cluster", "costs", "step_s"),
        ("expectations", "key", "at_most"),
        ("workload", "steps", 0, 1),
        ("workload", "prompt_tokens", "weights", 0),
        ("budget", "fault_s"),
    ):
        assert place in found
