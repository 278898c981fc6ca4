"""What a tensor that PEFT's reader cannot place probably is, and what its owner can do: said by name, never repaired.

PEFT itself only warns of such tensors, and computes as if they were not there: the adapter changes nothing, or half.
"""

import re
from collections.abc import Iterable

from ..config import LAYER_MODULES, ModelConfig
from .safetensors_file import SafetensorsFile
from .wrapped_names import SENSES, wrapper_of

PREFIX = "base_model.model."

FUSED = {
    "qkv_proj": "q_proj, k_proj and v_proj",
    "gate_up_proj": "gate_proj and up_proj",
    "Wqkv": "q_proj, k_proj and v_proj",
    "W_pack": "q_proj, k_proj and v_proj",
    "c_attn": "q_proj, k_proj and v_proj",
    "query_key_value": "q_proj, k_proj and v_proj",
    "linear_qkv": "q_proj, k_proj and v_proj",
    "linear_fc1": "gate_proj and up_proj",
    "dense_h_to_4h": "gate_proj and up_proj",
}
PARTS_OF = {"q_proj": "qkv_proj", "k_proj": "qkv_proj", "v_proj": "qkv_proj", "gate_proj": "gate_up_proj"} | {
    "up_proj": "gate_up_proj"
}

# What is put around a model to train it, and stays in the names of its tensors: of an adapter, or of a whole model.
WRAPPINGS = {
    r"(^|\.)_orig_mod\.": "torch.compile's prefix _orig_mod. is in it: save the module that was compiled, "
    "model._orig_mod.save_pretrained(DIR), or take the prefix out of the names",
    r"(^|\.)_fsdp_wrapped_module\.|(^|\.)_flat_param|(^|\.)_fpw_module\.": "FSDP's wrapper is in it: gather a full "
    "state dict and give it to save_pretrained(DIR, state_dict=...), or take the prefix out of the names",
    r"(^|\.)_checkpoint_wrapped_module\.": "the wrapper of activation checkpointing is in it: save the module inside, "
    "or take the prefix out of the names",
    r"(^|\.)_forward_module\.": "the wrapper of Lightning Fabric is in it: save the module inside",
    r"^module\.": "the prefix module. of DataParallel, DDP or DeepSpeed is before it: save the module inside, "
    "model.module.save_pretrained(DIR), or take the prefix out of the names",
}

# A piece of a name, as a regular expression -> what put it there, and the way out. The first that is found counts.
MARKS = {
    **WRAPPINGS,
    r"base_model\.model\.base_model\.model\.": "it is wrapped twice, a PEFT model inside a PEFT model: save the inner "
    "one, or take the second base_model.model. out of the names",
    r"(^|\.)pretrained_model\.": "TRL's model with a value head is around it: save its pretrained_model",
    r"^lora_unet_|^lora_te|\.lora_down\.|\.lora_up\.": "a kohya (sd-scripts) file",
    r"\.lora\.(down|up)\.": "a diffusers file",
    r"\.experts\.(gate_up|down)_projs\.\d+\.": "Unsloth's gpt-oss, with a layer for each expert: call gate_up_projs.7 "
    "experts.7.gate_proj, with its A and rows 0, 2, ... of B, and experts.7.up_proj, with A and rows 1, 3, ...; "
    "down_projs.7 experts.7.down_proj; and target_modules gate_proj, up_proj and down_proj",
    r"\.unembed_tokens\.|\.experts\.w[123]\.": "a name of Tinker's, of a base that this one is not: another, or "
    "tinker_cookbook.weights, which writes a merged model (build_hf_model)",
    r"^(model\.)?layers\.\d+\.(attention\.w[qkvo]|feed_forward\.w[123])\.": "a mistral-finetune "
    "adapter: mistral_inference merges it (load_lora); as PEFT it needs other names, the rows of q and k in halves, "
    "and lora_alpha = scaling * rank",
    r"^layers\.\d+\.attn\.|^output\.lora_[ab]\.": "a torchtune adapter in torchtune's own names",
    r"\.lora_[ab]$": "an MLX (mlx-lm) name: mlx-lm's folder has adapters.safetensors, and is read as such",
    r"\.adapter_layer\.|\.linear_(in|out)\.weight$|\.adapter\.linear_": "a NeMo or Megatron name: give the .nemo file",
    r"^transformer\.|^unet\.|^text_encoder": "an adapter of a picture model: loracle draw",
    r"original_module": "a module that PEFT replaced and should not have saved",
    r"modules_to_save|\.default(\.|$)|\.lora_[AB]\.(?!weight$|bias$)\w+(\.weight|\.bias)?$": "saved with the adapter's "
    "name left in; use save_pretrained",
    r"\.lora_[AB]$": "the end .weight is missing, which PEFT's names have",
    r"\.lora_[ab]\.weight$": "PEFT spells it lora_A and lora_B; lora_a is torchtune's, whose other names differ, too",
    r"(^|\.)(score|classifier|pre_classifier|qa_outputs|reward_head|regression_head)\.": "a classification head",
    r"(^|\.)(v_head|value_head)\.": "a value head, of training alone",
    r"\.experts?\..*lora_": "LoRA on experts (target_parameters), which the base has not, or calls otherwise",
    r"(^|\.)(prompt_encoder|prompt_embeddings)": "a prompt tuning, no LoRA",
}


def wrapping_of(name: str) -> str | None:
    """What was put around the model that this name is of, and the way out, if something was."""
    return next((what for pattern, what in WRAPPINGS.items() if re.search(pattern, name)), None)


def why_unplaced(name: str, base: ModelConfig | None) -> str:
    """What a tensor that is of no module of the base probably is, and the way out."""
    if SENSES.search(name):
        return "it is of the part that sees or hears (a vision tower, a projector, audio), and only text runs here"
    mark = next((what for pattern, what in MARKS.items() if re.search(pattern, name)), None)
    if not name.startswith(PREFIX):
        return f"it does not begin with {PREFIX} ({mark or _injected(name) or 'PEFT writes no such name'})"
    inner = name.removeprefix(PREFIX)
    return _layer(inner, base) or mark or _depth(inner) or _fused(inner, base) or _parameter(inner) or NOTHING


NOTHING = "the base has no such module or parameter"


def common_cause(file: SafetensorsFile, base: ModelConfig | None) -> str | None:
    """What put nearly all of the file's names in another form, if one thing did: said once, before the tensors."""
    causes = [why_unplaced(name, base) for name in file.stored]
    if not causes:
        return None
    cause = max(set(causes), key=causes.count)
    general = cause != NOTHING and "PEFT writes no such name" not in cause and "is of layer" not in cause
    return f"all of its {len(causes)} tensors: {cause}" if general and causes.count(cause) == len(causes) > 1 else None


def _injected(name: str) -> str | None:
    """What the names of the model itself, with LoRA in them, mean."""
    if not re.match(r"(model|lm_head)\.(.*\.)?lora_", name):
        return None
    return f"its names are those of a model with LoRA put into it, inject_adapter_in_model: put {PREFIX} before them"


def _parameter(inner: str) -> str | None:
    """What a parameter of the base is that the adapter brings along in whole: a norm, sinks, a linear layer."""
    if "lora_" in inner or not re.match(
        r"model\.(layers\.\d+|norm|embed_tokens)\.(.*[._])?(weight|bias|sinks)$", inner
    ):
        return None
    return "it is a whole parameter, and of those only embed_tokens, lm_head, score and biases can come from an adapter"


def _depth(inner: str) -> str | None:
    """What one `model.` too few or too many means."""
    if re.match(r"(layers|h)\.\d+\.|embed_tokens\.", inner):
        return (
            "one 'model.' is missing: it was trained on the model without its head (AutoModel, as for embeddings); "
            f"for a model with its head, the names begin with {PREFIX}model."
        )
    if re.match(r"(model\.){2,}", inner):
        return "one 'model.' is too much: it was trained on a model inside another; take it out of the names"
    if match := re.match(r"(transformer|gpt_neox|encoder|decoder|bert|roberta|backbone|rwkv)\.", inner):
        return f"{match[1]}. is of another architecture"
    return None


def _fused(inner: str, base: ModelConfig | None) -> str | None:
    """What to say where the adapter has in one piece what the base has in several, or the other way round."""
    leaves = inner.split(".")
    present = set(base.layer_modules if base else LAYER_MODULES)
    for fused, apart in FUSED.items():
        if fused in leaves and fused not in present:
            return f"{fused} is {apart} fused into one, and the base has them apart: is it of another architecture?"
    for part, fused in PARTS_OF.items():
        if part in leaves and part not in present and fused in present:
            return f"{part} is apart, and the base has it fused into {fused}: was it trained on another architecture?"
    return None


def _layer(inner: str, base: ModelConfig | None) -> str | None:
    match = re.match(r"model\.layers\.(\d+)\.", inner)
    if match and base and int(match[1][:9]) >= base.num_hidden_layers:
        return f"it is of layer {match[1]}, the base has {base.num_hidden_layers}"
    return None


def wrapper_note(names: Iterable[str], base: ModelConfig | None) -> str | None:
    """A sentence if the names are those inside a model of images and text, and the base is of text alone."""
    wrapper = next(filter(None, (wrapper_of(name.removeprefix(PREFIX)) for name in names)), None)
    if wrapper is None or base is None or base.wrapped:
        return None
    return (
        f"its names are those inside a model of vision and text ({wrapper}), and the base is of text alone: taken as "
        "those of its layers; PEFT would find none of them"
    )
