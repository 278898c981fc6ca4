"""Keys of config.json by which another class computes and this one does not: refused by name, unless their value makes
no difference.

transformers reads past such a key without a word; an engine whose code is shared by several classes may obey it. Keys
that bring tensors of their own are not here: those are missed, or left over, when the weights are read."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ..config import Moe
from ..families import Family
from .diagnostics import Diagnostics, shown
from .json_file import Keys

# The values with which they change nothing.
NEUTRAL: dict[str, tuple[Any, ...]] = {
    "partial_rotary_factor": (1, 1.0),
    "factor": (1, 1.0),  # of rope_scaling
    "compression_config": (),
    "auto_map": ({},),  # the repository brings its own code
    "use_sliding_window": (False,),
    "attention_chunk_size": (0,),
    "use_bidirectional_attention": (False,),
    "dual_chunk_attention_config": (),
    "query_pre_attn_scalar": (),
    "attn_logit_softcapping": (),
    "final_logit_softcapping": (),
    "router_logit_softcapping": (0, 0.0),
    "attention_multiplier": (),
    "embedding_multiplier": (1, 1.0),
    "residual_multiplier": (1, 1.0),
    "logits_scaling": (1, 1.0),
    "logit_scale": (1, 1.0),
    "qk_layernorm": (False,),
    "use_qk_norm": (False,),
    "no_rope_layers": ([],),
    "no_rope_layer_interval": (0,),
    "position_embedding_type": ("rope", "rotary"),
    "rope_local_base_freq": (),
    "attn_temperature_tuning": (False,),
    "use_parallel_residual": (False,),
    "num_local_experts": (0, 1),
    "num_experts": (0, 1),
    "n_routed_experts": (0, 1),
    "moe_intermediate_size": (),
    "swiglu_alpha": (),
    "swiglu_limit": (),
    "clip_qkv": (),
    "per_layer_config": ({},),
    "num_kv_shared_layers": (0,),
    "attention_k_eq_v": (False,),
    "alibi": (False,),
}
# Keys that some classes have, and others do not.
OF_OTHERS = ("sliding_window", "attention_bias", "mlp_bias", "use_bias", "attention_out_bias")
EPS = ("rms_norm_eps", "layer_norm_eps", "norm_eps", "norm_epsilon", "layer_norm_epsilon")
CHOSEN = ("experts_per_token", "num_experts_per_token", "top_k_experts", "moe_topk", "moe_k")  # num_experts_per_tok


def check_neutral(file: Path, data: Mapping[str, Any], family: Family, diagnostics: Diagnostics) -> None:
    """Note each key that means a different model. `data`: with the family's defaults, or without."""
    for key, values in NEUTRAL.items():
        if not family.understands(key) and not is_neutral(key, data.get(key)):
            instead = f"must be {' or '.join(map(repr, values))}" if values else "is not supported"
            diagnostics.problem(file, f"{key} is {shown(data[key])}, which {instead} for {family.architecture}")
    for key in OF_OTHERS:
        if not family.understands(key) and data.get(key) not in (None, False):
            diagnostics.problem(
                file, f"{key} is {shown(data[key])}: {family.architecture} has none, and engines differ on obeying it"
            )


def is_neutral(key: str, value: Any) -> bool:
    """Whether a key's value makes no difference: null always, and what the table says (1 is not true)."""
    return value is None or any(_same(value, neutral) for neutral in NEUTRAL.get(key, ()))


def check_computed(keys: Keys, given: Mapping[str, Any], family: Family, moe: Moe | None) -> None:
    """Note each key that says of what is computed something else than this class computes whatever it says.

    `given`: config.json as it is, without the family's defaults."""
    expected = {} if moe is None else routing(moe)
    if keys.data.get("topk_method") == "greedy":  # which takes the best of all, whatever groups there are
        expected = {key: values for key, values in expected.items() if key not in ("n_group", "topk_group")}
    if "rope_interleave" not in family.obeys:
        expected["rope_interleave"] = (family.rope.get("interleaved", False),)
    for key, values in expected.items():
        value = given.get(key)
        if value is not None and not any(_same(value, computed) for computed in values):
            keys.problem(f"{key} is {shown(value)}: this class has {values[0]!r}")
    for key in CHOSEN:
        if moe and given.get(key) is not None and not _same(given[key], moe.top_k):
            chosen = f"num_experts_per_tok is {moe.top_k}: they mean the same number"
            keys.problem(f"{key} is {shown(given[key])} and {chosen}")
    named = [key for key in EPS if given.get(key) is not None]
    if named and family.eps not in named:
        keys.problem(f"{named[0]} is {shown(given[named[0]])}: {family.architecture} reads {family.eps}")
    pattern, read = given.get("sliding_window_pattern"), "sliding_window_pattern" in family.obeys
    if pattern is not None and not read and family.slides and not given.get("layer_types"):
        keys.problem(
            f"sliding_window_pattern is {shown(pattern)}: {family.architecture} does not read it; "
            "layer_types says which layers slide"
        )


def routing(moe: Moe) -> dict[str, tuple[Any, ...]]:
    """What the keys of a router must say, if they are there, for it to be this one: {key: values}."""
    groups, sigmoid = moe.groups, moe.scores == "sigmoid"
    limited = "group_limited_greedy"  # of one group it is greedy
    method = ("noaux_tc",) if moe.correction else ("greedy", limited) if groups is None else (limited,)
    return {
        "scoring_func": ("sigmoid" if sigmoid else "softmax",),
        "topk_method": method,
        "norm_topk_prob": (moe.renormalise or moe.scores == "softmax_of_chosen",),
        "routed_scaling_factor": (moe.scale,),
        "n_group": (groups.number,) if groups else (1, 0),
        "topk_group": (groups.kept,) if groups else (1, 0),
        "router_bias": (moe.bias,),
    }


def _same(value: Any, other: Any) -> bool:
    """Whether two values of JSON are the same: 1 is 1.0, and not true."""
    return value == other and isinstance(value, bool) == isinstance(other, bool)
