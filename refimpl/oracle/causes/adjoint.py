"""What a change of any module's output does to the logits that an engine showed: one backward pass, for all modules.

J is the Jacobian of the shown numbers with respect to one module's output. Random directions w are taken, K of them,
and J^T w comes back to every module at once. What a delta u there does to w is then a dot product, <J^T w, u>: the
error of the engine and every possible cause of it are compared as vectors of K numbers.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace

import numpy as np

from ...adapter_slots import AdapterSlots
from ...alora import starts_of
from ...arrays import Array, Float, Precision, ceil_div
from ...batch import ScheduledRequest, make_batch
from ...config import Module
from ...kv_cache import KVCache
from ...ops import NUMPY
from ...plans import LoraMapping
from ...request import Request
from ...training.backward import Pass, backward, forward
from ...training.dropout import Dropout
from ...training.gradient_ops import GRADIENTS
from ...training.lora_gradients import Gradients, lora_delta_vjp
from ...weights import Model
from ..noise.measure import Errors
from ..noise.readout import View
from .watch import Watch

DIRECTIONS = 48  # more: slower, and causes that do nearly the same are told apart by the linear fit already
NUMBERS_AT_ONCE = 1 << 24  # of dlogits; larger: more memory, fewer passes
BLOCK_SIZE = 16


@dataclass(frozen=True, eq=False)
class Adjoint:
    """One request's error along K directions, and what comes back along them to every module."""

    directions: Float[Array, "K rows vocab"]  # scaled so that honest noise is about 1 along each
    watch: Watch  # what each module was given
    gradients: Mapping[Module, Float[Array, "tokens K d_out"]]

    def along(self, error: Float[Array, "rows vocab"]) -> Float[Array, " K"]:
        """An error of the shown numbers along each direction, in noise units."""
        return np.tensordot(self.directions, error, axes=2)

    def effects_of(
        self, module: Module, deltas: Float[Array, "tokens sources d_out"]
    ) -> Float[Array, "tokens K sources"]:
        """What each of some deltas at one module does along each direction, token by token."""
        gradients = self.gradients[module]
        width = min(gradients.shape[2], deltas.shape[2])
        return gradients[:, :, :width] @ deltas[:, :, :width].transpose(0, 2, 1)


def adjoint(model: Model, request: Request, raw: Errors, seed: int = 0, count: int = DIRECTIONS) -> Adjoint:
    """Return the adjoint of a teacher-forced request, at the exact forward pass. raw: its errors, not of text alone."""
    rng = np.random.default_rng(seed)
    tokens, vocab = len(request.prompt_ids), raw.vocab
    at_once = max(1, NUMBERS_AT_ONCE // (tokens * vocab))
    numbers = np.maximum(raw.view.shown.sum(), 1)
    parts = []
    directions = rng.standard_normal((count, *raw.error.shape)) / (raw.unit[:, None] * np.sqrt(numbers))
    directions = np.where(raw.view.shown, directions, 0.0)
    for start in range(0, count, at_once):
        k = min(at_once, count - start)
        dlogits = np.zeros((k, tokens, vocab))
        dlogits[:, raw.rows] = np.stack([view_transposed(raw.view, one) for one in directions[start : start + k]])
        watch, gradients = _back(model, request, dlogits)
        parts.append(gradients)
    joined = {module: np.concatenate([part[module] for part in parts], axis=1) for module in parts[0]}
    return Adjoint(directions, watch, joined)


def view_transposed(view: View, weights: Float[Array, "rows vocab"]) -> Float[Array, "rows vocab"]:
    """The transpose of View.of, which is linear: log-probabilities less their mean are logits less theirs."""
    count = view.shown.sum(axis=-1, keepdims=True)
    mean = np.sum(np.where(view.shown, weights, 0.0), axis=-1, keepdims=True) / np.maximum(count, 1)
    return np.where(view.shown, weights - mean, 0.0)


def _back(model: Model, request: Request, dlogits: Float[Array, "K tokens vocab"]) -> tuple[Watch, dict[Module, Array]]:
    """Return what each module was given, and dlogits brought back to each module's output: K copies of the request."""
    p = Precision("model", "float64")
    k, tokens, _ = dlogits.shape
    adapters, slots = AdapterSlots(model, p), []
    for slot, (adapter, weight) in enumerate(request.adapters):
        adapters.put(slot, NUMPY.bind_adapter(adapter, model.config, NUMPY.adapter_scale))
        slots.append((slot, weight))
    blocks = ceil_div(tokens, BLOCK_SIZE)
    cache = KVCache(replace(model.config, num_hidden_layers=1), k * blocks, BLOCK_SIZE, p)
    starts = starts_of(request)
    copies = [ScheduledRequest(request.prompt_ids, 0, cache.allocate(blocks), slots, tokens, starts) for _ in range(k)]
    batch = make_batch(copies, cache, adapters, NUMPY, every_row=True)
    gradients: dict[Module, Array] = {}

    def watched(
        dy: Array, x: Array, module: Module, adapters: AdapterSlots, mapping: LoraMapping, p: Precision
    ) -> tuple[Array, Array, Gradients]:
        gradients[module] = dy.reshape(k, tokens, -1).transpose(1, 0, 2)
        return lora_delta_vjp(dy, x, module, adapters, mapping, p)

    watch, vjp = Watch(tokens), replace(GRADIENTS, lora_delta=watched)
    run = Pass(model, batch, cache, adapters, Dropout(model.config), watch.over(NUMPY), vjp, p)
    logits, kept = forward(run)
    # An adapter with a larger vocabulary widens the logits: the engine showed as many.
    backward(run, dlogits.reshape(k * tokens, -1)[:, : logits.shape[1]], kept)
    return watch, gradients
