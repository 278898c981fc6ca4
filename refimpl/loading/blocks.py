"""BD-LoRA and QA-LoRA: pairs that are stored short, written out as the plain LoRA that they are.

    BD-LoRA     A or B has blocks on its diagonal, and only they are stored, one below the other:
                A [rank, d_in / blocks], or B [d_out, rank / blocks]
    QA-LoRA     A reads the mean of every group of inputs, times the number of groups: A [rank, d_in / group]

(peft/tuners/lora/variants.py, BlockDiagonalLinear and QALoraLinearVariant). Written out, a BD-LoRA takes as much memory
as plain LoRA: what the blocks save is communication among ranks of a tensor-parallel group, and there is none here.
"""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from ..arrays import Array, Float
from ..config import ModelConfig, Module, module_name
from .diagnostics import Diagnostics, shown
from .json_file import Keys, is_integer
from .peft_config import CONFIG_FILE
from .peft_tensors import Parts


@dataclass(frozen=True)
class Blocks:
    """use_bdlora of adapter_config.json: which modules have which of the two in blocks, by a piece of their names."""

    in_A: tuple[str, ...]
    in_B: tuple[str, ...]
    count: int

    def half(self, module: Module) -> str | None:
        """Return "A" or "B", or None for a module that has neither in blocks."""
        name = module_name(module)
        if any(piece in name for piece in self.in_A):
            return "A"
        return "B" if any(piece in name for piece in self.in_B) else None


def read_blocks(keys: Keys) -> Blocks | None:
    """Return use_bdlora; None where it is not used, or where it is noted as a problem."""
    value = keys.data.get("use_bdlora")
    if not value:
        return None
    if not isinstance(value, dict) or not is_integer(value.get("nblocks")) or value["nblocks"] < 1:
        keys.problem(f"use_bdlora is {shown(value)}: it must be an object with nblocks, a number of 1 or more")
        return None
    names = [value.get(f"target_modules_bd_{half}") or [] for half in "ab"]
    if not all(isinstance(one, list) and all(isinstance(name, str) and name for name in one) for one in names):
        keys.problem(f"use_bdlora is {shown(value)}: target_modules_bd_a and _b must be lists of names")
        return None
    return Blocks(tuple(names[0]), tuple(names[1]), value["nblocks"])


def written_out(
    parts: Parts, data: dict[str, Any], base: ModelConfig | None, folder: Path, diagnostics: Diagnostics
) -> Parts:
    """Return the parts with every pair that is stored short at its full width; problems and a note of it are noted.

    data: adapter_config.json. Without a base, what QA-LoRA has stored stays as it is."""
    keys = Keys(folder / CONFIG_FILE, data, diagnostics)
    blocks = read_blocks(keys)
    group = keys.integer("qalora_group_size", default=16) if keys.flag("use_qalora") else 0
    result = dict(parts)
    for module, tensors in parts.items():
        half = blocks.half(module) if blocks else None
        if blocks and half in tensors and half is not None:
            x = tensors[half].array
            if x.ndim != 2 or len(x) % blocks.count:
                what = f"use_bdlora has nblocks {blocks.count}, which does not divide its rows"
                diagnostics.problem(folder, f"tensor {tensors[half].name} has shape {list(x.shape)}: {what}")
                continue
            result[module] = tensors | {half: replace(tensors[half], array=block_diagonal(x, blocks.count))}
        elif group and base and "A" in tensors and tensors["A"].array.ndim == 2:
            A = tensors["A"]
            if A.array.shape[1] * group == base.shape(module)[1]:  # on any base but GPTQ, PEFT leaves A as it is
                result[module] = tensors | {"A": replace(A, array=ungrouped(A.array, group))}
    kind = "use_bdlora: A or B is stored in blocks" if blocks else "use_qalora: A is stored for groups of inputs"
    if any(result[module] is not tensors for module, tensors in parts.items()):
        diagnostics.warn(keys.file, f"{kind}, and written out as plain LoRA")
    return result


def block_diagonal(x: Float[Array, "rows width"], blocks: int) -> Float[Array, "rows full_width"]:
    """Return the matrix whose diagonal has these blocks, stored one below the other, and zeros beside them."""
    rows, width = x.shape[0] // blocks, x.shape[1]
    result = np.zeros((x.shape[0], width * blocks), x.dtype)
    for i in range(blocks):
        result[i * rows : (i + 1) * rows, i * width : (i + 1) * width] = x[i * rows : (i + 1) * rows]
    return result


def ungrouped(A: Float[Array, "rank groups"], group: int) -> Float[Array, "rank d_in"]:
    """Return the A that reads the inputs themselves: A mean(group of x) groups is A / group * groups at each of them.

    In float64, as groups / group may be no number of A's type."""
    return A.astype(np.float64).repeat(group, axis=1) * (A.shape[1] / group)
