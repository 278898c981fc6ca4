"""Prescaling: B' = scale * B when an adapter is loaded, and nothing is left to multiply at run time.

    convert   B' = T(D(B * scale))   multiplied in the checkpoint's type D, then cast to T: TensorRT-LLM's
                                     examples/hf_lora_convert.py, which writes model.lora_weights.npy
    manager   B' = T(T(B) * scale)   cast to T, then multiplied, and rounded again: its LoraManager.load_from_hf, which
                                     reads the PEFT folder of a LoRARequest

The two differ where D is not T, by a rounding, or by all of it: at 100000 * 0.1 in float16 the one is 10000 and the
other infinite. Where D is T they are one formula; where the scale is a power of two, the roundings commute with it.
"""

from collections.abc import Callable

import numpy as np

from ..arrays import DTYPES, Array, rounded, widen
from ..errors import LoracleError


def times(B: Array, scale: float) -> Array:
    """B * scale in B's own type, as torch multiplies a tensor by a number: the scale as a float32, the product of a
    half type taken in float32, and then rounded. What is too large is inf, as in torch, without a word."""
    wide = np.float64 if B.dtype == np.float64 else np.float32
    with np.errstate(over="ignore", invalid="ignore"):
        return cast(B.astype(wide) * wide(scale), B.dtype.name)


def cast(x: Array, dtype: str) -> Array:
    """x as an array of another of the four types, rounded to nearest even; beyond 65504 a float16 is inf."""
    with np.errstate(over="ignore"):
        wide = x if x.dtype == np.float64 else widen(x, "float32")
        return rounded(wide, dtype).astype(DTYPES[dtype])


def scaled_then_cast(B: Array, scale: float, dtype: str) -> Array:
    """T(D(B * scale))."""
    return cast(times(B, scale), dtype)


def cast_then_scaled(B: Array, scale: float, dtype: str) -> Array:
    """T(T(B) * scale)."""
    return times(cast(B, dtype), scale)


ORDERS: dict[str, Callable[[Array, float, str], Array]] = {"convert": scaled_then_cast, "manager": cast_then_scaled}


def prescale(B: Array, scale: float, dtype: str, order: str) -> Array:
    """B' = scale * B as an array of type `dtype`, its roundings in this order. B is a NumPy array of any shape, in the
    type D of its checkpoint. LoracleError for an order that is not one of ORDERS."""
    check_order(order)
    return ORDERS[order](B, scale, dtype)


def check_order(order: str) -> None:
    """LoracleError for an order that is not one of ORDERS."""
    if order not in ORDERS:
        raise LoracleError(f"scale order {order!r} is not known; choose one of {', '.join(ORDERS)}")
