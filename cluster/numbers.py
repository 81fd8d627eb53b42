"""Numbers of settings: none of them is infinite or not a number, whatever limits its type has."""

import math

import msgspec


def demand_finite(section: msgspec.Struct) -> None:
    """Look at everything in a section of settings. Raises ValueError: which field, what it is.

    A limit of a type does not tell: with one on one side only infinity passes, and an option or a criterion has none.
    """
    for field in section.__struct_fields__:
        _demand(field, getattr(section, field))


def _demand(field: str, value: object) -> None:
    if isinstance(value, float):
        if not math.isfinite(value):
            raise ValueError(f"{field}: expected a finite number, got {value}")
    elif isinstance(value, msgspec.Struct):
        for name in value.__struct_fields__:
            _demand(f"{field}.{name}", getattr(value, name))
    elif isinstance(value, dict):
        for key, each in value.items():
            _demand(f"{field}.{key}", each)
    elif isinstance(value, list | tuple):
        for number, each in enumerate(value):
            _demand(f"{field}[{number}]", each)
