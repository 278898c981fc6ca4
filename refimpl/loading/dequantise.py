"""Blocks of a quantised tensor -> the float32 numbers that they stand for, by the gguf package.

A block has its numbers as a few bits each and one or two scales for all of them, in float16 (d, m):

    Q8_0, Q4_0, Q5_0     d q                      32 numbers
    Q4_1, Q5_1           d q + m                  32 numbers
    Q4_K, Q5_K, Q2_K     (d s) q - (m t)          256 numbers; s and t are small integers, one for each 16 or 32
    Q6_K, Q3_K           (d s) q                  256 numbers

(ggml/src/ggml-quants.c, dequantize_row_*; each product and sum is rounded to float32.) These are the weights: what
quantising has taken from the model is gone, and in float64 they are multiplied exactly. llama.cpp itself rounds the
activations to 8 bits as well before it multiplies with a quantised weight.
"""

import numpy as np

from ..arrays import DTYPES, Array
from ..errors import WeightsError

FLOATS = {"F32": "float32", "F16": "float16", "BF16": "bfloat16", "F64": "float64"}
BLOCKS = ("Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q8_0", "Q2_K", "Q3_K", "Q4_K", "Q5_K", "Q6_K")
INSTALL = "pip install 'loracle[gguf]'"


def is_readable(kind: str) -> bool:
    """Whether numbers of this GGUF type can be read."""
    return kind in FLOATS or kind in BLOCKS


def missing_package() -> str | None:
    """Why nothing can be dequantised here, if it cannot."""
    try:
        import gguf.quants  # noqa: F401
    except ImportError:
        return f"is dequantised by the gguf package, which is not here: {INSTALL}"
    return None


def dtype_of_type(kind: str) -> str:
    """Return the dtype of the numbers of a GGUF type once they are read: its own, or float32 of blocks."""
    return FLOATS.get(kind, "float32")


def numbers(kind: str, data: Array) -> Array:
    """The numbers in the bytes [..., bytes of a row]: a view of them where they are floats, else a float32 array.

    WeightsError without the gguf package."""
    if kind in FLOATS:
        return data.view(DTYPES[FLOATS[kind]])
    if problem := missing_package():
        raise WeightsError(f"{kind} {problem}")
    from gguf import GGMLQuantizationType, dequantize

    with np.errstate(all="ignore"):  # a damaged scale is inf or NaN, and is found by all_finite
        return dequantize(data, GGMLQuantizationType[kind])
