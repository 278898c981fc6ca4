"""What a prefix key knows an adapter by: a digest (fingerprint) of all that it changes in the numbers."""

import hashlib

import numpy as np

from .adapter_slots import BoundAdapter
from .arrays import Array, to_host
from .config import Module


def digest(bound: BoundAdapter) -> bytes:
    """SHA-256 of everything that the adapter changes: effective A, B, scale, magnitude, and what it replaces."""
    h = hashlib.sha256()

    def add(kind: str, module: Module, *arrays: Array | None) -> None:
        h.update(f"{kind} {module[0]} {module[1]}".encode())
        for x in arrays:
            h.update(b"none" if x is None else f"{x.dtype.name} {x.shape}".encode())
            h.update(b"" if x is None else np.ascontiguousarray(to_host(x)).view(np.uint8).data)

    for module in sorted(bound.lora):
        lora = bound.lora[module]
        add("lora", module, lora.A, lora.B, np.float64(lora.scale).reshape(1), lora.bias)
        if lora.magnitude is not None:
            add("magnitude", module, lora.magnitude)
    for module in sorted(bound.replaced):
        add("weight", module, bound.replaced[module])
    for module in sorted(bound.biases):
        add("bias", module, bound.biases[module])
    for module in sorted(bound.tokens):
        add("tokens", module, bound.tokens[module].ids, bound.tokens[module].rows)
    return h.digest()
