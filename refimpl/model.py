"""The forward pass: the page that everyone reads.

    embed -> layers x { rms_norm -> q, k, v -> rope -> write_kv -> attention -> o -> rms_norm -> gated mlp } -> logits

Every linear layer is `project`: what the base computes, plus what each token's adapters add to it. All that changes
while a model runs (the cache, the bank of adapters) is passed in.
"""

from collections.abc import Mapping, Sequence

import numpy as np

from .adapter_cache import AdapterCache
from .arrays import Array, Float, Precision, namespace, rounded, to_host
from .batch import Batch, ScheduledRequest, make_batch
from .config import EMBED, LM_HEAD, Module, module_name
from .kv_cache import KVCache
from .lora import AdapterSlots, segments
from .ops import NUMPY, Ops
from .request import Request, check_list, check_request
from .tracing import Trace, active_trace
from .weights import Linear, Model


def forward(
    model: Model, batch: Batch, cache: KVCache, bank: AdapterSlots, ops: Ops, p: Precision
) -> Float[Array, "rows vocab"]:
    """One forward pass over all scheduled tokens of all requests: the logits of `batch.logit_rows`.

    Keys and values of the tokens are written to the cache. Where an adapter of the batch brings a larger vocabulary
    along, the rows of the others are filled up with -inf."""
    bank.check(batch.adapter_ids)
    config, t = model.config, active_trace()
    note = t.record if t is not None else ignore
    cos, sin = (
        namespace(model.norm).asarray(x) for x in ops.rope_table(config.rope, config.head_dim, batch.positions, p)
    )

    def project(x: Array, layer: int, module: str, rows: Array | slice = slice(None)) -> Array:
        ids, weights = batch.adapter_ids[rows], batch.adapter_weights[rows]
        return linear_with_adapters(model, x, (layer, module), bank, ids, weights, ops, p, t)

    def heads(x: Array) -> Array:
        return x.reshape(x.shape[0], -1, config.head_dim)

    x = project(batch.token_ids, *EMBED)
    for i, layer in enumerate(model.layers):
        h = ops.rms_norm(x, layer.input_layernorm, config.rms_norm_eps, p)
        q = ops.rope(heads(project(h, i, "q_proj")), cos, sin, p)
        k = ops.rope(heads(project(h, i, "k_proj")), cos, sin, p)
        v = heads(project(h, i, "v_proj"))
        ops.write_kv(cache.k[i], cache.v[i], k, v, batch.slot_mapping, p)
        mixed = ops.attention(
            q,
            cache.k[i],
            cache.v[i],
            batch.query_start_loc,
            batch.context_lens,
            batch.block_tables,
            config.sliding_window,
            p,
        )
        x = rounded(x + project(mixed, i, "o_proj"), p.residual)
        note(f"layers.{i}.q_rope", q)
        note(f"layers.{i}.k_rope", k)
        note(f"layers.{i}.attention", mixed)

        h = ops.rms_norm(x, layer.post_attention_layernorm, config.rms_norm_eps, p)
        h = ops.mlp_activation(project(h, i, "gate_proj"), project(h, i, "up_proj"), p)
        x = rounded(x + project(h, i, "down_proj"), p.residual)
        note(f"layers.{i}.mlp", h)
        note(f"layers.{i}.output", x)

    h = ops.rms_norm(x[namespace(x).asarray(batch.logits_indices)], model.norm, config.rms_norm_eps, p)
    logits = rounded(project(h, *LM_HEAD, batch.logits_indices), p.logits)
    note("norm", h)
    note("logits", logits)
    return logits


def linear_with_adapters(
    model: Model,
    x: Array,
    module: Module,
    bank: AdapterSlots,
    adapter_ids: Array,
    adapter_weights: Array,
    ops: Ops,
    p: Precision,
    t: Trace | None = None,
) -> Float[Array, "tokens d_out"]:
    """What the base computes at a site, plus what each token's adapters add. x is token ids at the embedding."""
    own = bank.base_at(module)
    y = (
        base_with_own(model, x, module, own, adapter_ids, ops, p)
        if own
        else base(model.linear(module), x, module, ops, p)
    )
    if t is not None:
        name = module_name(module).removeprefix("model.").replace("self_attn.", "").replace("mlp.", "")
        delta = namespace(y).zeros_like(y)
        ops.lora_delta(delta, x, bank, module, adapter_ids, adapter_weights, p)
        t.record(f"{name}.input", x)
        t.record(f"{name}.base", y)
        t.record(f"{name}.lora", delta)
    ops.lora_delta(y, x, bank, module, adapter_ids, adapter_weights, p)
    return y


def base(layer: Linear, x: Array, module: Module, ops: Ops, p: Precision) -> Float[Array, "tokens d_out"]:
    """One layer without adapters."""
    return ops.embed(layer.weight, x, p) if module == EMBED else ops.linear(x, layer.weight, layer.bias, p)


def base_with_own(
    model: Model, x: Array, module: Module, own: Mapping[int, Linear], adapter_ids: Array, ops: Ops, p: Precision
) -> Float[Array, "tokens d_out"]:
    """The same where some adapters bring their own layer along (modules_to_save, bias="all"): their rows go through it.

    Such an adapter is alone on its request and unweighted (check_request), so that column 0 names it."""
    the_base = max(own) + 1  # any number that no adapter has
    ids = np.where(np.isin(adapter_ids[:, 0], list(own)), adapter_ids[:, 0], the_base).astype(np.int32)
    layers = {**own, the_base: model.linear(module)}
    parts = [
        (rows, base(layers[a], x[rows], module, ops, p))
        for a, _, rows in segments(ids.tobytes(), np.ones(len(ids)).tobytes())
    ]
    y = namespace(model.norm).full((len(ids), max(part.shape[1] for _, part in parts)), -np.inf, p.compute)
    for rows, part in parts:
        y[rows, : part.shape[1]] = part
    return y


def ignore(name: str, x: Array) -> None:
    """Nobody is listening."""


def logits(
    model: Model, requests: Sequence[Request], ops: Ops = NUMPY, precision: Precision | None = None
) -> list[Float[Array, "tokens vocab"]]:
    """The logits of every prompt token of every request, all of them in one batch.

    One array [len(prompt), vocab] per request, in request order, in the type that products were taken in. The first
    line of a user's check of any engine."""
    p = precision or Precision("model", model.dtype)
    check_list(requests)
    for request in requests:
        check_request(request, model.config)
    if not requests:
        return []
    block_size = 16
    lengths = [len(r.prompt_ids) for r in requests]
    blocks = [-(-n // block_size) for n in lengths]
    cache = KVCache(model.config, sum(blocks), block_size, p, model.device, ops.select_victim)
    adapters = AdapterCache(model, p, ops)
    work = [
        ScheduledRequest(
            r.prompt_ids, 0, cache.allocate(n), [(adapters.acquire(a), weight) for a, weight in r.adapters]
        )
        for r, n in zip(requests, blocks, strict=True)
    ]
    batch = make_batch(work, block_size, ops, every_row=True)
    rows = to_host(forward(model, batch, cache, adapters.bank, ops, p))
    return [
        rows[start:stop, : logit_width(r, model)]
        for r, start, stop in zip(requests, batch.query_start_loc, batch.query_start_loc[1:], strict=False)
    ]


def logit_width(request: Request, model: Model) -> int:
    """How many logits this request gets: the rows of the lm_head that its adapter brings along, or the base's."""
    return next(
        (a.replaced[LM_HEAD].shape[0] for a, _ in request.adapters if LM_HEAD in a.replaced), model.config.vocab_size
    )
