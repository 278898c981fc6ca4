"""E. Layout: fused projections, transposes, other layers' weights. The right numbers, in the wrong rows.

An engine that fuses q, k and v multiplies once and splits the rows. What goes wrong there goes wrong when an adapter is
loaded, so that all of this is a change to what is bound. Tensor parallelism has a file of its own: e_shards.py.
"""

import dataclasses
from collections.abc import Callable, Sequence

import numpy as np

from ...adapter import Adapter
from ...adapter_slots import AdapterSlots, BoundAdapter, LoraWeights
from ...arrays import Array, Precision, widen
from ...config import ModelConfig, Module
from ...ops import NUMPY, Ops
from ...plans import LoraMapping
from ...rope import apply_rope
from .mutant import Family
from .steps import Slots, add, binding, but, loading, reading

layout = Family("E", "layout and tensor parallelism")
QKV, GATE_UP = ("q_proj", "k_proj", "v_proj"), ("gate_proj", "up_proj")
COLUMN_PARALLEL, ROW_PARALLEL = QKV + GATE_UP, ("o_proj", "down_proj")
TP = 2  # ranks
MISSING = -1  # a row that nothing is added to

# Fused projections: one B of all rows, and which of them each module takes.

Rows = Callable[[ModelConfig, list[int]], list[Array]]  # config, rows of each module -> what each module takes


def fused(modules: Sequence[str], rows: Rows) -> Ops:
    """The deltas of these modules as the rows of one, of which each module gets back what `rows` says."""

    def changed(bound: BoundAdapter, adapter: Adapter, config: ModelConfig) -> BoundAdapter:
        widths = [config.shape(module)[0] for module in modules]
        adapted = dict(bound.lora)
        for layer in range(config.num_hidden_layers):
            parts = [bound.lora.get((layer, module)) for module in modules]
            if any(parts):
                stack = stacked(parts, widths)
                for module, of_module in zip(modules, rows(config, widths), strict=True):
                    adapted[layer, module] = row_subset(stack, of_module)
        return dataclasses.replace(bound, lora=adapted)

    return binding(changed)


def stacked(parts: Sequence[LoraWeights | None], widths: Sequence[int]) -> LoraWeights:
    """One LoRA of all the modules: their A below each other, their B on a diagonal, each times its scale."""
    present = [lora for lora in parts if lora is not None]
    wide = "float64" if present[0].B.dtype == np.float64 else "float32"
    A = np.concatenate([widen(lora.A, wide) for lora in present])
    B, bias = np.zeros((sum(widths), len(A)), wide), np.zeros(sum(widths), wide)
    row = column = 0
    for lora, width in zip(parts, widths, strict=True):
        if lora is not None:
            r = len(lora.A)
            B[row : row + width, column : column + r] = lora.scale * widen(lora.B, wide)
            bias[row : row + width] = 0 if lora.bias is None else lora.scale * widen(lora.bias, wide)
            column += r
        row += width
    return LoraWeights(A, B, 1.0, bias if any(lora.bias is not None for lora in present) else None)


def on(modules: Sequence[str], change: Callable[[LoraWeights], LoraWeights]) -> Ops:
    """A change to the LoRA of these modules."""
    return loading(lambda module, lora, config: change(lora) if module[1] in modules else lora)


def row_subset(lora: LoraWeights, rows: Array) -> LoraWeights:
    """These rows of a delta; a MISSING one is zero."""

    def take(x: Array) -> Array:
        rows_taken = x[rows]
        rows_taken[(rows == MISSING) | (rows >= len(x))] = 0
        return rows_taken

    rows = np.where(rows < len(lora.B), rows, MISSING)
    return dataclasses.replace(lora, B=take(lora.B), bias=None if lora.bias is None else take(lora.bias))


def cut(order: Array, widths: Sequence[int]) -> list[Array]:
    """One flat list of rows -> the rows of each module."""
    return np.split(order, np.cumsum(widths)[:-1])


@layout.bug(
    "the base has its fused rows by key head, q1 k1 v1 q2 k2 v2; the delta is added as q k v",
    "https://github.com/Lightning-AI/litgpt/issues/891",
    "https://github.com/Lightning-AI/litgpt/pull/2201",
    "https://github.com/whittle-org/whittle/pull/259",
    needs="GQA",
)
def qkv_interleaved() -> Ops:
    def rows(config: ModelConfig, widths: list[int]) -> list[Array]:
        q, k, v = (part.reshape(config.num_key_value_heads, -1) for part in cut(np.arange(sum(widths)), widths))
        by_head = np.concatenate([q, k, v], axis=1).ravel()
        return cut(np.argsort(by_head), widths)

    return fused(QKV, rows)


@layout.bug(
    "the fused delta is split at d_model, where the rows of q end at heads * head_dim",
    "https://github.com/whittle-org/whittle/pull/259",
)
def qkv_split_at_hidden_size() -> Ops:
    def rows(config: ModelConfig, widths: list[int]) -> list[Array]:
        starts = 0, config.hidden_size, config.hidden_size + widths[1]
        return [np.arange(start, start + width) for start, width in zip(starts, widths, strict=True)]

    return fused(QKV, rows)


def one_piece_per_rank(config: ModelConfig, widths: list[int]) -> list[Array]:
    """Each rank takes the next piece of the fused rows, and thinks that it is its share of every module in turn."""
    shares = [[len(share) for share in np.array_split(np.arange(width), TP)] for width in widths]
    by_rank = [share[rank] for rank in range(TP) for share in shares]
    pieces = cut(np.arange(sum(widths)), by_rank)
    return [np.concatenate(pieces[module :: len(widths)]) for module in range(len(widths))]


@layout.bug(
    "two ranks: the fused q k v is cut in two as it lies, not each of the three",
    "https://github.com/NVIDIA/TensorRT-LLM/pull/8063",
)
def qkv_cut_in_one_piece() -> Ops:
    return fused(QKV, one_piece_per_rank)


@layout.bug(
    "two ranks: the fused gate and up are cut in two as they lie: one rank gets all of gate",
    "https://github.com/NVIDIA/TensorRT-LLM/pull/8063",
)
def gate_up_cut_in_one_piece() -> Ops:
    return fused(GATE_UP, one_piece_per_rank)


@layout.bug("the deltas of gate and up are exchanged", "https://github.com/NVIDIA/TensorRT-LLM/pull/6817")
def gate_and_up_swapped() -> Ops:
    return fused(GATE_UP, lambda config, widths: cut(np.arange(sum(widths)), widths)[::-1])


@layout.bug("the deltas of k and v are exchanged")
def k_and_v_deltas_swapped() -> Ops:
    return fused(("k_proj", "v_proj"), lambda config, widths: cut(np.arange(sum(widths)), widths)[::-1])


@layout.bug(
    "the second slice of a fused buffer is read at a wrong offset: half of up's rows too far on",
    "https://github.com/vllm-project/vllm/issues/42718",
)
def up_at_a_wrong_offset() -> Ops:
    def rows(config: ModelConfig, widths: list[int]) -> list[Array]:
        gate, up = cut(np.arange(sum(widths)), widths)
        return [gate, np.roll(up, -max(1, len(up) // 2))]

    return fused(GATE_UP, rows)


@layout.bug("the rows of q and k are reordered for a rotary embedding of neighbouring pairs, as the base's were not")
def qk_rows_as_pairs() -> Ops:
    def paired(module: Module, lora: LoraWeights, config: ModelConfig) -> LoraWeights:
        if module[1] not in ("q_proj", "k_proj") or config.mla is not None:  # whose heads turn in part
            return lora
        heads = np.arange(len(lora.B)).reshape(-1, 2, config.head_dim // 2)
        return row_subset(lora, heads.swapaxes(1, 2).ravel())

    return loading(paired)


# Transposes, layers and modules.


@layout.bug(
    "A lies in memory as [d_in, rank] and is read as [rank, d_in]",
    "https://github.com/predibase/lorax/commit/b2de54fe",
)
def A_read_transposed() -> Ops:
    return on(COLUMN_PARALLEL + ROW_PARALLEL, lambda lora: dataclasses.replace(lora, A=lora.A.T.reshape(lora.A.shape)))


@layout.bug("B lies in memory as [rank, d_out] and is read as [d_out, rank]")
def B_read_transposed() -> Ops:
    return on(COLUMN_PARALLEL + ROW_PARALLEL, lambda lora: dataclasses.replace(lora, B=lora.B.T.reshape(lora.B.shape)))


@layout.bug("q, k and v are multiplied with one A, that of q")
def qkv_share_one_A() -> Ops:
    def changed(bound: BoundAdapter, adapter: Adapter, config: ModelConfig) -> BoundAdapter:
        adapted = dict(bound.lora)
        for module, lora in bound.lora.items():
            q = bound.lora.get((module[0], "q_proj"))
            if module[1] in QKV and q is not None and q.A.shape == lora.A.shape:
                adapted[module] = dataclasses.replace(lora, A=q.A)
        return dataclasses.replace(bound, lora=adapted)

    return binding(changed)


def from_other_modules(other: Callable[[Module, int], Module]) -> Ops:
    """The weights of another module: other(module, layers of the model)."""

    def reads(adapters: AdapterSlots, module: Module) -> Slots:
        return adapters.at(other(module, adapters.model.config.num_hidden_layers))

    return but(lora_delta=reading(reads))


@layout.bug(
    "every layer gets the LoRA of the one before it, the first that of the last",
    "https://github.com/predibase/lorax/pull/682",
    needs="two layers",
)
def layers_shifted() -> Ops:
    return from_other_modules(lambda module, layers: module if module[0] < 0 else ((module[0] - 1) % layers, module[1]))


@layout.bug("every layer gets the LoRA of the first", needs="two layers")
def first_layer_everywhere() -> Ops:
    return from_other_modules(lambda module, layers: (min(module[0], 0), module[1]))


@layout.bug("up gets the LoRA of gate")
def up_takes_the_delta_of_gate() -> Ops:
    return from_other_modules(lambda module, layers: (module[0], "gate_proj") if module[1] == "up_proj" else module)


# The delta in the wrong place of the layer.


@layout.bug("the delta of q is added after the rotary embedding: it is not turned")
def q_delta_after_rope() -> Ops:
    turned: list[Array] = []  # cos, sin of the batch

    def rope_table(*call: object) -> tuple[Array, Array]:
        turned[:] = NUMPY.rope_table(*call)  # type: ignore[arg-type]
        return turned[0], turned[1]

    def delta(y: Array, x: Array, module: Module, adapters: AdapterSlots, mapping: LoraMapping, p: Precision) -> None:
        delta_alone = np.zeros_like(y)
        add(delta_alone, x, adapters.at(module), mapping, p)
        if module[1] == "q_proj" and turned:
            heads = delta_alone.reshape(len(delta_alone), -1, adapters.model.config.head_dim)
            back = apply_rope(heads, turned[0], -turned[1], False, p)  # before it is turned
            delta_alone = back.reshape(delta_alone.shape)
        y += delta_alone

    return but(rope_table=rope_table, lora_delta=delta)


@layout.bug("the delta of o is added to the residual stream after the MLP, not before it")
def o_delta_after_the_mlp() -> Ops:
    late: list[Array] = []

    def delta(y: Array, x: Array, module: Module, adapters: AdapterSlots, mapping: LoraMapping, p: Precision) -> None:
        if module[1] == "o_proj":
            late[:] = [np.zeros_like(y)]
            add(late[0], x, adapters.at(module), mapping, p)
            return
        add(y, x, adapters.at(module), mapping, p)
        if module[1] == "down_proj" and late:
            y += late[0]

    return but(lora_delta=delta)
