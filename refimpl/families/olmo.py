"""OLMo 2 and 3 (transformers, modeling_olmo2.py and modeling_olmo3.py): the norms stand after the blocks and none
before them, and q and k are normalised over all heads together. OLMo 3 slides in three layers of four, which turn by
the plain rope whatever the others do."""

from ..config import ATTENTION_MODULES, Norms, Rope
from .family import Family, Keys

DEFAULTS = {"rms_norm_eps": 1e-5, "max_position_embeddings": 2048, "eos_token_id": 50279}
FIELDS = {
    "norms": Norms(
        attention_in=None,
        q="self_attn.q_norm",
        k="self_attn.k_norm",
        whole_projection=True,
        attention_out="post_attention_layernorm",
        mlp_in=None,
        mlp_out="post_feedforward_layernorm",
    ),
    "unrounded": ("norm_inner", "rope_table", "rope_product"),
}
BIASES = {"attention_bias": ATTENTION_MODULES}
THETA = 500000.0  # of OLMo 3


def local_rope(keys: Keys, rope: Rope) -> Rope:
    """The plain rope of the sliding layers. Flat keys with another theta mean two models: transformers 4 gives it to
    all layers, transformers 5 to the others alone."""
    if rope.theta != THETA:
        keys.problem(f"rope_theta is {rope.theta:g} for all layers, which versions of transformers read differently")
    return Rope(rope.theta)


OLMO2 = Family("Olmo2ForCausalLM", "olmo2", DEFAULTS, FIELDS, biases=BIASES)
OLMO3 = Family(
    "Olmo3ForCausalLM",
    "olmo3",
    {**DEFAULTS, "sliding_window": 4096},
    FIELDS,
    biases=BIASES,
    slides=lambda keys, layer: (layer + 1) % 4 != 0,
    default_theta=THETA,
    local_rope=local_rope,
)
FAMILIES = (OLMO2, OLMO3)
