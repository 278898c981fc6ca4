"""The models that vectors of whole models share, and their adapters: written as the folders that any engine loads.

Every number is exact in float32, float16 and bfloat16, so that no engine rounds a weight. Head dimensions are 32, which
every engine takes. No adapter is weak, none is like another; a scale is never 1.
"""

import dataclasses
import json
import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np

from ...adapter import Adapter, PeftConfig
from ...config import EMBED, LAYER_MODULES, LM_HEAD, ModelConfig
from ...formats.hf import save_model
from ...formats.peft import save_adapter
from ...loading.adapter_folder import load_adapter
from ...loading.model_folder import load_model
from ...synthetic.adapters import gain_of, own_biases, own_layer, random_adapter
from ...synthetic.models import FORWARD_ORDER, random_model
from ...weights import Model
from ..cases.testbed import in_float64
from .draw import on_grid
from .vector import MODELS, VECTOR_DTYPES

BASE, ADAPTERS = "base", "adapters"

CONFIGS = {
    # GQA; nothing square; no width that is another one's.
    "llama": ModelConfig(
        vocab_size=72, hidden_size=48, intermediate_size=56, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, head_dim=32, max_position_embeddings=128, eos_token_ids=(1,),
    ),
    # A sliding window; q and o are square, as in real models.
    "mistral": ModelConfig(
        vocab_size=56, hidden_size=64, intermediate_size=40, num_hidden_layers=2, num_attention_heads=2,
        num_key_value_heads=1, head_dim=32, sliding_window=6, max_position_embeddings=128, eos_token_ids=(1,),
    ),
    # The embedding is the head as well; attention has biases.
    "tied": ModelConfig(
        vocab_size=60, hidden_size=40, intermediate_size=56, num_hidden_layers=2, num_attention_heads=2,
        num_key_value_heads=1, head_dim=32, tie_word_embeddings=True, attention_bias=True,
        max_position_embeddings=128, eos_token_ids=(1,),
    ),
}  # fmt: skip

ALL = LAYER_MODULES
ADAPTER_CONFIGS: Mapping[str, Mapping[str, PeftConfig]] = {
    "llama": {
        "six": PeftConfig(6, 10.0, target_modules=ALL),
        "three": PeftConfig(3, 5.0, use_rslora=True, target_modules=ALL),
        "patterns": PeftConfig(
            12, 30.0, rank_pattern={"v_proj": 15}, alpha_pattern={"down_proj": 7.0}, target_modules=ALL
        ),
        "partial": PeftConfig(5, 2.5, target_modules=("v_proj", "up_proj")),
        "partial_too": PeftConfig(5, 4.0, target_modules=("v_proj", "up_proj")),
        "rank_one": PeftConfig(1, 2.0, target_modules=("k_proj", "down_proj")),
        "bias": PeftConfig(4, 9.0, target_modules=ALL, lora_bias=True),
        "head": PeftConfig(5, 8.0, target_modules=("q_proj", "o_proj", "lm_head")),
        "saved": PeftConfig(3, 7.0, target_modules=("v_proj",), modules_to_save=("embed_tokens", "lm_head")),
        "saved_head": PeftConfig(3, 4.0, target_modules=("down_proj",), modules_to_save=("lm_head",)),
        "grown": PeftConfig(4, 3.0, target_modules=("up_proj",), modules_to_save=("embed_tokens", "lm_head")),
    },
    "mistral": {
        "seven": PeftConfig(7, 5.0, use_rslora=True, target_modules=ALL),
        "four": PeftConfig(4, 11.0, target_modules=ALL),
    },
    "tied": {
        "embedding": PeftConfig(3, 5.0, target_modules=("embed_tokens", "v_proj")),
        "biases": PeftConfig(4, 7.0, target_modules=ALL, bias="all"),
    },
}
LORA_BIAS = 0.15  # how large the bias of a lora_B is beside what the base computes at the same module
OWN_LAYER = {"keep": 0.8, "change": 0.6, "fresh": 1.0}  # of modules_to_save, beside the base's: synthetic/adapters.py
GROWN_BY = 4  # tokens that `grown` adds
TWINS = {"six_louder": ("six", 23.0)}  # the very same A and B under another alpha


@dataclass(frozen=True, eq=False)
class Written:
    """One model of a set with its adapters, as they lie there."""

    folder: Path

    @cached_property
    def models(self) -> dict[str, Model]:
        """In each type; "float64" holds the same numbers."""
        written = {dtype: load_model(self.folder / BASE, dtype) for dtype in VECTOR_DTYPES}
        return written | {"float64": in_float64(written["float32"])}

    @cached_property
    def adapters(self) -> dict[str, Adapter]:
        """All that fit."""
        folders = sorted((self.folder / ADAPTERS).iterdir())
        config = self.models["float64"].config
        return {p.name: load_adapter(p, config) for p in folders if p.name not in ("wrong_rank", "wrong_base")}


def write_models(root: Path, draws: Callable[[str], np.random.Generator]) -> dict[str, Written]:
    """All models with their adapters, and two adapters that have to be refused. draws: the chance of each of them."""
    written = {}
    for name, config in CONFIGS.items():
        folder = root / MODELS / name
        model = random_model(config, draws(name), "bfloat16", FORWARD_ORDER, on_grid)
        save_model(model, folder / BASE)
        for key, peft in ADAPTER_CONFIGS[name].items():
            adapter = draw_adapter(model, key, peft, draws(f"{name}/{key}"))
            save_adapter(adapter, folder / ADAPTERS / key, "bfloat16")
        written[name] = Written(folder)
    llama, mistral = (root / MODELS / name / ADAPTERS for name in ("llama", "mistral"))
    for name, (of, alpha) in TWINS.items():
        _copy(llama / of, llama / name, lora_alpha=alpha)
    _copy(llama / "partial", llama / "wrong_rank", r=4)
    _copy(mistral / "four", llama / "wrong_base")
    return written


def _copy(source: Path, target: Path, **changes: float) -> None:
    """An adapter with other words in its config."""
    shutil.copytree(source, target)
    file = target / "adapter_config.json"
    file.write_text(json.dumps(json.loads(file.read_text("utf-8")) | changes, indent=2) + "\n", "utf-8")


def draw_adapter(base: Model, name: str, peft: PeftConfig, rng: np.random.Generator) -> Adapter:
    """Return a random adapter of this config, with all that it replaces."""
    adapter = random_adapter(base.config, peft, name, rng, gain_of(base), LORA_BIAS, on_grid)
    extra = GROWN_BY if name == "grown" else 0
    layers = {
        module: own_layer(base.linear(module).weight, rng, extra, **OWN_LAYER, snap=on_grid)
        for module in (EMBED, LM_HEAD)
        if module[1] in peft.modules_to_save
    }
    biases = own_biases(base, lambda d_out: on_grid(0.5 * rng.standard_normal(d_out))) if peft.bias == "all" else {}
    return dataclasses.replace(adapter, replaced=layers, biases=biases)
