"""What is kept of every kind of mlx-lm's caches: exactly the positions asked for, in memory of their own."""

import gc
from typing import Any

import mlx.core as mx
import pytest
from mlx_lm.models.cache import ArraysCache, CacheList, KVCache, RotatingKVCache

from cluster.engine import kv_cache

pytestmark = pytest.mark.live

HEADS, WIDTH = 2, 16
POSITION_BYTES = 2 * HEADS * WIDTH * 4
"""Keys and values of one position of one layer, float32."""


def fill(cache: Any, positions: int, rows: int = 1) -> Any:
    shape = (rows, HEADS, positions, WIDTH)
    cache.update_and_fetch(mx.random.normal(shape), mx.random.normal(shape))
    mx.eval(cache.state)
    return cache


def row_of_a_batch(positions: int, rows: int = 8) -> tuple[Any, Any]:
    batch = KVCache.merge([KVCache() for _ in range(rows)])
    fill(batch, positions, rows)
    return batch, batch.extract(rows // 2)


def test_exactly_the_tokens_asked_for_are_kept() -> None:
    _, row = row_of_a_batch(300)
    expected = row.keys[..., :299, :].tolist()
    kept = kv_cache.keep([row], 300, 299)
    assert kept is not None
    cache, kept_bytes = kept
    assert kept_bytes == 299 * POSITION_BYTES
    assert cache[0].keys.shape[2] == cache[0].offset == 299
    assert cache[0].keys.tolist() == expected


def test_the_memory_of_the_batch_is_not_held() -> None:
    gc.collect()
    mx.clear_cache()
    before = mx.get_active_memory()
    batch, row = row_of_a_batch(1024)
    kept = kv_cache.keep([row], 1024, 1024)
    assert mx.get_active_memory() - before > 8 * 1024 * POSITION_BYTES
    del batch, row
    gc.collect()
    assert kept is not None
    assert mx.get_active_memory() - before < 1.1 * kept[1]


def test_a_beginning_that_joins_a_batch_and_grows_there_leaves_what_is_kept_alone() -> None:
    cache, _ = kv_cache.keep([fill(KVCache(), 40)], 40, 40) or pytest.fail("not kept")
    before = cache[0].keys.tolist(), cache[0].values.tolist()
    for tokens in (40, 25, 1):
        part = kv_cache.beginning(cache, 40, tokens)
        assert part is not None
        assert part[0].offset == tokens
        batch = part[0].merge([part[0], KVCache()])
        fill(batch, 7, rows=2)
        assert batch.extract(0).keys[..., :tokens, :].tolist() == cache[0].keys[..., :tokens, :].tolist()
    assert (cache[0].keys.tolist(), cache[0].values.tolist(), cache[0].offset) == (*before, 40)


def test_a_window_can_be_cut_until_it_has_moved() -> None:
    assert kv_cache.beginning([fill(RotatingKVCache(64), 40)], 40, 12) is not None
    moved = [fill(RotatingKVCache(64), 100)]
    assert kv_cache.beginning(moved, 100, 99) is None
    assert kv_cache.beginning(moved, 100, 100) is not None
    assert kv_cache.keep([fill(RotatingKVCache(64), 100)], 100, 99) is None
    cache, kept_bytes = kv_cache.keep([fill(RotatingKVCache(64), 100)], 100, 100) or pytest.fail("not kept")
    assert kept_bytes == sum(array.nbytes for array in (cache[0].keys, cache[0].values))


def test_a_state_of_fixed_size_is_kept_whole_or_not_at_all_and_out_of_its_batch() -> None:
    gc.collect()
    mx.clear_cache()
    before = mx.get_active_memory()
    states = ArraysCache(2)
    states[0], states[1] = mx.random.normal((8, 64, 256)), mx.random.normal((8, 4, 256))
    mx.eval(states.state)
    expected = states[0][3:4].tolist()
    assert kv_cache.keep([states.extract(3)], 30, 29) is None
    cache, kept_bytes = kv_cache.keep([states.extract(3)], 30, 30) or pytest.fail("not kept")
    del states
    gc.collect()
    assert mx.get_active_memory() - before < 1.1 * kept_bytes + 16384
    assert cache[0][0].tolist() == expected
    assert kv_cache.beginning(cache, 30, 29) is None


def test_a_layer_of_several_caches_is_cut_as_one() -> None:
    whole = CacheList(fill(KVCache(), 30), fill(KVCache(), 30))
    cache, kept_bytes = kv_cache.keep([whole], 30, 28) or pytest.fail("not kept")
    assert kept_bytes == 2 * 28 * POSITION_BYTES
    part = kv_cache.beginning(cache, 28, 10) or pytest.fail("not cut")
    assert [inner.offset for inner in part[0].caches] == [10, 10]
    assert [inner.offset for inner in cache[0].caches] == [28, 28]
    assert kv_cache.bytes_per_token(cache) == 2 * POSITION_BYTES


def test_only_what_grows_counts_as_bytes_of_a_token() -> None:
    states = ArraysCache(1)
    states[0] = mx.zeros((1, 4, 8, 16))
    _, row = row_of_a_batch(3)
    assert kv_cache.bytes_per_token([states, row]) == POSITION_BYTES
