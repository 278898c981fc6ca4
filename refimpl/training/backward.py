"""The backward pass: the page that everyone reads who has read model.py.

    dlogits -> layers x { gated mlp -> rms_norm -> o -> attention -> rope -> q, k, v -> rms_norm } -> embed

It is model.forward the other way round, with the same names: `dx` stands where `x` stood, `backward_project` where
`project` did. Gradients are taken for the adapters' parameters alone; the base is only passed through. `forward` is
model.forward once more, to the bit, except that dropout comes before each LoRA, what the way back needs is kept, and
the last layer is computed for all tokens, as it is in model.forward where all of them get logits.
"""

import operator
from collections.abc import Sequence
from dataclasses import dataclass
from functools import reduce

import numpy as np

from ..adapter_slots import AdapterSlots
from ..arrays import Array, Float, Precision, namespace
from ..config import EMBED, LM_HEAD, Module
from ..forward_context import base
from ..kv_cache import KVCache
from ..lora import added_by
from ..ops import Ops
from ..plans import Batch, LoraMapping
from ..weights import Model
from .dora_gradients import has_dora
from .dropout import Dropout
from .gradient_ops import GradientOps
from .lora_gradients import Gradients, add_gradients
from .parameters import Key


@dataclass(frozen=True, eq=False)
class Pass:
    """All that one pass over a batch reads, in both directions."""

    model: Model
    batch: Batch
    cache: KVCache  # room for one layer: each writes its keys and values over those of the one before
    adapters: AdapterSlots
    dropout: Dropout
    ops: Ops
    gradient_ops: GradientOps
    p: Precision


@dataclass(frozen=True, eq=False)
class Activations:
    """What the backward pass of one layer needs of its forward pass."""

    h: Float[Array, "tokens d_model"]
    q: Float[Array, "tokens heads head_dim"]  # q, k and v: as attention gets them
    k: Float[Array, "tokens kv_heads head_dim"]
    v: Float[Array, "tokens kv_heads head_dim"]
    mixed: Float[Array, "tokens d_in"]
    h_mlp: Float[Array, "tokens d_model"]
    gate: Float[Array, "tokens d_mlp"]
    up: Float[Array, "tokens d_mlp"]
    activated: Float[Array, "tokens d_mlp"]
    normed: dict[str, Array]  # a norm's name -> what it was given


@dataclass(frozen=True, eq=False)
class Kept:
    """What the backward pass needs of the forward pass: each layer's Activations, or only the x that it began with."""

    layers: list[Activations | Array]
    x: Float[Array, "rows d_model"]
    h: Float[Array, "rows d_model"]
    logits: Float[Array, "rows vocab"]


def forward(run: Pass, recompute: bool = False) -> tuple[Float[Array, "rows vocab"], Kept]:
    """The logits of `batch.logits_indices`, and what `backward` needs. recompute: keep of each layer only its input."""
    model, config, batch, ops, p = run.model, run.model.config, run.batch, run.ops, run.p
    layers: list[Activations | Array] = []
    x = ops.scaled(project(run, batch.device.token_ids, EMBED, batch.lora), config.embedding_multiplier, p)
    for i in range(config.num_hidden_layers):
        layers.append(x)
        x, activations = forward_layer(run, x, i)
        if not recompute:
            layers[-1] = activations
    x = x[batch.device.logits_indices]
    h = ops.rms_norm(x, model.norm, config.rms_norm_eps, p)
    logits = ops.scaled(project(run, h, LM_HEAD, batch.logits_lora), 1 / config.logits_scaling, p)
    logits = ops.softcap(logits, config.logits_softcap, p.logits)
    return logits, Kept(layers, x, h, logits)


def backward(run: Pass, dlogits: Float[Array, "rows vocab"], kept: Kept) -> Gradients:
    """The gradients of every adapter's parameters, by slot. A parameter that no token met has none."""
    model, config, batch, ops, vjp, p = run.model, run.model.config, run.batch, run.ops, run.gradient_ops, run.p
    gradients: Gradients = {}
    dlogits = ops.scaled(vjp.softcap(dlogits, kept.logits, config.logits_softcap), 1 / config.logits_scaling, p)
    dh = backward_project(run, dlogits, kept.h, LM_HEAD, batch.logits_lora, gradients)
    dx = namespace(dh).zeros((len(batch.token_ids), dh.shape[1]), dh.dtype)
    dx[batch.device.logits_indices] = vjp.rms_norm(dh, kept.x, model.norm, config.rms_norm_eps, p)
    for i in reversed(range(config.num_hidden_layers)):
        activations = kept.layers[i]
        if not isinstance(activations, Activations):
            _, activations = forward_layer(run, activations, i)
        dx = backward_layer(run, dx, activations, i, gradients)
    dx = ops.scaled(dx, config.embedding_multiplier, p)
    backward_project(run, dx, batch.device.token_ids, EMBED, batch.lora, gradients)
    return gradients


# ---- one layer, there and back --------------------------------------------------------------------------------------


def forward_layer(run: Pass, x: Float[Array, "tokens d_model"], i: int) -> tuple[Array, Activations]:
    """One layer of model.forward, line by line."""
    config, norms, batch, ops, p = run.model.config, run.model.config.norms, run.batch, run.ops, run.p
    rope, turns = config.kind(i).rope, dict(zip(config.ropes, batch.device.ropes, strict=True))
    k_cache, v_cache, normed = run.cache.k[0], run.cache.v[0], {}

    def parts(x: Array, names: Sequence[str], widths: Sequence[int]) -> Sequence[Array]:
        if len(names) == len(widths):
            return [project(run, x, (i, name), batch.lora) for name in names]
        return namespace(x).split(project(run, x, (i, names[0]), batch.lora), np.cumsum(widths[:-1]), axis=1)

    def norm(x: Array, name: str | None) -> Array:
        if name is None:
            return x
        normed[name], weight = x, run.model.layers[i].norms[name]
        return ops.rms_norm(x.reshape(-1, weight.size), weight, config.rms_norm_eps, p).reshape(x.shape)

    def turned(x: Array) -> Float[Array, "tokens heads head_dim"]:
        x = x.reshape(x.shape[0], -1, config.head_dim)
        return x if rope is None else ops.rope(x, *turns[rope], rope.interleaved, p)

    def added(x: Array, y: Array) -> Float[Array, "tokens d_model"]:
        return x + ops.scaled(y, config.residual_multiplier, p)

    h = norm(x, norms.attention_in)
    q, k, v = parts(h, config.qkv, config.head_widths(i))
    q = ops.scaled(norm(turned(norm(q, norms.q)), norms.q_turned), batch.device.query_growth, p)
    k = norm(turned(norm(k, norms.k)), norms.k_turned)
    v = v.reshape(k.shape)
    ops.write_kv(k_cache, v_cache, k, v, batch.attention, p)
    mixed = ops.attention(q, k_cache, v_cache, batch.attention, config.view(i), p)
    x = added(x, norm(project(run, mixed, (i, "o_proj"), batch.lora), norms.attention_out))

    h_mlp = norm(x, norms.mlp_in)
    gate, up = parts(h_mlp, config.gate_up, [config.mlp_width(i)] * 2)
    activated = ops.mlp_activation(gate, up, config.activation, p)
    x = added(x, norm(project(run, activated, (i, config.down), batch.lora), norms.mlp_out))
    return x, Activations(h, q, k, v, mixed, h_mlp, gate, up, activated, normed)


def backward_layer(
    run: Pass, dx: Float[Array, "tokens d_model"], kept: Activations, i: int, gradients: Gradients
) -> Float[Array, "tokens d_model"]:
    """The same lines from the last to the first: dx of the layer's output -> dx of its input.

    Where the forward pass used a value more than once, its gradients are added: x goes on and into the norm, h into
    q, k and v."""
    config, norms, batch, ops, p = run.model.config, run.model.config.norms, run.batch, run.ops, run.p
    vjp, rope, turns = run.gradient_ops, config.kind(i).rope, dict(zip(config.ropes, batch.device.ropes, strict=True))

    def project(dy: Array, x: Array, name: str) -> Float[Array, "tokens d_in"]:
        return backward_project(run, dy, x, (i, name), batch.lora, gradients)

    def parts(gradients_of_parts: Sequence[Array], x: Array, names: Sequence[str]) -> Float[Array, "tokens d_in"]:
        flat = [dy.reshape(len(dy), -1) for dy in gradients_of_parts]
        if len(names) < len(flat):  # one module for all of them
            flat = [namespace(x).concatenate(flat, axis=1)]
        return reduce(operator.add, (project(dy, x, name) for dy, name in zip(flat, names, strict=True)))

    def norm(dy: Array, name: str | None) -> Array:
        if name is None:
            return dy
        x, weight = kept.normed[name], run.model.layers[i].norms[name]
        rows = (dy.reshape(-1, weight.size), x.reshape(-1, weight.size))
        return vjp.rms_norm(*rows, weight, config.rms_norm_eps, p).reshape(dy.shape)

    def turned(dy: Array) -> Float[Array, "tokens heads head_dim"]:
        return dy if rope is None else vjp.rope(dy, *turns[rope], rope.interleaved, p)

    dy = norm(ops.scaled(dx, config.residual_multiplier, p), norms.mlp_out)
    dactivated = project(dy, kept.activated, config.down)
    assert isinstance(config.activation, str)  # a clamped gate is of experts, and check_task refuses these
    dgate, dup = vjp.mlp_activation(dactivated, kept.gate, kept.up, config.activation, p)
    dx = dx + norm(parts((dgate, dup), kept.h_mlp, config.gate_up), norms.mlp_in)

    dy = norm(ops.scaled(dx, config.residual_multiplier, p), norms.attention_out)
    dmixed = project(dy, kept.mixed, "o_proj")
    dq, dk, dv = vjp.attention(dmixed, kept.q, kept.k, kept.v, batch.attention, config.view(i), p)
    dk = norm(turned(norm(dk, norms.k_turned)), norms.k)
    dq = norm(turned(norm(ops.scaled(dq, batch.device.query_growth, p), norms.q_turned)), norms.q)
    return dx + norm(parts((dq, dk, dv), kept.h, config.qkv), norms.attention_in)


# ---- one module, there and back -------------------------------------------------------------------------------------


def project(run: Pass, x: Array, module: Module, mapping: LoraMapping) -> Float[Array, "tokens d_out"]:
    """What the base computes, plus what each token's adapter adds to it. x is token ids at the embedding.

    Under dropout, DoRA stretches what the base makes of the input as it was dropped (peft/tuners/lora/variants.py)."""
    lora_delta, dropped = run.ops.lora_delta, run.dropout(x, module, mapping)
    y = base(run.model, x, module, run.adapters, mapping, run.ops, run.p)
    if dropped is x or not has_dora(module, run.adapters):
        lora_delta(y, dropped, module, run.adapters, mapping, run.p)
        return y
    y_dropped = base(run.model, dropped, module, run.adapters, mapping, run.ops, run.p)
    return y + added_by(lora_delta, y_dropped, dropped, module, run.adapters, mapping, run.p)


def backward_project(
    run: Pass, dy: Float[Array, "tokens d_out"], x: Array, module: Module, mapping: LoraMapping, gradients: Gradients
) -> Float[Array, "tokens d_in"]:
    """dx = what comes back through the base, plus what comes back through the adapters.

    Token ids have no gradient: at the embedding dx is [tokens, 0]. The gradients of the adapters' parameters in this
    module are added to `gradients`."""
    vjp, dropped = run.gradient_ops, run.dropout(x, module, mapping)
    dbase, ddropped, parts = vjp.lora_delta(dy, dropped, module, run.adapters, mapping, run.p)
    for slot, of_slot in parts.items():
        add_gradients(gradients, slot, of_slot)
    if dropped is not x and has_dora(module, run.adapters):
        ddropped += vjp.linear(dbase - dy, run.model.linear(module).weight, run.p)
        dbase = dy
    return backward_base(run, dbase, x, module, mapping, gradients) + run.dropout(ddropped, module, mapping)


def backward_base(
    run: Pass, dy: Float[Array, "tokens d_out"], x: Array, module: Module, mapping: LoraMapping, gradients: Gradients
) -> Float[Array, "tokens d_in"]:
    """The way back through forward_context.base: rows whose adapter trains a whole weight go through that one."""
    vjp, replaced = run.gradient_ops, run.adapters.base_at(module)
    if module == EMBED:
        dx = namespace(dy).zeros((dy.shape[0], 0), dy.dtype)
    else:
        weight = run.model.linear(module).weight
        dx = vjp.linear(dy[:, : len(weight)], weight, run.p)  # what is wider goes through an adapter's own layer, below
    for segment in mapping.device.columns[0].segments:
        if segment.slot not in replaced:
            continue
        rows, weight = segment.rows, replaced[segment.slot].weight
        if module == EMBED:
            gradient = vjp.embed_weight(dy[rows], x[rows], weight.shape[0])
        else:
            dx[rows] = vjp.linear(dy[rows], weight, run.p)
            gradient = vjp.linear_weight(dy[rows], x[rows])
        add_gradients(gradients, segment.slot, {Key(module, "weight"): gradient})
    return dx
