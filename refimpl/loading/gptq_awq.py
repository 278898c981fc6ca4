"""GPTQ and AWQ: small integers, with a scale and a zero for each group of inputs -> the numbers that are multiplied.

    GPTQ (Frantar et al. 2022)                           AWQ (Lin et al. 2023), its layout "gemm"
    NAME.qweight  i32 [d_in / n, d_out]                  i32 [d_in, d_out / n]      n = 32 / bits numbers a word
    NAME.qzeros   i32 [groups, d_out / n]                i32 [groups, d_out / n]
    NAME.scales   [groups, d_out]                        [groups, d_out]
    NAME.g_idx    i32 [d_in], each input's group         input i is of group i * groups / d_in

    W[o, i] = round((q[i, o] - zero[g, o]) * scale[g, o]),   g = group of input i

rounded to the type of the scales, which is what the engines' kernels and their forms in PyTorch multiply with. The
first number of a word is in its lowest bits; AWQ's eight numbers are columns 0 2 4 6 1 3 5 7. GPTQ stores each zero
minus 1, unless checkpoint_format is "gptq_v2". (AutoGPTQ, GPTQModel: nn_modules/qlinear; AutoAWQ: packing_utils.py.)
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ..arrays import DTYPES, Array, Float, Int, widen
from .conversion import converted
from .diagnostics import shown
from .safetensors_file import FLOATS, SafetensorsFile
from .tensor import Tensor

PARTS = ("qweight", "qzeros", "scales", "g_idx")
BITS = (2, 4, 8)
AWQ_COLUMNS = np.argsort([0, 2, 4, 6, 1, 3, 5, 7])  # column j is the number AWQ_COLUMNS[j] of its word
COLUMNS_AT_ONCE = 1 << 9  # of the words: more are fewer steps, and more memory besides the result


def unsupported_gptq(given: Mapping[str, Any]) -> str | None:
    """What of a quantization_config of quant_method gptq is not read, if something is not."""
    if given.get("bits") not in BITS:
        return f"has bits {shown(given.get('bits'))}: {', '.join(map(str, BITS))} are supported of gptq"
    layout = given.get("checkpoint_format", "gptq")
    if layout not in ("gptq", "gptq_v2") or given.get("is_marlin_format"):
        return f"has checkpoint_format {shown(layout)}: 'gptq' and 'gptq_v2' are supported"
    return (
        f"has dynamic {shown(given['dynamic'])}: one layout for all modules is supported"
        if given.get("dynamic")
        else None
    )


def unsupported_awq(given: Mapping[str, Any]) -> str | None:
    """What of a quantization_config of quant_method awq is not read, if something is not."""
    for key, expected, default in (("bits", 4, None), ("version", "gemm", "gemm"), ("zero_point", True, True)):
        value = given.get(key, default)
        if (value.lower() if isinstance(value, str) else value) != expected:
            return f"has {key} {shown(value)}: only {expected!r} is supported of awq"
    return None


@dataclass(frozen=True)
class Packing:
    """How a checkpoint's words are read."""

    bits: int
    awq: bool
    plus_one: bool  # the zeros are stored minus 1

    @property
    def per_word(self) -> int:
        """Numbers in a word."""
        return 32 // self.bits

    def unpacked(self, words: Int[Array, "rows columns"]) -> Int[Array, "rows columns per_word"]:
        """The numbers of each word, in the order of what they are numbers of."""
        shifts = np.arange(0, 32, self.bits, dtype=np.uint32)
        numbers = (words.view(np.uint32)[:, :, None] >> shifts).astype(np.uint8) & np.uint8(2**self.bits - 1)
        return numbers[:, :, AWQ_COLUMNS] if self.awq else numbers

    def zeros(self, words: Int[Array, "groups columns"]) -> Int[Array, "groups d_out"]:
        """The number that stands for 0, of each group and output."""
        return self.unpacked(words).reshape(len(words), -1).astype(np.int16) + self.plus_one


def packing_of(folder: Path) -> Packing | None:
    """How the words of a folder are read, by its config.json. None where that says neither gptq nor awq: what is wrong
    with it is said by config_file.py."""
    try:
        given = json.loads((folder / "config.json").read_text("utf-8"))["quantization_config"]
        method = given["quant_method"]
    except (OSError, ValueError, TypeError, KeyError):
        return None
    if method == "gptq" and unsupported_gptq(given) is None:
        return Packing(given["bits"], False, given.get("checkpoint_format", "gptq") == "gptq")
    return Packing(4, True, False) if method == "awq" and unsupported_awq(given) is None else None


def packed_tensors(file: SafetensorsFile) -> tuple[dict[str, Tensor], set[str]]:
    """The GPTQ or AWQ weights of a file by name, and the names of all that they consist of."""
    modules = [name.removesuffix(".qweight") for name, kind in file.stored.items() if name.endswith(".qweight")]
    if not modules:
        return {}, set()
    packing = packing_of(file.path.parent)
    used = {f"{module}.{part}" for module in modules for part in PARTS} & file.stored.keys()
    used |= {f"{module}.bias" for module in modules if _is_zero(file, f"{module}.bias")}
    return {f"{module}.weight": _weight(file, module, packing) for module in modules}, used


def _is_zero(file: SafetensorsFile, name: str) -> bool:
    """Whether a tensor is there and 0 throughout: AutoGPTQ writes such biases where the model has none."""
    return name in file.tensors and not file.tensors[name].any()


def _weight(file: SafetensorsFile, module: str, packing: Packing | None) -> Tensor:
    """One weight, [d_out, d_in], whose problem says what its tensors contradict each other in."""
    name, kind = f"{module}.weight", "AWQ" if packing and packing.awq else "GPTQ"
    try:
        if packing is None:
            raise ValueError("has a .qweight, and config.json has no quantization_config of gptq or awq")
        parts = {part: _part(file, f"{module}.{part}") for part in PARTS if f"{module}.{part}" in file.stored}
        shape, groups = _shape(module, parts, packing)
    except ValueError as error:
        return Tensor(file.path, name, (), kind, 0, "float16", lambda: np.zeros(0), str(error))
    nbytes = sum(part.nbytes for part in parts.values())
    dtype = parts["scales"].dtype.name

    def read() -> Array:
        zeros, scales = packing.zeros(parts["qzeros"]), widen(parts["scales"], "float32")
        result = np.empty(shape, DTYPES[dtype])
        step = COLUMNS_AT_ONCE * (packing.per_word if packing.awq else 1)
        for start in range(0, shape[0], step):
            rows = slice(start, min(start + step, shape[0]))
            q = integers(parts["qweight"], rows, packing)
            result[rows] = converted(((q - zeros[groups, rows]) * scales[groups, rows]), dtype).T
        return result

    return Tensor(file.path, name, shape, f"{kind} {packing.bits}", nbytes, dtype, read)


def integers(words: Int[Array, "rows columns"], outputs: slice, packing: Packing) -> Int[Array, "d_in some_out"]:
    """The stored integers of these outputs, which are whole words of AWQ."""
    if packing.awq:
        n = packing.per_word
        return (
            packing.unpacked(words[:, outputs.start // n : outputs.stop // n]).reshape(len(words), -1).astype(np.int16)
        )
    numbers = packing.unpacked(words[:, outputs]).transpose(0, 2, 1)
    return numbers.reshape(-1, outputs.stop - outputs.start).astype(np.int16)


def _part(file: SafetensorsFile, name: str) -> Array:
    """One of the tensors, as words or as floats. ValueError for another type."""
    kind = file.stored[name]
    if name.endswith(".scales"):
        if kind not in FLOATS:
            raise ValueError(f"has {name} of {kind}: scales are floats")
        return file.tensors[name]
    if kind != "I32":
        raise ValueError(f"has {name} of {kind}: it must be I32")
    return file.raw[name].view("<i4").reshape(file.shapes[name])


def _shape(
    module: str, parts: Mapping[str, Float[Array, "..."]], packing: Packing
) -> tuple[tuple[int, int], Int[Array, " d_in"]]:
    """((d_out, d_in), the group of each input). ValueError where the tensors contradict each other."""
    for part in PARTS[:3]:
        if part not in parts:
            raise ValueError(f"lacks {module}.{part}")
        if parts[part].ndim != 2:
            raise ValueError(f"has {module}.{part} {list(parts[part].shape)}: it must be a matrix")
    rows, columns = parts["qweight"].shape
    n = packing.per_word
    d_in, d_out = (rows, columns * n) if packing.awq else (rows * n, columns)
    count = len(parts["scales"])
    for part, expected in (("scales", (count, d_out)), ("qzeros", (count, d_out // n))):
        if parts[part].shape != expected:
            actual = list(parts[part].shape)
            raise ValueError(f"has {module}.{part} {actual}, its {module}.qweight makes it {list(expected)}")
    if not count or (d_in % count and "g_idx" not in parts):
        raise ValueError(f"has {count} groups, and {d_in} inputs that are not shared equally by them")
    groups = parts.get("g_idx", np.arange(d_in) // max(d_in // count, 1))
    if groups.shape != (d_in,) or groups.min(initial=0) < 0 or groups.max(initial=0) >= count:
        raise ValueError(f"has {module}.g_idx that does not give each of {d_in} inputs one of {count} groups")
    if packing.plus_one and (packing.unpacked(parts["qzeros"]) == 2**packing.bits - 1).any():
        raise ValueError(f"has a zero in {module}.qzeros that is {2**packing.bits} with the 1 that GPTQ adds")
    return (d_out, d_in), groups
