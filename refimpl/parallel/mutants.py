"""What goes wrong between ranks, as one backend (or one part of the model) with one step wrong on every rank.

The zoo's mutants of class E (oracle/bugs/e_shards.py) show what such bugs do to an adapter, in one process; these are
the bugs themselves, and need ranks. tests/parallel/ shows that each is seen, and
`mpirun -n 2 loracle check --engine numpy --option mutant=NAME` what a check of it looks like.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial

import numpy as np

from ..adapter import Adapter
from ..adapter_slots import BoundAdapter, LoraWeights
from ..arrays import Array, namespace
from ..config import EMBED, LM_HEAD, ModelConfig, Module
from ..dora import dora_gain
from ..layers import rms_norm
from ..lora import lora_delta, shrink
from ..ops import Ops
from ..weights import Model
from .communicator import Communicator
from .layout import IN, OUT, Layout

Change = Callable[[Ops, Layout, Communicator], Ops]  # a rank's right backend -> one with the bug


@dataclass(frozen=True)
class Mutant:
    """One bug between ranks."""

    what: str
    links: tuple[str, ...]
    ops: Change | None = None
    part: Callable[[Model, Model, Layout], Model] | None = None  # a rank's right part, the whole model -> a wrong part
    fully_sharded: bool = False  # whether only fully sharded adapters have it


def all_reduce_left_out(ops: Ops, layout: Layout, communicator: Communicator) -> Ops:
    return replace(ops, all_reduce=lambda y, module, p: y)


def delta_on_every_rank(ops: Ops, layout: Layout, communicator: Communicator) -> Ops:
    """x A^T is summed over the ranks, all of them add the delta that they now have, and the sum over the ranks has it
    once for each."""

    def twice(y: Array, x: Array, module: Module, *rest: object) -> None:
        reduced = layout.split(module[1]) == IN and module != EMBED
        step = partial(lora_delta, shrink=lambda x, A: communicator.all_reduce(shrink(x, A))) if reduced else None
        (step or ops.lora_delta)(y, x, module, *rest)  # type: ignore[arg-type]

    return replace(ops, lora_delta=twice)


def fused_B_in_one_piece(ops: Ops, layout: Layout, communicator: Communicator) -> Ops:
    fused = {names[0] for names in (layout.config.qkv, layout.config.gate_up) if len(names) == 1}

    def in_one_piece(part: BoundAdapter, entire: BoundAdapter) -> dict[Module, LoraWeights]:
        lora = dict(part.lora)
        for module in lora:
            if module[1] in fused:
                run = np.array_split(entire.lora[module].B, layout.size)[layout.rank]
                lora[module] = replace(lora[module], B=np.resize(run, lora[module].B.shape))
        return lora

    return _changed(ops, in_one_piece)


def zeros_between_shards(ops: Ops, layout: Layout, communicator: Communicator) -> Ops:
    """Every rank fills its own rows of A up, and the all-gather has zeros where B has its next columns."""

    def padded(lora: LoraWeights, module: Module) -> LoraWeights:
        if layout.split(module[1]) != OUT or module == LM_HEAD:
            return lora
        xp = namespace(lora.A)
        return replace(lora, A=xp.concatenate([lora.A, xp.zeros_like(lora.A[:1])]))

    return _changed(ops, lambda part, entire: {key: padded(lora, key) for key, lora in part.lora.items()})


def lora_bias_on_every_rank(ops: Ops, layout: Layout, communicator: Communicator) -> Ops:
    def biased(part: BoundAdapter, entire: BoundAdapter) -> dict[Module, LoraWeights]:
        return {
            module: replace(lora, bias=entire.lora[module].bias) if layout.split(module[1]) == IN else lora
            for module, lora in part.lora.items()
        }

    return _changed(ops, biased)


def base_bias_on_every_rank(part: Model, model: Model, layout: Layout) -> Model:
    layers = []
    for layer, entire in zip(part.layers, model.layers, strict=True):
        linears = {
            name: replace(linear, bias=entire.linears[name].bias) if layout.split(name) == IN else linear
            for name, linear in layer.linears.items()
        }
        layers.append(replace(layer, linears=linears))
    return replace(part, layers=tuple(layers))


def key_of_one_ranks_part(ops: Ops, layout: Layout, communicator: Communicator) -> Ops:
    """The prefix key is that of the part: adapters that differ on another rank share their keys and values here."""

    def bound_and_cut(
        adapter: Adapter, config: ModelConfig, scale: Callable[[float, int, bool], float]
    ) -> BoundAdapter:
        return ops.shard_adapter(ops.bind_adapter(adapter, config, scale))

    return replace(ops, bind_adapter=bound_and_cut, shard_adapter=lambda bound: bound)


MUTANTS = {
    "all_reduce_left_out": Mutant(
        "the ranks' partial sums after o and down are not summed",
        ("https://github.com/predibase/lorax/pull/47", "https://github.com/NVIDIA/TensorRT-LLM/issues/2634"),
        all_reduce_left_out,
    ),
    "delta_on_every_rank": Mutant(
        "every rank adds the whole delta of o and down to its partial sum", (), delta_on_every_rank
    ),
    "fused_B_in_one_piece": Mutant(
        "B of a fused module is cut in one run, not part by part",
        ("https://github.com/NVIDIA/TensorRT-LLM/pull/8063",),
        fused_B_in_one_piece,
    ),
    "zeros_between_shards": Mutant(
        "fully sharded: each rank's rows of A are filled up, so that zeros stand between what is gathered",
        ("https://github.com/vllm-project/vllm/pull/31994",),
        zeros_between_shards,
        fully_sharded=True,
    ),
    "lora_bias_on_every_rank": Mutant(
        "every rank adds the bias of lora_B of o and down to its partial sum",
        ("https://github.com/vllm-project/vllm/pull/10844",),
        lora_bias_on_every_rank,
    ),
    "base_bias_on_every_rank": Mutant(
        "every rank adds the base's bias of o and down to its partial sum", (), part=base_bias_on_every_rank
    ),
    "norm_of_a_ranks_own_heads": Mutant(
        "a norm over all heads together (OLMo 2) is taken over those of one rank",
        (),
        lambda ops, layout, communicator: replace(ops, rms_norm=rms_norm),
    ),
    "dora_norm_of_a_ranks_part": Mutant(
        "DoRA divides by the length of a rank's part of a row",
        (),
        lambda ops, layout, communicator: replace(ops, dora_gain=dora_gain),
    ),
    "key_of_one_ranks_part": Mutant("a prefix key knows one rank's part of an adapter", (), key_of_one_ranks_part),
}


def _changed(ops: Ops, lora: Callable[[BoundAdapter, BoundAdapter], dict[Module, LoraWeights]]) -> Ops:
    """Return the backend whose shard_adapter gives lora(part, entire) for the matrices."""

    def shard(bound: BoundAdapter) -> BoundAdapter:
        part = ops.shard_adapter(bound)
        return replace(part, lora=lora(part, bound))

    return replace(ops, shard_adapter=shard)
