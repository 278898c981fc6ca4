"""config.json, or what stands for it in a GGUF file -> a ModelConfig; and generation_config.json, for the ids that
end a text."""

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ..config import ATTENTION_MODULES, MLP_MODULES, ModelConfig
from ..errors import ConfigError
from ..families import Family
from ..rope import rotated_channels
from .diagnostics import Diagnostics, shown
from .families import CLASSIFIER, family_of
from .gguf_config import gguf_config
from .gguf_file import SUFFIX, is_gguf
from .hub import cached_name, hub_id, hub_snapshots
from .json_file import LARGEST, Keys, is_integer, read_json
from .layer_kinds import read_layers
from .neutral_keys import check_computed, check_neutral
from .quantization import check_quantization
from .suggestion import did_you_mean


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
        diagnostics.problem(
            folder, f"has no config.json{instead(folder)}" if os.path.isdir(folder) else not_a_folder(folder)
        )
        return None
    if data is None or (match := family_of(file, data, diagnostics)) is None:
        return None
    family, wrapped = match
    named = data.get("_name_or_path")
    name = named if isinstance(named, str) and named else cached_name(folder)
    check_quantization(file, data, diagnostics)
    if wrapped:
        check_neutral(file, data, family, diagnostics)
        data = text_config(file, data, family, diagnostics)
        check_quantization(file, data, diagnostics)
    keys = Keys(file, family.respelt({**family.defaults, **data}), diagnostics)
    check_neutral(file, keys.data, family, diagnostics)
    fields = read_fields(keys, family) | {"wrapped": wrapped, "eos_token_ids": _eos_token_ids(folder, keys)}
    check_computed(keys, data, family, fields.get("moe"))
    if len(diagnostics.problems) > before:
        return None
    config = ModelConfig(**fields, name_or_path=name, model_type=family.model_type, keys=data)
    check_fit(keys, config)
    return config if len(diagnostics.problems) == before else None


def text_config(file: Path, data: Mapping[str, Any], family: Family, diagnostics: Diagnostics) -> dict[str, Any]:
    """The keys of the text part of a model of images and text. What is said of both parts stands outside of it."""
    inner = data.get("text_config")
    if not isinstance(inner, dict) or inner.get("model_type", family.model_type) != family.model_type:
        diagnostics.problem(
            file, f"text_config is {shown(inner)}: it must be an object of model_type {family.model_type!r}"
        )
        return {}
    outside = ("eos_token_id", "bos_token_id", "tie_word_embeddings")
    return {key: data[key] for key in outside if data.get(key) is not None} | inner


def read_fields(keys: Keys, family: Family) -> dict[str, Any]:
    """The fields of the ModelConfig, eos_token_ids aside; problems are noted."""
    heads, hidden = keys.integer("num_attention_heads"), keys.integer("hidden_size")
    if not keys.given("head_dim") and hidden % heads:
        keys.problem(f"hidden_size {hidden} is not a multiple of num_attention_heads {heads}, and no head_dim")
    layers = keys.integer("num_hidden_layers", most=10_000)
    fields: dict[str, Any] = {
        "vocab_size": keys.integer("vocab_size"),
        "hidden_size": hidden,
        "intermediate_size": keys.integer("intermediate_size"),
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "num_key_value_heads": keys.integer("num_key_value_heads", default=heads),
        "head_dim": keys.integer("head_dim", default=max(hidden // heads, 1)),
        "rms_norm_eps": keys.positive(family.eps),
        "tie_word_embeddings": keys.flag("tie_word_embeddings"),
        "max_position_embeddings": keys.integer("max_position_embeddings"),
        "bos_token_id": keys.integer("bos_token_id", least=0) if keys.given("bos_token_id") else None,
        "labels": read_labels(keys),
        "pad_token_id": read_padding(keys),
        "activation": read_activation(keys, family),
        **read_biases(keys, family),
        **family.fields,
    }
    fields |= {field: keys.positive(key) for key, field in family.numbers.items() if keys.given(key)}
    return fields | read_layers(keys, family, layers) | family.read(keys)


def read_activation(keys: Keys, family: Family) -> str:
    """The activation of the MLP, by the key that config.json has for it: there may be two, if they agree."""
    names = [key for key in ("hidden_act", "hidden_activation") if keys.given(key)]
    for key in names:
        if not isinstance(keys.data[key], str) or keys.data[key] not in family.activations:
            expected = " or ".join(map(repr, family.activations))
            keys.problem(f"{key} is {shown(keys.data[key])}, which must be {expected} for {family.architecture}")
    return next(iter(family.activations.values()))


def read_padding(keys: Keys) -> int | None:
    """The padding token; -1 stands for none in old files."""
    value: Any = keys.data.get("pad_token_id")
    return value if is_integer(value) and value >= 0 else None


def read_labels(keys: Keys) -> int:
    """How many labels a classification head has: id2label's, num_labels, or 2, transformers' default. 0: no head."""
    if not str((keys.data.get("architectures") or [""])[0]).endswith(CLASSIFIER):
        return 0
    names = keys.data.get("id2label")
    if isinstance(names, dict) and names:
        return len(names)
    return keys.integer("num_labels", default=2)


def label_names(folder: Path) -> tuple[str, ...]:
    """What a base's labels are called, in order: id2label of its config.json; () where it has none."""
    data = read_json(folder / "config.json", Diagnostics()) if os.path.isfile(folder / "config.json") else None
    names = (data or {}).get("id2label")
    if not isinstance(names, dict) or not all(str(key).isdecimal() for key in names):
        return ()
    return tuple(str(names[key]) for key in sorted(names, key=int))


def read_biases(keys: Keys, family: Family) -> dict[str, Any]:
    """Which modules have a bias: Llama's two flags, and what those of another family say beyond them."""
    biased = dict.fromkeys(module for key, modules in family.biases.items() if keys.flag(key) for module in modules)
    flags = {"attention_bias": ATTENTION_MODULES, "mlp_bias": MLP_MODULES}
    fields: dict[str, Any] = {flag: biased.keys() >= set(modules) for flag, modules in flags.items()}
    covered = {module for flag, modules in flags.items() if fields[flag] for module in modules}
    return fields | {"biased": tuple(module for module in biased if module not in covered)}


def check_fit(keys: Keys, config: ModelConfig) -> None:
    """Heads come in whole groups, and channels in pairs."""
    heads = config.num_attention_heads
    for kv_heads in {config.head_shape(i)[0] for i in range(config.num_hidden_layers)}:
        if heads % kv_heads:
            keys.problem(f"num_attention_heads {heads} is not a multiple of num_key_value_heads {kv_heads}")
    for rope in config.ropes:
        head_dim = max(config.head_dim, rope.head_dim or 0)
        n = rotated_channels(rope, head_dim)
        if n % 2 or n > head_dim:
            share = "" if n == head_dim else f", of which {n} channels turn"
            odd = "is odd" if n == head_dim else "is wrong"
            keys.problem(f"head_dim {head_dim}{share} {odd}: rotary embedding turns pairs")
        for name in ("short_factor", "long_factor"):
            factors = getattr(rope, name)
            if rope.type == "longrope" and len(factors) != n // 2:
                keys.problem(f"{name} has {len(factors)} numbers; {n} channels turn, in {n // 2} pairs")


def not_a_folder(path: Path) -> str:
    """What to say of a path that is no folder."""
    if hint := hub_id(path):
        return f"is not a folder; {hint}"
    if os.path.isfile(path):
        return f"is a file; give the folder, {path.parent}"
    return "is not there" if str(path).endswith(SUFFIX) else f"is not a folder{did_you_mean(str(path), ['tiny'])}"


def instead(folder: Path) -> str:
    """Return what to give instead of a folder that has no config.json."""
    if os.path.exists(folder / "adapter_config.json"):
        return ": it is an adapter, not a base model"
    if snapshots := hub_snapshots(folder):
        return f": it is a folder of the Hub's cache; give the snapshot in it, {snapshots[-1]}"
    if names := sorted(file.name for file in folder.glob(f"*{SUFFIX}")):
        return f"; {names[0]}: give the file itself, a GGUF is a whole model"
    inside = [file.parent.name for file in sorted(folder.glob("*/config.json"))]
    return f"; these folders in it have one: {', '.join(inside[:5])}" if inside else ""


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
