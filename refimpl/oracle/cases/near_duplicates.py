"""Adapters that are nearly another one: what an engine mistakes for the same, or keeps a part of.

A cache that is keyed by A and B, but not by the scale, is right until two adapters differ in nothing else; and of an
adapter that is loaded over another one something can only stay behind where the shapes agree.
"""

from dataclasses import replace

import numpy as np

from ...adapter import Adapter
from ...arrays import Array

LOUDER = 1.7  # times the scale


def near_duplicates_of(adapter: Adapter, rng: np.random.Generator) -> list[Adapter]:
    """One with the same A and B at another scale, and one of the same shapes with other A and B of the same size."""
    config = adapter.config
    alphas = {name: LOUDER * alpha for name, alpha in config.alpha_pattern.items()}
    louder = replace(config, lora_alpha=LOUDER * config.lora_alpha, alpha_pattern=alphas)

    def like(x: Array) -> Array:
        return (rng.standard_normal(x.shape) * x.astype(np.float32).std()).astype(x.dtype)

    others = {
        module: replace(
            tensors,
            A=like(tensors.A),
            B=like(tensors.B),
            bias=None if tensors.bias is None else like(tensors.bias),
        )
        for module, tensors in adapter.lora.items()
    }
    return [
        replace(adapter, name=f"{adapter.name}-louder", config=louder),
        replace(adapter, name=f"{adapter.name}-sister", lora=others),
    ]
