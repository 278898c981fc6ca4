"""A case as torch tensors: what every contender of others.py and triton_lora.py is given, and what it returns."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from ..arrays import Array
from .case import Case

Run = Callable[[], Any]


@dataclass(frozen=True)
class Entry:
    """One contender, ready: a call for each set, and where each one's result will be."""

    runs: list[Run]
    y: list[Any]  # torch tensors


def tensor(x: Array, dtype: str) -> Any:
    """The same memory as a torch tensor; bfloat16 is uint16 on our side."""
    import torch

    bits = x.view(np.int16)
    shared = torch.from_numpy(bits) if isinstance(x, np.ndarray) else torch.from_dlpack(bits)
    return shared.view(getattr(torch, dtype))


def tensors(case: Case) -> tuple[Any, Any, list[Any], list[Any]]:
    """A [adapters, rank, d_in], B [adapters, d_out, rank], and x and a copy of y for each set."""
    dtype = case.point.dtype
    weights = tensor(case.packed.weights, dtype).view(case.packed.adapters, -1)
    split = case.point.rank * case.point.d_in
    A = weights[:, :split].unflatten(1, (case.point.rank, case.point.d_in))
    B = weights[:, split:].unflatten(1, (case.point.d_out, case.point.rank))
    return A, B, [tensor(x, dtype) for x in case.x], [tensor(y, dtype).clone() for y in case.y]
