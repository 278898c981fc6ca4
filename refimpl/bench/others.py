"""The same cases through other people's kernels: torch gather + bmm, torch grouped mm, Triton shrink and expand.

Each gets the same numbers, in the same memory, and one call for each set of inputs. What a serving engine would work
out once a batch (the order by adapter, offsets, tile sizes) is worked out before the clock runs, for us as for them.
"""

import importlib.util
from collections.abc import Callable
from typing import Any

import numpy as np

from ..arrays import Array
from ..cuda.launch import widened
from .case import SCALE, Case
from .torch_case import Entry, tensors

TOLERANCE = 0.02  # ||theirs - ours|| / ||what the adapters add||: half types, other points of rounding


def contenders() -> dict[str, Callable[[Case], Entry]]:
    """Name -> how to make it ready, of those whose packages can be imported."""
    contenders_by_name: dict[str, Callable[[Case], Entry]] = {}
    if importlib.util.find_spec("torch") is None:
        return contenders_by_name
    import torch

    contenders_by_name["torch gather + bmm"] = gather_bmm
    if hasattr(torch, "_grouped_mm") or hasattr(torch.nn.functional, "grouped_mm"):
        contenders_by_name["torch grouped mm"] = grouped_mm
    if importlib.util.find_spec("triton") is not None:
        from .triton_lora import triton_lora

        contenders_by_name["triton shrink + expand"] = triton_lora
    return contenders_by_name


def gather_bmm(case: Case) -> Entry:
    """Every token gets a copy of its adapter's weights: the two lines that anyone would write first."""
    import torch

    A, B, xs, ys = tensors(case)
    where = [torch.from_numpy(ids.astype(np.int64)).to(A.device) for ids in case.ids]

    def run(i: int) -> None:
        low = torch.bmm(A[where[i]], xs[i].unsqueeze(2))
        ys[i].add_(torch.bmm(B[where[i]], low).squeeze(2), alpha=SCALE)

    return Entry([lambda i=i: run(i) for i in range(case.sets)], ys)  # type: ignore[misc]


def grouped_mm(case: Case) -> Entry:
    """Tokens gathered by adapter, one grouped product for shrink and one for expand, results added back."""
    import torch

    multiply = getattr(torch.nn.functional, "grouped_mm", None) or torch._grouped_mm
    A, B, xs, ys = tensors(case)
    order, distinct = np.argsort(case.ids[0], kind="stable"), case.work.distinct
    ends = np.cumsum(np.bincount(case.ids[0], minlength=distinct)).astype(np.int32)
    rows, offs = (torch.from_numpy(plan).to(A.device) for plan in (order, ends))

    def run(i: int) -> None:
        of_set = slice(i * distinct, (i + 1) * distinct)
        low = multiply(xs[i][rows], A[of_set].transpose(1, 2), offs=offs)
        ys[i].index_add_(0, rows, multiply(low, B[of_set].transpose(1, 2), offs=offs), alpha=SCALE)

    return Entry([lambda i=i: run(i) for i in range(case.sets)], ys)  # type: ignore[misc]


def agrees(case: Case, entry: Entry, before: Array, ours: Array) -> float:
    """Run set 0 of theirs once: the distance to ours, as a share of what the adapters add. NaN never passes."""
    dtype = case.point.dtype
    entry.runs[0]()
    theirs = widened(type_of_ours(entry.y[0], ours), dtype)
    mine, start = widened(ours, dtype), widened(before, dtype)
    return float(((theirs - mine) ** 2).sum() ** 0.5 / ((mine - start) ** 2).sum() ** 0.5)


def type_of_ours(y: Any, like: Array) -> Array:
    """A torch tensor as an array beside ours."""
    import torch

    bits = y.view(torch.int16)
    if isinstance(like, np.ndarray):
        return bits.cpu().numpy().view(like.dtype)
    from ..arrays import namespace

    return namespace(like).from_dlpack(bits).view(like.dtype)
