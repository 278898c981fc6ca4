"""SmolLM3 (transformers, modeling_smollm3.py): a Llama in which every fourth layer has no position. no_rope_layers is
1 where a layer turns."""

from .family import LLAMA_BIASES, Family, Keys


def turns(keys: Keys, layer: int) -> bool:
    """Whether a layer turns its queries and keys."""
    given = keys.data.get("no_rope_layers")
    if given is None:
        return (layer + 1) % keys.integer("no_rope_layer_interval") != 0
    if isinstance(given, list) and len(given) > layer and given[layer] in (0, 1):
        return bool(given[layer])
    if layer == 0 or isinstance(given, list):
        keys.problem(f"no_rope_layers has no 0 or 1 for layer {layer}")
    return True


SMOLLM3 = Family(
    "SmolLM3ForCausalLM",
    "smollm3",
    {
        "num_key_value_heads": 4,
        "rms_norm_eps": 1e-6,
        "max_position_embeddings": 32768,
        "no_rope_layer_interval": 4,
        "tie_word_embeddings": True,
        "bos_token_id": 128000,
        "eos_token_id": 128001,
    },
    default_theta=2e6,
    biases=LLAMA_BIASES,
    obeys=("no_rope_layers", "no_rope_layer_interval", "use_sliding_window"),
    slides=lambda keys, layer: (
        keys.flag("use_sliding_window") and keys.given("sliding_window") and not turns(keys, layer)
    ),
    turns=turns,
)
FAMILIES = (SMOLLM3,)
