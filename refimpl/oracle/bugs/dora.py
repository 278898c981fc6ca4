"""A, F with DoRA (dora.py): the stretching is left out, or stretches too little, too much, or by another's lengths."""

import dataclasses

from ...adapter_slots import LoraWeights
from ...arrays import Array
from ...config import Module
from ...dora import Dora, gain_of, row_lengths
from ...ops import Ops
from .a_scale import scale
from .f_not_applied import not_applied
from .steps import but, each, loading


@not_applied.bug(
    "the magnitudes of DoRA are left out: it is served as plain LoRA",
    "https://github.com/Comfy-Org/ComfyUI/issues/3494",
    needs="DoRA",
)
def dora_magnitude_dropped() -> Ops:
    return loading(lambda module, lora, config: dataclasses.replace(lora, magnitude=None))


@scale.bug("DoRA stretches the base's bias as well", needs="DoRA on a bias")
def dora_stretches_the_bias() -> Ops:
    def change(lora: LoraWeights) -> LoraWeights:
        return lora if lora.dora is None else dataclasses.replace(lora, dora=Dora(lora.dora.gain, None))

    return each(change)


@scale.bug("DoRA stretches the delta alone, and not what the base computes", needs="DoRA")
def dora_stretches_the_delta_alone() -> Ops:
    def change(lora: LoraWeights) -> LoraWeights:
        if lora.dora is None:
            return lora
        bias = None if lora.bias is None else lora.dora.gain * lora.bias
        return dataclasses.replace(lora, B=lora.dora.gain[:, None] * lora.B, bias=bias, dora=None)

    return each(change)


@scale.bug("DoRA divides by the lengths of the rows that the adapter loaded first made", needs="DoRA")
def dora_lengths_of_the_first_adapter() -> Ops:
    lengths: dict[Module, Array] = {}

    def gain(weight: Array, A: Array, B: Array, factor: float, magnitude: Array, module: Module) -> Array:
        right = row_lengths(weight, A, B, factor)
        first = lengths.setdefault(module, right)
        return gain_of(first if len(first) == len(right) else right, magnitude, module)

    return but(dora_gain=gain)
