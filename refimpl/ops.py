"""Every step of serving one batch, by name, in one frozen table that is passed as an argument: a backend.

Four kinds of backends go through the same tests. REFERENCE is the definition, a loop per token. NUMPY is the default
and must be indistinguishable from it; so must the kernels (cuda/table.py). A mutant carries one real bug and must be
caught:

    wrong_scale = dataclasses.replace(NUMPY, adapter_scale=lambda alpha, r, use_rslora: alpha / r)

This is the seam of the package (Feathers's word): the place at which behaviour is changed without editing the code.
"""

from collections.abc import Callable, Collection, Hashable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from . import adapter_slots, alora, attention, checks, dora, kv_cache, layers, lora, mla, plans, policies, rope, routing
from .adapter import Adapter
from .adapter_slots import AdapterSlots, BoundAdapter
from .arrays import Array, Precision
from .config import ClampedGate, ModelConfig, Module, Moe, Rope, View
from .moe import experts_in_turn
from .plans import Adapters, AttentionMetadata, Batch, Index, LoraMapping

Pair = tuple[Array, Array]


@dataclass(frozen=True)
class Ops:
    """The named steps. Shapes, units and formulas stand with the functions that fill the tables below."""

    # What happens next, on the host.
    schedule: Callable[[Sequence[int], int], Sequence[int]]  # tokens missing of each request, budget -> tokens now
    admit: Callable[[Sequence[Collection[Hashable]], Collection[Hashable], int | None], Sequence[int]]
    select_victim: Callable[[Mapping[int, int], Mapping[int, int]], int | None]  # last_used, ref_counts
    # The plan, on the host.
    adapter_scale: Callable[[float, int, bool], float]  # alpha, r, use_rslora
    activation_start: Callable[[Sequence[int], Sequence[int]], int]  # prompt_ids, invocation tokens
    bind_adapter: Callable[[Adapter, ModelConfig, Callable[[float, int, bool], float]], BoundAdapter]
    lora_mapping: Callable[[Sequence[Adapters], Sequence[int]], Pair]  # per request -> per token
    segments: Callable[[Array, int], Pair]  # adapter_ids, size -> rows sorted by adapter, where each tile starts
    positions: Callable[[Sequence[int], Sequence[int]], Array]  # tokens computed before, tokens now -> positions
    slot_mapping: Callable[[Array, Array, Array, int], Array]  # block_tables, positions, query_start_loc, block_size
    logits_indices: Callable[[Array, bool], Array]  # query_start_loc, every row?
    check_batch: Callable[[Batch, AdapterSlots, int | None], None]  # batch, adapters, window
    keyed_adapters: Callable[[Sequence[tuple[bytes, float]], Sequence[int], int], list[tuple[bytes, float]]]
    prefix_key: Callable[[bytes, Sequence[int], bytes, Precision, Sequence[tuple[bytes, float]]], bytes]
    rope_table: Callable[[Rope, int, Array, Array, Precision], Pair]  # rope, head_dim, positions, lengths -> cos, sin
    query_growth: Callable[[Rope, Array, Precision], Array | float]  # rope, positions
    # Numbers, on the device.
    embed: Callable[[Array, Array, Precision], Array]  # table, token_ids
    linear: Callable[[Array, Array, Array | None, Precision], Array]  # x, weight, bias
    lora_delta: Callable[[Array, Array, Module, AdapterSlots, LoraMapping, Precision], None]  # y += ..., in place; x
    rms_norm: Callable[[Array, Array, float, Precision], Array]  # x, weight, eps
    layer_norm: Callable[[Array, Array, float, Precision], Array]  # x, weight and bias, eps
    rope: Callable[[Array, Array, Array, bool, Precision], Array]  # x, cos, sin, interleaved
    write_kv: Callable[[Array, Array, Array, Array, AttentionMetadata, Precision], None]  # k_cache, v_cache, k, v
    attention: Callable[[Array, Array, Array, AttentionMetadata, View, Precision], Array]  # q, k_cache, v_cache
    latent: mla.LatentForm  # what is cached and what is multiplied, in a model with multi-head latent attention
    full_attention: Callable[[Array, Array, Array, Sequence[int], Precision], Array]  # q, k, v, starts: of pictures
    mlp_activation: Callable[[Array, Array | None, str | ClampedGate, Precision], Array]  # gate, up, kind
    route: Callable[[Array, Array | None, Moe, Precision], Pair]  # logits, correction -> experts of a token, weights
    routed_experts: Callable[..., Array]  # run, h, layer, experts of a token, weights -> the sum over its experts
    expert_sum: Callable[[Array, Index, Array, Array, Precision], None]  # y, rows, out, weights; y += ..., in place
    scaled: Callable[[Array, Array | float, Precision], Array]  # x, factor
    softcap: Callable[[Array, float | None, str], Array]  # x, cap, dtype
    # Among the ranks of a tensor-parallel group (parallel/). One rank alone has all of everything.
    shard_adapter: Callable[[BoundAdapter], BoundAdapter]  # the whole -> this rank's part
    dora_gain: Callable[[Array, Array, Array, float, Array, Module], Array]  # weight, A, B, scale, magnitude
    all_reduce: Callable[[Array, Module, Precision], Array]  # y of a module whose sums the ranks share -> their total
    all_gather: Callable[[Array], Array]  # this rank's logits -> all logits
    precision: str = "model"  # the preset of Precision where a caller names none


def alone(part: Any, *_: object) -> Any:
    """Return the argument itself: where there is one rank, its part is the whole."""
    return part


REFERENCE = Ops(
    schedule=policies.schedule,
    admit=policies.admit,
    select_victim=kv_cache.select_victim,
    adapter_scale=adapter_slots.adapter_scale,
    activation_start=alora.activation_start,
    bind_adapter=adapter_slots.bind_adapter,
    lora_mapping=plans.lora_mapping,
    segments=plans.segments_per_adapter,
    positions=plans.positions,
    slot_mapping=plans.slot_mapping,
    check_batch=checks.check_batch,
    keyed_adapters=alora.keyed_adapters,
    prefix_key=kv_cache.prefix_key,
    logits_indices=plans.logits_indices,
    rope_table=rope.rope_table,
    query_growth=rope.query_growth,
    embed=layers.embed,
    linear=layers.linear_per_token,
    lora_delta=lora.lora_delta_per_token,
    rms_norm=layers.rms_norm_per_token,
    layer_norm=layers.layer_norm_per_token,
    rope=rope.apply_rope_per_token,
    write_kv=kv_cache.write_kv_per_token,
    attention=attention.attention_per_token,
    latent=mla.EXPANDED,
    full_attention=attention.full_attention_per_token,
    mlp_activation=layers.mlp_activation,
    route=routing.route_per_token,
    routed_experts=experts_in_turn,
    expert_sum=routing.expert_sum_per_token,
    scaled=layers.scaled,
    softcap=layers.softcap,
    shard_adapter=alone,
    dora_gain=dora.dora_gain,
    all_reduce=alone,
    all_gather=alone,
)

# The same steps, vectorised: what a definition and a fast form have in common stands once.
NUMPY = replace(
    REFERENCE,
    segments=plans.segments,
    linear=layers.linear,
    lora_delta=lora.lora_delta,
    rms_norm=layers.rms_norm,
    layer_norm=layers.layer_norm,
    rope=rope.apply_rope,
    write_kv=kv_cache.write_kv,
    attention=attention.attention,
    full_attention=attention.full_attention,
    route=routing.route,
    expert_sum=routing.expert_sum,
)

# The same with multi-head latent attention as engines decode it: for models that have it.
ABSORBED = replace(NUMPY, latent=mla.ABSORBED, bind_adapter=mla.bind_absorbed)
