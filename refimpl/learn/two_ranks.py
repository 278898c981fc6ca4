"""Tensor parallelism in one process: every layer cut among some ranks, each rank's part computed for itself.

The cuts are Megatron's (Shoeybi et al. 2019). q, k, v, gate and up are cut into outputs ("out", column-parallel): each
rank has what the next layer needs of it, and nothing is sent. o and down are cut into inputs ("in", row-parallel): each
rank has a part of every sum, and an all-reduce adds them up. An adapter's delta is cut with its layer, as vLLM
and TensorRT-LLM do it, and is in the partial sum before that is sent: it needs no collective of its own.
"""

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np

from ..arrays import Array, Float
from ..config import Module
from ..weights import Model
from .whole_modules import Patch, whole_modules

SPLITS = {
    **dict.fromkeys(("q_proj", "k_proj", "v_proj", "gate_proj", "up_proj"), "out"),
    **dict.fromkeys(("o_proj", "down_proj"), "in"),
}
Shard = Callable[[Array, Array, str, int], Sequence[tuple[Array, Array]]]  # A, B, split, ranks -> A and B of each rank


def cut(
    A: Float[Array, "rank d_in"], B: Float[Array, "d_out rank"], split: str, ranks: int
) -> list[tuple[Array, Array]]:
    """A and B of each rank: B cut into rows where the layer is cut into outputs, A into columns where into inputs."""
    if split == "out":
        return [(A, part) for part in np.split(B, ranks, axis=0)]
    return [(part, B) for part in np.split(A, ranks, axis=1)]


@dataclass
class Ranks:
    """A model on several ranks; `steps` are its fields of Ops. `shard` says what of A and B each rank holds."""

    model: Model
    shard: Shard = cut
    size: int = 2
    collectives: Counter[str] = field(default_factory=Counter)  # how many of each kind were needed so far

    @property
    def steps(self) -> dict[str, Callable[..., object]]:
        """The fields of Ops that are different."""
        return whole_modules(self.module)

    def module(self, x: Array, module: Module, patches: Sequence[Patch]) -> Array:
        """One linear layer: x W^T, and what the adapters add, on every rank; then the ranks' results as one."""
        W, split = self.model.linear(module).weight, SPLITS.get(module[1])
        if split is None:  # the lm_head: every rank has all of it
            return x @ W.T
        shards = [self.shard(patch.A, patch.B, split, self.size) for patch in patches]
        results = []
        for rank in range(self.size):
            x_rank = np.split(x, self.size, axis=1)[rank] if split == "in" else x
            y = x_rank @ np.split(W, self.size, axis=1 if split == "in" else 0)[rank].T
            for patch, parts in zip(patches, shards, strict=True):
                A, B = parts[rank]
                y[patch.rows] += patch.scale * (x_rank[patch.rows] @ A.T) @ B.T
            results.append(y)
        if split == "out":
            return np.concatenate(results, axis=1)
        self.collectives["all-reduce"] += 1
        return sum(results[1:], start=results[0])
