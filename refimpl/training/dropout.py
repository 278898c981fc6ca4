"""Dropout on LoRA's input (Hu et al. 2021, Srivastava et al. 2014): noise that can be made again from its name.

    x'[t, i] = x[t, i] / (1 - rate) with probability 1 - rate, else 0        each module its own mask, as in PEFT

A mask is drawn from a generator seeded by (seed, step, micro-batch, module). So the backward pass, a layer that is
computed again, a run that was resumed and an adapter that trains beside others all meet the same mask.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np

from ..arrays import Array, Float, namespace
from ..config import EMBED, ModelConfig, Module
from ..plans import LoraMapping

LEVELS = 1 << 16  # a rate is rounded to a whole number of these: 16 random bits for each number of x


@dataclass(frozen=True, eq=False)
class Dropout:
    """The masks of one micro-batch."""

    config: ModelConfig
    rates: Mapping[int, float] = field(default_factory=dict)  # adapter slot -> lora_dropout, of those that have one
    streams: Mapping[int, tuple[int, ...]] = field(default_factory=dict)  # adapter slot -> what seeds its masks
    keep: bool = (
        True  # each mask is drawn once and kept, as the activations are; else it is drawn whenever it is needed
    )
    _masks: dict[tuple[int, Module], Array] = field(default_factory=dict, repr=False)

    def __call__(self, x: Array, module: Module, mapping: LoraMapping) -> Array:
        """Return x, [tokens, d_in], with the rows of each such adapter masked and scaled up; x itself if there is none.

        Linear in x and diagonal, so that it is its own vector-Jacobian product: dx = dropout(dy)."""
        slots = mapping.slots & self.rates.keys()
        if not slots or module == EMBED:
            return x
        y = x.copy()
        for segment in mapping.device.columns[0].segments:
            if segment.slot in slots:
                rate = self._levels(segment.slot) / LEVELS
                y[segment.rows] *= self._mask(segment.slot, module, y[segment.rows])
                y[segment.rows] *= 1 / (1 - rate)
        return y

    def _levels(self, slot: int) -> int:
        return min(round(self.rates[slot] * LEVELS), LEVELS - 1)

    def _mask(self, slot: int, module: Module, x: Float[Array, "rows d_in"]) -> Array:
        """Whether each number of x stays, drawn on the host."""
        if (slot, module) in self._masks:
            return self._masks[slot, module]
        rng = np.random.default_rng([*self.streams[slot], self.config.modules().index(module)])
        mask = namespace(x).asarray(rng.integers(0, LEVELS, x.shape, np.uint16) >= self._levels(slot))
        if self.keep:
            self._masks[slot, module] = mask
        return mask
