"""A base in four bits: groups of 32 numbers along each row, each group with a step of its own (as GGUF's Q4_0 has it).

    W[o, i]  is stored as  q[o, i], a whole number from -7 to 7, and stands for  q[o, i] * steps[o, i // 32]

The step is the group's largest number divided by 7, so that nothing is cut off; every number moves by half a step at
most. (Q4_0 itself has 16 values, from -8 to 7, and steps in float16.)
"""

from dataclasses import replace

import numpy as np

from ..arrays import Array, Float
from ..weights import Linear, Model

GROUP = 32  # numbers that share a step: more cost less memory, and one large number spoils the steps of more others
LARGEST = 7


def quantise(W: Float[Array, "d_out d_in"], group: int = GROUP) -> tuple[Array, Array]:
    """Return q [d_out, d_in], whole numbers from -7 to 7, and steps [d_out, d_in / group], in the type of W. To
    nearest, ties to even. d_in is a multiple of group."""
    groups = W.reshape(len(W), -1, group)
    steps = np.abs(groups).max(axis=2) / LARGEST
    q = np.rint(groups / np.where(steps == 0, 1, steps)[:, :, None])  # a group of zeros has step 0
    return q.reshape(W.shape).astype(np.int8), steps


def dequantise(q: Array, steps: Float[Array, "d_out groups"]) -> Float[Array, "d_out d_in"]:
    """The numbers that q and steps stand for, in the type of the steps."""
    return q * np.repeat(steps, q.shape[1] // steps.shape[1], axis=1)


def rounded_to_q4(model: Model) -> Model:
    """The same model, every linear layer as the numbers that four bits of it stand for; the embedding as it is."""
    layers = tuple(
        replace(
            layer,
            linears={
                name: Linear(dequantise(*quantise(linear.weight)), linear.bias)
                for name, linear in layer.linears.items()
            },
        )
        for layer in model.layers
    )
    return replace(model, layers=layers)
