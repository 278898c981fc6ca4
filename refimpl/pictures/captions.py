"""A prompt -> what a picture model reads of it: the text model's hidden states, one vector for each token."""

from collections.abc import Sequence

import numpy as np

from ..arrays import Array, Float, Precision
from ..errors import RequestError
from ..model import logits
from ..ops import NUMPY, Ops
from ..request import Request
from ..tracing import trace
from ..weights import Model


def read_captions(
    model: Model, prompts: Sequence[str], ops: Ops = NUMPY, precision: Precision | None = None
) -> list[Float[Array, "words d_text"]]:
    """The residual stream before the text model's last layer, of every prompt, all of them in one batch.

    That is hidden_states[-2] of transformers, which Z-Image reads of its text model (pipeline_z_image.py). The prompt
    is encoded as it stands: a prompt of the embedded model ends with a line break. RequestError for an empty list, or
    a model of one layer."""
    layers = model.config.num_hidden_layers
    if isinstance(prompts, str) or not prompts:
        raise RequestError("expected a list of one or more prompts")
    if layers < 2:
        raise RequestError("a text model of one layer has nothing before its last layer but the embedding")
    ids = [model.tokenizer.encode(prompt) for prompt in prompts]
    name = f"layers.{layers - 2}.output"
    with trace(name) as recorded:
        logits(model, [Request(i) for i in ids], ops, precision)
    return np.split(recorded[name], np.cumsum([len(i) for i in ids])[:-1])
