"""Muon (Jordan et al. 2024, https://kellerjordan.github.io/posts/muon): momentum, made orthogonal.

In float32 and for matrices of one shape together: torch.optim.Muon works in bfloat16, which is slow on a CPU.
"""

import math
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor

QUINTIC = (3.4445, -4.7750, 2.0315)  # Newton-Schulz: singular values of 0 .. 1 come near 1 in five iterations
ITERATIONS = 5


class Muon:
    """An optimizer of matrices. `state_dict` and `load_state_dict` as torch's optimizers have them."""

    def __init__(self, matrices: Iterable[Tensor], momentum: float = 0.95, weight_decay: float = 0.01) -> None:
        self.groups: dict[tuple[int, ...], list[Tensor]] = {}
        for matrix in matrices:
            self.groups.setdefault(tuple(matrix.shape), []).append(matrix)
        self.buffers = {shape: torch.zeros(len(group), *shape) for shape, group in self.groups.items()}
        self.momentum, self.weight_decay = momentum, weight_decay

    @torch.no_grad()
    def step(self, learning_rate: float) -> None:
        """Take one step along every gradient, and drop the gradients."""
        for shape, group in self.groups.items():
            gradient = torch.stack([matrix.grad for matrix in group])
            buffer = self.buffers[shape].mul_(self.momentum).add_(gradient, alpha=1 - self.momentum)
            updates = orthogonal(gradient.lerp(buffer, self.momentum))
            rate = learning_rate * 0.2 * math.sqrt(max(shape))  # an update as large as AdamW's: Liu et al. 2025
            for matrix, update in zip(group, updates, strict=True):
                matrix.mul_(1 - learning_rate * self.weight_decay).add_(update, alpha=-rate)
                matrix.grad = None

    def state_dict(self) -> dict[tuple[int, ...], Any]:
        """The momentum of every shape."""
        return self.buffers

    def load_state_dict(self, state: dict[tuple[int, ...], Any]) -> None:
        """Go on from a saved momentum."""
        self.buffers = state


def orthogonal(x: Tensor) -> Tensor:
    """The nearest matrices [n, rows, columns] with orthonormal rows (or columns), roughly: singular values near 1."""
    tall = x.shape[1] > x.shape[2]
    x = x.mT if tall else x
    x = x / (x.flatten(1).norm(dim=1)[:, None, None] + 1e-7)
    linear, cubic, quintic = QUINTIC
    for _ in range(ITERATIONS):
        square = x @ x.mT
        x = linear * x + (cubic * square + quintic * (square @ square)) @ x
    return x.mT if tall else x
