"""Mixture of experts: in place of one MLP a layer has many, and each token goes through a few of them.

    logits = W_router h                        [experts]: one number for each expert
    chosen, weights = route(logits)            the top_k of them, and how much each counts (routing.py)
    y = sum over the chosen of weight * mlp_e(h), + mlp_shared(h) where a layer has one for every token

(Shazeer et al. 2017; Mixtral: Jiang et al. 2024; shared experts: DeepSeekMoE, Dai et al. 2024.)

An adapter on experts is nothing of its own. An expert's linear layers are modules, (3, "mlp.experts.7.up_proj"), as
the router is one, (3, "mlp.gate"), and what all tokens share is some more, (3, "mlp.shared_expert.up_proj"). Each goes
through the same `project`, with the rows of the tokens that chose the expert and the LoRA mapping of these rows: so
requests with different adapters meet in one expert, and each gets what it would get alone. LoRA on the router, or on
anything before it, may change which experts a token goes through. That is a jump, not noise: whoever compares two
engines compares the choice first, and then numbers.
"""

from dataclasses import replace
from typing import Any, Protocol

import numpy as np

from .adapter_slots import AdapterSlots
from .arrays import Array, Float, Int, Precision, namespace, rounded, to_host
from .config import Mlp
from .plans import Batch, LoraMapping
from .routing import sigmoid
from .weights import Model


class Context(Protocol):
    """What is used here of a ForwardContext, of which Ops is a part, of which `experts_in_turn` is one."""

    def project(
        self, x: Array, layer: int, name: str, mapping: LoraMapping | None = None, p: Precision | None = None
    ) -> Array: ...
    def mlp(self, x: Array, layer: int, names: Mlp, mapping: LoraMapping | None = None) -> Array: ...
    @property
    def model(self) -> Model: ...
    @property
    def batch(self) -> Batch: ...
    @property
    def adapters(self) -> AdapterSlots: ...
    @property
    def ops(self) -> Any: ...
    @property
    def p(self) -> Precision: ...


def experts(run: Context, h: Float[Array, "tokens d_model"], layer: int) -> Float[Array, "tokens d_model"]:
    """What a layer of experts computes."""
    model, ops, p = run.model, run.ops, run.p
    moe, xp = model.config.moe, namespace(h)
    assert moe is not None
    at_router = p if p.router == p.linear else replace(p, linear=p.router)
    logits = run.project(h, layer, moe.router, run.batch.lora, at_router)
    chosen, weights = ops.route(logits, model.layers[layer].vectors.get(moe.correction or ""), moe, p)
    y = ops.routed_experts(run, h, layer, chosen, weights)
    if moe.shared is not None:
        gate = xp.ones(len(h), h.dtype)
        if moe.shared_gate is not None:
            gate = rounded(sigmoid(run.project(h, layer, moe.shared_gate)[:, 0]), p.router_weights)
        ops.expert_sum(y, slice(None), run.mlp(h, layer, moe.shared), gate, p)
    return y


def experts_in_turn(
    run: Context,
    h: Float[Array, "tokens d_model"],
    layer: int,
    chosen: Int[Array, "tokens top_k"],
    weights: Float[Array, "tokens top_k"],
) -> Float[Array, "tokens d_model"]:
    """The sum over the chosen of weight * mlp_e(h): one expert after another, with the tokens that chose it."""
    moe, ops, xp = run.model.config.moe, run.ops, namespace(h)
    assert moe is not None
    ids, y = to_host(chosen), xp.zeros_like(h)
    for expert in np.unique(ids).tolist():
        rows, places = np.nonzero(ids == expert)
        names = moe.mlp(expert)
        part = run.batch.lora.of_rows(rows, ops.segments, slots_on(run, layer, names))
        out = run.mlp(h[xp.asarray(rows)], layer, names, part)
        ops.expert_sum(y, xp.asarray(rows), out, weights[xp.asarray(rows), xp.asarray(places)], run.p)
    return y


def slots_on(run: Context, layer: int, names: Mlp) -> set[int]:
    """The adapter slots that have something on one expert: LoRA, or a bias of its own."""
    modules, adapters = [(layer, name) for name in names.modules], run.adapters
    return {slot for module in modules for filled in (adapters.at, adapters.base_at) for slot in filled(module)}
