"""HunYuan dense (transformers, modeling_hunyuan_v1_dense.py): q and k are normalised over each head, after the
rotation. Its rope type "dynamic" with an alpha is no dynamic one: it stretches theta once and for all."""

from typing import Any

from ..config import ATTENTION_MODULES, Norms
from .family import EOS, Family, Keys


def respelt(data: dict[str, Any]) -> dict[str, Any]:
    """theta * alpha^(head_dim / (head_dim - 2)) in the place of the type "dynamic"."""
    for name in ("rope_parameters", "rope_scaling"):
        rope: Any = data.get(name)
        head_dim: Any = data.get("head_dim")
        if not isinstance(rope, dict) or rope.get("rope_type", rope.get("type")) != "dynamic":
            continue
        theta: Any = rope.get("rope_theta", data.get("rope_theta", 10000.0))
        alpha: Any = rope.get("alpha")
        if (
            all(isinstance(number, int | float) and 0 < number < 1e9 for number in (theta, alpha, head_dim))
            and head_dim != 2
        ):
            stretched = theta * alpha ** (head_dim / (head_dim - 2))
            data = data | {name: {"rope_type": "default", "rope_theta": stretched}, "rope_theta": None}
    return data


def read(keys: Keys) -> dict[str, Any]:
    """Refuse what the class does not have: q and k without their norms."""
    if not keys.flag("use_qk_norm", True):
        keys.problem("use_qk_norm is false, and transformers has the norms whatever it says")
    return {}


HUNYUAN = Family(
    "HunYuanDenseV1ForCausalLM",
    "hunyuan_v1_dense",
    {**EOS, "rms_norm_eps": 1e-5, "max_position_embeddings": 2048},
    {"norms": Norms(q_turned="self_attn.query_layernorm", k_turned="self_attn.key_layernorm")},
    biases={"attention_bias": ATTENTION_MODULES},
    read=read,
    obeys=("use_qk_norm",),
    respelt=respelt,
)
FAMILIES = (HUNYUAN,)
