"""Which base an adapter was trained on, as far as its config says so: compared by name, because shapes do not tell a
base from its instruct model, nor a quantised one from the numbers that it came from, nor always one family from
another."""

import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ..adapter import PeftConfig
from ..config import ModelConfig
from ..families import FAMILIES
from .diagnostics import Diagnostics, shown
from .families import families_of
from .json_file import read_json

# How quantised checkpoints are called: GPTQ, AWQ, FP8, bnb-4bit, 4bit, int8, w4a16, nf4, 4.0bpw, Q4_K_M, ...
QUANTISED = re.compile(
    r"(?:^|[-_./ ])(?:(?:auto)?gptq\w*|awq\w*|autoround|auto-round|gguf|ggml|bnb\w*|bitsandbytes|exl[23]|eetq|hqq|aqlm|"
    r"quip\w*|squeezellm|spqr|spinquant\w*|torchao|quark|nvfp\d|mxfp\d|fp[468]\w*|nf4|(?:u?int|i)[2-8](?:w[oa]\w*)?|[2-8][-_]?bits?|w\d+a\d+\w*|"
    r"q[2-8](?:_\w+|f\d+_\d)?|iq[1-4]_\w+|[\d.]+bpw|dynamic-fp8|quantized|quantised|qat|marlin)(?=$|[-_./ ])",
    re.IGNORECASE,
)


def quantisation_in(name: str) -> str | None:
    """The piece of a base's name that says it is quantised, if one does: "GPTQ" of "someone/Llama-3-8B-GPTQ".

    Of a path only the last folder says what the base is: /tmp/tmp_i2/base is not quantised. In the hub's cache that is
    the folder above the snapshots."""
    last = last_piece(re.split(r"[/\\]snapshots[/\\]", name)[0])
    match = None if "unquanti" in last.lower() else QUANTISED.search(last)
    return match[0].strip("-_./ ") if match else None


def last_piece(path: str) -> str:
    """The last folder or name of a path, of either system."""
    return path.replace("\\", "/").rstrip("/").rsplit("/", 1)[-1]


def plain_name(name: str) -> str:
    """What of a name tells one base from another: the last piece of a path, in small letters, quantisation aside."""
    last = last_piece(name).lower()
    last = re.sub(r"-unsloth(?=$|-)|-(hf|gguf)$", "", QUANTISED.sub("", last))
    return QUANTISED.sub("", last).strip("-_.")


def check_base_name(
    config: PeftConfig, data: Mapping[str, Any], base: ModelConfig | None, file: Path, diagnostics: Diagnostics
) -> None:
    """Warn if the adapter's config, `data` its JSON, names a base that is not this one, or of another family."""
    trained_on, given = config.base_model_name_or_path, base.name_or_path if base else ""
    if base and (key := key_of_another_family(trained_on, data, base)):
        what = f"{key}, and this base is of another family, {base.model_type}: it fits, and answers otherwise"
        diagnostics.warn(file, what)
    elif trained_on and given and plain_name(trained_on) != plain_name(given):
        names = f"{shown(trained_on)}, and this base calls itself {shown(given)}"
        diagnostics.warn(file, f"base_model_name_or_path is {names}: if its weights differ, so does what it answers")


def key_of_another_family(trained_on: str | None, data: Mapping[str, Any], base: ModelConfig) -> str | None:
    """Return "KEY is VALUE" of the key by which the adapter was trained on another family's model, if one says so:
    the base's folder, where it is here, the base's name, or the class that PEFT saw."""
    mapping = data.get("auto_mapping")
    base_class = mapping.get("base_model_class") if isinstance(mapping, dict) else None
    here = model_type_of(trained_on) if trained_on else None
    wrappers = {name for family in families_of(base.model_type) for _, name in family.wrappers}
    if here and here not in wrappers and (not words_in(here) or is_of_another_family(here, base.model_type)):
        return f"base_model_name_or_path is {shown(trained_on)}, whose model_type is {shown(here)}"
    if trained_on and not here and is_of_another_family(trained_on, base.model_type):
        return f"base_model_name_or_path is {shown(trained_on)}"
    if isinstance(base_class, str) and is_of_another_family(base_class, base.model_type):
        return f"auto_mapping is of the class {shown(base_class)}"
    return None


def model_type_of(name: str) -> str | None:
    """Return the model_type of a base's folder, if the name is one that is here."""
    file = Path(name) / "config.json"
    data = read_json(file, Diagnostics()) if os.path.isfile(file) else None
    model_type = (data or {}).get("model_type")
    return model_type if isinstance(model_type, str) else None


def is_of_another_family(name: str, model_type: str) -> bool:
    """Whether the name of a model has a family's name in it, and not this one's; or this one's with the number of
    another: Qwen3-8B is no qwen2. A name without a family's says nothing."""
    *organisation, last = name.replace("\\", "/").rstrip("/").split("/")
    words = words_in(last) or (words_in(organisation[0]) if len(organisation) == 1 else {})
    if not words or not model_type:
        return False
    expected, number = word_of(model_type)
    near = [word for word in words if expected.startswith(word) or word.startswith(expected)]
    if not near:
        return {word for family in families_of(model_type) for word in family.called}.isdisjoint(words)
    numbers = {words[word] for word in near} - {None}
    others = {word_of(family.model_type)[1] for family in FAMILIES.values() if word_of(family.model_type)[0] in near}
    return number is not None and bool(numbers) and number not in numbers and numbers <= others


def word_of(model_type: str) -> tuple[str, str | None]:
    """Return what a model_type has of a model's name, and its number: ("qwen", "3") of qwen3_moe."""
    match = re.match(r"([a-z]+(?:_oss)?)(?:_v)?(\d)?", model_type)
    return (match[1].replace("_", ""), match[2]) if match else (model_type, None)


def words_in(name: str) -> dict[str, str | None]:
    """Return the families' names in the name of a model, each with the number behind it, which is no size: 2 of
    Qwen2.5-7B, none of gemma-2b. A short one is only meant where a word begins: dolphin has no phi."""
    words = {word_of(family.model_type)[0] for family in FAMILIES.values()}
    words |= {word for family in FAMILIES.values() for word in family.called}
    matches = {}
    for word in words:
        letters = re.sub("oss$", "[-_ ]?oss", word)
        begins = r"(?<![a-z])" if len(word) < 5 else ""
        if match := re.search(rf"{begins}{letters}(?:[-_ ]?v?(\d)(?!\d*b))?", name.lower()):
            matches[word] = match[1]
    return matches
