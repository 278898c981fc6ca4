"""Tensors that hold modules of all experts -> one tensor for each module, a view.

model.layers.3.mlp.experts.gate_up_proj [experts, 2 d_mlp, d_model]     as transformers 5 holds them
model.layers.3.mlp.experts.7.gate_proj.weight [d_mlp, d_model]          as transformers 4 does, and most files
"""

import re
from collections.abc import Iterable
from dataclasses import replace
from functools import partial

from ..arrays import Array
from ..config import ModelConfig, Stacked
from .tensor import Tensor

LAYER = re.compile(r"(model\.layers\.\d+\.)(.+)")


def by_expert(stored: Iterable[tuple[str, Tensor]], config: ModelConfig) -> list[tuple[str, Tensor]]:
    """The tensors of a checkpoint by the names that the model's modules have here."""
    moe = config.moe
    assert moe is not None
    spellings = dict(moe.spellings)
    stacks = {stack.name: stack for stack in moe.stacked}
    tensors: list[tuple[str, Tensor]] = []
    for name, tensor in stored:
        match = LAYER.fullmatch(name)
        below = spellings.get(match[2], match[2]) if match else name
        if match and below in stacks:
            tensors += views(match[1], tensor, stacks[below], config)
        else:
            tensors.append((match[1] + below if match else name, tensor))
    return tensors


def views(layer: str, tensor: Tensor, stack: Stacked, config: ModelConfig) -> Iterable[tuple[str, Tensor]]:
    """Each module's part of a stacked tensor. A tensor of another shape is in every one of them a problem."""
    moe = config.moe
    assert moe is not None
    shapes = [config.shape(f"{moe.expert}.0.{name}") for name in stack.modules]
    expected = (moe.experts, sum(d_out for d_out, _ in shapes), shapes[0][1])
    problem = tensor.problem
    if tensor.shape != expected and not problem:
        problem = f"has shape {list(tensor.shape)}, config.json makes it {list(expected)}"
    start = 0
    for name, shape in zip(stack.modules, shapes, strict=True):
        for expert in range(moe.experts):
            part = replace(
                tensor,
                shape=shape,
                nbytes=tensor.nbytes // moe.experts // len(stack.modules),
                read=partial(_part, tensor, expert, slice(start, start + shape[0])),
                problem=problem,
            )
            yield f"{layer}{moe.expert}.{expert}.{name}.weight", part
        start += shape[0]


def _part(tensor: Tensor, expert: int, rows: slice) -> Array:
    """These rows of one expert: a view, where the tensor is one."""
    return tensor.read()[expert, rows]
