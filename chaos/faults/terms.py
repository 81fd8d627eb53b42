"""What a spec may say to a fault kind: declared once, so that what is told to users is what is demanded of them."""

import math
from collections.abc import Iterator
from typing import Annotated, Any, Generic, TypeVar

import msgspec
from msgspec import inspect

from chaos.experiment import FaultSpec
from chaos.faults.roles import demand_options, demand_roles


class Options(msgspec.Struct, frozen=True, kw_only=True):
    """The options of a kind: a field for each, whose type holds its limits. By itself: none."""


Seed = Annotated[int, msgspec.Meta(ge=0, le=2**31 - 1)]
"""Of what an option draws by chance."""

Given = TypeVar("Given", bound=Options, covariant=True)


class Terms(msgspec.Struct, Generic[Given], frozen=True, kw_only=True):
    """Whom a kind can be aimed at, how long it must last at least (its proofs take that long), and what else it reads.

    exactly_one: the options are ways to say one thing, of which a spec names one.
    """

    roles: tuple[str, ...]
    duration_s_min: float
    options: type[Given]
    modes: tuple[str, ...] = ()
    exactly_one: bool = False

    def read(self, spec: FaultSpec) -> Given:
        """The options of a spec. Raises ValueError (field, then what was expected) for anything not allowed."""
        demand_roles(spec, self.roles)
        fields = {field.name: field for field in msgspec.structs.fields(self.options)}
        demand_options(spec, fields, modes=self.modes)
        if spec.duration_s < self.duration_s_min:
            raise ValueError(f"duration_s: expected at least {self.duration_s_min:g} s, for that long the proof takes")
        if self.exactly_one and len(spec.options) != 1:
            raise ValueError(f"options: expected exactly one of {', '.join(fields)}")
        values = {}
        for name, field in fields.items():
            if name in spec.options:
                values[name] = _converted(name, spec.options[name], field.type)
            elif field.required:
                raise ValueError(f"options.{name}: expected {_article(told(field.type))}, got nothing")
        return self.options(**values)

    def lines(self) -> Iterator[tuple[str, str]]:
        """Name and limits of the mode and of each option, for people."""
        if self.modes:
            yield "mode", f"one of {', '.join(self.modes)}; must be given"
        ways = "; one of these options must be given, and no other" if self.exactly_one else ""
        for field in msgspec.structs.fields(self.options):
            yield field.name, option_line(field) + ways


def option_line(field: msgspec.structs.FieldInfo) -> str:
    """Type, limits and default of a field, for people."""
    said = told(field.type)
    note = _note(inspect.type_info(field.type))
    if field.required:
        said += "; must be given"
    elif field.default is not None and field.default is not msgspec.NODEFAULT:
        default = f"{field.default:g}" if isinstance(field.default, float) else str(field.default)
        said += f"; default {default.lower() if isinstance(field.default, bool) else default}"
    return f"{said}; {note}" if note else said


def told(annotation: Any) -> str:
    """A type with its limits, for people."""
    return _told(inspect.type_info(annotation))


def _told(kind: inspect.Type) -> str:
    match kind:
        case inspect.Metadata():
            return _told(kind.type)
        case inspect.UnionType():
            return " or ".join(_told(part) for part in kind.types if not isinstance(part, inspect.NoneType))
        case inspect.FloatType() | inspect.IntType():
            noun = "number" if isinstance(kind, inspect.FloatType) else "whole number"
            if kind.ge is not None and kind.le is not None:
                return f"{noun} from {_short(kind.ge)} to {_short(kind.le)}"
            if kind.ge is not None:
                return f"{noun} of at least {_short(kind.ge)}"
            return noun if kind.gt is None else f"{noun} above {_short(kind.gt)}"
        case inspect.LiteralType():
            return f"one of {', '.join(str(value) for value in kind.values)}"
        case inspect.StrType():
            return "text"
        case inspect.BoolType():
            return "true or false"
        case inspect.VarTupleType():
            return f"list of {_told(kind.item_type)}"
        case inspect.StructType():
            return f"{{{', '.join(field.name for field in kind.fields)}}}"
    raise TypeError(f"nobody has said what {kind!r} is called")


def _note(kind: inspect.Type) -> str:
    """What a field's own Meta says of it beside its limits."""
    if isinstance(kind, inspect.Metadata):
        return str((kind.extra_json_schema or {}).get("description", "")) or _note(kind.type)
    parts = kind.types if isinstance(kind, inspect.UnionType) else ()
    return next(filter(None, map(_note, parts)), "")


def _converted(option: str, value: object, annotation: Any) -> Any:
    # YAML and people write 5.0 for a whole number.
    forms = [value, int(value)] if isinstance(value, float) and value.is_integer() else [value]
    for form in forms:
        try:
            converted = msgspec.convert(form, annotation)
        except msgspec.ValidationError:
            continue
        if not isinstance(converted, float) or math.isfinite(converted):
            return converted
    raise ValueError(f"options.{option}: expected {_article(told(annotation))}, got {value!r}")


def _article(said: str) -> str:
    return said if said.startswith("one of") else f"a {said}"


def _short(value: float) -> str:
    return str(value) if isinstance(value, int) else f"{value:g}"
