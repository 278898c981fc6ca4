"""The work of a real forward pass, counted from the arrays that its steps are given: what bench/cost.py must say."""

import dataclasses
from collections.abc import Sequence

import numpy as np

from refimpl import lora
from refimpl.adapter import Adapter
from refimpl.adapter_slots import AdapterSlots
from refimpl.arrays import Array, Precision
from refimpl.batch import ScheduledRequest, make_batch
from refimpl.bench.cost import Step, Work
from refimpl.config import Moe, View
from refimpl.kv_cache import KVCache
from refimpl.model import forward
from refimpl.ops import NUMPY, Ops
from refimpl.plans import AttentionMetadata, LoraMapping
from refimpl.weights import Model


class Tally:
    """Bytes and flops so far, and a table of steps that compute as NUMPY does and add to them."""

    def __init__(self) -> None:
        self.work = Work()
        self.lora: list[LoraMapping] = []  # of all tokens of the batch, and of those that get logits

    def add(self, **counts: int) -> None:
        self.work = self.work + Work(**counts)

    def linear(self, x: Array, weight: Array, bias: Array | None, p: Precision) -> Array:
        self.add(
            base_bytes=weight.nbytes + (0 if bias is None else bias.nbytes),
            base_flops=sum(2 * weight.size for _ in x),
        )
        return NUMPY.linear(x, weight, bias, p)

    def embed(self, table: Array, token_ids: Array, p: Precision) -> Array:
        self.add(base_bytes=table[token_ids].nbytes)
        return NUMPY.embed(table, token_ids, p)

    def rms_norm(self, x: Array, weight: Array, eps: float, p: Precision) -> Array:
        self.add(base_bytes=weight.nbytes)
        return NUMPY.rms_norm(x, weight, eps, p)

    def layer_norm(self, x: Array, weight: Array, eps: float, p: Precision) -> Array:
        self.add(base_bytes=weight.nbytes)
        return NUMPY.layer_norm(x, weight, eps, p)

    def lora_delta(self, *arguments: object) -> None:
        """Each segment reads its adapter once: there are as many of them as different adapters."""
        lora.lora_delta(*arguments, shrink=self.shrink, expand=self.expand)

    def shrink(self, x: Array, A: Array) -> Array:
        if x.dtype.kind in "iu":
            self.add(adapter_bytes=A[:, x].nbytes)
        else:
            self.add(adapter_bytes=A.nbytes, lora_flops=2 * len(x) * A.size)
        return lora.shrink(x, A)

    def expand(self, low: Array, B: Array) -> Array:
        self.add(adapter_bytes=B.nbytes, lora_flops=2 * len(low) * B.size)
        return lora.expand(low, B)

    def write_kv(self, k_cache: Array, v_cache: Array, k: Array, v: Array, *rest: object) -> None:
        self.add(kv_bytes=k.nbytes + v.nbytes)
        NUMPY.write_kv(k_cache, v_cache, k, v, *rest)

    def attention(
        self, q: Array, k_cache: Array, v_cache: Array, metadata: AttentionMetadata, view: View, p: Precision
    ) -> Array:
        """Pair by pair: which key does which query see?"""
        _, heads, head_dim = q.shape
        one_token = k_cache[0, 0].nbytes + v_cache[0, 0].nbytes
        for span in metadata.spans:
            first = span.context - (span.stop - span.start)
            pairs = [
                (position, key)
                for position in range(first, span.context)
                for key in range(position + 1)
                if view.window is None or position - key < view.window
            ]
            self.add(
                kv_bytes=len({key for _, key in pairs}) * one_token,
                attention_flops=len(pairs) * heads * (2 * head_dim + 2 * v_cache.shape[3]),
            )
        return NUMPY.attention(q, k_cache, v_cache, metadata, view, p)

    def route(self, logits: Array, correction: Array | None, moe: Moe, p: Precision) -> tuple[Array, Array]:
        """Tokens spread evenly over the experts, in the order of their adapters, as the page of cost takes them."""
        ids, weights = NUMPY.route(logits, correction, moe, p)
        (mapping,) = {each for each in self.lora if len(each.adapter_ids) == len(logits)}
        places = np.argsort(np.argsort(mapping.adapter_ids[:, 0], kind="stable"))
        even = (moe.top_k * places[:, None] + np.arange(moe.top_k)) % moe.experts
        return even.astype(ids.dtype), weights

    def ops(self) -> Ops:
        """The table."""
        names = ("linear", "embed", "rms_norm", "layer_norm", "lora_delta", "write_kv", "attention", "route")
        return dataclasses.replace(NUMPY, **{name: getattr(self, name) for name in names})


def scheduled_step(
    model: Model, adapters: Sequence[Adapter], step: Step, ops: Ops, block_size: int = 4
) -> tuple[object, ...]:
    """(batch, cache, slots) of a step whose requests take the adapters in turn."""
    p = Precision(ops.precision, model.dtype)
    slots, blocks = AdapterSlots(model, p), -(-step.context // block_size)
    for slot, adapter in enumerate(adapters):
        slots.put(slot, ops.bind_adapter(adapter, model.config, ops.adapter_scale))
    cache = KVCache(model.config, step.requests * blocks, block_size, p)
    requests = [
        ScheduledRequest(
            [1 + (r + i) % 5 for i in range(step.tokens)],
            step.context - step.tokens,
            cache.allocate(blocks),
            [(r % len(adapters), 1.0)] if adapters else [],
        )
        for r in range(step.requests)
    ]
    return make_batch(requests, cache, slots, ops), cache, slots


def counted(model: Model, adapters: Sequence[Adapter], step: Step) -> Work:
    """What the forward pass of this step does, with as many adapters as step.adapters says."""
    assert len(adapters) == step.adapters
    tally = Tally()
    ops = tally.ops()
    batch, cache, slots = scheduled_step(model, adapters, step, ops)
    tally.lora = [batch.lora, batch.logits_lora]
    p = model.precision(Precision(ops.precision, model.dtype))
    logits = forward(model, batch, cache, slots, ops, p)
    assert np.isfinite(logits).all() and len(logits) == step.requests
    return tally.work
