"""What only these tests need: numbers that are rounded where they should not be, or are not where they should, and an
engine that falls over. Real bugs are in refimpl/oracle/mutants/. Nothing is patched.
"""

import dataclasses
from collections.abc import Callable

import numpy as np

from refimpl import NUMPY, Ops, Precision
from refimpl.adapter_slots import AdapterSlots, LoraWeights
from refimpl.arrays import Array
from refimpl.attention import attention
from refimpl.config import EMBED, Module
from refimpl.dora import Dora
from refimpl.kv_cache import write_kv
from refimpl.layers import linear
from refimpl.lora import lora_delta
from refimpl.oracle.bugs import all_mutants
from refimpl.oracle.bugs.d_prefix import keyed_without
from refimpl.oracle.bugs.steps import Slots, reading
from refimpl.routing import route


def table(name: str) -> Ops:
    """A mutant by its name: of the zoo, or one of these."""
    zoo = all_mutants()
    return zoo[name].make() if name in zoo else globals()[name]


def but(**steps: object) -> Ops:
    """NUMPY with these steps replaced."""
    return dataclasses.replace(NUMPY, **steps)


# A block that is in use is handed out again. Blocks are then counted wrongly, and an engine without the watch of
# tests/serving.py falls over before it answers: no mutant of the zoo, whose every table answers.
block_in_use_evicted = but(
    select_victim=lambda last_used, ref_counts: min(last_used, key=last_used.__getitem__, default=None)
)


# Rounding.


def at(p: Precision, **points: str) -> Precision:
    """Some points of p changed, the others kept."""
    return dataclasses.replace(p, **points)


rank_not_rounded = but(lora_delta=lambda *call: lora_delta(*call[:5], at(call[5], lora_rank=call[5].compute)))

kv_not_rounded = but(write_kv=lambda *call: write_kv(*call[:5], at(call[5], kv=call[5].compute)))

probabilities_not_rounded = but(attention=lambda *call: attention(*call[:5], at(call[5], probabilities="float32")))

attention_not_rounded = but(attention=lambda *call: attention(*call[:5], at(call[5], attention=call[5].compute)))

always_bfloat16 = but(linear=lambda x, w, b, p: linear(x, w, b, at(p, linear="bfloat16")))


def _in_float32(y: Array, x: Array, module: Module, adapters: AdapterSlots, *rest) -> None:
    if adapters.at(module):
        narrow = y.astype(np.float32)
        lora_delta(narrow, x, module, adapters, *rest)
        y[:] = narrow


sums_in_float32 = but(lora_delta=_in_float32)


def _wrong_half_type(x: Array, weight: Array, bias: Array | None, p: Precision) -> Array:
    read = weight.view(np.float16).astype(np.float32) if weight.dtype.itemsize == 2 else weight
    return linear(x, read, bias, p)


bfloat16_read_as_float16 = but(linear=_wrong_half_type)


# Experts.


def _last_instead_of_sum(y: Array, rows: Array, out: Array, weights: Array, p: Precision) -> None:
    y[rows] = weights[:, None] * out


only_the_last_expert = but(expert_sum=_last_instead_of_sum)


def _over_all_tokens(logits: Array, *rest) -> tuple[Array, Array]:
    ids, weights = route(logits, *rest)
    return ids[:1].repeat(len(ids), axis=0), weights


everyone_goes_where_the_first_does = but(route=_over_all_tokens)

# DoRA.


def with_dora(change: Callable[[LoraWeights, Dora, AdapterSlots, Module], LoraWeights]) -> Ops:
    """Every DoRA is changed, as lora_delta reads it."""

    def reads(adapters: AdapterSlots, module: Module) -> Slots:
        at = adapters.at(module).items()
        return {slot: one if one.dora is None else change(one, one.dora, adapters, module) for slot, one in at}

    return but(lora_delta=reading(reads))


def _gain_of_the_base(lora: LoraWeights, dora: Dora, adapters: AdapterSlots, module: Module) -> LoraWeights:
    lengths = np.linalg.norm(adapters.model.linear(module).weight, axis=0 if module == EMBED else 1)
    gain = lora.magnitude / lengths[: len(dora.gain)]
    return dataclasses.replace(lora, dora=dataclasses.replace(dora, gain=gain))


length_of_the_base_alone = with_dora(_gain_of_the_base)

key_without_magnitude = keyed_without(magnitude=None)
