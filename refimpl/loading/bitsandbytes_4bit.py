"""bitsandbytes' 4-bit weights (QLoRA): NF4 blocks -> the numbers that its kernels multiply with.

A weight [d_out, d_in] lies in the checkpoint as several tensors (bitsandbytes/functional.py, QuantState):

    NAME                                      u8 [d_out d_in / 2, 1]: two numbers a byte, the first in the high half
    NAME.absmax                               of each block: f32, or u8 where it is quantised once more
    NAME.quant_map                            f32 [16]: NF4
    NAME.nested_absmax, NAME.nested_quant_map    f32: of each block of absmax, and of each of its 256 codes
    NAME.quant_state.bitsandbytes__nf4        JSON in u8: blocksize, dtype, shape, nested_blocksize, nested_offset

    W[i] = round(quant_map[q[i]] * absmax[i / blocksize]),   absmax[j] = nested_quant_map[q'[j]] * nested_absmax[j /
    nested_blocksize] + nested_offset

in float32, each operation rounded, and the product rounded to the dtype of the state, which is what the linear layer
multiplies with (csrc/kernels.cu, kDequantizeBlockwise; Dettmers et al. 2023).
"""

from collections.abc import Mapping
from typing import Any

import numpy as np

from ..arrays import DTYPES, Array, Float, Int
from .conversion import converted
from .diagnostics import shown
from .json_file import is_integer, is_number, parse_json
from .safetensors_file import SafetensorsFile
from .tensor import Tensor

STATE = ".quant_state.bitsandbytes__"
PLAIN, NESTED = ("absmax", "quant_map"), ("nested_absmax", "nested_quant_map")

# The quantiles of a normal distribution that QLoRA takes (Dettmers et al. 2023, appendix E), as float32.
NF4 = np.array(
    [
        *(-1.0, -0.6961928009986877, -0.5250730514526367, -0.39491748809814453),
        *(-0.28444138169288635, -0.18477343022823334, -0.09105003625154495, 0.0),
        *(0.07958029955625534, 0.16093020141124725, 0.24611230194568634, 0.33791524171829224),
        *(0.44070982933044434, 0.5626170039176941, 0.7229568362236023, 1.0),
    ],
    np.float32,
)


def unsupported(given: Mapping[str, Any]) -> str | None:
    """What of a quantization_config is not read, if something is not: all but nf4."""
    if not given.get("load_in_4bit") or given.get("load_in_8bit"):
        return "is of 8 bits: only bitsandbytes' 4-bit nf4 is supported"
    kind = given.get("bnb_4bit_quant_type", "fp4")
    return None if kind == "nf4" else f"has bnb_4bit_quant_type {shown(kind)}: only 'nf4' is supported"


def quantised_tensors(file: SafetensorsFile) -> tuple[dict[str, Tensor], set[str]]:
    """The 4-bit weights of a file by name, and the names of all the tensors that they consist of."""
    weights: dict[str, Tensor] = {}
    used: set[str] = set()
    for state_name in file.stored:
        if STATE not in state_name:
            continue
        name, _, kind = state_name.partition(STATE)
        parts = {part: f"{name}.{part}" for part in (*PLAIN, *NESTED) if f"{name}.{part}" in file.stored}
        used |= {state_name, name, *parts.values()}
        try:
            weights[name] = _weight(file, name, kind)
        except ValueError as error:
            weights[name] = Tensor(file.path, name, (), f"bitsandbytes {kind}", 0, "float32", lambda: NF4, str(error))
    return weights, used


def _weight(file: SafetensorsFile, name: str, kind: str) -> Tensor:
    """One weight. ValueError for what its tensors contradict each other in."""
    if kind != "nf4":
        raise ValueError(f"is 4-bit {kind}; only nf4 is supported")
    state_name = f"{name}{STATE}{kind}"
    state = _state(bytes(file.raw[state_name]))
    shape, blocksize = tuple(state["shape"]), state["blocksize"]
    size = shape[0] * shape[1]
    nested = "nested_blocksize" in state
    blocks = -(-size // blocksize)
    packed = _part(file, name, (size + 1) // 2)
    absmax = _part(file, f"{name}.absmax", blocks if nested else 4 * blocks)
    if not np.array_equal(_part(file, f"{name}.quant_map", 64).view("<f4"), NF4):
        raise ValueError("has another quant_map than NF4's")
    outer = {part: f"{name}.{part}" for part in NESTED}
    if nested:
        codes = _part(file, outer["nested_quant_map"], 1024).view("<f4")
        scales = _part(file, outer["nested_absmax"], 4 * -(-blocks // state["nested_blocksize"])).view("<f4")

    def read() -> Array:
        of_block = (
            unnested(absmax, codes, scales, state["nested_blocksize"], state["nested_offset"])
            if nested
            else absmax.view("<f4")
        )
        numbers = unpacked(packed, of_block, blocksize, size)
        return converted(numbers, state["dtype"]).reshape(shape)

    names = [name, state_name, f"{name}.absmax", f"{name}.quant_map", *(outer.values() if nested else ())]
    nbytes = sum(file.raw[part].nbytes for part in names)
    return Tensor(file.path, name, shape, "nf4", nbytes, state["dtype"], read)


def unnested(
    codes: Int[Array, " blocks"],
    quant_map: Float[Array, " codes"],
    scales: Float[Array, " groups"],
    size: int,
    offset: float,
) -> Float[Array, " blocks"]:
    """absmax of each block, in float32: its code's number times the scale of its group, and the offset."""
    return quant_map[codes] * scales[np.arange(len(codes)) // size] + np.float32(offset)


def unpacked(
    packed: Int[Array, " bytes"], absmax: Float[Array, " blocks"], blocksize: int, size: int
) -> Float[Array, " numbers"]:
    """The numbers in float32, flat: the high half of each byte is the first of two."""
    codes = np.stack([packed >> 4, packed & 15], axis=1).reshape(-1)[:size]
    numbers = NF4[codes]
    for start in range(0, size, blocksize << 10):  # some blocks at a time: nothing but the result is as large
        part = numbers[start : start + (blocksize << 10)]
        part *= absmax[(start + np.arange(len(part))) // blocksize]
    return numbers


def _part(file: SafetensorsFile, name: str, nbytes: int) -> Array:
    """The bytes of one of the tensors."""
    if name not in file.raw:
        raise ValueError(f"lacks {name}")
    if file.raw[name].nbytes != nbytes:
        raise ValueError(f"has {name} of {file.raw[name].nbytes} bytes, its quant_state makes it {nbytes}")
    return file.raw[name]


def _state(raw: bytes) -> dict[str, Any]:
    """What the quant_state says. ValueError if it is damaged, or says what is not understood."""
    try:
        state = parse_json(raw)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"has a quant_state that is not valid JSON ({error})") from None
    if not isinstance(state, dict) or state.get("quant_type") != "nf4":
        raise ValueError(f"has a quant_state {shown(state)} that is not of nf4")
    shape, sizes = state.get("shape"), [key for key in ("blocksize", "nested_blocksize") if key in state]
    if not isinstance(shape, list) or len(shape) != 2 or not all(is_integer(n) and 0 < n < 2**31 for n in shape):
        raise ValueError(f"has a quant_state with shape {shown(shape)}: it must be [d_out, d_in]")
    for key in sizes:
        if not is_integer(state[key]) or not 0 < state[key] < 2**31:
            raise ValueError(f"has a quant_state with {key} {shown(state[key])}: it must be a number of numbers")
    if "blocksize" not in state or state.get("dtype") not in DTYPES:
        raise ValueError(
            f"has a quant_state with dtype {shown(state.get('dtype'))} and no more: {', '.join(DTYPES)} are"
        )
    if "nested_blocksize" in state and not is_number(state.get("nested_offset")):
        raise ValueError(
            f"has a quant_state with nested_offset {shown(state.get('nested_offset'))}: it must be a number"
        )
    return state
