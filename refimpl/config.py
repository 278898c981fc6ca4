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

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .errors import ConfigError
from .findings import Findings, shown
from .json_file import LARGEST, Keys, is_integer, read_json

# One linear layer of the model: (layer, module). Modules outside the layers have layer -1.
Site = tuple[int, str]

ATTENTION_MODULES = ("q_proj", "k_proj", "v_proj", "o_proj")
MLP_MODULES = ("gate_proj", "up_proj", "down_proj")
LAYER_MODULES = ATTENTION_MODULES + MLP_MODULES
EMBED: Site = (-1, "embed_tokens")
LM_HEAD: Site = (-1, "lm_head")


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

    def sites(self) -> list[Site]:
        """Every linear layer, in the order of the forward pass."""
        inner = [(i, module) for i in range(self.num_hidden_layers) for module in LAYER_MODULES]
        return [EMBED, *inner, LM_HEAD]

    def has_bias(self, module: str) -> bool:
        """Whether the checkpoint holds a bias for this module."""
        return (module in ATTENTION_MODULES and self.attention_bias) or (module in MLP_MODULES and self.mlp_bias)


def module_name(site: Site) -> str:
    """The module's dotted name in the Hugging Face model: (3, 'q_proj') -> model.layers.3.self_attn.q_proj."""
    layer, module = site
    if site == LM_HEAD:
        return "lm_head"
    if site == EMBED:
        return "model.embed_tokens"
    return f"model.layers.{layer}.{'self_attn' if module in ATTENTION_MODULES else 'mlp'}.{module}"


# The classes whose forward pass this package is, and what transformers assumes where their config.json is silent
# (configuration_llama.py, configuration_mistral.py). num_key_value_heads: of a Llama, num_attention_heads.
DEFAULTS: dict[str, dict[str, Any]] = {
    "LlamaForCausalLM": {"rms_norm_eps": 1e-6, "max_position_embeddings": 2048, "bos_token_id": 1, "eos_token_id": 2},
    "MistralForCausalLM": {
        **{"rms_norm_eps": 1e-6, "max_position_embeddings": 131072, "bos_token_id": 1, "eos_token_id": 2},
        **{"num_key_value_heads": 8, "sliding_window": 4096},
    },
}
FAMILIES = {"llama": "LlamaForCausalLM", "mistral": "MistralForCausalLM"}
SUPPORTED = f"supported are {' and '.join(DEFAULTS)}, unquantised"

# Keys that change the numbers in some engine or fork, and the values with which they do not.
NEUTRAL: dict[str, tuple[Any, ...]] = {
    "hidden_act": ("silu",),
    "partial_rotary_factor": (1, 1.0),
    "quantization_config": (),
    "compression_config": (),
    "auto_map": ({},),  # the repository brings its own code
    "use_sliding_window": (False,),
    "attn_logit_softcapping": (),
    "final_logit_softcapping": (),
    "attention_multiplier": (),
    "embedding_multiplier": (1, 1.0),
    "residual_multiplier": (1, 1.0),
    "logits_scaling": (1, 1.0),
    "logit_scale": (1, 1.0),
    "qk_layernorm": (False,),
    "use_qk_norm": (False,),
    "no_rope_layers": ([],),
    "num_local_experts": (0, 1),
    "num_experts": (0, 1),
    "clip_qkv": (),
    "alibi": (False,),
}


def load_config(folder: str | Path) -> ModelConfig:
    """The config.json of a Hugging Face folder. ConfigError, one line, for anything that would not be computed right."""
    found = Findings()
    config = read_config(Path(folder), found)
    found.raise_first(ConfigError, Path(folder))
    assert config is not None  # None comes with a problem
    return config


def read_config(folder: Path, found: Findings) -> ModelConfig | None:
    """As load_config, but every problem is noted. None where one of them leaves no config to speak of."""
    file, before = folder / "config.json", len(found.problems)
    data = read_json(file, found)
    if data is None or (family := _family(file, data, found)) is None:
        return None
    _check_neutral(file, data, family, found)
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
        rope=_rope(keys),
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


def _family(file: Path, data: Mapping[str, Any], found: Findings) -> str | None:
    """The architecture, of which there must be one, and one that is supported."""
    named, model_type = data.get("architectures"), data.get("model_type")
    if not named and isinstance(model_type, str) and model_type in FAMILIES:
        return FAMILIES[model_type]  # written by something that did not know the class
    if not isinstance(named, list) or len(named) != 1 or not isinstance(named[0], str) or named[0] not in DEFAULTS:
        found.problem(file, f"architectures {shown(named)} (model_type {shown(model_type)}): {SUPPORTED}")
        return None
    if model_type is not None and (not isinstance(model_type, str) or FAMILIES.get(model_type) != named[0]):
        found.problem(file, f"architectures {shown(named)} contradicts model_type {shown(model_type)}: {SUPPORTED}")
        return None
    return named[0]


def _check_neutral(file: Path, data: Mapping[str, Any], family: str, found: Findings) -> None:
    """Keys that mean a different model are refused by name, unless their value makes no difference."""
    for key, neutral in NEUTRAL.items():
        if data.get(key) is not None and not any(data[key] == v and type(data[key]) is type(v) for v in neutral):
            instead = f"must be {' or '.join(map(repr, neutral))}" if neutral else "is not supported"
            found.problem(file, f"{key} is {shown(data[key])}, which {instead}: {SUPPORTED}")
    of_class = ("sliding_window",) if family == "LlamaForCausalLM" else ("attention_bias", "mlp_bias")
    for key in of_class:
        if data.get(key) is not None and data[key] is not False:
            found.problem(
                file, f"{key} is {shown(data[key])}: {family} has none, and engines differ on whether to obey"
            )
    kinds = {"full_attention"} if data.get("sliding_window") is None else {"sliding_attention"}
    layer_types = data.get("layer_types")
    if layer_types is not None and not (
        isinstance(layer_types, list)
        and all(k in kinds for k in layer_types if isinstance(k, str))
        and all(isinstance(k, str) for k in layer_types)
    ):
        found.problem(file, f"layer_types is {shown(layer_types)}: every layer must be {' or '.join(kinds)}")


def _rope(keys: Keys) -> Rope:
    """rope_parameters (transformers 5) or rope_scaling with rope_theta beside it (4); `type` is the older `rope_type`."""
    given = [key for key in ("rope_parameters", "rope_scaling") if keys.given(key)]
    name = given[0] if given else "rope_parameters"
    data = keys.data[name] if given else {}
    if not isinstance(data, dict):
        keys.found.problem(keys.file, f"{name} is {shown(data)}: it must be an object")
        return Rope()
    if len(given) == 2 and keys.data["rope_scaling"] != data:
        keys.found.problem(keys.file, "rope_parameters and rope_scaling are both given and differ")
    kinds = {shown(data[key]) for key in ("rope_type", "type") if data.get(key) is not None} or {"'default'"}
    kind = kinds.pop()[1:-1]
    if kinds or kind not in ROPE_KEYS:
        all_kinds = " and ".join([repr(kind), *kinds])
        keys.found.problem(keys.file, f"{name}: rope_type {all_kinds} is not supported; {', '.join(ROPE_KEYS)} are")
        return Rope()
    inner = Keys(f"{keys.file}: {name}", data, keys.found)
    for key in data:
        if inner.given(key) and key not in (*ROPE_EITHER, *ROPE_KEYS[kind]) and data[key] not in NEUTRAL.get(key, ()):
            keys.found.problem(keys.file, f"{name}: {key} {shown(data[key])} is not supported with rope_type {kind!r}")
    thetas = [source.positive("rope_theta") for source in (inner, keys) if source.given("rope_theta")] or [10000.0]
    if thetas[0] != thetas[-1]:
        keys.found.problem(keys.file, f"rope_theta is {thetas[-1]} but {name} says {thetas[0]}")
    values: dict[str, Any] = {key: inner.positive(key) for key in ROPE_KEYS[kind] if key not in ROPE_EITHER}
    if kind == "llama3":
        values["original_max_position_embeddings"] = inner.integer("original_max_position_embeddings")
        if not values["low_freq_factor"] < values["high_freq_factor"]:
            keys.found.problem(keys.file, f"{name}: low_freq_factor must be below high_freq_factor, has {shown(data)}")
    return Rope(theta=thetas[0], type=kind, **values)


# What each kind of scaling needs, and what may stand beside it without an effect.
ROPE_KEYS = {"default": (), "linear": ("factor",), "llama3": ("factor", "low_freq_factor", "high_freq_factor")}
ROPE_EITHER = ("rope_type", "type", "rope_theta", "original_max_position_embeddings")


def _eos_token_ids(folder: Path, keys: Keys) -> tuple[int, ...]:
    """The ids that end a text: generation_config.json's where there is one, as `generate` of transformers reads them."""
    file = folder / "generation_config.json"
    generation = read_json(file, keys.found) if file.exists() else None
    if generation and generation.get("eos_token_id") is not None:
        keys = Keys(file, generation, keys.found)
    value = keys.data.get("eos_token_id")
    ids = value if isinstance(value, list) else [] if value is None else [value]
    if not all(is_integer(n) and 0 <= n <= LARGEST for n in ids):
        keys.found.problem(keys.file, f"eos_token_id is {shown(value)}: it must be an id or a list of ids")
        return ()
    return tuple(ids)
