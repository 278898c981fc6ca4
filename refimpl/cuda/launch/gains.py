"""What DoRA does with the outputs of a slice, as the last line of an expand reads it (gain_at in lora.cuh)."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from ...arrays import Array, Float, Int
from ...dora import Dora


@dataclass(frozen=True, eq=False)
class Gains:
    """The gains of all adapters of some layers, in one buffer."""

    numbers: Float[Array, " n"]  # float32: of each adapter of each slice, its gain [d_out] and the base's bias [d_out]
    starts: Int[Array, "slices adapters"]  # int64: where each begins; -1: no DoRA
    biased: bool  # does any base have a bias?


def pack_gains(slices: Sequence[Mapping[int, Dora]], adapters: int, xp: Any) -> Gains | None:
    """Lay what DoRA does with each slice (slot -> gain and bias) into one buffer; None where there is none."""
    starts, parts, size = np.full((len(slices), adapters), -1, np.int64), [], 0
    for index, of_slice in enumerate(slices):
        for slot, dora in of_slice.items():
            starts[index, slot] = size
            bias = xp.zeros_like(dora.gain) if dora.base_bias is None else dora.base_bias
            parts += [dora.gain.astype(np.float32), bias.astype(np.float32)]
            size += dora.gain.size + bias.size
    biased = any(dora.base_bias is not None for of_slice in slices for dora in of_slice.values())
    return Gains(xp.concatenate(parts), xp.asarray(starts), biased) if parts else None
