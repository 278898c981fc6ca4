"""A model and an adapter, whole -> one rank's part: the same objects with smaller arrays."""

from collections.abc import Mapping
from dataclasses import dataclass, replace

from ..adapter import TokenRows
from ..adapter_slots import BoundAdapter, LoraWeights
from ..arrays import Array, ceil_div, namespace
from ..config import EMBED, LM_HEAD, Module
from ..weights import Layer, Linear, Model
from .layout import IN, OUT, Layout, cut


def shard_model(model: Model, layout: Layout) -> Model:
    """Return one rank's part of a base model: views of its arrays, where that is possible."""
    embed = with_zero_row(cut(model.embed_tokens, layout.inputs(EMBED[1]), 0))
    tied = model.lm_head.weight is model.embed_tokens
    head = embed[1:] if tied else cut(model.lm_head.weight, layout.outputs(LM_HEAD[1]), 0)
    layers = tuple(shard_layer(layer, layout) for layer in model.layers)
    return replace(model, config=layout.rank_config, embed_tokens=embed, layers=layers, lm_head=Linear(head))


def shard_layer(layer: Layer, layout: Layout) -> Layer:
    """Return one rank's part of a layer. Norms are whole, but those over all heads together."""
    norms = layout.config.norms
    shared = (norms.q, norms.k) if norms.whole_projection else ()
    return Layer(
        {name: cut(x, layout.norm(name), 0) if name in shared else x for name, x in layer.norms.items()},
        {name: shard_linear(linear, name, layout) for name, linear in layer.linears.items()},
        layer.vectors,
    )


def shard_linear(linear: Linear, name: str, layout: Layout) -> Linear:
    """Return one rank's part of a layer W x + b."""
    if layout.split(name) == OUT:
        weight = cut(linear.weight, layout.outputs(name), 0)
    else:
        weight = cut(linear.weight, layout.inputs(name), 1)
    return Linear(weight, shard_bias(linear.bias, name, layout))


def shard_bias(bias: Array | None, name: str, layout: Layout) -> Array | None:
    """Return a bias's part: that of the outputs; where the ranks' results are summed, all of it on the first rank."""
    if bias is None:
        return None
    if layout.split(name) == OUT:
        return cut(bias, layout.outputs(name), 0)
    return bias if layout.rank == 0 else None


def with_zero_row(x: Array) -> Array:
    """Put a row of zeros before the others: what a token gets on the ranks that do not have it (backend.local_ids)."""
    return namespace(x).concatenate([namespace(x).zeros((1, *x.shape[1:]), x.dtype), x])


@dataclass(frozen=True)
class AdapterShard:
    """The field `shard_adapter` of a rank's backend. With fully_sharded, A and B are both cut (fully_sharded.py)."""

    layout: Layout
    fully_sharded: bool = False

    def __call__(self, bound: BoundAdapter) -> BoundAdapter:
        """Return one rank's part of an adapter."""
        return BoundAdapter(
            {module: self.lora(lora, module) for module, lora in bound.lora.items()},
            {module: self.replaced(weight, module) for module, weight in bound.replaced.items()},
            self.biases(bound.biases),
            self.tokens(bound.tokens),
        )

    def lora(self, lora: LoraWeights, module: Module) -> LoraWeights:
        """Return A and B of one module, with what belongs to B's rows."""
        name, layout = module[1], self.layout
        bias = shard_bias(lora.bias, name, layout)
        if layout.split(name) == IN:
            A = self.columns(lora.A, module)
            return replace(lora, A=A, B=self.part_of(lora.B, module), bias=bias)
        rows = layout.outputs(name)
        magnitude = None if lora.magnitude is None else cut(lora.magnitude, rows, 0)
        return replace(lora, A=self.part_of(lora.A, module), B=cut(lora.B, rows, 0), bias=bias, magnitude=magnitude)

    def columns(self, A: Array, module: Module) -> Array:
        """Return the columns of A, [r, d_in], that meet this rank's inputs; at the embedding after one of zeros."""
        part = cut(A, self.layout.inputs(module[1]), 1)
        return with_zero_row(part.T).T if module == EMBED else part

    def part_of(self, x: Array, module: Module) -> Array:
        """Return what this rank has of the matrix that is whole unless both are cut, along its first axis.

        Equal runs, for the all-gather: the last ones are filled up with zeros, so that they come after all others."""
        if not self.is_fully_sharded(module):
            return x
        n = ceil_div(len(x), self.layout.size)
        part = x[self.layout.rank * n : (self.layout.rank + 1) * n]
        xp = namespace(x)
        return xp.concatenate([part, xp.zeros((n - len(part), x.shape[1]), x.dtype)])

    def is_fully_sharded(self, module: Module) -> bool:
        """Whether both matrices of a module are cut. At the ends of the model they are not, as in vLLM."""
        return self.fully_sharded and module not in (EMBED, LM_HEAD)

    def replaced(self, weight: Array, module: Module) -> Array:
        """Return the part of a layer that the adapter brings along, an embedding or an lm_head, cut as the base's."""
        part = cut(weight, [self.layout.vocabulary], 0)
        return with_zero_row(part) if module == EMBED else part

    def biases(self, biases: Mapping[Module, Array]) -> dict[Module, Array]:
        """Return the parts of the biases that the adapter brings along, where this rank has any."""
        parts = {module: shard_bias(bias, module[1], self.layout) for module, bias in biases.items()}
        return {module: part for module, part in parts.items() if part is not None}

    def tokens(self, tokens: Mapping[Module, TokenRows]) -> dict[Module, TokenRows]:
        """Return the rows of this rank's tokens. An embedding compares ids, an lm_head has them as columns of y."""
        start, stop = self.layout.vocabulary.start, self.layout.vocabulary.stop
        parts = {}
        for module, rows in tokens.items():
            inside = (rows.ids >= start) & (rows.ids < (stop or rows.ids.max() + 1))
            if inside.any():
                ids = rows.ids[inside] - (start if module == LM_HEAD else 0)
                parts[module] = TokenRows(ids, rows.rows[inside])
        return parts
