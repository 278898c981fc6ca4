"""The forward pass: the page that everyone reads.

    embed -> layers x { rms_norm -> q, k, v -> rope -> write_kv -> attention -> o -> rms_norm -> gated mlp } -> logits

x, the residual stream, is what each layer reads and adds to. Every linear layer is `project`: what the base computes,
plus what each token's adapters add to it. All that changes while a model runs (the cache, the adapter slots) is passed
in. That is a Llama. What another family has besides (norms in other places, a rotation of its own, multipliers,
soft-caps) is data of its config, and nothing in a Llama's.
"""

from collections.abc import Sequence

import numpy as np

from .adapter_cache import AdapterCache
from .adapter_slots import AdapterSlots
from .alora import starts_of
from .arrays import Array, Float, Precision, ceil_div, namespace, rounded, to_host
from .batch import ScheduledRequest, make_batch
from .config import EMBED, LM_HEAD, Mlp, Module, short_name
from .kv_cache import KVCache
from .layer_inputs import end_of_layer
from .layers import embed
from .lora import added_by
from .moe import experts
from .ops import NUMPY, Ops
from .plans import Batch, LoraMapping
from .request import Request, check_list, check_request
from .tracing import active_trace
from .weights import Linear, Model


def forward(
    model: Model,
    batch: Batch,
    cache: KVCache,
    adapters: AdapterSlots,
    ops: Ops,
    p: Precision,
    head: Module = LM_HEAD,
) -> Float[Array, "rows vocab"]:
    """One forward pass over all scheduled tokens of all requests: the logits of `batch.logits_indices`.

    Keys and values of the tokens are written to the cache. Where an adapter of the batch extends the vocabulary, the
    rows of the others are filled up with -inf."""
    config, norms, trace = model.config, model.config.norms, active_trace()
    note = trace.note if trace is not None else ignore
    normalised = ops.layer_norm if norms.centred else ops.rms_norm
    turns = dict(zip(config.ropes, batch.device.ropes, strict=True))

    def project(
        x: Array, layer: int, name: str, mapping: LoraMapping = batch.lora, p: Precision = p
    ) -> Float[Array, "tokens d_out"]:
        module = (layer, name)
        y = base(model, x, module, adapters, mapping, ops, p)
        if trace is not None:
            delta = added_by(ops.lora_delta, y, x, module, adapters, mapping, p)
            note(f"{short_name(module)}.", input=x, base=y, lora=delta)
        ops.lora_delta(y, x, module, adapters, mapping, p)
        return ops.all_reduce(y, module, p)

    def parts(
        x: Array, layer: int, names: Sequence[str], widths: Sequence[int], mapping: LoraMapping = batch.lora
    ) -> Sequence[Array]:
        each = [project(x, layer, name, mapping) for name in names]
        if each[0].shape[1] == widths[0]:
            return each
        return namespace(x).split(each[0], np.cumsum(widths[:-1]), axis=1)  # one module for all of them

    def norm(x: Array, layer: int, name: str | None, eps: float = config.rms_norm_eps) -> Array:
        if name is None:
            return x
        weight = model.layers[layer].norms[name]  # as wide as the model, as one head, or as all heads together
        return normalised(x.reshape(-1, weight.shape[-1]), weight, eps, p).reshape(x.shape)

    def heads(x: Array, layer: int) -> Sequence[Float[Array, "tokens heads head_dim"]]:
        if config.mla is not None:
            return ops.latent.heads(model, x, layer, project, norm, adapters, batch.lora, p)
        each = parts(x, layer, config.qkv_of(layer), config.head_widths(layer))
        return [y.reshape(y.shape[0], -1, config.head_shape(layer)[1]) for y in each]

    def turned(x: Array, layer: int) -> Float[Array, "tokens heads head_dim"]:
        rope = config.kind(layer).rope
        return x if rope is None else ops.rope(x, *turns[rope], rope.interleaved, p)

    def added(x: Array, y: Array) -> Float[Array, "tokens d_model"]:
        return rounded(x + ops.scaled(y, config.residual_multiplier, p), p.residual)

    def mlp(x: Array, layer: int, names: Mlp, mapping: LoraMapping = batch.lora) -> Float[Array, "tokens d_model"]:
        gate, *up = parts(x, layer, names.gate_up, [names.width] * 2, mapping)
        x = ops.mlp_activation(gate, up[0] if up else None, config.activation, p)
        note(f"layers.{layer}.{names.scope}", mlp=x)
        return project(x, layer, names.down, mapping)

    x = ops.scaled(project(batch.device.token_ids, *EMBED), config.embedding_multiplier, p)
    finish = end_of_layer(model, x, batch.device.token_ids, project, norm, ops, p)
    for i in range(config.num_hidden_layers):
        h = norm(x, i, norms.attention_in)
        q, *kv = heads(h, i)
        q = norm(turned(norm(q, i, norms.q), i), i, norms.q_turned)
        q = ops.scaled(q, batch.device.query_growth, p)
        if kv:  # or else it reads an earlier layer's; where there is one for both, k is v
            k = norm(turned(norm(kv[0], i, norms.k), i), i, norms.k_turned)
            v = norm(kv[-1], i, norms.v)
            ops.write_kv(cache.k[i], cache.v[i], k, v, batch.attention, p)
            note(f"layers.{i}.", k_rope=k)
        mixed = ops.attention(q, cache.k[i], cache.v[i], batch.attention, model.view(i), p)
        if config.mla is not None:
            mixed = ops.latent.values(model, mixed, i, adapters, batch.lora, p)
        x = added(x, norm(project(mixed, i, "o_proj"), i, norms.attention_out))
        note(f"layers.{i}.", q_rope=q, attention=mixed)

        h = h if config.parallel else norm(x, i, norms.mlp_in)
        sparse = config.kind(i).sparse
        h = experts(model, h, i, project, mlp, batch.lora, ops, p) if sparse else mlp(h, i, config.mlp(i))
        x = finish(added(x, norm(h, i, norms.mlp_out)), i)
        note(f"layers.{i}.", output=x)

    h = normalised(x[batch.device.logits_indices], model.norm, config.rms_norm_eps, p)
    note("", norm=h)
    if head != LM_HEAD:  # of a classification (classification.py)
        return project(h, *head, batch.logits_lora)
    logits = rounded(ops.all_gather(project(h, *LM_HEAD, batch.logits_lora)), p.logits)
    logits = ops.softcap(ops.scaled(logits, 1 / config.logits_scaling, p), config.logits_softcap, p.logits)
    note("", logits=logits)
    return logits


def base(
    model: Model, x: Array, module: Module, adapters: AdapterSlots, mapping: LoraMapping, ops: Ops, p: Precision
) -> Float[Array, "tokens d_out"]:
    """What a module computes without LoRA. x is token ids at the embedding.

    Rows whose adapter brings its own layer along (modules_to_save, bias="all", trainable tokens) go through that one.
    Such an adapter is alone on its request and unweighted (check_request): column 0 of the mapping has it."""
    replaced = adapters.base_at(module)
    replacing = mapping.slots & replaced.keys() if replaced else None
    if not replacing:
        return apply(model.linear(module), x, module, ops, p)
    groups = [
        (segment.rows, replaced[segment.slot])
        for segment in mapping.device.columns[0].segments
        if segment.slot in replacing
    ]
    others = mapping.rows_without(frozenset(replacing))
    if isinstance(others, slice) or others.size:
        groups.append((others, model.linear(module)))
    parts = [(rows, apply(layer, x[rows], module, ops, p)) for rows, layer in groups]
    y = namespace(model.norm).full((x.shape[0], max(part.shape[1] for _, part in parts)), -np.inf, p.compute)
    for rows, part in parts:
        y[rows, : part.shape[1]] = part
    return y


def apply(layer: Linear, x: Array, module: Module, ops: Ops, p: Precision) -> Float[Array, "tokens d_out"]:
    """One layer: a look-up at the embedding, a product everywhere else. Some tokens may have rows of their own."""
    y = ops.embed(layer.weight, x, p) if module == EMBED else ops.linear(x, layer.weight, layer.bias, p)
    if layer.tokens is None:
        return y
    if module == LM_HEAD:
        y[:, layer.tokens.ids] = ops.linear(x, layer.tokens.rows, None, p)
        return y
    matches = x[:, None] == layer.tokens.ids
    y[matches.any(axis=1)] = embed(layer.tokens.rows, matches.argmax(axis=1)[matches.any(axis=1)], p)
    return y


def ignore(scope: str, **values: Array) -> None:
    """Record nothing: no trace is active."""


def logits(
    model: Model, requests: Sequence[Request], ops: Ops = NUMPY, precision: Precision | None = None
) -> list[Float[Array, "tokens vocab"]]:
    """The logits of every prompt token of every request, all of them in one batch.

    One array [len(prompt), vocab] per request, in request order, in the type that products were taken in. The first
    line of a user's check of any engine."""
    p = model.precision(precision or Precision(ops.precision, model.dtype))
    check_list(requests)
    for request in requests:
        check_request(request, model.config)
    if not requests:
        return []
    batch, cache, adapters = whole_prompts(model, requests, ops, p, every_row=True)
    rows = to_host(forward(model, batch, cache, adapters.slots, ops, p))
    starts = batch.attention.query_start_loc
    return [
        rows[start:stop, : logit_width(r, model)] for r, start, stop in zip(requests, starts, starts[1:], strict=False)
    ]


def whole_prompts(
    model: Model, requests: Sequence[Request], ops: Ops, p: Precision, every_row: bool
) -> tuple[Batch, KVCache, AdapterCache]:
    """Return the batch that computes the prompts of all requests at once, with a cache and slots for it alone."""
    block_size = 16
    lengths = [len(r.prompt_ids) for r in requests]
    blocks = [ceil_div(n, block_size) for n in lengths]
    cache = KVCache(model.config, sum(blocks), block_size, p, model.device, ops.select_victim, ops.latent.kv_shape)
    adapters = AdapterCache(model, p, ops)
    scheduled = [
        ScheduledRequest(
            r.prompt_ids,
            0,
            cache.allocate(n),
            [(adapters.acquire(adapter), weight) for adapter, weight in r.adapters],
            starts=starts_of(r, ops.activation_start),
        )
        for r, n in zip(requests, blocks, strict=True)
    ]
    return make_batch(scheduled, cache, adapters.slots, ops, every_row), cache, adapters


def logit_width(request: Request, model: Model) -> int:
    """How many logits this request gets: the rows of the lm_head that its adapter brings along, or the base's."""
    heads = (adapter.replaced[LM_HEAD] for adapter, _ in request.adapters if LM_HEAD in adapter.replaced)
    return next((head.shape[0] for head in heads), model.config.vocab_size)
