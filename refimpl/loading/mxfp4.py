"""MXFP4, in which gpt-oss publishes its experts: blocks of 32 numbers of four bits -> the numbers that they stand for.

A tensor NAME [experts, d_in, d_out] lies in the checkpoint as two, transposed:

    NAME_blocks    u8 [experts, d_out, G, 16]: two numbers a byte, the first in the low half
    NAME_scales    u8 [experts, d_out, G]: of each block, the exponent of a power of two

    W[e, 32 g + i, o] = e2m1[code i of block g] 2^(scale - 127)        a scale of 255 is NaN

(OCP Microscaling Formats 1.0, sections 5.3.3 and 5.4.1; transformers, integrations/mxfp4.py.) A number has two
significant bits, and so is exact in bfloat16 and every wider type, however small. One that is too large is inf, and
refused.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np

from ..arrays import Array, Float, Int
from .conversion import CHUNK, converted
from .safetensors_file import SafetensorsFile
from .tensor import Tensor

BLOCKS, SCALES = "_blocks", "_scales"
BIAS, NAN = 127, 255

# The sixteen numbers of e2m1: a sign, two bits of exponent, one of mantissa.
E2M1 = np.array([0, 0.5, 1, 1.5, 2, 3, 4, 6, -0.0, -0.5, -1, -1.5, -2, -3, -4, -6], np.float32)
# The two numbers of each byte, [256, 2].
PAIRS = np.stack([E2M1[np.arange(256) & 15], E2M1[np.arange(256) >> 4]], axis=1)

# What each scale means: products with a power of two are exact.
POWERS = np.append(np.ldexp(np.float32(1), np.arange(NAN, dtype=np.int32) - BIAS), np.float32(np.nan))
LARGEST = 6.0  # of e2m1


def numbers(blocks: Int[Array, "*rows groups 16"], scales: Int[Array, "*rows groups"]) -> Float[Array, "*rows d_in"]:
    """What blocks stand for, in float32: exact, inf where it is too large, NaN where the scale is."""
    values = np.take(PAIRS.view(np.uint64)[:, 0], blocks).view(np.float32).reshape(*scales.shape, 32)
    with np.errstate(over="ignore"):
        values *= POWERS[scales][..., None]
    return values.reshape(*scales.shape[:-1], -1)


def mxfp4_tensors(files: Sequence[SafetensorsFile]) -> tuple[dict[str, Tensor], set[str]]:
    """The MXFP4 tensors of a checkpoint by name, and the names of all that they consist of. Blocks and scales may lie
    in different files."""
    parts = {
        name: file for file in files for name, kind in file.stored.items() if kind == "U8" and _root(name) is not None
    }
    roots = dict.fromkeys(root for name in parts if (root := _root(name)) is not None)
    return {root: _tensor(root, parts) for root in roots}, set(parts)


def _root(name: str) -> str | None:
    """The name of the tensor that this is a part of, if it is one."""
    ending = next((ending for ending in (BLOCKS, SCALES) if name.endswith(ending)), None)
    return None if ending is None else name.removesuffix(ending)


def _tensor(root: str, parts: dict[str, SafetensorsFile]) -> Tensor:
    """One tensor, [experts, d_in, d_out]. A problem for what its parts contradict each other in."""
    names = (root + BLOCKS, root + SCALES)
    file = next(parts[name] for name in names if name in parts)
    if problem := _problem(names, parts):
        return Tensor(file.path, root, (), "mxfp4", 0, "bfloat16", lambda: PAIRS, problem)
    shape = parts[names[0]].shapes[names[0]]
    blocks = parts[names[0]].raw[names[0]].reshape(shape)
    scales = parts[names[1]].raw[names[1]].reshape(shape[:-1])
    experts, d_out, groups, _ = shape

    def part(index: tuple[Any, ...]) -> Array:
        """The numbers at [expert, :, columns]: columns here are rows of the blocks."""
        expert, _, columns = index
        return converted(numbers(blocks[expert, columns], scales[expert, columns]), "bfloat16").T

    def read() -> Array:
        return np.stack([part((expert, slice(None), slice(None))) for expert in range(experts)])

    return Tensor(
        file.path,
        root,
        (experts, 32 * groups, d_out),
        "mxfp4",
        blocks.nbytes + scales.nbytes,
        "bfloat16",
        read,
        part=part,
        packing=lambda: (blocks, scales),
        largest=LARGEST * 2.0 ** (int(scales.max()) - BIAS),
    )


def _problem(names: tuple[str, str], parts: dict[str, SafetensorsFile]) -> str | None:
    """What is wrong with the two parts of a tensor, if something is: one missing, shapes, a scale that is NaN."""
    for name in names:
        if name not in parts:
            return f"is MXFP4 and lacks {name}"
    (blocks, scales), (of_blocks, of_scales) = names, (parts[name].shapes[name] for name in names)
    if len(of_blocks) != 4 or of_blocks[-1] != 16 or 0 in of_blocks:
        return f"has {blocks} {list(of_blocks)}, which must be [experts, d_out, blocks, 16]"
    if of_scales != of_blocks[:-1]:
        return f"has {scales} {list(of_scales)}, its {blocks} {list(of_blocks)} make it {list(of_blocks[:-1])}"
    raw = parts[scales].raw[scales]
    for start in range(0, raw.size, CHUNK):
        if raw[start : start + CHUNK].max() == NAN:
            at = np.unravel_index(start + int(raw[start : start + CHUNK].argmax()), of_scales)
            return f"has {NAN} in {scales} at {[int(i) for i in at]}, which is NaN"
    return None
