"""TensorRT-LLM's LoRA product: two GEMMs, on one of two paths (cpp/tensorrt_llm/kernels/lora/lora.cpp).

    y = T(T(x W^T) + T(T(x A^T) B'^T))        T = float16 or bfloat16, every sum in float32

    unified   all tokens have the same adapter: two cuBLASLt products
    grouped   they do not: x A^T is split over K into 16 slices, each summed in float32, and the 16 sums are added in
              order before the one rounding to T (splitkGroupGemm.cu); the second product is not split

Both round at the same points, those of Precision("tensorrt_llm", T), so that they differ by the order of one sum.
Given the same x these are the numbers of the LoRA product, but for the order of float32 sums *within* a product, which
the hardware chooses. What an engine's x is depends on its attention, its norms and cuBLAS; those are not known exactly,
and an oracle must leave them in its noise.
"""

import dataclasses
import functools
import itertools

import numpy as np

from ..adapter_slots import AdapterSlots
from ..arrays import Array, Float, Int, Precision, namespace
from ..config import Module
from ..lora import lora_delta, shrink
from ..ops import NUMPY
from ..plans import NO_ADAPTER, LoraMapping

SLICES = 16  # mSplitKSlices
TILE_K = 64  # columns that a thread block multiplies at a time: a slice is a whole number of them

# The modules that share one call, because they share their input; at the embedding and lm_head it has no LoRA at all.
ATTENTION_INPUT, MLP_INPUT = ("q_proj", "k_proj", "v_proj"), ("gate_proj", "up_proj")
CALLS = {module: call for call in (ATTENTION_INPUT, MLP_INPUT) for module in call}


def slice_edges(d_in: int) -> list[int]:
    """Where the 16 slices of K = d_in begin and end: 17 numbers. The last slice takes what is left over, and that is
    all of it below K = 1024, where the others are empty (cutlass_extensions, kernel/splitk_gemm_grouped.h)."""
    size = d_in // TILE_K // SLICES * TILE_K
    return [size * k for k in range(SLICES)] + [d_in]


def split_k_shrink(x: Array, A: Float[Array, "rank d_in"]) -> Float[Array, "tokens rank"]:
    """x A^T as the grouped path takes it. Token ids are looked up, not summed: there is nothing to split."""
    if x.dtype.kind in "iu":
        return shrink(x, A)
    total = namespace(x).zeros((x.shape[0], A.shape[0]), x.dtype)
    for start, stop in itertools.pairwise(slice_edges(x.shape[1])):
        total += x[:, start:stop] @ A[:, start:stop].T
    return total


def is_unified(adapters: AdapterSlots, module: Module, adapter_ids: Int[Array, "tokens k"]) -> bool:
    """Which path the call that computes this module takes: unified if in each of its modules all tokens have the same
    A, B and rank. A token without an adapter there has none of the three: base tokens among others make it grouped."""
    layer, last_name = module
    for name in CALLS.get(last_name, (last_name,)):
        ids = np.where(np.isin(adapter_ids, list(adapters.at((layer, name)))), adapter_ids, NO_ADAPTER)
        if (ids != ids[:1]).any():
            return False
    return True


def lora_delta_as_batched(
    y: Float[Array, "tokens d_out"],
    x: Array,
    module: Module,
    adapters: AdapterSlots,
    mapping: LoraMapping,
    p: Precision,
) -> None:
    """The path that the batch takes, module by module. Adds to y in place."""
    step = UNIFIED if is_unified(adapters, module, mapping.adapter_ids) else GROUPED
    step.lora_delta(y, x, module, adapters, mapping, p)


# One product each: NUMPY as it is.
UNIFIED = NUMPY

# What mixed batches take, and what LORA_USE_UNIFIED_GEMM=OFF makes of every batch.
GROUPED = dataclasses.replace(NUMPY, lora_delta=functools.partial(lora_delta, shrink=split_k_shrink))

# The one or the other, as the batch is.
AS_BATCHED = dataclasses.replace(NUMPY, lora_delta=lora_delta_as_batched)
