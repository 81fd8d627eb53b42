"""A mutant: a bug that is in the cluster for as long as a context manager is open, and in no file."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import msgspec

Replacement = Callable[..., Any]
"""Called with the original, then with what the original would have been called with."""


class DoesNotApply(Exception):
    """The code that a mutant changes is not there, or was never reached: it proves nothing and is not caught."""


class Patch(msgspec.Struct, frozen=True):
    """A method, property or function `name` of a class or module, and what takes its place."""

    owner: Any
    name: str
    replacement: Replacement


class Mutant(msgspec.Struct, frozen=True):
    """what: the bug in one line. scenarios: in which runs it is looked for, the most promising first."""

    name: str
    what: str
    patches: tuple[Patch, ...]
    scenarios: tuple[str, ...]


class Reached:
    """Which patches were called while the mutant was in place."""

    def __init__(self) -> None:
        self.names: set[str] = set()


@contextmanager
def in_place(mutant: Mutant) -> Iterator[Reached]:
    """With the bug; without it again afterwards. Raises DoesNotApply where there is nothing of that name to change."""
    reached = Reached()
    originals: list[tuple[Patch, Any]] = []
    try:
        for patch in mutant.patches:
            if patch.name not in vars(patch.owner):
                raise DoesNotApply(f"{mutant.name}: {patch.owner.__name__} has no {patch.name} of its own any more")
            original = vars(patch.owner)[patch.name]
            originals.append((patch, original))
            setattr(patch.owner, patch.name, _changed(patch, original, reached))
        yield reached
    finally:
        for patch, original in reversed(originals):
            setattr(patch.owner, patch.name, original)


def unreached(mutant: Mutant, reached: Reached) -> list[str]:
    """Patches that no code has called."""
    return [label for patch in mutant.patches if (label := _label(patch)) not in reached.names]


def _changed(patch: Patch, original: Any, reached: Reached) -> Any:
    is_property = isinstance(original, property)
    called = original.fget if is_property else original
    if not callable(called):
        raise DoesNotApply(f"{_label(patch)} cannot be called")

    def mutated(*args: Any, **kwargs: Any) -> Any:
        reached.names.add(_label(patch))
        return patch.replacement(called, *args, **kwargs)

    return property(mutated) if is_property else mutated


def _label(patch: Patch) -> str:
    return f"{patch.owner.__name__}.{patch.name}"
