"""The experts of a layer in the CUDA backend: one LoRA launch for all of them, whatever their adapters are.

    pairs        one row for each (token, expert that it chose), sorted by expert: what all steps below work on
    base         the product of each expert's rows, which lie side by side, with its weight
    LoRA         SGMV over segments of one (expert, adapter): the expert's number is part of the adapter's (lora.py)
    activation   one launch over all rows
    sum          each token's rows, by rising number of the expert: the order in which the definition adds them up

The definition is `experts_in_turn` (moe.py), which launches all of that once for each expert that some token chose.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from ..arrays import Array, Float, Int, namespace, to_host
from ..config import short_name
from ..forward_context import ForwardContext, base
from ..lora import added_by
from ..moe import slots_on
from ..moe_config import Moe
from ..plans import NO_ADAPTER, LoraMapping
from .lora import add_lora, slot_count

Name = Callable[[int], str]  # expert -> what one of its modules is called below the layer


@dataclass(frozen=True)
class Pairs:
    """The rows of one layer's experts, on the host."""

    run: ForwardContext
    layer: int
    tokens: Int[Array, " rows"]  # which token of the batch each row is
    experts: Int[Array, " rows"]  # which expert it goes through; rising

    @property
    def moe(self) -> Moe:
        """What the experts are."""
        moe = self.run.model.config.moe
        assert moe is not None
        return moe

    @cached_property
    def parts(self) -> list[tuple[int, slice, LoraMapping]]:
        """Each expert that has rows, where they lie, and which adapters they have. The last only as far as a base layer
        of an adapter's own, or a trace, needs it."""
        run, parts = self.run, []
        numbers, starts = np.unique(self.experts, return_index=True)
        for expert, start, stop in zip(numbers.tolist(), starts, [*starts[1:], len(self.experts)], strict=True):
            names = self.moe.mlp(expert)
            among = {slot for name in names.modules for slot in run.adapters.base_at((self.layer, name))}
            among = among if run.trace is None else slots_on(run, self.layer, names)
            mapping = run.batch.lora.of_rows(self.tokens[start:stop], run.ops.segments, among)
            parts.append((expert, slice(int(start), int(stop)), mapping))
        return parts

    @cached_property
    def mapping(self) -> LoraMapping:
        """Which adapter of which expert each row has."""
        lora = self.run.batch.lora
        ids, weights = lora.adapter_ids[self.tokens], lora.adapter_weights[self.tokens]
        numbered = self.experts[:, None] * slot_count(self.run.adapters) + ids
        ids = np.where(ids == NO_ADAPTER, NO_ADAPTER, numbered).astype(np.int32)
        if not lora.slots:
            return LoraMapping(ids, weights, (), frozenset())
        return LoraMapping.of(ids, weights, namespace(lora.device.columns[0].adapter_ids), self.run.ops.segments)

    def project(self, x: Float[Array, "rows d_in"], name: Name, source: str) -> Float[Array, "rows d_out"]:
        """One linear layer of each row's expert: the base, plus the adapters' deltas. source: where x was rounded.

        Nothing is summed over ranks: a model with experts runs on one."""
        run, ops, p = self.run, self.run.ops, self.run.p
        modules = [(self.layer, name(expert)) for expert in range(self.moe.experts)]
        each = [
            base(run.model, x[rows], modules[expert], run.adapters, mapping, ops, p)
            for expert, rows, mapping in self.parts
        ]
        if run.trace is not None:
            for (expert, rows, mapping), y in zip(self.parts, each, strict=True):
                delta = added_by(ops.lora_delta, y, x[rows], modules[expert], run.adapters, mapping, p)
                run.note(f"{short_name(modules[expert])}.", input=x[rows], base=y, lora=delta)
        y = namespace(x).concatenate(each)
        if any(not run.batch.lora.slots.isdisjoint(run.adapters.at(one)) for one in modules):  # or no plan is made
            add_lora(y, x, tuple(modules), run.adapters, self.mapping, p, [source])
        return y

    def mlp(self, x: Float[Array, "rows d_model"]) -> Float[Array, "rows d_model"]:
        """The gated MLP of each row's expert, or a plain one."""
        run, moe, xp = self.run, self.moe, namespace(x)
        each = [
            self.project(x, lambda expert, i=i: moe.mlp(expert).gate_up[i], "norm")  # type: ignore[misc]
            for i in range(len(moe.gate_up))
        ]
        if each[0].shape[1] != moe.width:  # one module for both
            each = xp.split(each[0], [moe.width], axis=1)
        x = run.ops.mlp_activation(each[0], each[1] if len(each) > 1 else None, run.model.config.activation, run.p)
        for expert, rows, _ in self.parts if run.trace is not None else ():
            run.note(f"layers.{self.layer}.{moe.mlp(expert).scope}", mlp=x[rows])
        return self.project(x, lambda expert: moe.mlp(expert).down, "activation")


def routed_experts(
    run: ForwardContext,
    h: Float[Array, "tokens d_model"],
    layer: int,
    chosen: Int[Array, "tokens top_k"],
    weights: Float[Array, "tokens top_k"],
) -> Float[Array, "tokens d_model"]:
    """The sum over the chosen of weight * mlp_e(h): all experts at once."""
    ids, xp = to_host(chosen), namespace(h)
    count, top_k = ids.shape
    order = np.argsort(ids, axis=None, kind="stable")
    pairs = Pairs(run, layer, order // top_k, ids.reshape(-1)[order])
    out = pairs.mlp(h[xp.asarray(pairs.tokens)])
    row_of, places, y = np.argsort(order).reshape(count, top_k), np.argsort(ids, axis=1), xp.zeros_like(h)
    for place in places.T:  # of each token, the next of its experts
        every = np.arange(count)
        rows, shares = xp.asarray(row_of[every, place]), weights[xp.asarray(every), xp.asarray(place)]
        run.ops.expert_sum(y, slice(None), out[rows], shares, run.p)
    return y
