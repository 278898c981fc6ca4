"""Multi-head latent attention (DeepSeek-V2, 2024, section 2.1): all keys and values are made of one narrow latent.

    q           = W_qb norm(W_qa h)       or W_q h            [heads, nope + rope]
    [c | r]     = W_kva h,   c = norm(c)                      the latent, and the part of every key that turns
    [k_h | v_h] = W_kvb c, head by head                       k_h [nope] does not turn; v_h has a width of its own
    scores      = q_h [k_h | turn(r)]                         then softmax, and the sum of v_h, as in any attention

Two forms of it. EXPANDED is the definition: keys and values are made when a token comes, and cached. ABSORBED is what
engines decode with: the cache holds [turn(r) | c] alone, once for all heads, and W_kvb, whose rows of a head are W_k
above W_v, is multiplied elsewhere:

    q_h (W_k c) = (W_k^T q_h) c        so queries go through W_k^T, and see latents as their keys;
    sum p (W_v c) = W_v (sum p c)      and what comes out is a mixture of latents, which goes through W_v.

LoRA on kv_b_proj is a change to W_kvb, and so to both products: with B cut in the same rows, W_k^T + A^T B_k^T before,
W_v + B_v A after, each at the scale and the weight of the request's adapter. It then holds for every latent that the
request has in the cache. An engine that absorbs W_kvb when it starts, and adds the delta to the module, adds it to
nothing (vllm #48974).

Here a head begins with the channels that turn, as `Ops.rope` has it: q k is the same sum in any order.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Protocol

from .adapter import Adapter
from .adapter_slots import AdapterSlots, BoundAdapter, LoraWeights, adapter_scale, bind_adapter
from .arrays import Array, Float, Precision, namespace, rounded, widen
from .config import KVShape, ModelConfig
from .errors import LoracleError
from .mla_config import KV_NORM, Q_NORM, Mla
from .plans import Batch, Segment
from .weights import Model

KV_B = "kv_b_proj"
Heads = tuple[Array, Array, Array]  # q [tokens, heads, head_dim], k and v [tokens, kv_heads, ...], not yet turned


class Context(Protocol):
    """What is used here of a ForwardContext, of which Ops is a part, of which this is one."""

    project: Callable[..., Array]
    norm: Callable[..., Array]

    @property
    def model(self) -> Model: ...
    @property
    def batch(self) -> Batch: ...
    @property
    def adapters(self) -> AdapterSlots: ...
    @property
    def p(self) -> Precision: ...


@dataclass(frozen=True)
class LatentForm:
    """One way to compute it: one field of Ops, because what is read has to be what was cached."""

    kv_shape: Callable[[ModelConfig, int], KVShape]  # of a layer
    heads: Callable[..., Heads]
    values: Callable[..., Array]  # what attention returned -> the heads' values


def queries_and_latents(run: Context, h: Array, layer: int) -> tuple[Array, Array, Array]:
    """q [tokens, heads, rope + nope], r [tokens, 1, rope] and the latent [tokens, kv_lora_rank] of some tokens."""
    mla, project, norm = run.model.config.mla, run.project, run.norm
    assert mla is not None
    if mla.q_lora_rank is None:
        q = project(h, layer, "q_proj")
    else:
        q = project(norm(project(h, layer, "q_a_proj"), layer, Q_NORM, mla.eps), layer, "q_b_proj")
    q = q.reshape(-1, mla.heads, mla.qk_head_dim)
    q = namespace(q).concatenate([q[..., mla.qk_nope_head_dim :], q[..., : mla.qk_nope_head_dim]], axis=2)
    both = project(h, layer, "kv_a_proj_with_mqa")
    latent = namespace(q).ascontiguousarray(both[:, : mla.kv_lora_rank])
    return q, both[:, None, mla.kv_lora_rank :], norm(latent, layer, KV_NORM, mla.eps)


def expanded_heads(run: Context, h: Float[Array, "tokens d_model"], layer: int) -> Heads:
    """The definition: kv_b_proj is a module like all others, LoRA included."""
    mla = run.model.config.mla
    assert mla is not None
    q, r, latent = queries_and_latents(run, h, layer)
    kv = run.project(latent, layer, KV_B).reshape(-1, mla.heads, mla.qk_nope_head_dim + mla.v_head_dim)
    xp = namespace(q)
    k = xp.concatenate([r.repeat(mla.heads, axis=1), kv[..., : mla.qk_nope_head_dim]], axis=2)
    return q, k, kv[..., mla.qk_nope_head_dim :]


def expanded_values(run: Context, mixed: Array, layer: int) -> Float[Array, "tokens heads*value_dim"]:
    """What attention returned: it has read values."""
    return mixed


def absorbed_shape(config: ModelConfig, layer: int) -> KVShape:
    """[turn(r) | c], the key of all heads, whose last channels are their value as well."""
    mla = config.mla
    if mla is None:
        return config.kv_shape(layer)
    return KVShape(1, mla.qk_rope_head_dim + mla.kv_lora_rank, mla.kv_lora_rank, shared=True)


def absorbed_heads(run: Context, h: Float[Array, "tokens d_model"], layer: int) -> Heads:
    """[turning part of q | W_k^T q], and the latents as keys and values: LoRA as in the text above.

    A bias of lora_B adds the same number to all scores of a query, which softmax does not see."""
    model, p = run.model, run.p
    mla, xp = model.config.mla, namespace(h)
    assert mla is not None
    q, r, latent = queries_and_latents(run, h, layer)
    turning, q = q[..., : mla.qk_rope_head_dim], q[..., mla.qk_rope_head_dim :].transpose(1, 0, 2)
    changes = list(lora_rows(run, layer))
    for segment, lora in changes:
        if lora.dora is not None:
            gain, _ = key_and_value_rows(lora.dora.gain, mla)
            q[:, segment.rows] *= gain[:, None]
    W_k, _ = key_and_value_rows(widen(model.linear((layer, KV_B)).weight, p.compute), mla)
    y = q @ W_k
    for segment, lora in changes:
        B_k, _ = key_and_value_rows(lora.B, mla)
        low = rounded(q[:, segment.rows] @ B_k, p.lora_rank)
        y[:, segment.rows] += rounded(low @ lora.A * (lora.scale * segment.weight), p.lora_delta)
    q = xp.concatenate([turning, rounded(y, p.linear).transpose(1, 0, 2)], axis=2)
    return q, xp.concatenate([r, latent[:, None]], axis=2), latent[:, None]


def absorbed_values(run: Context, mixed: Array, layer: int) -> Float[Array, "tokens heads*value_dim"]:
    """W_v of each head's mixture of latents, with each row's own LoRA."""
    model, p = run.model, run.p
    mla = model.config.mla
    assert mla is not None
    latent = mixed.reshape(-1, mla.heads, mla.kv_lora_rank).transpose(1, 0, 2)
    _, W_v = key_and_value_rows(widen(model.linear((layer, KV_B)).weight, p.compute), mla)
    y = latent @ W_v.swapaxes(1, 2)
    for segment, lora in lora_rows(run, layer):
        _, B_v = key_and_value_rows(lora.B, mla)
        delta = rounded(latent[:, segment.rows] @ lora.A.T, p.lora_rank) @ B_v.swapaxes(1, 2)
        if lora.bias is not None:
            _, bias = key_and_value_rows(lora.bias, mla)
            delta += bias[:, None]
        y[:, segment.rows] += rounded(delta * (lora.scale * segment.weight), p.lora_delta)
        if lora.dora is not None:
            _, gain = key_and_value_rows(lora.dora.gain, mla)
            y[:, segment.rows] *= gain[:, None]
    return rounded(y, p.linear).transpose(1, 0, 2).reshape(mixed.shape[0], -1)


def key_and_value_rows(
    x: Array, mla: Mla
) -> tuple[Float[Array, "heads nope *rest"], Float[Array, "heads value_dim *rest"]]:
    """The rows of kv_b_proj, or of something as long, head by head: those of keys, and those of values."""
    rows = x.reshape(mla.heads, mla.qk_nope_head_dim + mla.v_head_dim, *x.shape[1:])
    return rows[:, : mla.qk_nope_head_dim], rows[:, mla.qk_nope_head_dim :]


def lora_rows(run: Context, layer: int) -> Iterator[tuple[Segment, LoraWeights]]:
    """Which rows of the batch have which LoRA on kv_b_proj."""
    resident = run.adapters.at((layer, KV_B))
    for column in run.batch.lora.device.columns:
        for segment in column.segments:
            if segment.slot in resident:
                yield segment, resident[segment.slot]


def bind_absorbed(
    adapter: Adapter, config: ModelConfig, scale: Callable[[float, int, bool], float] = adapter_scale
) -> BoundAdapter:
    """adapter_slots.bind_adapter. LoracleError for an aLoRA on kv_b_proj: the latents before its invocation are the
    base's, and a query that has gone through one W_k meets them all."""
    if adapter.config.alora_invocation_tokens and any(name == KV_B for _, name in adapter.lora):
        raise LoracleError(
            f"ops absorbed: adapter {adapter.name} is an aLoRA with LoRA on {KV_B}, which is two matrices in one "
            "context; use ops numpy"
        )
    return bind_adapter(adapter, config, scale)


EXPANDED = LatentForm(ModelConfig.kv_shape, expanded_heads, expanded_values)
ABSORBED = LatentForm(absorbed_shape, absorbed_heads, absorbed_values)
