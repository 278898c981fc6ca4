"""Random models: signed weights of a size at which activations stay near 1."""

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from ..arrays import DTYPES, Array, namespace
from ..config import LAYER_INPUTS, LM_HEAD, ModelConfig, Module
from ..weights import Layer, LayerInputs, Linear, Model

# What becomes of drawn numbers before they are stored: rounded to a grid, or left as they are.
Snap = Callable[[Array], Array]

NORM_SPREAD = 0.2  # of a norm's weights around 1
HEAD_GAIN = 3.0  # times 1 is the size of a logit; the larger, the surer the model is of its next token


@dataclass(frozen=True)
class Recipe:
    """In which order a model's arrays are drawn from a generator, and how.

    There is more than one because what was drawn is kept: the seeds of campaigns and recordings, and the test vectors'
    files. A change of order is other numbers."""

    norms_first: bool = True  # of one layer; or each array where the forward pass meets it
    ends: tuple[str, str] = ("embed_tokens", "lm_head")  # where these are tied, the first is drawn and is both
    bias: float = 0.1  # the size of a bias, beside the 1 that its layer computes
    number: type = np.float64  # of a drawn number; np.float32 takes half the memory, and draws others


# As the oracle's committed seeds draw.
NORMS_FIRST = Recipe()
# As the committed vectors were drawn: each layer in the order of its forward pass.
FORWARD_ORDER = Recipe(False, ("lm_head", "embed_tokens"), bias=0.3)


def unchanged(x: Array) -> Array:
    """Return the array: every number that can be drawn will do."""
    return x


def random_model(
    config: ModelConfig,
    rng: np.random.Generator,
    dtype: str,
    recipe: Recipe = NORMS_FIRST,
    snap: Snap = unchanged,
    device: str = "cpu",
) -> Model:
    """Return a model of this shape, its weights in `dtype`.

    rng: NumPy's generator, or CuPy's for device "cuda". snap: makes the numbers exact in more types than `dtype`."""

    def normal(*shape: int) -> Array:
        return rng.standard_normal(shape, dtype=recipe.number)

    def store(x: Array) -> Array:
        return snap(x).astype(DTYPES[dtype], copy=False)

    def weight(module: Module, gain: float = 1.0) -> Array:
        d_out, d_in = config.shape(module)
        return store(gain * normal(d_out, d_in) / math.sqrt(d_in))

    def norm(width: int = config.hidden_size) -> Array:
        weight = store(1 + NORM_SPREAD * normal(width))
        if not config.norms.centred:
            return weight
        parts = [weight, store(recipe.bias * normal(width))] if config.norms.bias else [weight]
        return namespace(weight).stack(parts)

    def linear(module: Module) -> Linear:
        values = weight(module)
        bias = store(recipe.bias * normal(len(values))) if config.has_bias(module[1]) else None
        return Linear(values, bias)

    def layer(i: int) -> Layer:
        norms, linears = {}, {}
        order = (*config.norms_of(i), *config.modules_of(i)) if recipe.norms_first else forward_order(config, i)
        for name in order:
            if name in config.norms_of(i):
                weight = norm(config.norm_width(name, i))
                norms[name] = namespace(weight).ones_like(weight) if name == config.norms.v else weight
            elif name in config.modules_of(i):
                linears[name] = linear((i, name))
        return Layer(norms, linears, {name: store(normal(width)) for name, width in config.vectors_of(i).items()})

    def end(module: str) -> Array:
        return weight(LM_HEAD, HEAD_GAIN) if module == "lm_head" else store(normal(*config.shape(module)))

    layers = tuple(layer(i) for i in range(config.num_hidden_layers))
    first = end(recipe.ends[0])
    second = first if config.tie_word_embeddings else end(recipe.ends[1])
    ends = dict(zip(recipe.ends, (first, second), strict=True))
    inputs = None
    if config.hidden_size_per_layer_input:
        table = store(normal(config.vocab_size_per_layer_input, config.layer_inputs_width))
        inputs = LayerInputs(table, linear(LAYER_INPUTS), norm(config.hidden_size_per_layer_input))
    return Model(
        config,
        ends["embed_tokens"],
        layers,
        norm(),
        Linear(ends["lm_head"]),
        dtype=dtype,
        device=device,
        layer_inputs=inputs,
    )


def forward_order(config: ModelConfig, layer: int) -> list[str]:
    """The names of one layer's arrays, each where the forward pass meets it."""
    norms, block = config.norms, [name for name in config.modules_of(layer) if name not in (*config.qkv, "o_proj")]
    latent, of_heads = (
        config.mla.norms if config.mla else (),
        (norms.q, norms.k, norms.v, norms.q_turned, norms.k_turned),
    )
    before = (norms.attention_in, *config.qkv, *latent, *of_heads, "o_proj")
    after = (norms.attention_out, norms.mlp_in, *block, norms.mlp_out, norms.layer_input)
    return [name for name in (*before, *after) if name is not None]
