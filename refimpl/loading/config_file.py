"""config.json, or what stands for it in a GGUF file -> a ModelConfig; and generation_config.json, for the ids that
end a text."""

import os
import re
from pathlib import Path

from ..config import ModelConfig, Rope
from ..errors import ConfigError
from .bitsandbytes_4bit import check_quantization
from .diagnostics import Diagnostics, shown
from .families import DEFAULTS, check_neutral, family_of
from .gguf_config import gguf_config
from .gguf_file import SUFFIX, is_gguf
from .json_file import LARGEST, Keys, is_integer, read_json
from .rope_scaling import read_rope


def load_config(folder: str | Path) -> ModelConfig:
    """The config of a Hugging Face folder or a GGUF file. ConfigError, one line, for what would be wrong."""
    diagnostics = Diagnostics()
    config = read_config(Path(folder), diagnostics)
    diagnostics.raise_first(ConfigError, Path(folder))
    assert config is not None  # None comes with a problem
    return config


def read_config(folder: Path, diagnostics: Diagnostics) -> ModelConfig | None:
    """As load_config, but with every problem noted. None where one of them leaves no config to speak of."""
    file, before = folder / "config.json", len(diagnostics.problems)
    if is_gguf(folder):
        file, data = folder, gguf_config(folder, diagnostics)
    elif os.path.exists(file):
        data = read_json(file, diagnostics)
    else:
        adapter = ": it is an adapter, not a base model" if os.path.exists(folder / "adapter_config.json") else ""
        diagnostics.problem(
            folder, f"has no config.json{adapter}{_gguf_in(folder)}" if os.path.isdir(folder) else not_a_folder(folder)
        )
        return None
    if data is None or (family := family_of(file, data, diagnostics)) is None:
        return None
    check_neutral(file, data, family, diagnostics)
    check_quantization(file, data, diagnostics)
    keys = Keys(file, DEFAULTS[family] | data, diagnostics)
    heads, hidden = keys.integer("num_attention_heads"), keys.integer("hidden_size")
    if not keys.given("head_dim") and hidden % heads:
        diagnostics.problem(
            file, f"hidden_size {hidden} is not a multiple of num_attention_heads {heads}, and no head_dim"
        )
    config = ModelConfig(
        vocab_size=keys.integer("vocab_size"),
        hidden_size=hidden,
        intermediate_size=keys.integer("intermediate_size"),
        num_hidden_layers=keys.integer("num_hidden_layers", most=10_000),
        num_attention_heads=heads,
        num_key_value_heads=keys.integer("num_key_value_heads", default=heads),
        head_dim=keys.integer("head_dim", default=max(hidden // heads, 1)),
        rms_norm_eps=keys.positive("rms_norm_eps"),
        rope=Rope(**read_rope(keys)),
        sliding_window=keys.integer("sliding_window") if keys.given("sliding_window") else None,
        tie_word_embeddings=keys.flag("tie_word_embeddings"),
        attention_bias=keys.flag("attention_bias"),
        mlp_bias=keys.flag("mlp_bias"),
        max_position_embeddings=keys.integer("max_position_embeddings"),
        bos_token_id=keys.integer("bos_token_id", least=0) if keys.given("bos_token_id") else None,
        eos_token_ids=_eos_token_ids(folder, keys),
    )
    if heads % config.num_key_value_heads:
        kv_heads = config.num_key_value_heads
        diagnostics.problem(file, f"num_attention_heads {heads} is not a multiple of num_key_value_heads {kv_heads}")
    if config.head_dim % 2 and len(diagnostics.problems) == before:
        diagnostics.problem(file, f"head_dim {config.head_dim} is odd: rotary embedding turns pairs")
    return config if len(diagnostics.problems) == before else None


def not_a_folder(path: Path) -> str:
    """What to say of a path that is no folder. It may be the name of a repository: nothing is ever downloaded."""
    if re.fullmatch(r"[\w.-]+/[\w.-]+", str(path)) and not os.path.exists(path):
        return f"is not a folder; nothing is downloaded here: hf download {path} --local-dir DIR, and give DIR"
    return "is not there" if str(path).endswith(SUFFIX) else "is not a folder"


def _gguf_in(folder: Path) -> str:
    """Return what to give instead of a folder that holds GGUF files."""
    names = sorted(file.name for file in folder.glob(f"*{SUFFIX}"))
    return f"; {names[0]}: give the file itself, a GGUF is a whole model" if names else ""


def _eos_token_ids(folder: Path, keys: Keys) -> tuple[int, ...]:
    """The ids that end a text: generation_config.json's where there is one, as `generate` of transformers does."""
    file = folder / "generation_config.json"
    generation = read_json(file, keys.diagnostics) if os.path.exists(file) else None
    if generation and generation.get("eos_token_id") is not None:
        keys = Keys(file, generation, keys.diagnostics)
    value = keys.data.get("eos_token_id")
    ids = value if isinstance(value, list) else [] if value is None else [value]
    if not all(is_integer(n) and 0 <= n <= LARGEST for n in ids):
        keys.diagnostics.problem(keys.file, f"eos_token_id is {shown(value)}: it must be an id or a list of ids")
        return ()
    return tuple(ids)
