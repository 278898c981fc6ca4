"""Bytes of the three forms of memory, counted by hand; and fixed slots, which one of them has."""

from dataclasses import replace
from functools import partial

import numpy as np
import pytest
from support.build import as_dora, random_adapter, random_model
from support.serving import assert_as_if_alone, serve

from refimpl import NUMPY, Engine, Precision, Request
from refimpl.adapter_slots import bind_adapter
from refimpl.config import EMBED, LAYER_MODULES, ModelConfig
from refimpl.errors import AdapterError, LoracleError
from refimpl.fixed_slots import FixedPool, FixedSlots
from refimpl.memory_use import MemoryUse, memory_use
from refimpl.unified_pool import UnifiedPool

CONFIG = ModelConfig(11, 10, 7, 1, 4, 2, 4, max_position_embeddings=64)
MODEL = random_model(CONFIG)
BLOCK = 2 * 2 * 2 * 4 * 8  # bytes: keys and values of two tokens, two heads of four float64
ADAPTER = random_adapter(CONFIG, 1, 3, modules=("q_proj",))  # A [3, 10], B [16, 3]: 30 rounded up to 32, and 48 numbers
WEIGHTS = (30 + 48) * 8
EVERYWHERE = (*LAYER_MODULES, "embed_tokens", "lm_head")


def served(pool: object, max_adapters: int | None = None) -> MemoryUse:
    """One request of three tokens, computed, in ten blocks."""
    engine = Engine(MODEL, NUMPY, num_blocks=10, block_size=2, max_adapters=max_adapters, pool=pool)
    engine.add(Request([1, 2, 3], ADAPTER, stop_ids=()), 4)
    engine.step()
    return memory_use(engine)


def test_each_form_is_what_a_hand_counts() -> None:
    """Three tokens fill one block and half of another; the adapter takes 80 numbers, three blocks of 32."""
    separate, unified, fixed = served(None), served(UnifiedPool), served(partial(FixedPool, max_rank=4), 2)
    assert separate == MemoryUse(10 * BLOCK + WEIGHTS, 3 * BLOCK // 2, WEIGHTS, 8 * BLOCK, BLOCK // 2)
    ends = BLOCK // 2 + 3 * BLOCK - WEIGHTS
    assert unified == MemoryUse(10 * BLOCK, 3 * BLOCK // 2, WEIGHTS, 5 * BLOCK, ends)
    shapes = [CONFIG.shape(module) for module in CONFIG.modules()]
    slot = 8 * sum(4 * (d_in + d_out) + d_out for d_out, d_in in shapes)
    slot += 8 * (CONFIG.hidden_size - CONFIG.vocab_size)  # the bias of the embedding is as wide as the model
    assert fixed.reserved == 10 * BLOCK + 2 * slot
    assert (fixed.kv, fixed.adapters, fixed.free) == (3 * BLOCK // 2, WEIGHTS, 8 * BLOCK + slot)
    assert fixed.wasted == BLOCK // 2 + slot - WEIGHTS
    assert separate.wasted_share < unified.wasted_share < fixed.wasted_share


def test_a_shared_block_counts_once_and_a_cached_one_is_no_waste() -> None:
    engine = Engine(MODEL, NUMPY, num_blocks=10, block_size=2)
    engine.add(Request([1, 2, 3, 4, 5], stop_ids=()), 1)
    engine.step()
    use = memory_use(engine)
    assert (use.kv, use.free, use.wasted) == (2 * BLOCK, 8 * BLOCK, 0)  # finished: two full blocks are kept
    for last in (6, 7):
        engine.add(Request([1, 2, 3, 4, last], stop_ids=()), 3)
    engine.step()
    use = memory_use(engine)
    assert (use.kv, use.free, use.wasted) == (3 * BLOCK, 6 * BLOCK, BLOCK)
    assert memory_use(Engine(MODEL, NUMPY, num_blocks=10, block_size=2)).wasted_share == 0.0


def test_fixed_slots_serve_as_if_alone() -> None:
    """Of any rank up to the greatest, in every module, sums among them; a slot that is filled again is clean."""
    adapters = [
        random_adapter(CONFIG, seed, r, modules=EVERYWHERE if seed % 2 else ("v_proj",), lora_bias=seed == 3)
        for seed, r in enumerate((8, 1, 5, 8))
    ]
    requests = [Request([1, 2, seed], adapter) for seed, adapter in enumerate(adapters)]
    requests += [Request([3, 4], [(adapters[0], 0.5), (adapters[1], -1.0)]), Request([3, 4])]
    pool = partial(FixedPool, max_rank=8)
    engine, ids = serve(MODEL, requests, NUMPY, max_adapters=2, pool=pool)
    assert_as_if_alone(engine, ids, requests)


def test_a_slot_of_a_smaller_adapter_keeps_nothing_of_the_larger_one() -> None:
    slots = FixedSlots(MODEL, Precision("model", "float64"), 1, 8)
    for seed, r in ((0, 8), (1, 2)):
        slots.put(0, bind_adapter(random_adapter(CONFIG, seed, r, modules=EVERYWHERE, lora_bias=r == 8), CONFIG))
    for module, (A, B, bias) in slots.stacked.items():
        assert A[0, :2].any() and not A[0, 2:].any(), module
        assert B[0, :, :2].any() and not B[0, :, 2:].any() and not bias.any(), module


def test_what_fits_into_no_slot_is_refused() -> None:
    slots = FixedSlots(MODEL, Precision("model", "float64"), 2, 2)
    large = bind_adapter(ADAPTER, CONFIG)
    with pytest.raises(AdapterError, match=r"layers\.0\.self_attn\.q_proj: rank 3 is greater than max_rank 2"):
        slots.put(0, large)
    small = random_adapter(CONFIG, 1, 2, modules=("embed_tokens",))
    with pytest.raises(AdapterError, match="no DoRA"):
        slots.put(0, bind_adapter(as_dora(small, MODEL, 1), CONFIG))
    wider = replace(small, lora={EMBED: replace(small.lora[EMBED], A=np.zeros((2, 13)))})
    with pytest.raises(AdapterError, match="embed_tokens: the adapter maps 13 to 10, the slots 11 to 10"):
        slots.put(0, bind_adapter(wider, CONFIG))
    attention = FixedSlots(MODEL, Precision("model", "float64"), 2, 2, ("q_proj", "v_proj"))
    with pytest.raises(AdapterError, match="embed_tokens: the slots have no room for this module"):
        attention.put(0, bind_adapter(small, CONFIG))
    assert not slots.slots and not attention.slots and len(attention.stacked) == 2
    with pytest.raises(LoracleError, match="max_adapters must say how many"):
        Engine(MODEL, pool=FixedPool)
