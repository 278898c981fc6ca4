"""What the CUDA backend launches for one decode step: the forward pass is run with nothing launched, and counted.

The launches depend on which steps a layer has, on how many rows and keys there are, and on how many of the rows share
an adapter; not on how wide the residual stream is. So the model that is run has eight channels, and one layer of each
kind, whose launches count as often as the model has it.
"""

import dataclasses
from collections import Counter

import numpy as np

from ..adapter import PeftConfig
from ..adapter_slots import AdapterSlots
from ..arrays import Array, Precision, ceil_div
from ..batch import ScheduledRequest, make_batch
from ..config import LayerKind, ModelConfig
from ..cuda.launch.lora import MAX_RANK
from ..cuda.launch.start import planned
from ..cuda.table import CUDA
from ..errors import LoracleError
from ..kv_cache import KVCache
from ..model import forward
from ..ops import Ops
from ..synthetic.adapters import random_adapter
from ..synthetic.models import random_model
from .cost import Ranks, Step

WIDTH = 8  # of the residual stream, the MLP and the vocabulary
BLOCK_SIZE = 16
PRODUCT = "product"  # of the base: one call of cuBLAS, and no kernel of ours


def launches(config: ModelConfig, ranks: Ranks, step: Step, dtype: str, ops: Ops = CUDA) -> Counter[str]:
    """Kernel -> how often it is launched in one pass over all requests of a decode step; PRODUCT beside them.

    CuPy's own small kernels (the residual's sum, rounding) are not counted. LoracleError for what the kernels do not
    compute: a family of which they lack a step, a rank above their largest."""
    if step.adapters and max(ranks.values()) > MAX_RANK:
        raise LoracleError(f"ops cuda: rank {max(ranks.values())}; the kernels take ranks from 1 to {MAX_RANK}")
    if config.hidden_size_per_layer_input or len(config.kv_layers) < config.num_hidden_layers:
        raise LoracleError("launches: layers that read another's keys, or have inputs of their own, are not counted")
    if config.moe is not None:
        raise LoracleError("launches: which experts the tokens of a step go through is not known: they are not counted")
    kinds = Counter(config.kind(layer) for layer in range(config.num_hidden_layers))
    outside = counted(config, ranks, step, dtype, ops, ())
    result = Counter(outside)
    for kind, count in kinds.items():
        layer = counted(config, ranks, step, dtype, ops, (kind,))
        layer.subtract(outside)
        result.update({name: count * number for name, number in layer.items() if number})
    return result


def counted(
    config: ModelConfig, ranks: Ranks, step: Step, dtype: str, ops: Ops, kinds: tuple[LayerKind, ...]
) -> Counter[str]:
    """The launches of a model with these layers alone."""
    small = dataclasses.replace(
        config, num_hidden_layers=len(kinds), layers=kinds, vocab_size=WIDTH, hidden_size=WIDTH, intermediate_size=WIDTH
    )
    numbers = "float32" if dtype == "float32" else "float16"  # what is launched is the same for both half types
    model = random_model(small, np.random.default_rng(0), numbers)
    p, products = model.precision(Precision(ops.precision, numbers)), 0
    adapters = AdapterSlots(model, p)
    targets = tuple(sorted({name for _, name in ranks}))
    adapter = random_adapter(small, PeftConfig(1, 2, target_modules=targets), "any", np.random.default_rng(1))
    bound = ops.bind_adapter(adapter, small, ops.adapter_scale)
    for slot in range(step.adapters):
        adapters.put(slot, bound)

    def linear(x: Array, weight: Array, bias: Array | None, p: Precision) -> Array:
        nonlocal products
        products += 1
        return ops.linear(x, weight, bias, p)

    blocks = ceil_div(step.context, BLOCK_SIZE)
    cache = KVCache(small, step.requests * blocks, BLOCK_SIZE, p)
    scheduled = [
        ScheduledRequest(
            [1], step.context - 1, cache.allocate(blocks), [(r % step.adapters, 1.0)] if step.adapters else []
        )
        for r in range(step.requests)
    ]
    batch = make_batch(scheduled, cache, adapters, ops)
    with planned() as names, np.errstate(all="ignore"):  # what no kernel has written is any number
        forward(model, batch, cache, adapters, dataclasses.replace(ops, linear=linear), p)
    return Counter(names) + Counter({PRODUCT: products})
