"""DeepSeek-V3's weights in FP8: numbers of 8 bits in blocks of 128 x 128, each with a float32 scale.

    model.layers.0.self_attn.o_proj.weight             F8_E4M3 [d_out, d_in]
    model.layers.0.self_attn.o_proj.weight_scale_inv   F32 [ceil(d_out / 128), ceil(d_in / 128)]

A weight is number * scale: of 4 and 24 significant bits, and so exact in float64, which is what is returned.
(DeepSeek's own fp8_cast_bf16.py rounds it to float32 and to bfloat16. An engine that multiplies in FP8 rounds the
activations to 8 bits, too: that is no property of the weights, and not done here.)
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np

from ..arrays import Array, Float
from .diagnostics import shown
from .json_file import is_integer
from .safetensors_file import SafetensorsFile
from .tensor import Tensor

KIND, SCALES = "F8_E4M3", "_scale_inv"


def unsupported_fp8(given: Mapping[str, Any]) -> str | None:
    """What of a quantization_config of quant_method fp8 is not read, if something is not: numbers or blocks of another
    kind."""
    if given.get("fmt", "e4m3") != "e4m3":
        return f"has fmt {shown(given['fmt'])}: only 'e4m3' is supported"
    size = given.get("weight_block_size")
    return None if _is_block(size) else f"has weight_block_size {shown(size)}: it must be two sizes"


def _is_block(size: object) -> bool:
    return isinstance(size, list) and len(size) == 2 and all(is_integer(n) and n > 0 for n in size)


def fp8_tensors(file: SafetensorsFile) -> tuple[dict[str, Tensor], set[str]]:
    """The FP8 weights of a file by name, and the names of all the tensors that they consist of."""
    names = [name for name, kind in file.stored.items() if kind == KIND]
    if not names:
        return {}, set()
    block = _block_size(file.path.parent / "config.json")
    weights = {name: _weight(file, name, block) for name in names}
    return weights, {*names, *(name + SCALES for name in names if name + SCALES in file.stored)}


def _block_size(config: Path) -> tuple[int, int] | None:
    """The weight_block_size of a config.json. None where there is none: config_file.py says what is wrong with it."""
    try:
        size = json.loads(config.read_text("utf-8"))["quantization_config"]["weight_block_size"]
    except (OSError, ValueError, TypeError, KeyError):
        return None
    return (size[0], size[1]) if _is_block(size) else None


def _weight(file: SafetensorsFile, name: str, block: tuple[int, int] | None) -> Tensor:
    """One weight, whose problem says what its tensors or config.json contradict each other in."""
    shape, scales, problem = file.shapes[name], name + SCALES, None
    if block is None:
        problem = f"is {KIND}, and config.json has no quantization_config with a weight_block_size"
    elif len(shape) != 2:
        problem = f"is {KIND} of shape {list(shape)}: only matrices have blocks"
    elif file.stored.get(scales) != "F32":
        problem = f"is {KIND}, and {scales} is {file.stored.get(scales, 'not in the same file')}: it must be F32"
    else:
        expected = tuple(-(-size // part) for size, part in zip(shape, block, strict=True))
        if file.shapes[scales] != expected:
            problem = f"is {KIND} {list(shape)}: {scales} has shape {list(file.shapes[scales])}, not {list(expected)}"
    nbytes = file.raw[name].nbytes + (file.raw[scales].nbytes if scales in file.raw else 0)

    def read() -> Array:
        assert block is not None
        numbers = file.raw[name].view(ml_dtypes.float8_e4m3fn).reshape(shape)
        return dequantised(numbers, file.tensors[scales], block)

    return Tensor(file.path, name, shape, KIND, nbytes, "float64", read, problem)


def dequantised(
    numbers: Array, scales: Float[Array, "row_blocks column_blocks"], block: tuple[int, int]
) -> Float[Array, "d_out d_in"]:
    """number * scale of its block, in float64."""
    rows, columns = (np.arange(size) // part for size, part in zip(numbers.shape, block, strict=True))
    return numbers.astype(np.float64) * scales.astype(np.float64)[rows[:, None], columns[None, :]]
