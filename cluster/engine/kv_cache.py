"""KV caches of finished sequences, kept for prompts that begin alike. Only the engine's thread may use this."""

import copy
from collections.abc import Sequence
from typing import Any

import mlx.core as mx
from mlx.utils import tree_map
from mlx_lm.models.cache import BatchKVCache, CacheList, KVCache, can_trim_prompt_cache, trim_prompt_cache

Cache = list[Any]
"""One of mlx-lm's cache objects for each layer, of a single sequence."""

STEP: int = BatchKVCache.step
"""In tokens: a cache in a batch is allocated in pieces of so many."""


def keep(cache: Cache, held: int, tokens: int) -> tuple[Cache, int] | None:
    """A cache that holds `held` tokens, cut to the first `tokens`, and its bytes; None when it cannot be cut.

    It must be nobody else's. It is computed here and copied out of the arrays of the batch it came from, so that those
    need not live as long.
    """
    if not _cut(cache, held - tokens):
        return None
    for part in cache:
        _copy_out(part)
    mx.eval([part.state for part in cache])
    return cache, sum(part.nbytes for part in cache)


def beginning(kept: Cache, held: int, tokens: int) -> Cache | None:
    """A copy of a kept cache, cut to its first `tokens`; None when it cannot be cut.

    The copy has its own lengths and shares the arrays: a batch copies them when the sequence joins it.
    """
    copies = [_shallow(part) for part in kept]
    return copies if _cut(copies, held - tokens) else None


def bytes_per_token(cache: Cache) -> int:
    """What one token takes, read from a cache: a configuration names neither element type nor every layout.

    A state of fixed size, as state-space layers have, counts nothing.
    """
    layers = [part for layer in cache for part in (layer.caches if isinstance(layer, CacheList) else [layer])]
    arrays = [array for layer in layers if hasattr(layer, "keys") for array in (layer.keys, layer.values)]
    return sum(array.nbytes // array.shape[2] for array in arrays)


def _cut(cache: Sequence[Any], surplus: int) -> bool:
    if surplus <= 0:
        return surplus == 0
    return bool(can_trim_prompt_cache(cache)) and bool(trim_prompt_cache(cache, surplus) == surplus)


def _copy_out(part: Any) -> None:
    """Have arrays of its own, with no more positions than it holds."""
    if isinstance(part, CacheList):
        for inner in part.caches:
            _copy_out(inner)
        return
    if isinstance(part, KVCache) and part.keys is not None:
        part.keys, part.values = part.keys_and_values()
    # A row of a batch is a view of all of it: this copies it, unless it is (but for a few kB) the whole buffer.
    part.state = tree_map(lambda leaf: mx.contiguous(leaf) if isinstance(leaf, mx.array) else leaf, part.state)


def _shallow(part: Any) -> Any:
    return CacheList(*map(_shallow, part.caches)) if isinstance(part, CacheList) else copy.copy(part)
