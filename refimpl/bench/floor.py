"""The fewest bytes that a batched LoRA can move: what it reads read once, what it writes written once.

    bytes = distinct * rank * (d_in + d_out) * size      A and B of each adapter that occurs
          + tokens * (d_in + 2 * d_out) * size           x read, y read and written
          + tokens * 4                                   adapter ids

The rank-r intermediate is left out: 4 * rank bytes a token, which stay in a cache between the two launches. Bytes over
the bandwidth of a copy is a time that no kernel beats, unless its input was in a cache already.
"""

from dataclasses import dataclass

import numpy as np

from ..arrays import Int


@dataclass(frozen=True)
class Work:
    """What one launch pair has to do."""

    distinct: int  # adapters that occur
    bytes: int
    flops: int

    @property
    def intensity(self) -> float:
        """flop per byte: the place on the roofline's horizontal axis."""
        return self.flops / self.bytes


def work(adapter_ids: Int[np.ndarray, " tokens"], rank: int, d_in: int, d_out: int, size: int = 2) -> Work:
    """Bytes and products of one layer; `size` is that of a number in memory."""
    used = adapter_ids[adapter_ids >= 0]
    tokens, distinct = len(used), len(np.unique(used))
    moved = distinct * rank * (d_in + d_out) * size + tokens * (d_in + 2 * d_out) * size + 4 * len(adapter_ids)
    return Work(distinct, moved, 2 * tokens * rank * (d_in + d_out))
