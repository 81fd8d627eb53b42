"""KV caches of finished sequences, kept for prompts that begin alike. Only the engine's thread may use this."""

import copy
from collections.abc import Sequence
from typing import Any

import mlx.core as mx
from mlx_lm.models.cache import CacheList, can_trim_prompt_cache, trim_prompt_cache

Cache = list[Any]
"""One of mlx-lm's cache objects for each layer, of a single sequence."""


def keep(cache: Cache, held: int, tokens: int) -> tuple[Cache, int] | None:
    """A cache that holds `held` tokens, cut to the first `tokens`, and its bytes; None when it cannot be cut.

    It must be nobody else's. Its arrays are computed here, so that they no longer refer to the batch they came from.
    """
    if not _cut(cache, held - tokens):
        return None
    mx.eval([part.state for part in cache])
    return cache, sum(part.nbytes for part in cache)


def beginning(kept: Cache, held: int, tokens: int) -> Cache | None:
    """A copy of a kept cache, cut to its first `tokens`; None when it cannot be cut.

    The copy has its own lengths and shares the arrays: a batch copies them when the sequence joins it.
    """
    copies = [_shallow(part) for part in kept]
    return copies if _cut(copies, held - tokens) else None


def bytes_per_token(cache: Cache) -> int:
    """What one token takes, read from a cache: a configuration names neither element type nor every layout."""
    parts = [part for layer in cache for part in layer.state]
    arrays = [part for part in parts if isinstance(part, mx.array) and part.ndim == 4]
    return sum(array.nbytes // array.shape[2] for array in arrays)


def _cut(cache: Sequence[Any], surplus: int) -> bool:
    if surplus <= 0:
        return surplus == 0
    return bool(can_trim_prompt_cache(cache)) and bool(trim_prompt_cache(cache, surplus) == surplus)


def _shallow(part: Any) -> Any:
    return CacheList(*map(_shallow, part.caches)) if isinstance(part, CacheList) else copy.copy(part)
