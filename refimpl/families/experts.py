"""What the families of experts have in common: which key says how many, and which layers have
them."""

from .family import Keys

COUNTS = ("num_experts", "num_local_experts", "n_routed_experts")
# Keys that a class with experts understands, and others refuse (loading/families.py).
OBEYS = (*COUNTS, "num_experts_per_tok", "norm_topk_prob", "moe_intermediate_size", "mlp_only_layers")


def count_experts(keys: Keys, default: int, least: int = 1) -> int:
    """How many experts there are, by any of the names that this number has: those that are there must agree."""
    names = [name for name in COUNTS if keys.given(name)]
    counts = {keys.integer(name, least=least) for name in names}
    if len(counts) > 1:
        keys.problem(" and ".join(f"{name} is {keys.data[name]}" for name in names) + ": they mean the same number")
    return counts.pop() if counts else default


def chosen_experts(keys: Keys, experts: int) -> int:
    """How many experts each token goes through."""
    top_k = keys.integer("num_experts_per_tok")
    if top_k > experts:
        keys.problem(f"num_experts_per_tok {top_k} is more than the {experts} experts that there are")
    return top_k


def every_nth_layer(keys: Keys, layer: int) -> bool:
    """Whether a layer of a Qwen has experts: those at every decoder_sparse_step, but none of mlp_only_layers."""
    dense = keys.data.get("mlp_only_layers") or []
    if not isinstance(dense, list) or not all(isinstance(i, int) for i in dense):
        if layer == 0:
            keys.problem(f"mlp_only_layers is {dense!r}: it must be a list of layers")
        dense = []
    return layer not in dense and (layer + 1) % keys.integer("decoder_sparse_step") == 0
