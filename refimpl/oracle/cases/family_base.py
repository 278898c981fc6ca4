"""A random base of any family, as a folder: its config from families/small.py, its tensors of a size at which
activations stay near 1."""

import json
import math
import tempfile
from pathlib import Path

import numpy as np

from ...arrays import DTYPES, Array
from ...config import ModelConfig
from ...families.small import small_config
from ...formats.files import write_safetensors
from ...formats.hf import save_model
from ...loading.checkpoint import EMBED_WEIGHT, SINGLE, expected_tensors
from ...loading.config_file import load_config
from ...loading.model_folder import load_model
from ...synthetic.models import HEAD_GAIN, NORM_SPREAD, NORMS_FIRST
from ...weights import Model


def save_family_base(model_type: str, rng: np.random.Generator, dtype: str, folder: Path) -> None:
    """Write a new folder with a base of this family, its tensors in `dtype`, as transformers has it."""
    with tempfile.TemporaryDirectory() as name:
        plain = Path(name)  # each expert by itself: what load_model reads, and save_model stacks where the family does
        (plain / "config.json").write_text(json.dumps(small_config(model_type, rng), indent=1) + "\n", "utf-8")
        config = load_config(plain)
        tensors = {name: tensor(name, shape, config, rng) for name, shape in expected_tensors(config).items()}
        write_safetensors(plain / SINGLE, {name: x.astype(DTYPES[dtype]) for name, x in tensors.items()})
        save_model(load_model(plain, dtype), folder)


def family_base(model_type: str, seed: int, dtype: str, folder: Path) -> Model:
    """Return a base of this family, which is then in the folder."""
    save_family_base(model_type, np.random.default_rng([seed, 5]), dtype, folder)
    return load_model(folder, dtype)


def tensor(name: str, shape: tuple[int, ...], config: ModelConfig, rng: np.random.Generator) -> Array:
    """Draw one tensor of a checkpoint, in float64: norms around 1, products that keep the size of their input."""
    x = rng.standard_normal(shape)
    if len(shape) == 2:
        gain = HEAD_GAIN if name == "lm_head.weight" else 1.0
        return x if name == EMBED_WEIGHT else gain * x / math.sqrt(shape[-1])
    if name.endswith(".bias"):
        return NORMS_FIRST.bias * x
    if "norm" in name:
        return NORM_SPREAD * x + (0.0 if config.norms.plus_one else 1.0)
    return x  # a sink, a correction of the choice of experts, a factor of a layer
