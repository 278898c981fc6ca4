"""config.json of a merged model: the base's own, with the few keys changed that are no longer true."""

import copy
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

from ..config import ModelConfig, Module, module_name
from ..errors import WeightsError
from ..families import Family

DTYPE_KEYS = ("dtype", "torch_dtype")  # of transformers 5 and 4


def merged_json(
    data: Mapping[str, Any], vocab_size: int, tied: bool, dtype: str | None, flags: Collection[str]
) -> dict[str, Any]:
    """The base's config.json with the vocabulary's size, whether the tables are tied, and the flags that are now true.

    dtype: what all weights are written in; None where each keeps its own. A model of images and text has these keys in
    its text_config, and some of them outside as well. What says that the base was quantised is gone."""
    merged = copy.deepcopy(dict(data))
    parts = [merged, *(part for name, part in merged.items() if name.endswith("_config") and isinstance(part, dict))]
    text = merged["text_config"] if isinstance(merged.get("text_config"), dict) else merged
    for part in parts:
        part.pop("quantization_config", None)
        if dtype:
            part.update({key: dtype for key in DTYPE_KEYS if key in part})
    if dtype and not any(key in merged for key in DTYPE_KEYS):
        merged["torch_dtype"] = dtype  # which both versions read
    for part in (merged, text):
        if part is text or "vocab_size" in part:
            part["vocab_size"] = vocab_size
        if not tied:
            part["tie_word_embeddings"] = False
    text.update(dict.fromkeys(flags, True))
    return {key: value for key, value in merged.items() if key != "quantization_config"}


def bias_flags(biased: Collection[Module], config: ModelConfig, family: Family, file: Path) -> set[str]:
    """The keys of config.json that must become true, so that these modules have a bias.

    WeightsError, one line, where the family has no key for one of them: such a model cannot be said."""
    flags = set()
    for module in biased:
        if config.has_bias(module[1]):
            continue
        flag = next((key for key, names in family.biases.items() if module[1] in names), None)
        if flag is None:
            raise WeightsError(
                f"{file}: the adapter gives {module_name(module)} a bias (lora_bias), and a {family.architecture} has "
                "no key in config.json that says so: it cannot be merged"
            )
        flags.add(flag)
    return flags


def modules_of(flags: Collection[str], family: Family) -> tuple[str, ...]:
    """The modules that have a bias if these flags are true."""
    return tuple(name for flag in flags for name in family.biases[flag])
