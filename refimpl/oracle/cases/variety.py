"""Which random models and adapters an engine is asked about: as various as its capabilities let them be.

Ranks are not powers of two, odd ones and one above 16 among them; alpha/r is never 1; fewer key heads than query heads;
layers square and not. Every base and every adapter has one rarer feature for sure, in turn, and each of the others by
chance, so that any two meet in most campaigns; so do any two modules that differ in rank, in scale, or in being there
(benchmarks/pairs.py counts both). The numbers come from refimpl/synthetic.
"""

import math
from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from ...adapter import Adapter, PeftConfig
from ...config import EMBED, LAYER_MODULES, LM_HEAD, ModelConfig, Rope
from ...engines.interface import Capabilities
from ...errors import LoracleError
from ...synthetic.adapters import gain_of, random_adapter, with_own_biases, with_own_layers
from ...weights import Model
from .patterns import alphas, by_layer, ranks

RANKS = (6, 3, 20, 5, 8, 12, 18)
TURNS = 4  # of random_config
KINDS = 8  # of adapters that random_adapters makes before it begins anew
EXTRA_TOKENS = 3  # that a grown vocabulary has more than the base's
OFTEN, WHOLE = 0.5, 0.35  # chances: of a feature; of a whole layer, beside which there is no LoRA
WHOLE_LAYERS = ("modules_to_save", "grown_vocabulary")
ORIGINAL = 16  # tokens of the context that a scaled rope stretches: fewer than our longest prompts have


def random_config(rng: np.random.Generator, capabilities: Capabilities, turn: int | None = None) -> ModelConfig:
    """A small Llama; a Mistral with a short window, half of the time, for an engine that has one.

    turn: the rarer shapes come in turn, not by chance, so that four turns in a row have all that the engine can do:
    a window; a tied head; biases; heads that are together not as wide as the residual stream, with a rope that is
    scaled. Each of them comes in the other turns by chance; but the first has heads as wide as the stream: a short
    campaign has no other base, and only there may o_proj read what another module was given."""
    heads, kv_heads = [(4, 2), (6, 2), (6, 3), (8, 2)][rng.integers(4)]
    head_dim = int(rng.choice([16, 32]))
    head_dim = head_dim if head_dim in capabilities.head_dims else capabilities.head_dims[0]
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
    return config if turn is None else _in_turn(config, capabilities, turn)


def _in_turn(config: ModelConfig, capabilities: Capabilities, seed: int) -> ModelConfig:
    can = capabilities.features
    turn, chance = seed % TURNS, np.random.default_rng([seed, 21])
    window, tied, biases, wide, scaled = (
        turn == its_turn or bool(chance.random() < OFTEN) for its_turn in (0, 1, 2, 3, 3)
    )
    window, biases, wide = window and "window" in can, biases and "biases" in can, wide and capabilities.own_head_dim
    wide = wide and turn != 0
    if window and biases:  # a Mistral has no biases, a Llama no window
        window, biases = (turn == 0, turn != 0) if turn in (0, 2) else (turn == 1, turn == 3)
    stretched = replace(config.rope, type="llama3", factor=8.0, original_max_position_embeddings=ORIGINAL)
    # transformers refuses a Llama whose heads do not divide its stream, whatever their width is.
    wider = math.lcm(32, config.num_attention_heads) if wide else 0
    return replace(
        config,
        sliding_window=(config.sliding_window or 7) if window else None,
        tie_word_embeddings=tied,
        attention_bias=biases,
        mlp_bias=biases,
        hidden_size=config.hidden_size + wider,
        rope=stretched if scaled and "rope_scaling" in can else config.rope,
    )


def random_adapters(
    base: Model,
    rng: np.random.Generator,
    capabilities: Capabilities,
    count: int,
    prefix: str = "made",
    combined: bool = True,
) -> list[Adapter]:
    """Return `count` pairwise different adapters that use whatever the engine can take, each something else.

    combined: each has other features by chance beside that of its turn. LoracleError for an engine that takes an
    adapter on no module of a layer."""
    config, most = base.config, capabilities.max_rank or 64
    # What a family has beside a Llama's modules (experts, a latent) an engine takes that takes the family.
    denied = [name for name in LAYER_MODULES if name not in capabilities.modules]
    modules = [name for name in config.layer_modules if name not in denied]
    if not modules:
        raise LoracleError(f"no module of the model's layers is among {', '.join(capabilities.modules)}")
    top = [module[1] for module in (EMBED, LM_HEAD) if module[1] in capabilities.modules]
    chance, keys = rng.spawn(2)  # so that features do not change the numbers of a base's first adapter
    adapters = []
    for i in range(count):
        has = _features(i, capabilities.features, config, chance if combined else None)
        r = min(most, RANKS[i % len(RANKS)] if "mixed_ranks" in capabilities.features else 8)
        targets = _some(modules, chance) if "partial" in has else modules
        # PEFT has no lora_bias on an embedding.
        ends = [name for name in top if not (name == EMBED[1] and "lora_bias" in has)] if "ends" in has else []
        if len(ends) == 2 and i % KINDS != 5 and "modules_to_save" not in has and chance.random() < OFTEN:
            ends = [ends[int(chance.integers(2))]]  # the sixth has both, the others both or one
        peft = PeftConfig(
            r,
            lora_alpha=float(r * rng.choice([0.5, 1.7, 2.0, 3.0])),
            use_rslora="rslora" in has,
            rank_pattern=by_layer(ranks(r, most, config, chance), config, keys) if "rank_pattern" in has else {},
            alpha_pattern=by_layer(alphas(r, config, chance), config, keys) if "alpha_pattern" in has else {},
            target_modules=(*targets, *ends),
            lora_bias="lora_bias" in has,
        )
        adapter = random_adapter(config, peft, f"{prefix}-{i}", rng, gain_of(base))
        if "some_layers" in has:
            adapter = _in_some_layers(adapter, config, chance)
        if "modules_to_save" in has:
            adapter = with_own_layers(base, adapter, (LM_HEAD,), rng)
        if "grown_vocabulary" in has:
            adapter = with_own_layers(base, adapter, (EMBED, LM_HEAD), rng, EXTRA_TOKENS)
        if "biases" in has and not any("experts" in name for name in targets):
            adapter = with_own_biases(base, adapter, rng)
        adapters.append(adapter)
    return adapters


def _features(i: int, can: frozenset[str], config: ModelConfig, chance: np.random.Generator | None) -> set[str]:
    """Return what adapter i has of what the engine can: the features whose turn it is, and others by chance.

    The first one has nothing else: it is what near-duplicates are made of, and the plainest case of all."""
    turns = (
        *("lora_bias", "rslora", "rank_pattern", "partial"),
        *("modules_to_save", "ends", "grown_vocabulary", "biases"),
    )
    has = {turns[i % 4], turns[i % KINDS]}
    if turns[i % 4] == "rank_pattern":
        has.add("alpha_pattern")
    if turns[i % KINDS] == "grown_vocabulary":
        has.add("rslora")
    if chance is not None:
        names = (*turns, "alpha_pattern", "some_layers")
        others = {name for name in names if chance.random() < (WHOLE if name in WHOLE_LAYERS else OFTEN)}
        has |= others if i else set()
        if turns[i % 4] == "rank_pattern":  # on all that is fused
            has.discard("partial")
        if turns[i % KINDS] == "ends":  # their ranks and scales differ from those of the layers, on both of them
            has = (has | {"rank_pattern", "alpha_pattern"}) - {"lora_bias", "some_layers", *WHOLE_LAYERS}
        elif turns[i % KINDS] == "modules_to_save":  # a whole head beside LoRA on the embedding, or in some layers
            on_end = chance.random() < OFTEN
            has |= {"ends"} if on_end else {"some_layers"}
            has -= {"lora_bias", "some_layers"} if on_end else {"ends"}
        elif {"ends", "some_layers"} <= has:  # PEFT has no LoRA on an end beside layers that are named
            has.remove("ends" if chance.random() < 0.7 else "some_layers")
    if not config.attention_bias:
        has.discard("biases")
    if config.hidden_size_per_layer_input:
        has.discard("grown_vocabulary")
    if config.moe is not None:  # PEFT has no lora_bias beside experts, and takes an expert's number for a layer's
        has -= {"lora_bias", "some_layers"}
    if "grown_vocabulary" in has & can:  # which brings both ends along
        has -= {"modules_to_save", "ends"}
    if "partial" not in can:
        has.discard("some_layers")
    return has & (can | {"ends", "some_layers"})


def _in_some_layers(adapter: Adapter, config: ModelConfig, chance: np.random.Generator) -> Adapter:
    """Return the adapter in some of the layers only, not all and not always the first ones; of one layer, as it is."""
    count = config.num_hidden_layers
    if count == 1:
        return adapter
    layers = tuple(sorted(int(layer) for layer in chance.permutation(count)[: chance.integers(1, count)]))
    lora = {module: tensors for module, tensors in adapter.lora.items() if module[0] in layers}
    if not lora:  # a family whose layers have not all the same modules
        return adapter
    return replace(adapter, config=replace(adapter.config, layers_to_transform=layers), lora=lora)


def _some(modules: Sequence[str], chance: np.random.Generator) -> list[str]:
    """Return some of the modules, not all. Not q_proj and k_proj alone: at the first token they show nothing."""
    while True:
        count = int(chance.integers(1, max(2, len(modules) - 1)))
        chosen = set(chance.choice(modules, size=count, replace=False).tolist())
        if len(modules) < 4 or chosen - {"q_proj", "k_proj"}:
            return [name for name in modules if name in chosen]
