"""What the families of experts have in common: which key says how many, and which layers have
them."""

from ..config import Groups, Mlp, Stacked
from .family import Keys

COUNTS = ("num_experts", "num_local_experts", "n_routed_experts")
# The two tensors in which transformers 5 holds all experts of a layer.
STACKED = (
    Stacked("mlp.experts.gate_up_proj", ("gate_proj", "up_proj")),
    Stacked("mlp.experts.down_proj", ("down_proj",)),
)
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


def expert_groups(keys: Keys, experts: int, best: int) -> Groups | None:
    """The groups of a DeepSeek and its like: None where there is only one."""
    number, kept = keys.integer("n_group", default=1), keys.integer("topk_group", default=1)
    if experts % number or kept > number:
        keys.problem(f"n_group {number} and topk_group {kept}: {experts} experts are in no such groups")
    elif keys.integer("num_experts_per_tok") > kept * (experts // number):
        keys.problem(f"topk_group {kept} of n_group {number} hold fewer experts than num_experts_per_tok")
    elif number > 1 and best > experts // number:
        keys.problem(f"n_group {number}: a group of {experts // number} has no {best} best experts")
    return Groups(number, kept, best) if number > 1 else None


def shared_experts(keys: Keys) -> Mlp | None:
    """The experts that every token goes through, which are one wide MLP."""
    count, parent = keys.integer("n_shared_experts", default=0, least=0), "mlp.shared_experts."
    names = (f"{parent}gate_proj", f"{parent}up_proj")
    width = count * keys.integer("moe_intermediate_size")
    return Mlp(names, f"{parent}down_proj", width, parent) if count else None


def after_the_dense(keys: Keys, layer: int) -> bool:
    """Whether a layer of a DeepSeek and its like has experts: all but the first ones."""
    return layer >= keys.integer("first_k_dense_replace", default=0, least=0)


def every_nth_layer(keys: Keys, layer: int) -> bool:
    """Whether a layer of a Qwen has experts: those at every decoder_sparse_step, but none of mlp_only_layers."""
    dense = keys.data.get("mlp_only_layers") or []
    if not isinstance(dense, list) or not all(isinstance(i, int) for i in dense):
        if layer == 0:
            keys.problem(f"mlp_only_layers is {dense!r}: it must be a list of layers")
        dense = []
    return layer not in dense and (layer + 1) % keys.integer("decoder_sparse_step") == 0
