"""G. Kernels: bounds, tiles, and the numbers in between. Races belong to the tests of the kernels."""

import dataclasses
from collections.abc import Sequence

import numpy as np

from ...adapter_slots import AdapterSlots, LoraWeights
from ...arrays import Array, Precision, ceil_div
from ...config import Module
from ...ops import NUMPY, Ops
from ...plans import Adapters, LoraMapping
from .mutant import Family
from .steps import Plan, Slots, add, but, each, only, reading, routing, same_rank

kernels = Family("G", "kernels")

# Ranks that the kernel was not written for.


@kernels.bug("the last column of an odd rank is left out", needs="odd rank")
def odd_rank_cut() -> Ops:
    return each(lambda lora: same_rank(lora, len(lora.A) // 2 * 2))


@kernels.bugs(
    (8, 16),
    "what is beyond rank {} is left out",
    "https://github.com/predibase/lorax/pull/70",
    needs="rank over {}",
)
def rank_cut(most: int) -> Ops:
    return each(lambda lora: same_rank(lora, most))


@kernels.bug("a rank is cut down to a multiple of 8: below 8 nothing is left")
def rank_in_whole_eights() -> Ops:
    return each(lambda lora: same_rank(lora, len(lora.A) // 8 * 8))


@kernels.bug("the last of the rank's columns is left out in expand")
def last_rank_lost() -> Ops:
    return each(lambda lora: same_rank(lora, len(lora.A) - 1))


@kernels.bug(
    "an adapter is padded to the largest rank with what lay there: the larger adapter's rows",
    "https://github.com/sgl-project/sgl-kernel-npu/pull/805",
    needs="mixed ranks",
)
def padding_not_cleared() -> Ops:
    def padded(adapters: AdapterSlots, module: Module) -> Slots:
        at = adapters.at(module)
        most = max(at.values(), key=lambda lora: len(lora.A), default=None)
        return {slot: padded_with(most, lora) for slot, lora in at.items() if most is not None}

    def padded_with(most: LoraWeights, lora: LoraWeights) -> LoraWeights:
        r = len(lora.A)
        if (most.A.shape[1], most.B.shape[0]) != (lora.A.shape[1], lora.B.shape[0]):
            return lora
        return dataclasses.replace(lora, A=np.vstack([lora.A, most.A[r:]]), B=np.hstack([lora.B, most.B[:, r:]]))

    return but(lora_delta=reading(padded))


@kernels.bug(
    "NaN where an adapter has rank 8: its buffers overlap",
    "https://github.com/sgl-project/sgl-kernel-npu/pull/790",
    needs="rank 8",
)
def nan_at_rank_8() -> Ops:
    return each(lambda lora: dataclasses.replace(lora, scale=np.nan) if len(lora.A) == 8 else lora)


# Tiles that end before the array does.


@kernels.bug("the last input of every row is left out of x A^T")
def last_input_lost() -> Ops:
    def cut(lora: LoraWeights) -> LoraWeights:
        A = lora.A.copy()
        A[:, -1] = 0
        return dataclasses.replace(lora, A=A)

    return each(cut)


@kernels.bug("split-K: the second half of the inputs never reaches the sum")
def split_k_part_lost() -> Ops:
    def cut(lora: LoraWeights) -> LoraWeights:
        A = lora.A.copy()
        A[:, ceil_div(A.shape[1], 2) :] = 0
        return dataclasses.replace(lora, A=A)

    return each(cut)


@kernels.bugs(
    (4, 10), "only the first {} columns of a delta are written", "https://github.com/punica-ai/punica/issues/57"
)
def first_columns_only(count: int) -> Ops:
    def cut(lora: LoraWeights) -> LoraWeights:
        B = lora.B.copy()
        B[count:] = 0
        return dataclasses.replace(
            lora, B=B, bias=None if lora.bias is None else np.where(np.arange(len(B)) < count, lora.bias, 0)
        )

    return each(cut)


@kernels.bug("the last token of the batch gets no adapter")
def last_token_lost() -> Ops:
    return but(lora_delta=routing(lambda ids, lora: (only(np.arange(len(ids))[:, None] < len(ids) - 1, ids), lora)))


@kernels.bug("the tokens after the last whole tile of four get no adapter")
def token_tail_lost() -> Ops:
    return but(
        lora_delta=routing(lambda ids, lora: (only(np.arange(len(ids))[:, None] < len(ids) // 4 * 4, ids), lora))
    )


# What is accumulated into what.


@kernels.bug(
    "the delta is added to memory that was never set: here it holds the base's product, which is counted twice",
    "https://github.com/vllm-project/vllm/pull/29316",
    "https://github.com/vllm-project/vllm-ascend/issues/11221",
)
def base_counted_twice() -> Ops:
    def delta(y: Array, x: Array, module: Module, adapters: AdapterSlots, mapping: LoraMapping, p: Precision) -> None:
        rows = np.isin(mapping.adapter_ids, list(adapters.at(module))).any(axis=1)
        y[rows] *= 2
        add(y, x, adapters.at(module), mapping, p)

    return but(lora_delta=delta)


@kernels.bug("the delta replaces what the base computed, instead of being added to it")
def delta_instead_of_sum() -> Ops:
    def delta(y: Array, x: Array, module: Module, adapters: AdapterSlots, mapping: LoraMapping, p: Precision) -> None:
        y[np.isin(mapping.adapter_ids, list(adapters.at(module))).any(axis=1)] = 0
        add(y, x, adapters.at(module), mapping, p)

    return but(lora_delta=delta)


# Numbers in between.


@kernels.bugs(
    ("bfloat16", "float16"),
    "the rank-r intermediate x A^T is kept in {}, whatever the model's type",
    "https://github.com/vllm-project/vllm/pull/38686",
)
def intermediate_in(dtype: str) -> Ops:
    def delta(y: Array, x: Array, module: Module, adapters: AdapterSlots, mapping: LoraMapping, p: Precision) -> None:
        add(y, x, adapters.at(module), mapping, dataclasses.replace(p, lora_rank=dtype))

    return but(lora_delta=delta)


@kernels.bug(
    "the largest number of every delta leaves the range of float16",
    "https://github.com/openvinotoolkit/openvino/pull/34809",
)
def delta_overflows() -> Ops:
    def delta(y: Array, x: Array, module: Module, adapters: AdapterSlots, mapping: LoraMapping, p: Precision) -> None:
        delta_alone = np.zeros_like(y)
        add(delta_alone, x, adapters.at(module), mapping, p)
        size = np.abs(delta_alone)
        y += np.where((size > 0) & (size == size.max(initial=0)), np.copysign(np.inf, delta_alone), delta_alone)

    return but(lora_delta=delta)


@kernels.bug(
    "right for the first 8 tokens of a request, base after them",
    "https://github.com/sgl-project/sglang/issues/26930",
)
def adapter_lost_after_8_tokens() -> Ops:
    at_positions: list[Array] = []

    def positions(computed: Sequence[int], lengths: Sequence[int]) -> Array:
        at_positions[:] = [NUMPY.positions(computed, lengths)]
        return at_positions[0]

    def rows(per_request: Sequence[Adapters], lengths: Sequence[int]) -> Plan:
        ids, weights = NUMPY.lora_mapping(per_request, lengths)
        early = at_positions[0] < 8 if at_positions else np.ones(len(ids), bool)
        return only(early[:, None], ids), weights

    return but(positions=positions, lora_mapping=rows)
