"""What one forward pass is made of, and the steps that every layer repeats: the linear layers, norms and rotations.

`project` is the one that multi-LoRA serving is about: what the base computes for all tokens at once, plus what each
token's own adapters add. model.py says in which order the steps come; moe.py, mla.py and layer_inputs.py, for the
families that have more than a Llama, use the same ones.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property

import numpy as np

from .adapter_slots import AdapterSlots
from .arrays import Array, Float, Precision, namespace, rounded
from .config import EMBED, LM_HEAD, Mlp, Module, Rope, short_name
from .layers import embed
from .lora import added_by
from .ops import Ops
from .plans import Batch, Index, LoraMapping
from .tracing import Trace, active_trace
from .weights import Linear, Model


@dataclass(frozen=True, eq=False)
class ForwardContext:
    """The arguments of a forward pass in one, and the steps as its methods. Nothing in it changes while it runs."""

    model: Model
    batch: Batch
    adapters: AdapterSlots
    ops: Ops
    p: Precision
    trace: Trace | None = field(default_factory=active_trace)
    rows: Index = field(default_factory=lambda: slice(None))  # which tokens of the batch the arrays have

    def project(
        self, x: Array, layer: int, name: str, mapping: LoraMapping | None = None, p: Precision | None = None
    ) -> Float[Array, "tokens d_out"]:
        """One linear layer, or at the embedding the look-up: the base, plus the adapters' deltas.

        mapping: which adapter each row of x has, where these are not all tokens of the batch."""
        ops, adapters, p, mapping = self.ops, self.adapters, p or self.p, mapping or self.batch.lora
        module = (layer, name)
        y = base(self.model, x, module, adapters, mapping, ops, p)
        if self.trace is not None:
            delta = added_by(ops.lora_delta, y, x, module, adapters, mapping, p)
            self.note(f"{short_name(module)}.", input=x, base=y, lora=delta)
        ops.lora_delta(y, x, module, adapters, mapping, p)
        return ops.all_reduce(y, module, p)

    def parts(
        self, x: Array, layer: int, names: Sequence[str], widths: Sequence[int], mapping: LoraMapping | None = None
    ) -> Sequence[Array]:
        """Several linear layers of one input, which the checkpoint may hold as one."""
        each = [self.project(x, layer, name, mapping) for name in names]
        if each[0].shape[1] == widths[0]:
            return each
        return namespace(x).split(each[0], np.cumsum(widths[:-1]), axis=1)  # one module for all of them

    def of_logits(self, *inputs: Array) -> tuple["ForwardContext", Sequence[Array]]:
        """The same for the rows that get logits, and these rows of each input: most of a prompt is done then."""
        rows = self.batch.device.logits_indices
        if len(rows) == len(inputs[0]):
            return self, inputs
        batch = replace(self.batch, lora=self.batch.logits_lora)
        return replace(self, batch=batch, rows=rows), [x[rows] for x in inputs]

    def norm(self, x: Array, layer: int, name: str | None, eps: float | None = None) -> Array:
        """A layer's norm of this name; x itself, where there is none."""
        return x if name is None else self.normalised(x, self.model.layers[layer].norms[name], eps)

    def normalised(self, x: Array, weight: Array, eps: float | None = None) -> Array:
        """x over as many channels as the norm has weights: those of the model, of one head, or of all heads."""
        config = self.model.config
        step = self.ops.layer_norm if config.norms.centred else self.ops.rms_norm
        eps = config.rms_norm_eps if eps is None else eps
        return step(x.reshape(-1, weight.shape[-1]), weight, eps, self.p).reshape(x.shape)

    def heads(self, h: Array, layer: int) -> Sequence[Float[Array, "tokens heads head_dim"]]:
        """q, k and v, not yet turned. Fewer, where a layer reads another's keys and values, or has one for both."""
        config = self.model.config
        if config.mla is not None:
            return self.ops.latent.heads(self, h, layer)
        each = self.parts(h, layer, config.qkv_of(layer), config.head_widths(layer))
        return [y.reshape(y.shape[0], -1, config.head_shape(layer)[1]) for y in each]

    def values(self, mixed: Array, layer: int) -> Float[Array, "tokens heads*value_dim"]:
        """What attention mixed: values, or latents that become some (mla.py)."""
        return mixed if self.model.config.mla is None else self.ops.latent.values(self, mixed, layer)

    @cached_property
    def turns(self) -> Mapping[Rope, tuple[Array, Array]]:
        """cos and sin of every token, of each of the model's rotations."""
        return dict(zip(self.model.config.ropes, self.batch.device.ropes, strict=True))

    def turned(self, x: Array, layer: int) -> Float[Array, "tokens heads head_dim"]:
        """Queries or keys, each pair of channels turned by the angle of its position."""
        rope = self.model.config.kind(layer).rope
        return x if rope is None else self.ops.rope(x, *self.turns[rope], rope.interleaved, self.p)

    def mlp(
        self, x: Array, layer: int, names: Mlp, mapping: LoraMapping | None = None
    ) -> Float[Array, "tokens d_model"]:
        """A gated MLP, or a plain one: that of a dense layer, of one expert, or the one that all tokens share."""
        gate, *up = self.parts(x, layer, names.gate_up, [names.width] * 2, mapping)
        x = self.ops.mlp_activation(gate, up[0] if up else None, self.model.config.activation, self.p)
        self.note(f"layers.{layer}.{names.scope}", mlp=x)
        return self.project(x, layer, names.down, mapping)

    def added(self, x: Array, y: Array) -> Float[Array, "tokens d_model"]:
        """The residual stream with what a block computed."""
        return rounded(x + self.ops.scaled(y, self.model.config.residual_multiplier, self.p), self.p.residual)

    def note(self, scope: str, **values: Array) -> None:
        """Record values, if somebody traces."""
        if self.trace is not None:
            self.trace.note(scope, **values)


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
    if not isinstance(others, slice) or others.start < others.stop:
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
