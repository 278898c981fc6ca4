"""Any backend -> the same on one rank: its steps over that rank's part, and the collectives."""

from dataclasses import dataclass, replace

from ..adapter_slots import AdapterSlots
from ..arrays import Array, Float, Int, Precision, namespace, rounded, widen
from ..checks import check_adapter_ids, check_attention, check_slots
from ..config import EMBED, LM_HEAD, Module
from ..dora import gain_of, row_lengths
from ..errors import AdapterError
from ..ops import NUMPY, Ops
from ..plans import Batch, LoraMapping
from ..weights import Model
from .communicator import Communicator
from .fully_sharded import FullySharded
from .layout import IN, Layout
from .shards import AdapterShard


def parallel(
    layout: Layout, part: Model, communicator: Communicator, ops: Ops = NUMPY, fully_sharded: bool = False
) -> Ops:
    """Return the backend of one rank, with which model.forward computes what `ops` computes on the whole model.

    part: that rank's part of the model (shards.shard_model). fully_sharded: cut A and B both (fully_sharded.py)."""
    step = Step(layout, part, communicator, ops, fully_sharded)
    return replace(
        ops,
        shard_adapter=AdapterShard(layout, fully_sharded),
        all_reduce=step.all_reduce,
        all_gather=communicator.all_gather,
        embed=step.embed,
        lora_delta=step.lora_delta,
        dora_gain=step.dora_gain,
        rms_norm=step.rms_norm,
        check_batch=check_batch,
    )


@dataclass(frozen=True, eq=False)
class Step:
    """The steps that are different on a rank. `ops` is the backend that computes them on its part."""

    layout: Layout
    part: Model
    communicator: Communicator
    ops: Ops
    fully_sharded: bool

    def all_reduce(self, y: Float[Array, "tokens d_out"], module: Module, p: Precision) -> Array:
        """The sum over the ranks, where each has a part of it; y itself after a column-parallel module."""
        if self.layout.split(module[1]) != IN:
            return y
        return rounded(self.communicator.all_reduce(y), p.linear)

    def embed(self, table: Float[Array, "rows d_model"], token_ids: Int[Array, " tokens"], p: Precision) -> Array:
        """The rows of this rank's tokens, and zeros for the others': a part of the sum."""
        return self.ops.embed(table, self.local_ids(token_ids), p)

    def local_ids(self, token_ids: Int[Array, " tokens"]) -> Int[Array, " tokens"]:
        """The row of each token in this rank's tables, whose first is zero: for all that another rank has."""
        part = self.layout.vocabulary
        inside = token_ids >= part.start
        if part.stop is not None:
            inside &= token_ids < part.stop
        return namespace(token_ids).where(inside, token_ids - (part.start - 1), 0).astype(token_ids.dtype)

    def lora_delta(
        self, y: Array, x: Array, module: Module, adapters: AdapterSlots, mapping: LoraMapping, p: Precision
    ) -> None:
        """This rank's part of the delta, added to its part of y: in front of the all-reduce, where there is one."""
        step = FullySharded(self.layout, self.communicator) if self.fully_sharded else self.ops.lora_delta
        step(y, self.local_ids(x) if module == EMBED else x, module, adapters, mapping, p)

    def dora_gain(
        self, weight: Array, A: Array, B: Array, scale: float, magnitude: Array, module: Module
    ) -> Float[Array, " d_out"]:
        """magnitude / ||W + scale B A||: of a row-parallel module each rank has a part of the squares of every row."""
        xp, split = namespace(A), self.layout.split(module[1])
        if self.fully_sharded and module not in (EMBED, LM_HEAD):  # the whole of one of them, while the gain is made
            if split == IN:
                B = self.communicator.all_gather(B, axis=0)[: len(magnitude)]
            else:
                A = self.communicator.all_gather(A, axis=0)[: B.shape[1]]
        lengths = row_lengths(weight, A, B, scale)
        if split == IN:
            return gain_of(xp.sqrt(self.communicator.all_reduce(lengths**2)), magnitude, module)
        zeros = self.communicator.all_reduce(xp.asarray([float((lengths == 0).sum())]))
        if lengths.all() and zeros[0]:  # all ranks refuse, or those that do not would wait for the others
            raise AdapterError(f"{module}: a row of W + scale B A is zero on another rank, and DoRA divides by it")
        return gain_of(lengths, magnitude, module)

    def rms_norm(self, x: Array, weight: Array, eps: float, p: Precision) -> Array:
        """x / sqrt(mean(x^2) + eps) * weight. Over all heads together (OLMo 2), the mean is that of the ranks' means,
        which are over equally many heads each, also where key heads are replicated."""
        if not self._is_cut(weight):
            return self.ops.rms_norm(x, weight, eps, p)
        xp = namespace(x)
        means = xp.einsum("td,td->t", x, x)[:, None] / x.shape[1]
        mean_square = self.communicator.all_reduce(means) / self.layout.size
        return rounded(rounded(x / xp.sqrt(mean_square + eps), p.norm_inner) * widen(weight, p.compute), p.norm)

    def _is_cut(self, weight: Array) -> bool:
        """Whether this is the norm of a projection whose heads are on several ranks."""
        norms = self.part.config.norms
        if not norms.whole_projection:
            return False
        names = [name for name in (norms.q, norms.k) if name is not None]
        return any(weight is layer.norms[name] for layer in self.part.layers for name in names)


def check_batch(batch: Batch, adapters: AdapterSlots, window: int | None) -> None:
    """checks.check_batch without the token ids: how far an adapter's vocabulary goes, only the last rank knows.

    They were checked with their request (request.py), and one that nobody has is a row of zeros here."""
    check_adapter_ids(batch.lora.adapter_ids, adapters.slots)
    check_attention(batch.attention, len(batch.token_ids), window)
    check_slots(batch.attention)
