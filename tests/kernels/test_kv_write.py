"""kv_write.cu: every number at its place, bit for bit, and nothing else touched."""

import numpy as np
import pytest
from cases import misplaced, needs_cpu, numbers, orders, poison, scheduled
from hypothesis import given, settings
from hypothesis import strategies as st
from support.plans import writing

from refimpl.cuda import launch
from refimpl.cuda.launch import STORED, stored, widened
from refimpl.errors import LoracleError

pytestmark = needs_cpu

# What k and v are, and what the cache holds: the same, or float32.
every_types = pytest.mark.parametrize(
    ("dtype", "cache"), [(d, c) for d in STORED for c in dict.fromkeys((d, "float32"))]
)
every_version = pytest.mark.parametrize("version", [1, 2])


def write(data: st.DataObject, dtype: str, cache: str, version: int, check: bool) -> None:
    """Some tokens into some slots of a cache full of NaN; -0 and infinity among them."""
    rng = np.random.default_rng(data.draw(st.integers(0, 2**32 - 1)))
    blocks, block_size = data.draw(st.integers(1, 5)), data.draw(st.sampled_from([1, 3, 16]))
    kv_heads, head_dim = data.draw(st.integers(1, 3)), data.draw(st.sampled_from([1, 2, 7, 8, 64, 130]))
    tokens = data.draw(st.integers(0, min(blocks * block_size, 12)))
    slot_mapping = rng.permutation(blocks * block_size)[:tokens].astype(np.int32)
    shape = (blocks, block_size, kv_heads, head_dim)
    caches = poison(shape, cache), poison(shape, cache)
    k, v = numbers(rng, (tokens, kv_heads, head_dim), dtype), numbers(rng, (tokens, kv_heads, head_dim), dtype)
    if tokens:
        k[0, 0, 0], v[0, 0, 0] = -0.0, np.inf
    expected = poison(shape, cache), poison(shape, cache)
    caches = tuple(misplaced(x, data.draw(st.integers(0, 4))) for x in caches)
    inputs = [misplaced(stored(x, dtype), data.draw(st.integers(0, 4))) for x in (k, v)]
    for table, x in zip(expected, (k, v), strict=True):
        table.reshape(-1, kv_heads, head_dim)[slot_mapping] = stored(x, cache)
    with scheduled(data.draw(orders), check):
        launch.write_kv(*caches, *inputs, writing(slot_mapping, caches[0]), dtype, version)
    for found, wanted in zip(caches, expected, strict=True):
        assert found.tobytes() == wanted.tobytes()


@every_types
@every_version
@given(data=st.data())
@settings(max_examples=40)
def test_equals_the_definition(dtype: str, cache: str, version: int, data: st.DataObject) -> None:
    write(data, dtype, cache, version, check=False)


@every_types
@every_version
@given(data=st.data())
@settings(max_examples=8)
def test_is_clean_under_the_checker(dtype: str, cache: str, version: int, data: st.DataObject) -> None:
    write(data, dtype, cache, version, check=True)


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"metadata": writing(np.array([0], np.int32), np.zeros((3, 4)))}, "do not fit caches"),
        ({"metadata": writing(np.array([0, 1], np.int32), np.zeros((3, 5)))}, "the plan is of 3 blocks of 5"),
        ({"k": np.zeros((2, 1, 2))}, "k is float64; this kernel was built for float32"),
        ({"v": np.zeros((2, 1, 4), np.float32)[:, :, ::2]}, r"v of shape \(2, 1, 2\) is not contiguous"),
        ({"k": np.zeros((2, 1, 2), np.float16)}, "k is float16; this kernel was built for float32"),
    ],
)
def test_a_bad_array_is_refused(changed: dict, message: str) -> None:
    arguments = {
        "k_cache": np.zeros((3, 4, 1, 2), np.float32),
        "v_cache": np.zeros((3, 4, 1, 2), np.float32),
        "k": np.zeros((2, 1, 2), np.float32),
        "v": np.zeros((2, 1, 2), np.float32),
        "metadata": writing(np.array([0, 1], np.int32), np.zeros((3, 4))),
        "dtype": "float32",
    }
    with pytest.raises(LoracleError, match=message):
        launch.write_kv(**{**arguments, **changed})


def test_a_row_is_read_and_written_once() -> None:
    rng = np.random.default_rng(0)
    cache, k = np.zeros((4, 16, 2, 64), np.float16), numbers(rng, (10, 2, 64), "float16").astype(np.float16)
    with scheduled("forward", check=True) as launches:
        launch.write_kv(cache, cache.copy(), k, k.copy(), writing(np.arange(10, dtype=np.int32), cache), "float16")
    moved = launches[0][1]
    assert moved["k"].loaded == moved["k"].distinct_loaded == k.nbytes
    assert moved["k_cache"].stored == moved["k_cache"].distinct_stored == k.nbytes
    assert widened(cache, "float16").reshape(64, 2, 64)[:10].tobytes() == k.astype(np.float32).tobytes()
