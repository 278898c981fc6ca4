"""DoRA's backward pass. The length of a row is a constant in it, as in PEFT and in section 4.3 of Liu et al. 2024.

y = gain u + bias, u = W x + s B A x, gain = magnitude / length:

du = gain dy        dmagnitude = sum over t of dy[t] u[t] / length
"""

from ..adapter_slots import AdapterSlots, LoraWeights
from ..arrays import Array, Float, Precision, namespace
from ..config import EMBED, Module
from ..dora import dora_gain
from ..layers import embed, linear
from ..weights import Linear


def has_dora(module: Module, adapters: AdapterSlots) -> bool:
    """Whether an adapter of the slots stretches what the base computes in this module."""
    return any(lora.dora is not None for lora in adapters.at(module).values())


def magnitude_vjp(
    dy: Float[Array, "tokens d_out"],
    x: Array,
    delta: Float[Array, "tokens d_out"],
    lora: LoraWeights,
    module: Module,
    adapters: AdapterSlots,
    p: Precision,
) -> Float[Array, " d_out"]:
    """The gradient of one adapter's magnitude from its own tokens; delta is s B A x. What W makes of x is computed
    again: it is not kept, because only DoRA asks for it."""
    base: Linear = adapters.model.linear(module)
    product = embed(base.weight, x, p) if module == EMBED else linear(x, base.weight, None, p)
    return (dy * (product + delta)).sum(axis=0) * inverse_length(lora, module, adapters, p)


def inverse_length(lora: LoraWeights, module: Module, adapters: AdapterSlots, p: Precision) -> Float[Array, " d_out"]:
    """1 / length of each row of W + s B A: the gain that a magnitude of 1 would have."""
    weight = adapters.model.linear(module).weight
    one = namespace(lora.B).ones(lora.B.shape[0], p.compute)
    gain = dora_gain(weight.T if module == EMBED else weight, lora.A, lora.B, lora.scale, one, module)
    return gain.astype(p.compute)
