"""What a checkpoint is: a frozen ModelConfig, read from a Hugging Face config.json.

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

import os
from dataclasses import dataclass
from pathlib import Path

from .errors import ConfigError
from .loading.families import DEFAULTS, check_neutral, family_of
from .loading.findings import Findings, shown
from .loading.json_file import LARGEST, Keys, is_integer, read_json
from .loading.rope_scaling import read_rope

# One linear layer of the model: (layer, module). Modules outside the layers have layer -1.
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
        """Every linear layer, in the order of the forward pass."""
        inner = [(i, module) for i in range(self.num_hidden_layers) for module in LAYER_MODULES]
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


def load_config(folder: str | Path) -> ModelConfig:
    """The config.json of a Hugging Face folder. ConfigError, one line, for what would not be computed right."""
    found = Findings()
    config = read_config(Path(folder), found)
    found.raise_first(ConfigError, Path(folder))
    assert config is not None  # None comes with a problem
    return config


def read_config(folder: Path, found: Findings) -> ModelConfig | None:
    """As load_config, but every problem is noted. None where one of them leaves no config to speak of."""
    file, before = folder / "config.json", len(found.problems)
    if not os.path.exists(file):
        adapter = ": it is an adapter, not a base model" if os.path.exists(folder / "adapter_config.json") else ""
        found.problem(folder, f"has no config.json{adapter}" if os.path.isdir(folder) else "is not a folder")
        return None
    data = read_json(file, found)
    if data is None or (family := family_of(file, data, found)) is None:
        return None
    check_neutral(file, data, family, found)
    keys = Keys(file, DEFAULTS[family] | data, found)
    heads, hidden = keys.integer("num_attention_heads"), keys.integer("hidden_size")
    if not keys.given("head_dim") and hidden % heads:
        found.problem(file, f"hidden_size {hidden} is not a multiple of num_attention_heads {heads}, and no head_dim")
    config = ModelConfig(
        vocab_size=keys.integer("vocab_size"),
        hidden_size=hidden,
        intermediate_size=keys.integer("intermediate_size"),
        num_hidden_layers=keys.integer("num_hidden_layers", most=10_000),
        num_attention_heads=heads,
        num_key_value_heads=keys.integer("num_key_value_heads", default=heads),
        head_dim=keys.integer("head_dim", default=max(hidden // heads, 1)),
        rms_norm_eps=keys.positive("rms_norm_eps"),
        rope=Rope(**read_rope(keys)),
        sliding_window=keys.integer("sliding_window") if keys.given("sliding_window") else None,
        tie_word_embeddings=keys.flag("tie_word_embeddings"),
        attention_bias=keys.flag("attention_bias"),
        mlp_bias=keys.flag("mlp_bias"),
        max_position_embeddings=keys.integer("max_position_embeddings"),
        bos_token_id=keys.integer("bos_token_id", least=0) if keys.given("bos_token_id") else None,
        eos_token_ids=_eos_token_ids(folder, keys),
    )
    if heads % config.num_key_value_heads:
        kv_heads = config.num_key_value_heads
        found.problem(file, f"num_attention_heads {heads} is not a multiple of num_key_value_heads {kv_heads}")
    if config.head_dim % 2 and len(found.problems) == before:
        found.problem(file, f"head_dim {config.head_dim} is odd: rotary embedding turns pairs")
    return config if len(found.problems) == before else None


def _eos_token_ids(folder: Path, keys: Keys) -> tuple[int, ...]:
    """The ids that end a text: generation_config.json's where there is one, as `generate` of transformers does."""
    file = folder / "generation_config.json"
    generation = read_json(file, keys.found) if os.path.exists(file) else None
    if generation and generation.get("eos_token_id") is not None:
        keys = Keys(file, generation, keys.found)
    value = keys.data.get("eos_token_id")
    ids = value if isinstance(value, list) else [] if value is None else [value]
    if not all(is_integer(n) and 0 <= n <= LARGEST for n in ids):
        keys.found.problem(keys.file, f"eos_token_id is {shown(value)}: it must be an id or a list of ids")
        return ()
    return tuple(ids)
