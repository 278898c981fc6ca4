"""torchtune's own names of an adapter -> PEFT's, in a folder that is PEFT's otherwise.

    layers.3.attn.q_proj.lora_a.weight        model.layers.3.self_attn.q_proj.lora_A.weight
    layers.3.mlp.w1.lora_b.weight             ....mlp.gate_proj.lora_B.weight
    output.magnitude                          lm_head.lora_magnitude_vector

Of Llama and Gemma torchtune turns neighbouring channels of a head, where transformers turns channel i and channel i +
head_dim / 2. So rows of q and k, and with them those of lora_b and of magnitudes, are interleaved
(models/convert_weights.py, tune_to_peft_adapter_weights), as they are in GGUF files (gguf_names.py). Of Qwen it turns
what transformers does (models/qwen2/_convert_weights.py). Phi-3 has q, k and v apart there, and fused here: refused.
Its checkpointer writes these names as a pickle, adapter_0.pt; here they are what somebody has made safetensors of.
"""

import os
import re
from dataclasses import replace
from pathlib import Path

from ..adapter import PeftConfig
from ..arrays import Array
from ..config import ModelConfig
from ..families import FAMILIES
from .adapter_place import WEIGHTS_FILE
from .diagnostics import Diagnostics
from .families import families_of
from .foreign_names import PREFIX
from .gguf_names import half_split, rotary_heads
from .safetensors_file import SafetensorsFile, open_safetensors

NEIGHBOURS = "neighbours"
MODULES = {
    "attn.q_proj": "self_attn.q_proj",
    "attn.k_proj": "self_attn.k_proj",
    "attn.v_proj": "self_attn.v_proj",
    "attn.output_proj": "self_attn.o_proj",
    "mlp.w1": "mlp.gate_proj",
    "mlp.w2": "mlp.down_proj",
    "mlp.w3": "mlp.up_proj",
}
PARTS = {"lora_a.weight": "lora_A.weight", "lora_b.weight": "lora_B.weight", "magnitude": "lora_magnitude_vector"}
NAME = re.compile(
    rf"(?:layers\.(?P<layer>\d+)\.(?P<module>{'|'.join(map(re.escape, MODULES))})|output)"
    rf"\.(?P<part>{'|'.join(map(re.escape, PARTS))})"
)
TARGETS = {name.rpartition(".")[2]: peft.rpartition(".")[2] for name, peft in MODULES.items()} | {"output": "lm_head"}


def is_torchtune(file: SafetensorsFile) -> bool:
    """Whether all names are torchtune's."""
    return bool(file.stored) and all(NAME.fullmatch(name) for name in file.stored)


def in_pefts_names(file: SafetensorsFile, base: ModelConfig | None, diagnostics: Diagnostics) -> SafetensorsFile:
    """The file under PEFT's names, with the rows of q and k in PEFT's order; without a base, as they lie."""
    order = order_of_rows(base) if base else NEIGHBOURS
    if base and not order:
        known_for = ", ".join(sorted({family.model_type for family in FAMILIES.values() if family.torchtune}))
        what = f"the base is {base.model_type}" if base.model_type else f"the base has {base.beyond_llama[0]}"
        diagnostics.problem(file.path, f"torchtune's order of rows is known here for {known_for}; {what}")
    names = {name: _peft_name(name) for name in file.stored}
    return SafetensorsFile(
        file.path,
        {names[name]: _in_order(name, x, base if order == NEIGHBOURS else None) for name, x in file.tensors.items()},
        {},
        {names[name]: kind for name, kind in file.stored.items()},
        {names[name]: shape for name, shape in file.shapes.items()},
    )


def order_of_rows(base: ModelConfig) -> str:
    """Return which channels of a head torchtune turns together, "neighbours" or "halves"; "" where that is not known.

    A base that does not say of which family it is, is a Llama where it is like one."""
    if base.moe or base.wrapped:
        return ""
    families = families_of(base.model_type)
    return families[0].torchtune if families else "" if base.beyond_llama else NEIGHBOURS


def holds_torchtune(folder: Path) -> bool:
    """Whether a folder's tensors have torchtune's names."""
    file = open_safetensors(folder / WEIGHTS_FILE, Diagnostics()) if os.path.exists(folder / WEIGHTS_FILE) else None
    return file is not None and is_torchtune(file)


def with_pefts_targets(config: PeftConfig) -> PeftConfig:
    """The config with PEFT's names of its modules."""
    targets = config.target_modules
    return (
        config
        if isinstance(targets, str)
        else replace(config, target_modules=tuple(TARGETS.get(name, name) for name in targets))
    )


def _peft_name(name: str) -> str:
    match = NAME.fullmatch(name)
    assert match  # is_torchtune
    layer = match["layer"]
    module = "lm_head" if layer is None else f"model.layers.{layer}.{MODULES[match['module']]}"
    return f"{PREFIX}{module}.{PARTS[match['part']]}"


def _in_order(name: str, x: Array, base: ModelConfig | None) -> Array:
    match = NAME.fullmatch(name)
    assert match  # is_torchtune
    leaf = (match["module"] or "").rpartition(".")[2]
    heads = rotary_heads(leaf, base) if base and match["part"] != "lora_a.weight" else None
    fits = heads and base and x.ndim and x.shape[0] == base.shape((0, leaf))[0]
    return half_split(x, heads) if fits else x
