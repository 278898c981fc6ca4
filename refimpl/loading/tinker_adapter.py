"""Tinker's names of an adapter -> PEFT's, in a folder that is PEFT's otherwise.

    base_model.model.model.unembed_tokens.lora_A.weight            base_model.model.lm_head.lora_A.weight
    base_model.model.model.layers.3.attn.q_proj.lora_A.weight      ....self_attn.q_proj.lora_A.weight
    base_model.model.model.layers.3.mlp.experts.w1.lora_A.weight   as it is: all experts in one (peft_experts.py)

Its config says all-linear, whatever was trained, and means lm_head as well, which PEFT's all-linear leaves out. The
names are those by which tinker_cookbook/weights merges such an adapter into a model.
"""

import re
from dataclasses import replace

from ..adapter import PeftConfig
from .foreign_names import PREFIX
from .safetensors_file import SafetensorsFile

UNEMBED = re.compile(rf"{re.escape(PREFIX)}(?:model\.)?unembed_tokens\.")
ATTENTION = re.compile(rf"({re.escape(PREFIX)}model\.layers\.\d+)\.attn\.(?=(?:[qkvo]|qkv)_proj\.lora_)")  # of gpt-oss
EXPERTS = re.compile(r"\.experts\.w[123]\.lora_[AB]\.weight")
UNEMBEDDING = "unembed_tokens"
# What a name of the file is called in bases: Mixtral's experts have its own names.
LEAVES = {"w1": ("w1", "gate_proj"), "w2": ("w2", "down_proj"), "w3": ("w3", "up_proj"), UNEMBEDDING: ("lm_head",)}
LEAF = re.compile(r"\.(\w+)\.lora_[AB]\.weight")


def is_tinker(file: SafetensorsFile) -> bool:
    """Whether there are names that only Tinker gives."""
    return any(UNEMBED.match(name) or ATTENTION.match(name) or EXPERTS.search(name) for name in file.stored)


def in_pefts_names(file: SafetensorsFile) -> SafetensorsFile:
    """Return the file under PEFT's names; one that PEFT's name is there of already stays, and is refused by name."""
    names = {name: _peft_name(name) for name in file.stored}
    names = {name: name if new != name and new in names else new for name, new in names.items()}
    return replace(
        file,
        tensors={names[name]: x for name, x in file.tensors.items()},
        raw={names[name]: x for name, x in file.raw.items()},
        stored={names[name]: kind for name, kind in file.stored.items()},
        shapes={names[name]: shape for name, shape in file.shapes.items()},
    )


def with_trained_targets(config: PeftConfig, file: SafetensorsFile) -> PeftConfig:
    """Return the config with the modules that the file has for target_modules, where that is all-linear."""
    targets = config.target_modules
    if isinstance(targets, str):
        if targets.lower() != "all-linear":
            return config
        leaves = {match[1] for name in file.stored if (match := LEAF.search(name))}
        names = {name for leaf in leaves for name in LEAVES.get(leaf, (leaf,))}
        return replace(config, target_modules=tuple(sorted(names)))
    return replace(config, target_modules=tuple("lm_head" if name == UNEMBEDDING else name for name in targets))


def _peft_name(name: str) -> str:
    return ATTENTION.sub(r"\1.self_attn.", UNEMBED.sub(f"{PREFIX}lm_head.", name))
