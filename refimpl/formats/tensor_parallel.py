"""The part of an adapter that each rank of a tensor-parallel group holds, cut as TensorRT-LLM cuts it.

A column-parallel layer gives each rank some of the outputs: B is cut into rows, A is on all. A row-parallel layer gives
each rank some of the inputs: A is cut into columns, B is on all, and the ranks' results are summed. The C++ side cuts
into runs, so of a fused layer (q, k and v; up and gate) the loader first puts the rows that belong to one rank side by
side: q_0 k_0 v_0 q_1 k_1 v_1 ... (manager.py, interleave_fused_lora_weights_for_tp; before pull request 8063 it did
not, and every fused adapter was wrong on two GPUs).
"""

from collections.abc import Sequence

import numpy as np

from ..arrays import Array, Float
from ..config import ModelConfig
from ..errors import AdapterError
from .trtllm_modules import Module
from .trtllm_pair import Matrices, Pair, matrices

Slice = tuple[Array, Array]  # A and B of one rank


def rank_slices(pair: Pair, size: int, config: ModelConfig) -> list[list[Matrices]]:
    """What each of `size` ranks holds of an adapter, row by row. The pair has been checked against the base.

    AdapterError where a width is no multiple of size (with more ranks than key heads the engine gives several ranks the
    same heads, which is not done here), and for DoRA, of whose magnitude it is not known how it is shared."""
    of_rank: list[list[Matrices]] = [[] for _ in range(size)]
    for row in pair.rows():
        if row.is_dora:
            raise AdapterError(f"{row}: is DoRA: how ranks share its magnitude is not known")
        full = matrices(pair, row, config)
        for tensors, (A, B) in zip(of_rank, slices(row.module, full.A, full.B, size, config), strict=True):
            tensors.append(Matrices(row, A, B))
    return of_rank


def slices(
    module: Module, A: Float[Array, "rank d_in"], B: Float[Array, "d_out rank"], size: int, config: ModelConfig
) -> list[Slice]:
    """A and B of each of `size` ranks. AdapterError where the widths are no multiple of it."""
    if module.split == "in":
        return [(part, B) for part in _cut(module, A, size, axis=1)]
    if module.split == "out":
        return [(A, part) for part in _cut(module, interleaved(module, B, size, config), size, axis=0)]
    return [(A, B)] * size


def interleaved(module: Module, B: Float[Array, "d_out rank"], size: int, config: ModelConfig) -> Array:
    """The rows of B in the order in which the ranks take them; B itself for a layer that is not fused."""
    sizes = module.part_sizes(config)
    if len(sizes) < 2:
        return B
    parts = np.split(B, np.cumsum(sizes)[:-1])
    of_rank = zip(*(_cut(module, part, size, axis=0) for part in parts), strict=True)
    return np.concatenate([part for rank in of_rank for part in rank])


def joined(module: Module, results: Sequence[Float[Array, "tokens d_out"]], config: ModelConfig) -> Array:
    """The ranks' results as one: summed, or side by side, a fused layer's parts each in their place."""
    if module.split == "in":
        return sum(results[1:], start=results[0])
    if module.split != "out":
        return results[0]
    sizes = [size // len(results) for size in module.part_sizes(config)]
    parts = zip(*(np.split(y, np.cumsum(sizes)[:-1], axis=1) for y in results), strict=True)
    return np.concatenate([y for part in parts for y in part], axis=1)


def _cut(module: Module, x: Array, size: int, axis: int) -> list[Array]:
    if size < 1 or x.shape[axis] % size:
        raise AdapterError(f"{module.name}: {x.shape[axis]} {module.split}puts cannot be shared by {size} ranks")
    return np.split(x, size, axis)
