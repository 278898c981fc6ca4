"""Tensors that hold modules of all experts -> one tensor for each module, a view.

model.layers.3.mlp.experts.gate_up_proj [experts, 2 d_mlp, d_model]     as transformers 5 holds them
model.layers.3.mlp.experts.gate_up_proj [experts, d_model, 2 d_mlp]     of gpt-oss, where gate and up take turns
model.layers.3.mlp.experts.7.gate_proj.weight [d_mlp, d_model]          as transformers 4 does, and most files
"""

import re
from collections.abc import Iterable, Mapping
from dataclasses import replace
from functools import partial
from itertools import product

import numpy as np

from ..arrays import Array
from ..config import ModelConfig, Stacked
from .tensor import Tensor

LAYER = re.compile(r"(model\.layers\.\d+\.)(.+)")


BIAS = "_bias"  # behind the name of a stacked tensor: that of its modules' biases


def by_expert(stored: Iterable[tuple[str, Tensor]], config: ModelConfig) -> list[tuple[str, Tensor]]:
    """The tensors of a checkpoint by the names that the model's modules have here."""
    tensors: list[tuple[str, Tensor]] = []
    for name, tensor in stored:
        layer, below, stack = placed(name, config)
        if stack:
            tensors += views(layer, tensor, stack, config, of_biases=below != stack.name)
        else:
            tensors.append((layer + below, tensor))
    return tensors


def placed(name: str, config: ModelConfig) -> tuple[str, str, Stacked | None]:
    """A tensor's layer, its name below it as it is spelt here, and what it stacks, if it does; of one outside of the
    layers, no layer and all of its name."""
    moe, match = config.moe, LAYER.fullmatch(name)
    assert moe is not None
    if match is None:
        return "", name, None
    below = dict(moe.spellings).get(match[2], match[2])
    weight = below.removesuffix(BIAS) if moe.bias and below.endswith(BIAS) else below
    return match[1], below, next((stack for stack in moe.stacked if stack.name == weight), None)


def views(
    layer: str, tensor: Tensor, stack: Stacked, config: ModelConfig, of_biases: bool
) -> Iterable[tuple[str, Tensor]]:
    """Each module's part of a stacked tensor. A tensor of another shape is in every one of them a problem."""
    moe = config.moe
    assert moe is not None
    shapes = [config.shape(f"{moe.expert}.0.{name}") for name in stack.modules]
    d_out, d_in = sum(rows for rows, _ in shapes), shapes[0][1]
    axes = (d_out,) if of_biases else (d_in, d_out) if stack.transposed else (d_out, d_in)
    problem = tensor.problem
    if tensor.shape != (moe.experts, *axes) and not problem:
        problem = f"has shape {list(tensor.shape)}, config.json makes it {[moe.experts, *axes]}"
    for number, (name, shape) in enumerate(zip(stack.modules, shapes, strict=True)):
        for expert in range(moe.experts):
            part = replace(
                tensor,
                shape=shape[: len(axes)],
                nbytes=tensor.nbytes // moe.experts // len(stack.modules),
                read=partial(_part, tensor, expert, stack.rows(number, d_out), stack.transposed and not of_biases),
                problem=problem,
                part=None,
                packing=tensor.packing and partial(_packing, tensor, expert, stack.rows(number, d_out)),
            )
            yield f"{layer}{moe.expert}.{expert}.{name}.{'bias' if of_biases else 'weight'}", part


def stacked(tensors: Mapping[str, Array], config: ModelConfig) -> dict[str, Array]:
    """The way back: the tensors of a checkpoint whose files hold stacks, from those of every module."""
    moe, result = config.moe, dict(tensors)
    if moe is None or not moe.in_stacks:
        return result
    layers = [f"model.layers.{i}." for i in range(config.num_hidden_layers) if config.kind(i).sparse]
    parts = {"weight": "", "bias": BIAS} if moe.bias else {"weight": ""}
    for layer, stack, part in product(layers, moe.stacked, parts):
        experts = [f"{layer}{moe.expert}.{expert}." for expert in range(moe.experts)]
        rows = np.stack(
            [joined([result.pop(f"{expert}{name}.{part}") for name in stack.modules], stack) for expert in experts]
        )
        turned = stack.transposed and part == "weight"
        result[f"{layer}{stack.name}{parts[part]}"] = rows.swapaxes(1, 2) if turned else rows
    return result


def joined(parts: list[Array], stack: Stacked) -> Array:
    """The rows of one expert's modules, one behind the other or in turns."""
    rows = np.empty((sum(map(len, parts)), *parts[0].shape[1:]), parts[0].dtype)
    for number, part in enumerate(parts):
        rows[stack.rows(number, len(rows))] = part
    return rows


def _packing(tensor: Tensor, expert: int, rows: slice) -> tuple[Array, ...]:
    """What these rows of one expert are made of."""
    assert tensor.packing is not None
    return tuple(x[expert, rows] for x in tensor.packing())


def _part(tensor: Tensor, expert: int, rows: slice, transposed: bool) -> Array:
    """These rows of one expert: a view, where the tensor is one."""
    return tensor.at((expert, slice(None), rows)).T if transposed else tensor.at((expert, rows))
