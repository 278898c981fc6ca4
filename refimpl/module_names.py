"""The modules that LoRA can target, and what each is called in a checkpoint."""

# A module that LoRA can target, a linear layer or the embedding: (layer, name). Those outside the layers have layer -1.
# The name is the last word of the checkpoint's, "q_proj", or where one is not enough, as of experts, all of it that is
# below the layer: "mlp.experts.7.up_proj".
Module = tuple[int, str]

# Llama's; a family may have others (ModelConfig.layer_modules).
ATTENTION_MODULES = ("q_proj", "k_proj", "v_proj", "o_proj")
MLP_MODULES = ("gate_proj", "up_proj", "down_proj")
LAYER_MODULES = ATTENTION_MODULES + MLP_MODULES
EMBED: Module = (-1, "embed_tokens")
LM_HEAD: Module = (-1, "lm_head")
LAYER_INPUTS: Module = (-1, "per_layer_model_projection")  # Gemma 4 (layer_inputs.py)
SCORE: Module = (-1, "score")  # a classification head; LoRA cannot target it, an adapter may bring its own

# What each query head's sink is called below the layer (View.sinks).
SINKS = "self_attn.sinks"

# The parts of a layer of text, with which a name begins that is all of it. Picture models have others.
ROOTS = ("self_attn", "mlp", "shared_mlp", "block_sparse_moe")

# Under which part of a layer each module of any family lies, whose name is one word.
PARENTS = {
    **dict.fromkeys((*ATTENTION_MODULES, "qkv_proj"), "self_attn"),
    **dict.fromkeys(("q_a_proj", "q_b_proj", "kv_a_proj_with_mqa", "kv_b_proj"), "self_attn"),  # DeepSeek
    **dict.fromkeys((*MLP_MODULES, "gate_up_proj", "c_fc", "c_proj"), "mlp"),
    **dict.fromkeys(("input_linear", "output_linear"), "shared_mlp"),  # Granite 4
    **dict.fromkeys(("per_layer_input_gate", "per_layer_projection"), ""),  # Gemma 4: below the layer itself
}


def module_name(module: Module) -> str:
    """The module's dotted name in the Hugging Face model: (3, 'q_proj') -> model.layers.3.self_attn.q_proj."""
    layer, name = module
    if "." in name:
        if layer >= 0 and name.partition(".")[0] in ROOTS:
            return f"model.layers.{layer}.{name}"
        return short_name(module)  # of a picture model: (0, 'attention.to_q'), (-1, 'cap_embedder.1')
    if module in (LM_HEAD, SCORE):
        return name
    if layer < 0:
        return f"model.{name}"
    return ".".join(part for part in ("model.layers", str(layer), PARENTS[name], name) if part)


def short_name(module: Module) -> str:
    """The module's name in a trace: (3, 'q_proj') -> layers.3.q_proj."""
    layer, name = module
    return name if layer < 0 else f"layers.{layer}.{name}"
