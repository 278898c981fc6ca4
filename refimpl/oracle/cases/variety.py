"""Which random models and adapters an engine is asked about: as various as its capabilities let them be.

Ranks are not powers of two, odd ones and one above 16 among them; alpha/r is never 1; rsLoRA on some; one adapter is
partial; fewer key heads than query heads; layers square and not. The numbers come from refimpl/synthetic.
"""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from ...adapter import Adapter, PeftConfig
from ...config import EMBED, LAYER_MODULES, LM_HEAD, ModelConfig, Rope
from ...engines.interface import Capabilities
from ...errors import LoracleError
from ...synthetic.adapters import gain_of, random_adapter, with_own_biases, with_own_layers
from ...weights import Model

RANKS = (6, 3, 20, 5, 8, 12)
TURNS = 4  # of random_config
KINDS = 8  # of adapters that random_adapters makes before it begins anew
FUSED = (("gate_proj", "up_proj"), ("q_proj", "k_proj", "v_proj"), ("q_a_proj", "kv_a_proj_with_mqa"))
EXTRA_TOKENS = 3  # that a grown vocabulary has more than the base's


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


def random_adapters(
    base: Model, rng: np.random.Generator, capabilities: Capabilities, count: int, prefix: str = "made"
) -> list[Adapter]:
    """Return `count` pairwise different adapters that use whatever the engine can take, each something else.

    LoracleError for an engine that takes an adapter on no module of a layer."""
    can, most = capabilities.features, capabilities.max_rank or 64
    # What a family has beside a Llama's modules (experts, a latent) an engine takes that takes the family.
    denied = [name for name in LAYER_MODULES if name not in capabilities.modules]
    modules = [name for name in base.config.layer_modules if name not in denied]
    if not modules:
        raise LoracleError(f"no module of the model's layers is among {', '.join(capabilities.modules)}")
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
            use_rslora="rslora" in can and (i % 4 == 1 or i % 8 == 6),
            rank_pattern=_ranks(r, most, base.config) if "rank_pattern" in can and i % 4 == 2 else {},
            alpha_pattern=_alphas(r, base.config) if "alpha_pattern" in can and i % 4 == 2 else {},
            target_modules=(*targets, *(top if i % 4 == 1 and i > 3 else ())),
            lora_bias="lora_bias" in can and i % 4 == 0 and base.config.moe is None,  # PEFT has none beside experts
        )
        adapter = random_adapter(base.config, config, f"{prefix}-{i}", rng, gain_of(base))
        if "modules_to_save" in can and i % 8 == 4:
            adapter = with_own_layers(base, adapter, (LM_HEAD,), rng)
        if "grown_vocabulary" in can and i % 8 == 6 and not base.config.hidden_size_per_layer_input:
            adapter = with_own_layers(base, adapter, (EMBED, LM_HEAD), rng, EXTRA_TOKENS)
        if "biases" in can and i % 8 == 7 and base.config.attention_bias:
            adapter = with_own_biases(base, adapter, rng)
        adapters.append(adapter)
    return adapters


def _ranks(r: int, most: int, config: ModelConfig) -> dict[str, int]:
    """Return other ranks for the second and the third of what is fused, where they are no more than `most`."""
    later = {name: r + step for group in _fused(config) for name, step in zip(group[1:], (1, 3), strict=False)}
    return {name: rank for name, rank in later.items() if rank <= most and _has(config, name)}


def _alphas(r: int, config: ModelConfig) -> dict[str, float]:
    """Return another alpha for the second of what is fused, and for what is in no group."""
    factors = {group[1]: 0.7 for group in _fused(config)} | {"down_proj": 2.5, "o_proj": 1.3}
    return {name: factor * r for name, factor in factors.items() if _has(config, name)}


def _fused(config: ModelConfig) -> Sequence[tuple[str, ...]]:
    """Return the groups of modules that engines fuse, in which one rank or scale for all must show.

    Two halves of one expert are one parameter for PEFT, with one rank and one scale."""
    return FUSED if config.moe is None else FUSED[1:]


def _has(config: ModelConfig, name: str) -> bool:
    return any(module.rpartition(".")[2] == name for module in config.layer_modules)


def _some(modules: Sequence[str], rng: np.random.Generator) -> list[str]:
    """v_proj, which shows in any prompt, or the first of those that there are, and two others."""
    first = "v_proj" if "v_proj" in modules else modules[0]
    others = [name for name in modules if name != first]
    chosen = {first, *rng.choice(others, size=min(2, len(others)), replace=False)}
    return [name for name in modules if name in chosen]
