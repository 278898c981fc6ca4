"""DoRA (Liu et al. 2024): W + scale B A, with every row stretched to a length of its own, the magnitude.

    y = gain * (W x + scale B A x) + bias        gain[i] = magnitude[i] / ||row i of W + scale B A||

W x is the base's, computed once for all requests of a batch, so that a DoRA request differs from a plain one by two
operations per output. The embedding is looked up: its rows in this sense are the columns of its table.
"""

from dataclasses import dataclass

import numpy as np

from .arrays import Array, Float, Precision, namespace, rounded, to_host, widen
from .config import Module, module_name
from .errors import AdapterError

BLOCK = 1 << 22  # numbers of W + scale B A that are in memory at a time; more costs memory and saves nothing


@dataclass(frozen=True, eq=False, slots=True)
class Dora:
    """What DoRA does with one module's output: the adapter is in a slot, and the base is known."""

    gain: Float[Array, " d_out"]
    base_bias: Float[Array, " d_out"] | None  # in y already, and not stretched


def dora_gain(
    weight: Float[Array, "d_out d_in"],
    A: Float[Array, "rank d_in"],
    B: Float[Array, "d_out rank"],
    scale: float,
    magnitude: Float[Array, " d_out"],
    module: Module,
) -> Float[Array, " d_out"]:
    """magnitude / ||W + scale B A||, row by row, in float64 (peft/tuners/lora/dora.py, get_weight_norm).

    AdapterError for a row of length 0: there is nothing to stretch."""
    return gain_of(row_lengths(weight, A, B, scale), magnitude, module)


def row_lengths(
    weight: Float[Array, "d_out d_in"], A: Float[Array, "rank d_in"], B: Float[Array, "d_out rank"], scale: float
) -> Float[Array, " d_out"]:
    """||W + scale B A||, row by row, in float64."""
    xp, rows = namespace(A), max(1, BLOCK // weight.shape[1])
    A, B = widen(A, "float64"), widen(B, "float64")
    blocks = [slice(start, start + rows) for start in range(0, len(weight), rows)]
    return xp.concatenate(
        [xp.linalg.norm(widen(weight[block], "float64") + scale * (B[block] @ A), axis=1) for block in blocks]
    )


def gain_of(
    lengths: Float[Array, " d_out"], magnitude: Float[Array, " d_out"], module: Module
) -> Float[Array, " d_out"]:
    """magnitude / lengths. AdapterError for a length of 0."""
    if not lengths.all():
        empty = np.flatnonzero(to_host(lengths) == 0)[0]
        raise AdapterError(
            f"{module_name(module)}: row {empty} of W + scale B A is zero, and DoRA divides by its length"
        )
    return widen(magnitude, "float64") / lengths


def dora_delta(
    y: Float[Array, "... d_out"], delta: Float[Array, "... d_out"], dora: Dora, p: Precision
) -> Float[Array, "... d_out"]:
    """What is added to y = W x + bias, where plain LoRA adds delta = scale B A x.

    PEFT's order: gain * delta + (gain - 1) * (y - bias), the difference in the type of y (tuners/lora/dora.py)."""
    product = y if dora.base_bias is None else rounded(y - dora.base_bias, p.linear)
    return dora.gain * delta + (dora.gain - 1) * product
