"""The backward pass: the page that everyone reads who has read model.py.

    dlogits -> layers x { gated mlp -> rms_norm -> o -> attention -> rope -> q, k, v -> rms_norm } -> embed

It is model.forward the other way round, with the same names: `dx` stands where `x` stood, `backward_project` where
`project` did. Gradients are taken for the adapters' parameters alone; the base is only passed through. `forward` is
model.forward once more, to the bit, except that dropout comes before each LoRA, and what the way back needs is kept.
"""

from dataclasses import dataclass

from ..arrays import Array, Float, Precision, namespace
from ..config import EMBED, LM_HEAD, Module
from ..kv_cache import KVCache
from ..lora import AdapterSlots, added_by
from ..model import base
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
    """What the backward pass of one layer needs of its forward pass; x is the residual stream."""

    x: Float[Array, "tokens d_model"]
    h: Float[Array, "tokens d_model"]
    q: Float[Array, "tokens heads head_dim"]  # q and k: after the rotation
    k: Float[Array, "tokens kv_heads head_dim"]
    v: Float[Array, "tokens kv_heads head_dim"]
    mixed: Float[Array, "tokens d_in"]
    x_mlp: Float[Array, "tokens d_model"]
    h_mlp: Float[Array, "tokens d_model"]
    gate: Float[Array, "tokens d_mlp"]
    up: Float[Array, "tokens d_mlp"]
    activated: Float[Array, "tokens d_mlp"]


@dataclass(frozen=True, eq=False)
class Kept:
    """What the backward pass needs of the forward pass: each layer's Activations, or only the x that it began with."""

    layers: list[Activations | Array]
    x: Float[Array, "rows d_model"]
    h: Float[Array, "rows d_model"]


def forward(run: Pass, recompute: bool = False) -> tuple[Float[Array, "rows vocab"], Kept]:
    """The logits of `batch.logits_indices`, and what `backward` needs. recompute: keep of each layer only its input."""
    model, batch, eps = run.model, run.batch, run.model.config.rms_norm_eps
    layers: list[Activations | Array] = []
    x = project(run, batch.device.token_ids, EMBED, batch.lora)
    for i in range(len(model.layers)):
        layers.append(x)
        x, activations = forward_layer(run, x, i)
        if not recompute:
            layers[-1] = activations
    x = x[batch.device.logits_indices]
    h = run.ops.rms_norm(x, model.norm, eps, run.p)
    return project(run, h, LM_HEAD, batch.logits_lora), Kept(layers, x, h)


def backward(run: Pass, dlogits: Float[Array, "rows vocab"], kept: Kept) -> Gradients:
    """The gradients of every adapter's parameters, by slot. A parameter that no token met has none."""
    model, batch, eps = run.model, run.batch, run.model.config.rms_norm_eps
    gradients: Gradients = {}
    dh = backward_project(run, dlogits, kept.h, LM_HEAD, batch.logits_lora, gradients)
    dx = namespace(dh).zeros((len(batch.token_ids), dh.shape[1]), dh.dtype)
    dx[batch.device.logits_indices] = run.gradient_ops.rms_norm(dh, kept.x, model.norm, eps, run.p)
    for i in reversed(range(len(model.layers))):
        activations = kept.layers[i]
        if not isinstance(activations, Activations):
            _, activations = forward_layer(run, activations, i)
        dx = backward_layer(run, dx, activations, i, gradients)
    backward_project(run, dx, batch.device.token_ids, EMBED, batch.lora, gradients)
    return gradients


# ---- one layer, there and back --------------------------------------------------------------------------------------


def forward_layer(run: Pass, x: Float[Array, "tokens d_model"], i: int) -> tuple[Array, Activations]:
    """One layer of model.forward."""
    config, ops, batch, p = run.model.config, run.ops, run.batch, run.p
    norms, eps, (cos, sin) = run.model.layers[i].norms, config.rms_norm_eps, batch.device.ropes[0]
    k_cache, v_cache = run.cache.k[0], run.cache.v[0]

    def heads(x: Array) -> Float[Array, "tokens heads head_dim"]:
        return x.reshape(x.shape[0], -1, config.head_dim)

    h = ops.rms_norm(x, norms["input_layernorm"], eps, p)
    q = ops.rope(heads(project(run, h, (i, "q_proj"), batch.lora)), cos, sin, False, p)
    k = ops.rope(heads(project(run, h, (i, "k_proj"), batch.lora)), cos, sin, False, p)
    v = heads(project(run, h, (i, "v_proj"), batch.lora))
    ops.write_kv(k_cache, v_cache, k, v, batch.attention, p)
    mixed = ops.attention(q, k_cache, v_cache, batch.attention, config.view(i), p)
    x_mlp = x + project(run, mixed, (i, "o_proj"), batch.lora)

    h_mlp = ops.rms_norm(x_mlp, norms["post_attention_layernorm"], eps, p)
    gate = project(run, h_mlp, (i, "gate_proj"), batch.lora)
    up = project(run, h_mlp, (i, "up_proj"), batch.lora)
    activated = ops.mlp_activation(gate, up, config.activation, p)
    y = x_mlp + project(run, activated, (i, "down_proj"), batch.lora)
    return y, Activations(x, h, q, k, v, mixed, x_mlp, h_mlp, gate, up, activated)


def backward_layer(
    run: Pass, dx: Float[Array, "tokens d_model"], kept: Activations, i: int, gradients: Gradients
) -> Float[Array, "tokens d_model"]:
    """The same lines from the last to the first: dx of the layer's output -> dx of its input.

    Where the forward pass used a value more than once, its gradients are added: x goes on and into the norm, h into
    q, k and v."""
    config, vjp, batch, p = run.model.config, run.gradient_ops, run.batch, run.p
    norms, eps, (cos, sin) = run.model.layers[i].norms, config.rms_norm_eps, batch.device.ropes[0]

    def back(dy: Array, x: Array, name: str) -> Float[Array, "tokens d_in"]:
        return backward_project(run, dy.reshape(dy.shape[0], -1), x, (i, name), batch.lora, gradients)

    dactivated = back(dx, kept.activated, "down_proj")
    dgate, dup = vjp.mlp_activation(dactivated, kept.gate, kept.up, p)
    dh = back(dup, kept.h_mlp, "up_proj") + back(dgate, kept.h_mlp, "gate_proj")
    dx = dx + vjp.rms_norm(dh, kept.x_mlp, norms["post_attention_layernorm"], eps, p)

    dmixed = back(dx, kept.mixed, "o_proj")
    dq, dk, dv = vjp.attention(dmixed, kept.q, kept.k, kept.v, batch.attention, config.sliding_window, p)
    dq, dk = vjp.rope(dq, cos, sin, p), vjp.rope(dk, cos, sin, p)
    dh = back(dv, kept.h, "v_proj") + back(dk, kept.h, "k_proj") + back(dq, kept.h, "q_proj")
    return dx + vjp.rms_norm(dh, kept.x, norms["input_layernorm"], eps, p)


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
    """The way back through model.base: rows whose adapter trains a whole weight (modules_to_save) go through that."""
    vjp, replaced = run.gradient_ops, run.adapters.base_at(module)
    if module == EMBED:
        dx = namespace(dy).zeros((dy.shape[0], 0), dy.dtype)
    else:
        dx = vjp.linear(dy, run.model.linear(module).weight, run.p)
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
