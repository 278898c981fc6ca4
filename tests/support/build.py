"""Synthetic models, adapters and batches for the tests, as Hypothesis draws them.

The numbers are refimpl/synthetic's. The rules here: alpha/r never 1; ranks that are not powers of two; rsLoRA on some;
every adapter and the last slot used; no layer square, key heads fewer than query heads where it can be, head_dim not
hidden/heads.
"""

from collections.abc import Sequence
from dataclasses import replace
from typing import NamedTuple

import numpy as np
from hypothesis import strategies as st

from refimpl import Request
from refimpl.adapter import Adapter, LoraTensors, PeftConfig
from refimpl.config import EMBED, LAYER_MODULES, ModelConfig, Rope, module_name
from refimpl.synthetic import adapters as synthetic_adapters
from refimpl.synthetic import models as synthetic_models
from refimpl.synthetic.models import unchanged
from refimpl.weights import Model


class Case(NamedTuple):
    """A model, its adapters, and one batch. Its repr is what a failing test prints, so it is short."""

    model: Model
    pool: list[Adapter]
    requests: list[Request]

    def __repr__(self) -> str:
        parts = [repr(self.model.config), *map(shown_adapter, self.pool), *map(shown_request, self.requests)]
        return "Case(" + ",\n    ".join(parts) + ")"


def shown_adapter(a: Adapter) -> str:
    """What matters of an adapter, in one line."""
    modules = sorted({module for _, module in a.lora})
    r = sorted({len(w.A) for w in a.lora.values()})
    others = [*map(str, a.replaced), *map(str, a.biases)]
    c = a.config
    return f"{a.name}: r={r} alpha={c.lora_alpha} rslora={c.use_rslora} {dict(c.alpha_pattern)} {modules} {others}"


def shown_request(request: Request) -> str:
    """What matters of a request, in one line."""
    adapters = [(a.name, weight) for a, weight in request.adapters]
    sampled = f" at {request.temperature}, seed {request.seed}" if request.temperature else ""
    return f"{list(request.prompt_ids)} with {adapters}{sampled}"


RANKS = (1, 2, 3, 5, 6, 7, 8)
EVERYWHERE = (*LAYER_MODULES, "embed_tokens", "lm_head")
# An adapter in one of these shows in the logits of any prompt; q and k alone do not where a token sees only itself.
ALWAYS_SEEN = ("v_proj", "o_proj", "gate_proj", "up_proj", "down_proj", "embed_tokens", "lm_head")


def random_model(config: ModelConfig, seed: int = 0, dtype: str = "float64") -> Model:
    """The synthetic model of this seed."""
    return synthetic_models.random_model(config, np.random.default_rng(seed), dtype)


def random_adapter(
    config: ModelConfig,
    seed: int,
    r: int = 3,
    alpha: float = 7.0,
    use_rslora: bool = False,
    modules: Sequence[str] = LAYER_MODULES,
    lora_bias: bool = False,
    alpha_pattern: dict[str, float] | None = None,
    name: str = "",
) -> Adapter:
    """A synthetic adapter of this seed for a synthetic model, in float64."""
    peft = PeftConfig(
        r, alpha, use_rslora, alpha_pattern=alpha_pattern or {}, target_modules=tuple(modules), lora_bias=lora_bias
    )
    rng = np.random.default_rng([seed, 77])
    return synthetic_adapters.random_adapter(config, peft, name or f"adapter-{seed}", rng, snap=unchanged)


def as_dora(adapter: Adapter, model: Model, seed: int) -> Adapter:
    """The same A and B as a DoRA: every row half to twice as long as the base's."""
    rng, lora = np.random.default_rng([seed, 78]), {}
    for module, tensors in adapter.lora.items():
        lengths = np.linalg.norm(model.linear(module).weight, axis=0 if module == EMBED else 1)
        lora[module] = replace(tensors, bias=None, magnitude=lengths * rng.uniform(0.5, 2, len(lengths)))
    return replace(adapter, config=replace(adapter.config, use_dora=True, lora_bias=False), lora=lora)


def as_dtype(adapter: Adapter, dtype: str) -> Adapter:
    """The same adapter, its tensors in another type."""
    lora = {
        s: LoraTensors(*(None if x is None else x.astype(dtype) for x in (w.A, w.B, w.bias, w.magnitude)))
        for s, w in adapter.lora.items()
    }
    return Adapter(adapter.name, adapter.config, lora, adapter.replaced, adapter.biases)


@st.composite
def configs(draw: st.DrawFn, max_layers: int = 3) -> ModelConfig:
    """Any small Llama or Mistral: GQA, MQA, odd widths, biases, every kind of rope, a window or none."""
    kv_heads = draw(st.integers(1, 3))
    heads = kv_heads * draw(st.integers(1, 3))
    rope = draw(
        st.sampled_from(
            [
                Rope(10000.0),
                Rope(500000.0),
                Rope(10000.0, "linear", factor=2.5),
                Rope(500000.0, "llama3", 8.0, 1.0, 4.0, original_max_position_embeddings=16),
            ]
        )
    )
    return ModelConfig(
        vocab_size=draw(st.sampled_from([11, 23, 40])),
        hidden_size=draw(st.sampled_from([5, 10, 17])),  # never heads * head_dim, so that no layer is square
        intermediate_size=draw(st.sampled_from([7, 13, 24])),
        num_hidden_layers=draw(st.integers(1, max_layers)),
        num_attention_heads=heads,
        num_key_value_heads=kv_heads,
        head_dim=draw(st.sampled_from([2, 4, 8])),
        rms_norm_eps=draw(st.sampled_from([1e-5, 1e-6])),
        rope=rope,
        sliding_window=draw(st.sampled_from([None, None, 1, 3, 5])),
        tie_word_embeddings=draw(st.booleans()),
        attention_bias=draw(st.booleans()),
        mlp_bias=draw(st.booleans()),
        max_position_embeddings=256,
        eos_token_ids=(1,),
    )


@st.composite
def adapters(draw: st.DrawFn, config: ModelConfig, count: int) -> list[Adapter]:
    """`count` pairwise different adapters: mixed ranks, scales and modules, the embedding and lm_head among them."""
    found = []
    for i in range(count):
        r = draw(st.sampled_from(RANKS))
        others = draw(st.lists(st.sampled_from(EVERYWHERE), unique=True))
        modules = list(dict.fromkeys([draw(st.sampled_from(ALWAYS_SEEN)), *others]))
        pattern = {}
        if draw(st.booleans()):
            pattern = {module_name((0, modules[0])) if modules[0] in LAYER_MODULES else modules[0]: 2.5 * r}
        found.append(
            random_adapter(
                config,
                seed=1000 * draw(st.integers(0, 50)) + i,
                r=r,
                alpha=r * draw(st.sampled_from([0.5, 2.0, 3.0, -1.5])),
                use_rslora=draw(st.booleans()) and r > 1,
                modules=modules,
                lora_bias=draw(st.booleans()),
                alpha_pattern=pattern,
            )
        )
    return found


@st.composite
def requests(draw: st.DrawFn, config: ModelConfig, pool: Sequence[Adapter], max_len: int = 12) -> list[Request]:
    """A ragged batch in which every adapter of the pool is used, some summed, some requests have none."""
    choices: list = [*pool, None]
    for _ in range(draw(st.integers(0, 3))):
        choices.append(draw(st.sampled_from([None, *pool])))
    if len(pool) > 1 and draw(st.booleans()):
        choices.append([(pool[0], draw(st.sampled_from([0.5, 1.0, -2.0]))), (pool[-1], 0.75)])
    order = draw(st.permutations(choices))
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    lengths = [draw(st.integers(1, max_len)) for _ in order]
    return [
        Request(rng.integers(0, config.vocab_size, n).tolist(), adapter)
        for n, adapter in zip(lengths, order, strict=True)
    ]


@st.composite
def cases(draw: st.DrawFn, max_adapters: int = 3) -> Case:
    """A float64 model, its adapters, and one batch."""
    config = draw(configs())
    model = random_model(config, draw(st.integers(0, 1000)))
    pool = draw(adapters(config, draw(st.integers(1, max_adapters))))
    return Case(model, pool, draw(requests(config, pool)))


@st.composite
def families(draw: st.DrawFn, config: ModelConfig, pool: Sequence[Adapter], block_size: int) -> list[Request]:
    """Requests whose prompts are put together from two pieces of one block each: prefixes are shared across adapters
    and weights, and the same block of tokens stands at several depths. Some are sampled."""
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    pieces = [rng.integers(0, config.vocab_size, block_size).tolist() for _ in range(2)]
    weighted = [[(pool[0], 1.0)], [(pool[0], -0.5)]] + ([[(pool[0], 1.0), (pool[-1], 2.0)]] if len(pool) > 1 else [])
    choices = [None, *pool, *weighted]
    found = []
    for adapter in [*draw(st.permutations(choices)), draw(st.sampled_from(choices)), draw(st.sampled_from(choices))]:
        pattern = draw(st.sampled_from([(0, 0, 0), (0, 0, 1), (0, 1, 0), (0, 1), (0,)]))
        prompt = [i for piece in pattern for i in pieces[piece]] + draw(st.lists(st.integers(0, 9), max_size=2))
        found.append(Request(prompt, adapter, stop_ids=(), **draw(samplings())))
    return found


@st.composite
def samplings(draw: st.DrawFn) -> dict[str, float]:
    """Greedy as often as not; else a temperature, with top-k and top-p or without, and a seed."""
    if draw(st.booleans()):
        return {}
    return {
        "temperature": draw(st.sampled_from([0.5, 1.0, 2.0])),
        "top_k": draw(st.sampled_from([0, 3])),
        "top_p": draw(st.sampled_from([1.0, 0.8])),
        "seed": draw(st.integers(0, 9)),
    }
