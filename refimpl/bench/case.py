"""The arrays of one point: random adapters in one buffer as the kernels read them, several sets of them to rotate."""

import math
from dataclasses import dataclass
from typing import Any

import numpy as np

from ..arrays import Array, Float, Int
from ..cuda import launch
from ..cuda.launch import STORED, PackedLora, stored
from ..plans import LoraMapping
from .floor import Work, work
from .workloads import Point, adapter_ids

AT_ONCE = 1 << 24  # random numbers that are drawn in one go
SCALE = 0.5


@dataclass(frozen=True, eq=False)
class Case:
    """`sets` times the same work on other numbers. Set s owns the adapters from s * work.distinct on."""

    point: Point
    work: Work
    packed: PackedLora
    x: list[Array]  # of each set
    y: list[Array]
    ids: list[Int[np.ndarray, " tokens"]]
    mappings: list[LoraMapping]  # the same ids, as the kernels take them
    A: Float[Array, "adapters rank d_in"]  # views of packed.weights
    B: Float[Array, "adapters d_out rank"]

    @property
    def sets(self) -> int:
        """How many."""
        return len(self.x)

    def run(self, i: int = 0, y: Array | None = None) -> Array:
        """y += what the adapters add, by the kernels that the dispatcher chooses; y is this set's own by default."""
        y = self.y[i] if y is None else y
        launch.lora_delta(y, self.x[i], self.packed, self.mappings[i], round_rank=True)
        return y


def make_case(point: Point, xp: Any = np, sets: int = 1, seed: int = 0) -> Case:
    """Signed random numbers, no two adapters alike, on the device of `xp`. The rank-r intermediate is rounded."""
    rng = xp.random.default_rng(seed)
    ids = adapter_ids(point.mix, point.tokens)
    todo = work(ids, point.rank, point.d_in, point.d_out)
    adapters = sets * todo.distinct
    a_size, b_size = point.rank * point.d_in, point.d_out * point.rank
    weights = xp.empty((adapters, a_size + b_size), STORED[point.dtype])
    flat = weights.reshape(-1)
    fill(flat, rng, point.dtype, 1 / math.sqrt(math.sqrt(point.d_in * point.rank)))
    offsets = np.full((1, adapters, 3), -1, np.int64)
    offsets[0, :, 0] = np.arange(adapters, dtype=np.int64) * (a_size + b_size)
    offsets[0, :, 1] = offsets[0, :, 0] + a_size
    packed = PackedLora(
        dtype=point.dtype,
        weights=flat,
        offsets=xp.asarray(offsets),
        ranks=xp.asarray(np.full((1, adapters), point.rank, np.int32)),
        scales=xp.asarray(np.full((1, adapters), SCALE, np.float32)),
        slice_starts=xp.asarray(np.array([0, point.d_out], np.int32)),
        d_in=point.d_in,
        adapters=adapters,
        max_rank=point.rank,
        widest=point.d_out,
        columns=point.d_out,
    )
    rows = xp.empty((sets, point.tokens * (point.d_in + point.d_out)), STORED[point.dtype])
    fill(rows.reshape(-1), rng, point.dtype, 1.0)
    split = point.tokens * point.d_in
    id_sets = [(ids + i * todo.distinct).astype(np.int32) for i in range(sets)]
    return Case(
        point,
        todo,
        packed,
        x=[row[:split].reshape(point.tokens, point.d_in) for row in rows],
        y=[row[split:].reshape(point.tokens, point.d_out) for row in rows],
        ids=id_sets,
        mappings=[LoraMapping.of(column[:, None], np.ones((point.tokens, 1)), xp) for column in id_sets],
        A=weights[:, :a_size].reshape(adapters, point.rank, point.d_in),
        B=weights[:, a_size:].reshape(adapters, point.d_out, point.rank),
    )


def fill(flat: Array, rng: Any, dtype: str, size: float) -> None:
    """Normal numbers of this size, drawn piece by piece."""
    for start in range(0, flat.size, AT_ONCE):
        count = min(AT_ONCE, flat.size - start)
        flat[start : start + count] = stored(rng.standard_normal(count, dtype=np.float32) * np.float32(size), dtype)
