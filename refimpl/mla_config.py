"""The shape of multi-head latent attention (mla.py), and what one token keeps in the cache of a layer."""

from dataclasses import dataclass

Q_NORM, KV_NORM = "self_attn.q_a_layernorm", "self_attn.kv_a_layernorm"


@dataclass(frozen=True)
class Mla:
    """Multi-head latent attention (DeepSeek-V2, 2024), in the names of config.json."""

    heads: int  # num_attention_heads
    kv_lora_rank: int  # the width of the latent that keys and values are made of
    qk_nope_head_dim: int  # channels of a head of q and k that do not turn
    qk_rope_head_dim: int  # and those that do: of k, one for all heads
    v_head_dim: int
    q_lora_rank: int | None = None  # queries are made of a latent of this width, too; None: of the residual stream
    eps: float = 1e-6  # of the norms of both latents, whatever rms_norm_eps is

    @property
    def qk_head_dim(self) -> int:
        """The width of one head of q and of k."""
        return self.qk_nope_head_dim + self.qk_rope_head_dim

    @property
    def modules(self) -> tuple[str, ...]:
        """The linear layers that make queries, keys and values, in the order of the forward pass."""
        q = ("q_proj",) if self.q_lora_rank is None else ("q_a_proj", "q_b_proj")
        return (*q, "kv_a_proj_with_mqa", "kv_b_proj")

    @property
    def norms(self) -> dict[str, int]:
        """The norms of the latents, by their names below the layer, and how wide they are."""
        q = {} if self.q_lora_rank is None else {Q_NORM: self.q_lora_rank}
        return q | {KV_NORM: self.kv_lora_rank}

    def shape(self, name: str, d_model: int) -> tuple[int, int] | None:
        """(d_out, d_in) of a module of the attention; None for a name that is none of them."""
        q = self.heads * self.qk_head_dim
        return {
            "q_proj": (q, d_model),
            "q_a_proj": (self.q_lora_rank or 0, d_model),
            "q_b_proj": (q, self.q_lora_rank or 0),
            "kv_a_proj_with_mqa": (self.kv_lora_rank + self.qk_rope_head_dim, d_model),
            "kv_b_proj": (self.heads * (self.qk_nope_head_dim + self.v_head_dim), self.kv_lora_rank),
            "o_proj": (d_model, self.heads * self.v_head_dim),
        }.get(name)


@dataclass(frozen=True)
class KVShape:
    """What one token keeps in the cache of one layer: a key and a value for each of some heads."""

    heads: int
    key: int  # the width of one head's key
    value: int
    shared: bool = False  # the value is the last channels of the key, and takes no memory of its own

    @property
    def numbers(self) -> tuple[int, int]:
        """How many numbers the keys and the values take."""
        return self.heads * self.key, 0 if self.shared else self.heads * self.value
