"""Which module of the base, and which part of its LoRA, a tensor of an adapter's file is: by its name.

    transformer.layers.0.attention.to_q.lora_A.weight         diffusers
    diffusion_model.layers.0.attention.to_q.lora_A.weight     ai-toolkit
    diffusion_model.layers.0.attention.qkv.lora_A.weight      ComfyUI: Z-Image's own modules, q, k and v in one
    lora_unet_layers_0_attention_to_q.lora_down.weight        kohya (sd-scripts): dots are underscores

Each may have a tensor MODULE.alpha beside it; the scale is alpha / rank then.
"""

from ..config import module_name
from .config import PictureConfig

KOHYA = "lora_unet_"
PREFIXES = ("base_model.model.", "transformer.", "diffusion_model.")

# The parts of a module, by the end of the tensor's name.
PARTS = {
    ".lora_A.weight": "A",
    ".lora_B.weight": "B",
    ".lora_A.default.weight": "A",  # PEFT's, saved with the adapter's name left in
    ".lora_B.default.weight": "B",
    ".lora_down.weight": "A",
    ".lora_up.weight": "B",
    ".lora_B.bias": "bias",
    ".alpha": "alpha",
}

# What else is in such files, by a piece of the name: it would have to be computed in another way.
FOREIGN = {
    "lora_mid": "LoCon (LyCORIS), a convolution between A and B",
    "hada_": "LoHa (LyCORIS), a product of two low-rank matrices element by element",
    "lokr_": "LoKr (LyCORIS), a Kronecker product",
    "oft_": "OFT, a rotation",
    "dora_scale": "DoRA",
    "lora_magnitude_vector": "DoRA",
    "diff_b": "a whole bias",
    ".diff": "a whole weight",
    "text_encoder": "an adapter of the text encoder, which is not in this model",
    "lora_te": "an adapter of the text encoder, which is not in this model",
    "lora.down": "an older form of diffusers' names; load it with diffusers, and save_lora_adapter",
    "lora.up": "an older form of diffusers' names; load it with diffusers, and save_lora_adapter",
}


def modules_by_name(config: PictureConfig) -> dict[str, tuple[str, ...]]:
    """Every name that a file may give to a module -> the base's modules: three where q, k and v are one."""
    names: dict[str, tuple[str, ...]] = {name: (name,) for name in map(module_name, config.linears)}
    for name in list(names):
        if name.endswith(".attention.to_out.0"):
            attention = name.removesuffix(".to_out.0")
            names[f"{attention}.out"] = (name,)
            names[f"{attention}.qkv"] = tuple(f"{attention}.to_{part}" for part in "qkv")
    names["x_embedder"] = (config.embedder,)
    names["final_layer.linear"] = (f"{config.final_layer}.linear",)
    names["final_layer.adaLN_modulation.1"] = (f"{config.final_layer}.adaLN_modulation.1",)
    return names | {KOHYA + name.replace(".", "_"): modules for name, modules in names.items()}


def split_name(tensor: str) -> tuple[str, str] | None:
    """(the module as the file names it, without its prefix; the part), or None for a name of another kind."""
    for ending, part in PARTS.items():
        if tensor.endswith(ending):
            name = tensor.removesuffix(ending)
            for prefix in PREFIXES:
                name = name.removeprefix(prefix)
            return name, part
    return None


def what_else(tensor: str) -> str:
    """What a tensor probably is whose name is none of these."""
    return next((what for piece, what in FOREIGN.items() if piece in tensor), "the base has no such module")
