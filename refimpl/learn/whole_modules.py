"""A backend in which one function computes a whole linear layer, the base's part and the adapters' part together.

`Ops` has a step for each, which is where one engine differs from another. Where a chapter needs both at once (a base in
four bits, a layer that is cut in two), the first step leaves room and the second fills it.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from ..adapter_slots import AdapterSlots
from ..arrays import Array, Float, Precision
from ..config import EMBED, Module
from ..plans import Index, LoraMapping


@dataclass(frozen=True, eq=False)
class Patch:
    """What one adapter adds to some rows of a batch: scale * (x A^T) B^T."""

    rows: Index
    A: Float[Array, "rank d_in"]
    B: Float[Array, "d_out rank"]
    scale: float


Compute = Callable[[Array, Module, Sequence[Patch]], Array]  # x [tokens, d_in] -> y [tokens, d_out]


def whole_modules(compute: Compute) -> dict[str, Callable[..., object]]:
    """The fields of Ops with which every linear layer of a model without biases is `compute`. DoRA is not done here."""

    def room(x: Array, weight: Array, bias: Array | None, p: Precision) -> Array:
        assert bias is None
        return np.zeros((len(x), len(weight)), x.dtype)

    def lora_delta(
        y: Array, x: Array, module: Module, adapters: AdapterSlots, mapping: LoraMapping, p: Precision
    ) -> None:
        if module != EMBED:
            y[:] = compute(x, module, patches(adapters, module, mapping))

    return {"linear": room, "lora_delta": lora_delta}


def patches(adapters: AdapterSlots, module: Module, mapping: LoraMapping) -> list[Patch]:
    """What the adapters of a batch add to one module, one patch for each adapter at each weight."""
    resident = adapters.at(module)
    return [
        Patch(segment.rows, lora.A, lora.B, lora.scale * segment.weight)
        for column in mapping.device.columns
        for segment in column.segments
        if (lora := resident.get(segment.slot)) is not None
    ]
