"""The end of a layer in Gemma 4: an input of its own for each layer and token, and a factor.

    inputs = (rms_norm(P x0 / sqrt(d_model)) + E[token] sqrt(width)) / sqrt(2)      all layers at once, before the first
    x = (x + rms_norm(W_out (act(W_gate x) * inputs[layer]))) * layer_scalar

P, W_gate and W_out are modules that LoRA can target; E is a second embedding table, `width` numbers for each layer, and
is none. E2B and E4B have inputs, the larger models the factor alone; where a model has neither, x stays as it is.
"""

from collections.abc import Callable

import numpy as np

from .arrays import DTYPES, Array, Float, rounded
from .config import LAYER_INPUTS
from .forward_context import ForwardContext

EndOfLayer = Callable[[ForwardContext, Array, int], Array]  # run, x, layer


def end_of_layer(run: ForwardContext, x: Float[Array, "tokens d_model"]) -> EndOfLayer:
    """Return what is done to x at the end of each layer. x here: the embedding, as the first layer gets it."""
    model, ops, p = run.model, run.ops, run.p
    if not model.config.layer_scalar:
        return lambda run, x, layer: x
    width = model.config.hidden_size_per_layer_input
    inputs = layer_inputs(run, x) if width else None

    def end(run: ForwardContext, x: Array, layer: int) -> Float[Array, "tokens d_model"]:
        if inputs is not None:
            gate = run.project(x, layer, "per_layer_input_gate")
            h = ops.mlp_activation(gate, inputs[run.rows, layer], model.config.activation, p)
            h = run.norm(run.project(h, layer, "per_layer_projection"), layer, model.config.norms.layer_input)
            x = rounded(x + h, p.residual)
        return ops.scaled(x, model.layers[layer].vectors["layer_scalar"], p)

    return end


def layer_inputs(run: ForwardContext, x: Float[Array, "tokens d_model"]) -> Float[Array, "tokens layers width"]:
    """What each layer gets beside x, from the embedding and from the ids alone."""
    model, ops, p = run.model, run.ops, run.p
    config, tables = model.config, model.layer_inputs
    assert tables is not None
    width = config.hidden_size_per_layer_input
    y = ops.scaled(run.project(x, *LAYER_INPUTS), config.hidden_size**-0.5, p)
    y = ops.rms_norm(y.reshape(-1, width), tables.norm, config.rms_norm_eps, p).reshape(y.shape)
    factor = float(np.sqrt(width).astype(DTYPES[model.dtype]))  # a tensor of the model's type there
    rows = ops.scaled(ops.embed(tables.embed_tokens, run.batch.device.token_ids, p), factor, p)
    return ops.scaled(rounded(y + rows, p.residual), 0.5**0.5, p).reshape(len(x), -1, width)
