"""Random models and adapters to try an engine on, made so that a bug cannot hide.

Every rule is there because a real bug once survived a test without it: random signed B, never zero; alpha/r never 1;
ranks that are not powers of two, odd ones and one above 16; rsLoRA on some; one adapter that is partial; adapters
pairwise different, each about as large as the base; fewer key heads than query heads; layers square and not.
"""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from ...adapter import Adapter, LoraTensors, PeftConfig, pattern_value
from ...arrays import DTYPES, Array
from ...config import EMBED, LAYER_MODULES, LM_HEAD, ModelConfig, Module, Rope, module_name
from ...engines.interface import Capabilities
from ...errors import LoracleError
from ...lora import adapter_scale
from ...weights import Layer, Linear, Model

STRENGTH = 0.5  # how large an adapter's delta is beside what the base computes at the same place
RANKS = (6, 3, 20, 5, 8, 12)
TURNS = 4  # of random_config
KINDS = 8  # of adapters that random_adapters makes before it begins anew
WORDS = 3  # that a grown vocabulary has more than the base's


def random_config(rng: np.random.Generator, capabilities: Capabilities, turn: int | None = None) -> ModelConfig:
    """A small Llama; a Mistral with a short window, half of the time, for an engine that has one.

    turn: the rarer shapes come in turn, not by chance, so that four turns in a row have all that the engine can do:
    a window; a tied head; biases; heads that are together not as wide as the residual stream."""
    heads, kv_heads = [(4, 2), (6, 2), (6, 3), (8, 2)][rng.integers(4)]
    head_dim = int(rng.choice([16, 32]))
    window = int(rng.integers(5, 12)) if "window" in capabilities.features and rng.random() < 0.5 else None
    config = ModelConfig(
        vocab_size=int(rng.choice([256, 320, 512])),
        hidden_size=heads * head_dim,  # q_proj and o_proj are square, the others are not
        intermediate_size=int(rng.choice([224, 256, 352])),
        num_hidden_layers=int(rng.integers(2, 5)),
        num_attention_heads=heads,
        num_key_value_heads=kv_heads,
        head_dim=head_dim,
        rms_norm_eps=1e-5,
        rope=Rope(float(rng.choice([10000.0, 500000.0]))),
        sliding_window=window,
        tie_word_embeddings=bool(rng.random() < 0.3),
        max_position_embeddings=256,
        eos_token_ids=(1,),
    )
    return config if turn is None else _in_turn(config, capabilities.features, turn % TURNS)


def _in_turn(config: ModelConfig, can: frozenset[str], turn: int) -> ModelConfig:
    biases, window = turn == 2 and "biases" in can, turn == 0 and "window" in can
    return replace(
        config,
        sliding_window=(config.sliding_window or 7) if window else None,
        tie_word_embeddings=turn == 1,
        attention_bias=biases,
        mlp_bias=biases,
        hidden_size=config.hidden_size + (32 if turn == 3 else 0),
    )


def random_model(config: ModelConfig, rng: np.random.Generator, dtype: str) -> Model:
    """Signed weights of a size at which activations stay near 1."""

    def linear(module: str, size: float = 1.0) -> Linear:
        shape = config.shape(module)
        weight = (size * rng.standard_normal(shape) / np.sqrt(shape[-1])).astype(DTYPES[dtype])
        return Linear(weight, random_bias(shape[0], rng).astype(DTYPES[dtype]) if config.has_bias(module) else None)

    def norm() -> Array:
        return (1 + 0.2 * rng.standard_normal(config.hidden_size)).astype(DTYPES[dtype])

    layers = tuple(
        Layer(
            input_layernorm=norm(),
            post_attention_layernorm=norm(),
            **{module: linear(module) for module in LAYER_MODULES},
        )
        for _ in range(config.num_hidden_layers)
    )
    embed = rng.standard_normal(config.shape("embed_tokens")).astype(DTYPES[dtype])
    head = Linear(embed) if config.tie_word_embeddings else linear("lm_head", 3.0)
    return Model(config, embed, layers, norm(), head, dtype=dtype)


def random_bias(d_out: int, rng: np.random.Generator) -> Array:
    """A tenth of what the layer computes."""
    return 0.1 * rng.standard_normal(d_out)


def random_adapters(
    base: Model, rng: np.random.Generator, capabilities: Capabilities, count: int, prefix: str = "made"
) -> list[Adapter]:
    """`count` pairwise different adapters that use whatever the engine can take, each something else."""
    can, most = capabilities.features, capabilities.max_rank or 64
    modules = [name for name in LAYER_MODULES if name in capabilities.modules]
    # Where the head is the embedding, LoRA on the embedding alone shows whether the head is left as it is.
    tops = (EMBED,) if base.config.tie_word_embeddings else (EMBED, LM_HEAD)
    top = [module[1] for module in tops if module[1] in capabilities.modules]
    adapters = []
    for i in range(count):
        r = min(most, RANKS[i % len(RANKS)] if "mixed_ranks" in can else 8)
        targets = _some(modules, rng) if i % 4 == 3 and "partial" in can else modules
        config = PeftConfig(
            r,
            lora_alpha=float(r * rng.choice([0.5, 1.7, 2.0, 3.0])),
            use_rslora="rslora" in can and i % 4 == 1,
            rank_pattern={"v_proj": r + 3} if "rank_pattern" in can and i % 4 == 2 else {},
            alpha_pattern={"down_proj": 2.5 * r} if "alpha_pattern" in can and i % 4 == 2 else {},
            target_modules=(*targets, *(top if i % 4 == 1 and i > 3 else ())),
            lora_bias="lora_bias" in can and i % 4 == 0,
        )
        adapter = random_adapter(base, config, f"{prefix}-{i}", rng)
        if "modules_to_save" in can and i % 8 == 4:
            adapter = with_own_head(base, adapter, rng)
        if "grown_vocabulary" in can and i % 8 == 6:
            adapter = with_more_words(base, adapter, rng)
        if "biases" in can and i % 8 == 7 and base.config.attention_bias:
            adapter = with_own_biases(base, adapter, rng)
        adapters.append(adapter)
    return adapters


def _some(modules: Sequence[str], rng: np.random.Generator) -> list[str]:
    """v_proj, which shows in any prompt, and two others."""
    others = [name for name in modules if name != "v_proj"]
    chosen = {"v_proj", *rng.choice(others, size=min(2, len(others)), replace=False)}
    return [name for name in modules if name in chosen]


def random_adapter(base: Model, config: PeftConfig, name: str, rng: np.random.Generator) -> Adapter:
    """Signed random A and B; scale * B A is STRENGTH times as large as the weight that it is added to."""
    lora: dict[Module, LoraTensors] = {}
    for module in base.config.modules():
        if module[1] not in config.target_modules:
            continue
        weight = base.linear(module).weight.astype(np.float32)
        d_out, d_in = weight.shape[::-1] if module == EMBED else weight.shape
        path = module_name(module)
        r = pattern_value(config.rank_pattern, path, config.r)
        scale = adapter_scale(pattern_value(config.alpha_pattern, path, config.lora_alpha), r, config.use_rslora)
        # What the base makes of an input of unit size; the rows of an embedding are looked up, not summed.
        gain = float(np.linalg.norm(weight)) / np.sqrt(weight.shape[0] * (d_out if module == EMBED else 1))
        A = rng.standard_normal((r, d_in)) / (1 if module == EMBED else np.sqrt(d_in))
        B = STRENGTH * gain * rng.standard_normal((d_out, r)) / (np.sqrt(r) * abs(scale))
        bias = 0.1 * gain * rng.standard_normal(d_out) / abs(scale) if config.lora_bias and module != EMBED else None
        lora[module] = LoraTensors(*(None if x is None else x.astype(np.float32) for x in (A, B, bias)))  # type: ignore[arg-type]
    if not lora:
        raise LoracleError(f"no module of the model is among {', '.join(config.target_modules)}")
    return Adapter(name, config, lora)


def with_own_head(base: Model, adapter: Adapter, rng: np.random.Generator) -> Adapter:
    """The adapter, and with it a whole lm_head of its own (modules_to_save)."""
    weight = base.linear(LM_HEAD).weight.astype(np.float32)
    weight_of_its_own = weight + STRENGTH * weight.std() * rng.standard_normal(weight.shape)
    config = replace(adapter.config, modules_to_save=("lm_head",))
    return replace(adapter, config=config, replaced={LM_HEAD: weight_of_its_own.astype(np.float32)})


def with_more_words(base: Model, adapter: Adapter, rng: np.random.Generator) -> Adapter:
    """The adapter, and with it an embedding and a head of its own that know WORDS more words."""
    replaced = {}
    for module in (EMBED, LM_HEAD):
        weight = base.linear(module).weight.astype(np.float32)
        size = (len(weight) + WORDS, weight.shape[1])
        weight_of_its_own = np.vstack([weight, np.zeros((WORDS, size[1]), np.float32)])
        replaced[module] = (weight_of_its_own + STRENGTH * weight.std() * rng.standard_normal(size)).astype(np.float32)
    config = replace(adapter.config, modules_to_save=("embed_tokens", "lm_head"))
    lora = {module: tensors for module, tensors in adapter.lora.items() if module not in replaced}
    return replace(adapter, config=config, lora=lora, replaced=replaced)


def with_own_biases(base: Model, adapter: Adapter, rng: np.random.Generator) -> Adapter:
    """The adapter, and with it a bias of its own for every layer that has one (bias="all")."""
    modules = [module for module in base.config.modules() if base.config.has_bias(module[1])]
    weight_of_its_own = {
        module: 3 * random_bias(base.config.shape(module[1])[0], rng).astype(np.float32) for module in modules
    }
    return replace(adapter, config=replace(adapter.config, bias="all"), biases=weight_of_its_own)
