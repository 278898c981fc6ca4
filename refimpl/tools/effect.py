"""Is my adapter applied at all, and where? ||scale B A x|| / ||W x|| per module, on the model's own activations."""

import math
from collections.abc import Sequence

import numpy as np

from ..adapter import Adapter
from ..adapter_cache import AdapterCache
from ..adapter_slots import scale_of
from ..arrays import Precision, namespace, to_device, to_host
from ..config import Module, module_name, short_name
from ..errors import AdapterError
from ..lora import added_by
from ..model import logits
from ..ops import NUMPY, Ops
from ..plans import LoraMapping
from ..request import Request
from ..tracing import trace
from ..weights import Model


def effect(model: Model, adapter: Adapter, prompt_ids: Sequence[int], ops: Ops = NUMPY) -> dict[Module, float]:
    """For each module that the adapter touches: the norm of its delta over the norm of the base's output.

    x is what the base model itself feeds to the module on this prompt. 0 means that the adapter does nothing there.
    AdapterError where the delta is not finite."""
    p = Precision("model", model.dtype)
    with trace("*.input", "*.base") as t:
        logits(model, [Request(prompt_ids)], ops, p)
    cache = AdapterCache(model, p, ops)
    slot = cache.acquire(adapter)
    ratios = {}
    for module in model.config.modules():
        if module not in adapter.lora:
            continue
        name = short_name(module)
        x, y = t[f"{name}.input"], t[f"{name}.base"]
        added = y.shape[0], max(0, adapter.lora[module].B.shape[0] - y.shape[1])  # of a vocabulary that has grown
        x, y = to_device(x, model.device), to_device(np.hstack([y, np.zeros(added, y.dtype)]), model.device)
        mapping = LoraMapping.of(np.full((len(y), 1), slot, np.int32), np.ones((len(y), 1)), namespace(y))
        with np.errstate(over="ignore", invalid="ignore"):  # what is too large is refused below, in one line
            delta = added_by(ops.lora_delta, y, x, module, cache.slots, mapping, p)
        base, size = (float(np.linalg.norm(to_host(each).astype(np.float64))) for each in (y, delta))
        if not math.isfinite(size):
            scale = scale_of(adapter.config, module, len(adapter.lora[module].A))
            where = f"adapter {adapter.name}: {module_name(module)}"
            raise AdapterError(f"{where}: {model.dtype} cannot hold scale B A x, whose scale is {scale:g}")
        ratios[module] = size / base if base else math.inf
    return ratios
