"""S-LoRA's cuts (Sheng et al. 2023), vLLM's `fully_sharded_loras`: of A and B, what is whole otherwise is cut, too.

    column-parallel   A: r / ranks rows        x A^T is gathered, r numbers a token    then B's rows, as before
    row-parallel      B: d_out / ranks rows    x A^T is summed, r numbers a token      then some outputs on each rank

An adapter costs each rank 1/ranks of its memory, and each of its modules one small collective more, of r numbers.
"""

from dataclasses import dataclass
from functools import partial

from ..adapter_slots import AdapterSlots
from ..arrays import Array, Float, Precision, namespace
from ..config import EMBED, LM_HEAD, Module
from ..lora import lora_delta, shrink
from ..plans import LoraMapping
from .communicator import Communicator
from .layout import IN, Layout


@dataclass(frozen=True)
class FullySharded:
    """The field `lora_delta` of a rank's backend, for adapters that AdapterShard has cut fully."""

    layout: Layout
    communicator: Communicator

    def __call__(
        self,
        y: Float[Array, "tokens d_out"],
        x: Array,
        module: Module,
        adapters: AdapterSlots,
        mapping: LoraMapping,
        p: Precision,
    ) -> None:
        """y[t] += weight * scale * B (A x[t]), in place, as lora.lora_delta: this rank's part of it."""
        if module in (EMBED, LM_HEAD):
            step = lora_delta
        elif self.layout.split(module[1]) == IN:
            step = partial(lora_delta, shrink=self.shrink_and_reduce, expand=partial(self.expand_some, y.shape[1]))
        else:
            step = partial(lora_delta, shrink=self.shrink_and_gather, expand=expand_gathered)
        step(y, x, module, adapters, mapping, p)

    def shrink_and_gather(self, x: Array, A: Array) -> Array:
        """x A^T, of which each rank computes some columns."""
        return self.communicator.all_gather(shrink(x, A))

    def shrink_and_reduce(self, x: Array, A: Array) -> Array:
        """x A^T, of which each rank has a part of every sum."""
        return self.communicator.all_reduce(shrink(x, A))

    def expand_some(self, d_out: int, low: Array, B: Array) -> Array:
        """Return this rank's outputs of (x A^T) B^T, among zeros: the all-reduce of y puts all ranks' together."""
        delta = namespace(low).zeros((len(low), d_out), low.dtype)
        start = self.layout.rank * len(B)
        stop = min(start + len(B), d_out)  # what is beyond has been filled up
        if start < stop:
            delta[:, start:stop] = low @ B[: stop - start].T
        return delta


def expand_gathered(low: Array, B: Array) -> Array:
    """(x A^T) B^T. The columns beyond r are those with which the last ranks' parts were filled up."""
    return low[:, : B.shape[1]] @ B.T
