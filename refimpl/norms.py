"""Which norms a layer has, and of which kind."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Norms:
    """Where a layer has norms, by their names in the checkpoint below the layer. None: it has none there."""

    attention_in: str | None = "input_layernorm"
    q: str | None = None  # of queries and keys: over each head, or over all of them together, as wide as its weight
    k: str | None = None
    v: str | None = None  # of values, over each head: its weight is 1, and no tensor of the checkpoint (Gemma 4)
    q_turned: str | None = None  # the same after the rotation (HunYuan)
    k_turned: str | None = None
    attention_out: str | None = None
    mlp_in: str | None = "post_attention_layernorm"
    mlp_out: str | None = None
    layer_input: str | None = None  # of what a layer adds to x for its own input (Gemma 4)
    whole_projection: bool = False  # q and k are normalised over all heads together (OLMo 2)
    plus_one: bool = False  # the checkpoint holds what is added to 1 (Gemma)
    centred: bool = False  # LayerNorm, which subtracts the mean first: ops.layer_norm
    bias: bool = False  # and adds a bias

    @property
    def names(self) -> tuple[str, ...]:
        """Those that a layer has, in the order of the forward pass."""
        of_heads = (self.q, self.k, self.v, self.q_turned, self.k_turned)
        placed = (self.attention_in, *of_heads, self.attention_out, self.mlp_in, self.mlp_out, self.layer_input)
        return tuple(name for name in placed if name is not None)


LLAMA_NORMS = Norms()
