"""The two shared matrices of a VeRA that was saved without them: drawn as PEFT draws them again at every load.

    generator    Mersenne Twister, seeded with projection_prng_key; A [rank, widest d_in], B [widest d_out, rank]
    each number  u = (32 random bits mod 2^24) / 2^24;   u (high - low) + low, rounded once to float32
    bounds       high = -low = sqrt(3) sqrt(2) / sqrt(the matrix's columns)

peft/tuners/vera/model.py (0.21.2), _init_vera_A_vera_B and _kaiming_init; torch/csrc and ATen, CPUGeneratorImpl and
uniform_real_distribution. torch multiplies and adds in one rounding where the CPU can (AVX2 and later), as here; on
others the last bit of half of the numbers differs, and so do two machines that load the same adapter.
"""

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from ..adapter import PeftConfig
from ..arrays import Array
from ..config import EMBED, ModelConfig, module_name
from .diagnostics import Diagnostics, shown
from .json_file import is_integer
from .peft_config import CONFIG_FILE, selects

KEY = "projection_prng_key"
NOT_SAVED = "base_model.vera_A and vera_B are not there"
WAY_OUT = "save it with save_projection=True"


def drawn_projection(
    data: Mapping[str, Any], config: PeftConfig, base: ModelConfig | None, folder: Path, diagnostics: Diagnostics
) -> dict[str, Array]:
    """Return A [rank, widest d_in] and B [widest d_out, rank] in float32, which `data`, the config's JSON, has the seed
    of; nothing where a problem is noted."""
    key = data.get(KEY)
    if data.get("save_projection", True) or not isinstance(key, int) or not is_integer(key) or key < 0:
        why = f"save_projection is {shown(data.get('save_projection'))} and {KEY} {shown(key)}"
        diagnostics.problem(folder / CONFIG_FILE, f"{NOT_SAVED}, and {why}: {WAY_OUT}")
        return {}
    if base is None:
        why = "how wide they are when PEFT draws them again, only the base knows: give --model DIR"
        diagnostics.problem(folder / CONFIG_FILE, f"{NOT_SAVED}: {why}")
        return {}
    modules = [module for module in base.modules() if module != EMBED and selects(config, module_name(module))]
    if base.wrapped or any(".experts." in module_name(module) for module in modules):
        why = "which of the layers beside those of the text are the widest, depends on the version of transformers"
        diagnostics.problem(folder / CONFIG_FILE, f"{NOT_SAVED}, and {why}: {WAY_OUT}")
        return {}
    widths = [base.shape(module) for module in modules] or [(1, 1)]
    d_out, d_in = (max(sizes) for sizes in zip(*widths, strict=True))
    generator = np.random.RandomState(key % 2**32)
    return {"A": kaiming_uniform((config.r, d_in), generator), "B": kaiming_uniform((d_out, config.r), generator)}


def kaiming_uniform(shape: tuple[int, int], generator: np.random.RandomState) -> Array:
    """Return a matrix in float32 as _kaiming_init of PEFT draws it, from the same random bits."""
    bound = math.sqrt(3.0) * (math.sqrt(2) / math.sqrt(shape[1]))
    low, high = np.float32(-bound), np.float32(bound)
    bits = generator.randint(0, 2**32, size=shape, dtype=np.uint32) % 2**24
    wide = bits * 2.0**-24 * np.float64(high - low) + np.float64(low)  # exact: 48 bits and one more
    return wide.astype(np.float32)
