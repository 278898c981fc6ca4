"""Which part of each module one rank has, and which models cannot be cut among so many ranks.

    4 query heads, 2 key heads, 2 ranks           rank 0                 rank 1
    q_proj, rows                                  heads 0 1              heads 2 3
    k_proj, v_proj, rows                          head 0                 head 1       (with 4 ranks: 0 0 1 1)
    qkv_proj, rows                                q 0 1, k 0, v 0        q 2 3, k 1, v 1
    o_proj, columns                               heads 0 1              heads 2 3

A fused module is cut part by part: half of its rows in one run would be all of q, and nothing of v.
"""

from collections.abc import Sequence
from dataclasses import dataclass, fields

import numpy as np

from ..arrays import Array, namespace
from ..config import EMBED, LM_HEAD, ModelConfig
from ..errors import LoracleError

IN, OUT = "in", "out"  # a module is cut into inputs (row-parallel), or into outputs (column-parallel)
Parts = Sequence[slice]  # of one axis, in order: what one rank has of it


@dataclass(frozen=True)
class RankConfig(ModelConfig):
    """The config of one rank's part: fewer heads, a narrower MLP. The vocabulary is that of the whole model."""

    source: ModelConfig | None = None

    @property
    def unsharded(self) -> ModelConfig:
        """The config of the model that was cut."""
        return self if self.source is None else self.source


@dataclass(frozen=True)
class Layout:
    """What rank `rank` of `size` ranks has of a model with this config. LoracleError where that cannot be cut."""

    config: ModelConfig
    rank: int
    size: int

    def __post_init__(self) -> None:
        config, size = self.config, self.size
        if config.moe is not None and size > 1:
            raise LoracleError("a model with experts is not cut: it runs on one rank")
        if config.mla is not None and size > 1:
            raise LoracleError("multi-head latent attention is not shared among ranks: this model runs on 1")
        if (config.uneven or config.hidden_size_per_layer_input) and size > 1:
            raise LoracleError("layers that differ in their heads are not cut: such a model runs on one rank")
        heads = (config.num_attention_heads, config.num_key_value_heads)
        choices = [n for n in range(1, heads[0] + 1) if not _sourcetable(config, n)]
        if wrong := _sourcetable(config, size):
            few = ", ".join(map(str, choices))
            raise LoracleError(f"{wrong} cannot be shared by {size} ranks: this model runs on {few}")

    def split(self, name: str) -> str:
        """IN or OUT. The embedding is cut into inputs: token ids stand for one-hot rows as wide as the vocabulary."""
        return IN if name in ("o_proj", self.config.down, EMBED[1]) else OUT

    def outputs(self, name: str) -> Parts:
        """The rows of W, of B and of the bias of a column-parallel module, of each of its parts if it is fused."""
        q, kv = self._heads
        mlp = self._share(self.config.intermediate_size)
        parts = {"q_proj": [q], "k_proj": [kv], "v_proj": [kv]}
        parts |= {"gate_proj": [mlp], "up_proj": [mlp], "c_fc": [mlp]}
        if name in parts:
            return parts[name]
        if name == LM_HEAD[1]:
            return [self.vocabulary]
        q_width, kv_width, _ = self.config.head_widths()
        if name in self.config.qkv:
            return [q, shifted(kv, q_width), shifted(kv, q_width + kv_width)]
        assert name in self.config.gate_up
        return [mlp, shifted(mlp, self.config.intermediate_size)]

    def inputs(self, name: str) -> Parts:
        """The columns of W and of A of a row-parallel module."""
        if name == EMBED[1]:
            return [self.vocabulary]
        return [self._heads[0] if name == "o_proj" else self._share(self.config.intermediate_size)]

    def norm(self, name: str) -> Parts:
        """The weights of a norm over all heads together."""
        return [self._heads[0] if name == self.config.norms.q else self._heads[1]]

    @property
    def vocabulary(self) -> slice:
        """The tokens of this rank. Those that an adapter adds to the vocabulary are the last rank's: it has no end."""
        part = self._share(self.config.vocab_size)
        return slice(part.start, None) if self.rank == self.size - 1 else part

    @property
    def rank_config(self) -> RankConfig:
        """The config with which model.forward runs on this rank."""
        config = self.config
        values = {item.name: getattr(config, item.name) for item in fields(ModelConfig)} | {
            "num_attention_heads": config.num_attention_heads // self.size,
            "num_key_value_heads": max(1, config.num_key_value_heads // self.size),
            "intermediate_size": config.intermediate_size // self.size,
        }
        return RankConfig(**values, source=config)

    @property
    def _heads(self) -> tuple[slice, slice]:
        """Of the query heads and of the key heads, in rows. With fewer key heads than ranks, several ranks have one."""
        config, head_dim = self.config, self.config.head_dim
        q = self._share(config.num_attention_heads * head_dim)
        kv_heads = config.num_key_value_heads
        if kv_heads >= self.size:
            return q, self._share(kv_heads * head_dim)
        head = self.rank * kv_heads // self.size
        return q, slice(head * head_dim, (head + 1) * head_dim)

    def _share(self, width: int) -> slice:
        """This rank's run of an axis; the first ranks have one more where it does not divide (the vocabulary)."""
        edges = np.cumsum([0, *(len(part) for part in np.array_split(np.arange(width), self.size))])
        return slice(int(edges[self.rank]), int(edges[self.rank + 1]))


def _sourcetable(config: ModelConfig, size: int) -> str:
    """What of a model cannot be shared by so many ranks, by its key in config.json; empty if everything can."""
    kv_heads = config.num_key_value_heads
    if config.num_attention_heads % size:
        return f"num_attention_heads {config.num_attention_heads}"
    if kv_heads % size and size % kv_heads:  # each rank has some, or several ranks have the same one
        return f"num_key_value_heads {kv_heads}"
    if config.intermediate_size % size:
        return f"intermediate_size {config.intermediate_size}"
    return f"vocab_size {config.vocab_size}" if config.vocab_size < size else ""


def shifted(part: slice, offset: int) -> slice:
    """Return the run that begins `offset` later."""
    return slice(part.start + offset, part.stop + offset)


def cut(x: Array, parts: Parts, axis: int) -> Array:
    """Return these runs of an axis side by side: a view where there is one."""
    pieces = [x[(slice(None),) * axis + (part,)] for part in parts]
    return pieces[0] if len(pieces) == 1 else namespace(x).concatenate(pieces, axis=axis)
