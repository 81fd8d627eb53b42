"""The fault kinds for people: what each does, whom it can be aimed at, and every option with its limits."""

import inspect
import textwrap
from collections.abc import Iterator, Mapping, Sequence
from itertools import groupby
from types import ModuleType

import msgspec

from chaos.experiment import FaultSpec
from chaos.faults.fault import Fault
from chaos.faults.terms import Terms, option_line

_WIDTH = 100
_INDENT = "    "
_OF_THE_KIND = ("kind", "mode", "options")


def listing(kinds: Mapping[str, type[Fault]]) -> str:
    """Every kind, those of one module together, so that what they share is said once; then what any fault may say."""
    parts = [
        "\n".join(_group(inspect.getmodule(of[0]), of))
        for of in (list(group) for _, group in groupby(kinds.values(), key=inspect.getmodule))
    ]
    common = [f for f in msgspec.structs.fields(FaultSpec) if f.name not in _OF_THE_KIND]
    lines = ["Every fault also has:", *_table((f.name, option_line(f)) for f in common)]
    return "\n\n".join([*parts, "\n".join(lines)]) + "\n"


def _group(module: ModuleType | None, kinds: Sequence[type[Fault]]) -> Iterator[str]:
    text = inspect.getdoc(module) or ""
    own = text.startswith(f"`{kinds[0].KIND}`")
    if len(kinds) == 1:
        (kind,) = kinds
        yield from _paragraphs(text if own else f"`{kind.KIND}`: {inspect.getdoc(kind) or ''}\n\n{text}")
        yield from _table(_all_lines(kind))
        return
    shared = [line for line in _all_lines(kinds[0]) if all(line in _all_lines(kind) for kind in kinds)]
    yield from _paragraphs(f"{', '.join(f'`{kind.KIND}`' for kind in kinds)}: {text}")
    yield from _table(shared)
    for kind in kinds:
        yield from _paragraphs(f"`{kind.KIND}`: {inspect.getdoc(kind) or ''}")
        yield from _table([line for line in _all_lines(kind) if line not in shared])


def _all_lines(kind: type[Fault]) -> list[tuple[str, str]]:
    """What a spec may say to a kind. One of a package that has not declared its terms says it in its text, or not."""
    terms = getattr(kind, "TERMS", None)
    if not isinstance(terms, Terms):
        return []
    least = f"at least {terms.duration_s_min:g}"
    return [("targets", ", ".join(terms.roles)), ("duration_s", least), *terms.lines()]


def _paragraphs(text: str) -> Iterator[str]:
    """The first one begins at the margin."""
    for number, paragraph in enumerate(text.split("\n\n")):
        yield _filled(" ".join(paragraph.split()), _INDENT if number else "", _INDENT)


def _table(rows: Iterator[tuple[str, str]] | Sequence[tuple[str, str]]) -> Iterator[str]:
    for name, said in rows:
        yield _filled(f"{name:<16} {said}", 2 * _INDENT, 2 * _INDENT + 17 * " ")


def _filled(text: str, first: str, following: str) -> str:
    return textwrap.fill(text, _WIDTH, initial_indent=first, subsequent_indent=following, break_on_hyphens=False)
