"""lora_delta over adapters that lie in pages: the same bits as over adapters that lie in arrays of their own."""

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st
from properties.test_lora_delta import Call, P, calls
from support.build import as_dora
from support.compare import assert_same_bits
from support.tables import every_table

from refimpl import Ops
from refimpl.adapter_slots import AdapterSlots
from refimpl.kv_cache import KVCache
from refimpl.paged_slots import PagedSlots


def scattered(cache: KVCache, seed: int) -> None:
    """Let the cache hand out its blocks in any order, and fill them with NaN: what is read must have been written."""
    blocks = np.random.default_rng(seed).permutation(cache.allocate(cache.num_blocks)).tolist()
    cache.memory[...] = np.nan
    cache.free(blocks)


def paged(call: Call, ops: Ops, block_size: int, seed: int | None, evict: bool) -> PagedSlots:
    """The call's adapters in pages; with `evict` each slot held another one before, whose blocks it gets."""
    bound = [ops.bind_adapter(adapter, call.model.config, ops.adapter_scale) for adapter in call.pool]
    sizes = PagedSlots(call.model, P, KVCache(call.model.config, 1, block_size, P))
    counts = [sizes.blocks_for(sizes.packed(each)) for each in bound]
    cache = KVCache(call.model.config, sum(counts) + max(counts), block_size, P)
    if seed is not None:
        scattered(cache, seed)
    slots = PagedSlots(call.model, P, cache)
    if evict:
        for slot, other in enumerate(reversed(bound)):
            slots.put(slot, other)
        for slot in range(len(bound)):
            slots.remove(slot)
    for slot, each in enumerate(bound):
        slots.put(slot, each)
    return slots


@every_table
@settings(max_examples=40)
@given(
    call=calls(),
    block_size=st.sampled_from([1, 2, 7, 16]),
    seed=st.none() | st.integers(0, 9),
    evict=st.booleans(),
    dora=st.booleans(),
)
def test_pages_change_no_bit(ops: Ops, call: Call, block_size: int, seed: int | None, evict: bool, dora: bool) -> None:
    """Any ranks, modules, sums and -1; adapters in blocks side by side or scattered, the last one's end unused."""
    if dora:
        call = with_dora(call)
    dense = AdapterSlots(call.model, P)
    for slot, adapter in enumerate(call.pool):
        dense.put(slot, ops.bind_adapter(adapter, call.model.config, ops.adapter_scale))
    slots = paged(call, ops, block_size, seed, evict)
    for module in call.model.config.modules():
        assert list(slots.at(module)) == list(dense.at(module))
        for slot, lora in slots.at(module).items():
            assert lora.scale == dense.at(module)[slot].scale
            assert_same_bits(lora.A, dense.at(module)[slot].A)
            assert_same_bits(lora.B, dense.at(module)[slot].B)
    expected, actual = call.y(0), call.y(0)
    call.run(ops, expected, dense)
    call.run(ops, actual, slots)
    assert_same_bits(actual, expected)


def with_dora(call: Call) -> Call:
    """The same call with its first adapter as a DoRA, which no request may weigh."""
    alone = np.where(call.adapter_ids[:, :1] == 0, -1, call.adapter_ids)
    alone[:, 0] = call.adapter_ids[:, 0]
    alone[call.adapter_ids[:, 0] == 0, 1:] = -1
    alone = np.where((np.arange(alone.shape[1]) > 0) & (alone == 0), -1, alone)
    return call._replace(pool=[as_dora(call.pool[0], call.model, 1), *call.pool[1:]], adapter_ids=alone)
