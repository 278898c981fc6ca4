"""The keys of adapter_config.json: each is honoured, known to be harmless, or refused by name.

A new version of PEFT adds keys every other month, all of them null until used, so an unknown key passes while it is
neutral, and an adapter that uses something newer than this file is refused and not half understood.
"""

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from .base_names import quantisation_in
from .diagnostics import Diagnostics, shown
from .json_file import Keys

HONOURED = {
    "r", "lora_alpha", "use_rslora", "rank_pattern", "alpha_pattern", "target_modules", "target_parameters",
    "exclude_modules", "layers_to_transform", "layers_pattern", "modules_to_save", "bias", "lora_bias", "use_dora",
    "trainable_token_indices", "ensure_weight_tying", "alora_invocation_tokens",
    "use_bdlora", "use_qalora", "layer_replication", "peft_type", "init_lora_weights", "fan_in_fan_out",
}  # fmt: skip

# Keys that do not change what a trained adapter computes, whatever their value.
HARMLESS = {
    "lora_dropout": "only in training",
    "inference_mode": "only in training",
    "task_type": "which head PEFT puts around the model; the tensors say what there is",
    "auto_mapping": "which class to load the base with",
    "base_model_name_or_path": "the base is given; its shapes are compared",
    "revision": "of the base",
    "peft_version": "who wrote the file; it says how experts lie in it (peft_experts.py)",
    "megatron_core": "the name of a Python module; megatron_config says whether it is used",
    "qalora_group_size": "always 16; use_qalora says whether it is used",
    "merge_weights": "PEFT before 0.4: whether eval() merges",
    "eva_config": "how A was initialised; the base is unchanged by it",
    "velora_config": "only in training: how gradients are kept; the base and A are what they are",
    "loftq_config": "how A and B were initialised; init_lora_weights says whether the base was changed",
    "corda_config": "likewise",
    "lora_ga_config": "likewise",
    "runtime_config": "how a process runs; PEFT drops it when it reads a config, and verl writes it",
    "lora_dtype": "ms-swift: the type of A and B in training; the file has its own",
    "lorap_lr_ratio": "ms-swift: LoRA+, the learning rate of B over that of A",
    "lorap_emb_lr": "ms-swift: LoRA+, the learning rate of embeddings",
}

# The initialisations that leave the base's weights alone. The others (pissa, olora, corda, loftq, lora_ga, ...) take
# something away from the base, so that A and B are a correction to a base that is not on disk.
PLAIN_INIT = (True, False, "gaussian", "orthogonal", "eva", "mica")

# Those of which it is known what they took, given the base (changed_base.py).
RESTORED_INIT = ("pissa", "olora")

WAY_OUT = "with PEFT's path_initial_model_for_weight_conversion, which makes plain LoRA of it"

# What the config of a VeRA has that LoRA's has not: how it was made and trained.
VERA_KEYS = {"peft_type", "vera_dropout", "d_initial", "projection_prng_key", "save_projection", "init_weights"}

# What else is found under the name adapter_config.json, and the key that gives it away.
FOREIGN = {
    "lora_parameters": "an MLX-LM adapter",
    "fine_tune_type": "an MLX-LM adapter",
    "lora_layers": "an MLX-LM adapter",
    "lora_rank": "a tunix or qwix (JAX) adapter",
    "adapter_type": "an adapter of another program",
    "config": "an AdapterHub adapter",
}


def is_vera(data: Mapping[str, Any]) -> bool:
    """Whether an adapter_config.json is of VeRA."""
    return data.get("peft_type") == "VERA"


def as_lora(data: dict[str, Any]) -> dict[str, Any]:
    """Return the config of the LoRA that a VeRA is, whose scale is 1; any other config as it is."""
    if not is_vera(data):
        return data
    inherited = {key: value for key, value in data.items() if key not in VERA_KEYS}
    return inherited | {"peft_type": "LORA", "lora_alpha": data.get("r")}


def is_lora(file: Path, data: Mapping[str, Any], diagnostics: Diagnostics) -> bool:
    """Whether the file is what PEFT writes for LoRA; if not, say what it is."""
    kind = data.get("peft_type")
    if kind is None and not {"r", "lora_alpha", "target_modules"} <= data.keys():
        what = next((name for key, name in FOREIGN.items() if key in data), "no peft_type, and not r, lora_alpha, ...")
        diagnostics.problem(file, f"is not a PEFT LoRA config ({what}); its keys are {shown(sorted(data))}")
        return False
    if kind is None:
        diagnostics.warn(file, "peft_type is missing; taken as LORA")
    elif kind != "LORA":
        diagnostics.problem(file, f"peft_type is {shown(kind)}; only LORA and VERA are supported")
    return kind in (None, "LORA")


def check_other_keys(keys: Keys) -> None:
    """Every key that is not one of the numbers: harmless, neutral, or refused by name."""
    for key, value in keys.data.items():
        if key not in HONOURED and key not in HARMLESS and value not in (None, False, [], {}, ""):
            keys.diagnostics.problem(
                keys.file, f"{key} is {shown(value)}, which is not supported (it would have to be null)"
            )
    init = keys.data.get("init_lora_weights")
    plain = (*PLAIN_INIT, *RESTORED_INIT)
    if isinstance(init, str) and init.startswith("pissa_niter_"):
        why = "took singular vectors out of the base that random numbers led to, which nobody can repeat: save it"
        keys.diagnostics.problem(keys.file, f"init_lora_weights is {shown(init)}, which {why} {WAY_OUT}")
    elif init is not None and not any(init == value and type(init) is type(value) for value in plain):
        why = "may change the base's weights, and A and B only fit the changed ones: save it"
        keys.diagnostics.problem(keys.file, f"init_lora_weights is {shown(init)}, which {why} {WAY_OUT}")


def note_oddities(keys: Keys) -> None:
    """What works, but may not be what its owner thinks."""
    data, warn = keys.data, lambda what: keys.diagnostics.warn(keys.file, what)
    if data.get("fan_in_fan_out"):
        warn("fan_in_fan_out is set, but the base's layers are Linear, so it has no effect")
    if data.get("inference_mode") is False:
        warn("inference_mode is false: saved in the middle of a training?")
    if data.get("task_type") not in (None, "CAUSAL_LM", "SEQ_CLS"):
        warn(f"task_type is {shown(data['task_type'])}, not 'CAUSAL_LM'")
    base = data.get("base_model_name_or_path")
    if isinstance(base, str):
        if not base:
            warn("base_model_name_or_path is empty: nothing says which base it was trained on")
        elif kind := quantisation_in(base):
            warn(f"base_model_name_or_path is {shown(base)}: it was trained on a quantised base ({kind})")
        elif (base.startswith(("/", ".", "~")) or "\\" in base) and not os.path.exists(base):
            warn(f"base_model_name_or_path is the local path {shown(base)}, which is not here: which base was that?")
