"""E. Layout, split over `tp` ranks: each has some rows of B (column-parallel: q, k, v, gate, up) or some columns of A
(row-parallel: o, down), and what one rank loses, or adds twice, is missing, or twice, in the sum.
They are played in one process; on real ranks: parallel/mutants.py.
"""

import dataclasses

import numpy as np

from ...adapter import Adapter
from ...adapter_slots import BoundAdapter, LoraWeights
from ...arrays import ceil_div
from ...config import ModelConfig, Module
from ...ops import Ops
from .e_layout import COLUMN_PARALLEL, MISSING, ROW_PARALLEL, TP, layout, on, row_subset
from .steps import binding, loading


def without_last_rows(lora: LoraWeights) -> LoraWeights:
    rows = np.arange(len(lora.B))
    return row_subset(lora, np.where(rows < ceil_div(len(rows), TP), rows, MISSING))


def without_last_columns(lora: LoraWeights) -> LoraWeights:
    A = lora.A.copy()
    A[:, ceil_div(A.shape[1], TP) :] = 0
    return dataclasses.replace(lora, A=A)


@layout.bug(
    "two ranks: the second one's rows of B are lost",
    "https://github.com/NVIDIA/TensorRT-LLM/issues/2589",
    "https://github.com/vllm-project/vllm/issues/21471",
)
def shard_of_B_lost() -> Ops:
    return on(COLUMN_PARALLEL, without_last_rows)


@layout.bug(
    "two ranks: the partial sum of the second one never reaches o and down",
    "https://github.com/predibase/lorax/pull/47",
    "https://github.com/NVIDIA/TensorRT-LLM/issues/2634",
)
def shard_of_A_lost() -> Ops:
    return on(ROW_PARALLEL, without_last_columns)


@layout.bug("two ranks: each adds the whole delta of o and down, and the sum over ranks has it twice")
def row_parallel_delta_on_every_rank() -> Ops:
    return on(ROW_PARALLEL, lambda lora: dataclasses.replace(lora, scale=lora.scale * TP))


@layout.bug(
    "key heads are replicated over the ranks, but B of k and v is sliced all the same",
    "https://github.com/vllm-project/vllm/pull/56327",
)
def replicated_kv_sliced() -> Ops:
    return on(("k_proj", "v_proj"), without_last_rows)


@layout.bug(
    "two ranks: k and v are sliced as if they had as many heads as q",
    "https://github.com/NVIDIA/TensorRT-LLM/pull/6380",
    needs="GQA",
)
def kv_sliced_as_query_heads() -> Ops:
    def sliced(module: Module, lora: LoraWeights, config: ModelConfig) -> LoraWeights:
        if module[1] not in ("k_proj", "v_proj"):
            return lora
        shares, step = np.array_split(np.arange(len(lora.B)), TP), config.shape("q_proj")[0] // TP
        return row_subset(
            lora, np.concatenate([rank * step + np.arange(len(share)) for rank, share in enumerate(shares)])
        )

    return loading(sliced)


@layout.bug(
    "two ranks: each adds the bias of lora_B to its partial sum, so that o and down get it twice",
    "https://github.com/vllm-project/vllm/pull/10844",
    needs="lora_bias",
)
def lora_bias_on_every_rank() -> Ops:
    return on(ROW_PARALLEL, lambda lora: lora if lora.bias is None else dataclasses.replace(lora, bias=lora.bias * TP))


@layout.bug(
    "the rank is read from the config, not from the tensor: what is beyond it is left out",
    "https://github.com/predibase/lorax/pull/324",
    needs="rank_pattern",
)
def rank_cut_to_the_config() -> Ops:
    def changed(bound: BoundAdapter, adapter: Adapter, config: ModelConfig) -> BoundAdapter:
        r = adapter.config.r
        adapted = {
            module: dataclasses.replace(lora, A=lora.A[:r], B=lora.B[:, :r]) for module, lora in bound.lora.items()
        }
        return dataclasses.replace(bound, lora=adapted)

    return binding(changed)
