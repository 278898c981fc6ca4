"""What a model is: a frozen ModelConfig, in the names of a Hugging Face config.json (loading/config_file.py reads it).

The legend of axis names. Every public signature of the package uses these and no others:

    tokens      all scheduled tokens of all requests, flat: prefill, chunked prefill and decode alike
    requests    the requests of one batch;  starts: requests + 1, where their runs of tokens begin and end
    rows        the tokens that get logits
    d_model     hidden_size, the width of the residual stream
    d_in d_out  the two widths of one linear layer
    d_mlp       intermediate_size
    heads       query heads;  kv_heads: key and value heads;  head_dim: the width of one head
    rank        r of one adapter in one module
    k           the most adapters that any request of the batch sums (usually 1)
    vocab       rows of the embedding table
    blocks      blocks of the paged cache;  block_size: tokens per block;  table: blocks of the longest request
"""

from dataclasses import dataclass

# A module that LoRA can target, a linear layer or the embedding: (layer, name). Those outside the layers have layer -1.
Module = tuple[int, str]

ATTENTION_MODULES = ("q_proj", "k_proj", "v_proj", "o_proj")
MLP_MODULES = ("gate_proj", "up_proj", "down_proj")
LAYER_MODULES = ATTENTION_MODULES + MLP_MODULES
LAYER_NORMS = ("input_layernorm", "post_attention_layernorm")
EMBED: Module = (-1, "embed_tokens")
LM_HEAD: Module = (-1, "lm_head")


@dataclass(frozen=True)
class Rope:
    """Rotary position embedding. `type` is default, linear (Chen et al. 2023) or llama3 (Llama 3.1)."""

    theta: float = 10000.0
    type: str = "default"
    factor: float = 1.0
    low_freq_factor: float = 1.0
    high_freq_factor: float = 4.0
    original_max_position_embeddings: int = 8192


@dataclass(frozen=True)
class ModelConfig:
    """The shape of a Llama-family decoder, in the names of its config.json."""

    vocab_size: int
    hidden_size: int
    intermediate_size: int
    num_hidden_layers: int
    num_attention_heads: int
    num_key_value_heads: int
    head_dim: int
    rms_norm_eps: float = 1e-5
    rope: Rope = Rope()
    sliding_window: int | None = None  # a token sees itself and the window-1 tokens before it
    tie_word_embeddings: bool = False
    attention_bias: bool = False  # on q, k, v and o
    mlp_bias: bool = False
    max_position_embeddings: int = 2048
    bos_token_id: int | None = None
    eos_token_ids: tuple[int, ...] = ()

    def shape(self, module: str) -> tuple[int, int]:
        """(d_out, d_in) of a module's weight, as it lies in the checkpoint. For embed_tokens: (vocab, d_model)."""
        q, kv = self.num_attention_heads * self.head_dim, self.num_key_value_heads * self.head_dim
        return {
            "q_proj": (q, self.hidden_size),
            "k_proj": (kv, self.hidden_size),
            "v_proj": (kv, self.hidden_size),
            "o_proj": (self.hidden_size, q),
            "gate_proj": (self.intermediate_size, self.hidden_size),
            "up_proj": (self.intermediate_size, self.hidden_size),
            "down_proj": (self.hidden_size, self.intermediate_size),
            "embed_tokens": (self.vocab_size, self.hidden_size),
            "lm_head": (self.vocab_size, self.hidden_size),
        }[module]

    def modules(self) -> list[Module]:
        """Every module that LoRA can target, in the order of the forward pass."""
        inner = [(i, name) for i in range(self.num_hidden_layers) for name in LAYER_MODULES]
        return [EMBED, *inner, LM_HEAD]

    def has_bias(self, module: str) -> bool:
        """Whether the checkpoint holds a bias for this module."""
        return (module in ATTENTION_MODULES and self.attention_bias) or (module in MLP_MODULES and self.mlp_bias)


def module_name(module: Module) -> str:
    """The module's dotted name in the Hugging Face model: (3, 'q_proj') -> model.layers.3.self_attn.q_proj."""
    layer, name = module
    if module == LM_HEAD:
        return "lm_head"
    if module == EMBED:
        return "model.embed_tokens"
    return f"model.layers.{layer}.{'self_attn' if name in ATTENTION_MODULES else 'mlp'}.{name}"


def short_name(module: Module) -> str:
    """The module's name in a trace: (3, 'q_proj') -> layers.3.q_proj."""
    layer, name = module
    return name if layer < 0 else f"layers.{layer}.{name}"
