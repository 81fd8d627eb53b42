"""Loads made by installed packages, through the entry point group `mlx_chaos.workloads`.

A package says in its pyproject.toml

    [project.entry-points."mlx_chaos.workloads"]
    night_shift = "my_package.loads:night_shift"

and an experiment `workload: {plugin: night_shift, rate: 40%, options: {...}}`. The callable gets the options and, by
name, what LoadMaker says, and returns the requests in order of their time. What it returns is checked completely.
"""

import inspect
import math
from collections.abc import Mapping, Sequence
from importlib.metadata import entry_points
from typing import Protocol, cast

from analysis.schema import PROBE_PREFIX
from cluster.protocol import Token
from workloads.request import PROMPT_TOKENS_MAX, REQUESTS_MAX, ScheduledRequest
from workloads.spec import Option
from workloads.vocabulary import PromptVocabulary

ENTRY_POINTS = "mlx_chaos.workloads"
_ID_CHARACTERS_MAX = 200


class PluginError(ValueError):
    """A plugin is not there, or what it made is no load. The message is one line that names it."""


class LoadMaker(Protocol):
    """What an entry point must be. It should depend on its arguments alone, so that a run can be repeated."""

    def __call__(
        self,
        options: Mapping[str, Option],
        *,
        rate_per_s: float,
        duration_s: float,
        seed: int,
        vocabulary: PromptVocabulary,
        context_max_tokens: int,
    ) -> Sequence[ScheduledRequest]:
        """A load of about `rate_per_s`. A ValueError says in a line what is wrong with the options."""


def find_plugin(name: str) -> LoadMaker:
    """The callable of that name. Raises PluginError."""
    points = entry_points(group=ENTRY_POINTS)
    found = [point for point in points if point.name == name]
    if len(found) != 1:
        known = ", ".join(sorted({point.name for point in points})) or "none"
        how_many = f"{len(found)} entry points" if found else "no entry point"
        raise PluginError(f"{how_many} named {name!r} in the group {ENTRY_POINTS}; installed: {known}")
    try:
        loaded = found[0].load()
    except (ImportError, AttributeError) as error:
        raise PluginError(f"{name} of {found[0].value} cannot be loaded: {error}") from error
    if not callable(loaded):
        raise PluginError(f"{name} of {found[0].value} cannot be called")
    given = dict.fromkeys(("rate_per_s", "duration_s", "seed", "vocabulary", "context_max_tokens"))
    try:
        inspect.signature(loaded).bind({}, **given)
    except TypeError as error:
        raise PluginError(
            f"{name} of {found[0].value} does not take {', '.join(('options', *given))}: {error}"
        ) from None
    return cast(LoadMaker, loaded)


def plugin_schedule(
    name: str,
    options: Mapping[str, Option],
    rate_per_s: float,
    duration_s: float,
    seed: int,
    vocabulary: PromptVocabulary,
    context_max_tokens: int,
) -> list[ScheduledRequest]:
    """The load that a plugin makes, checked. Raises PluginError."""
    make = find_plugin(name)
    try:
        made = make(
            options,
            rate_per_s=rate_per_s,
            duration_s=duration_s,
            seed=seed,
            vocabulary=vocabulary,
            context_max_tokens=context_max_tokens,
        )
    except ValueError as error:
        raise PluginError(f"{name}: {' '.join(str(error).split())}") from error
    try:
        check_schedule(made, duration_s, context_max_tokens)
    except ValueError as error:
        raise PluginError(f"{name} made no load: {error}") from None
    return list(made)


def check_schedule(made: object, duration_s: float, context_max_tokens: int) -> None:
    """Raise ValueError (a line that names request and field) unless these are requests that can be sent as they are."""
    if not isinstance(made, Sequence) or not 0 < len(made) <= REQUESTS_MAX:
        size = f"{len(made)} requests" if isinstance(made, Sequence) else type(made).__name__
        raise ValueError(f"expected a list of 1 to {REQUESTS_MAX} requests, got {size}")
    before_s, tokens = 0.0, 0
    ids: set[str] = set()
    prompts: dict[str, tuple[Token, ...]] = {}
    for number, request in enumerate(made):
        if not isinstance(request, ScheduledRequest):
            raise ValueError(f"request {number}: expected a ScheduledRequest, got {type(request).__name__}")
        wrong = (
            _wrong_time(request, before_s, duration_s)
            or _wrong_names(request, ids)
            or _wrong_numbers(request, context_max_tokens)
        )
        if wrong is None and prompts.setdefault(request.prompt_id, request.prompt) != request.prompt:
            wrong = f"prompt_id: {request.prompt_id} names another prompt already"
        if wrong is not None:
            raise ValueError(f"request {number}: {wrong}")
        before_s = request.intended_s
        ids.add(request.request_id)
        tokens += len(request.prompt)
        if tokens > PROMPT_TOKENS_MAX:
            raise ValueError(f"the prompts have more than {PROMPT_TOKENS_MAX} tokens together")


def _wrong_time(request: ScheduledRequest, before_s: float, duration_s: float) -> str | None:
    if not _is_number(request.intended_s) or not math.isfinite(request.intended_s):
        return f"intended_s: expected seconds, got {request.intended_s!r}"
    if request.intended_s < before_s:
        return f"intended_s: {request.intended_s:g} comes after {before_s:g}, times must ascend from 0"
    if request.intended_s >= duration_s:
        return f"intended_s: {request.intended_s:g} is beyond the load's {duration_s:g} s"
    return None


def _wrong_names(request: ScheduledRequest, ids: set[str]) -> str | None:
    for field in ("request_id", "session_id", "prompt_id"):
        value = getattr(request, field)
        if not isinstance(value, str) or not value.isprintable() or not 0 < len(value) <= _ID_CHARACTERS_MAX:
            return f"{field}: expected 1 to {_ID_CHARACTERS_MAX} printable characters, got {str(value)[:40]!r}"
    for field in ("arm", "worker"):
        value = getattr(request, field)
        if not isinstance(value, str) or len(value) > _ID_CHARACTERS_MAX:
            return f"{field}: expected a name, got {str(value)[:40]!r}"
    if request.request_id in ids:
        return f"request_id: {request.request_id} is there twice"
    if request.request_id.startswith(PROBE_PREFIX):
        return f"request_id: {PROBE_PREFIX} is what the requests of the capacity probe begin with"
    return None


def _wrong_numbers(request: ScheduledRequest, context_max_tokens: int) -> str | None:
    if not _is_count(request.turn, 0):
        return f"turn: expected a whole number from 0 on, got {request.turn!r}"
    if not _is_count(request.max_tokens, 1):
        return f"max_tokens: expected a whole number from 1 on, got {request.max_tokens!r}"
    if not _is_count(request.block, -1):
        return f"block: expected a whole number from -1 on, got {request.block!r}"
    if not isinstance(request.prompt, tuple) or not request.prompt or not all(_is_count(t, 0) for t in request.prompt):
        return "prompt: expected a tuple of token ids"
    taken = len(request.prompt) + request.max_tokens
    if taken > context_max_tokens:
        return f"prompt: with the output cap it takes {taken} tokens, the context holds {context_max_tokens}"
    return None


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _is_count(value: object, least: int) -> bool:
    return type(value) is int and value >= least
