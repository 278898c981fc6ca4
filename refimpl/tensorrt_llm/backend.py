"""TensorRT-LLM's LoRA as a backend: the scale is multiplied into B when an adapter is bound, and 1 is left of it.

    logits(model, requests, backend("float16"), Precision("model", "float16"))

computes y = T(T(x W^T) + T(T(x A^T) B'^T)) with B' = scale * B of the type T, in either of its loaders' orders
(prescale.py). Where its attention and its norms round is not documented; Precision("model", T) rounds everywhere.
"""

from collections.abc import Callable
from dataclasses import replace

from ..adapter import Adapter
from ..adapter_slots import BoundAdapter, LoraWeights
from ..config import ModelConfig
from ..ops import NUMPY, Ops
from .prescale import check_order, prescale


def backend(dtype: str, order: str = "manager", ops: Ops = NUMPY) -> Ops:
    """Return `ops` with its adapters prescaled in the type, "manager" or "convert". LoracleError for another order."""
    check_order(order)

    def bind_adapter(adapter: Adapter, config: ModelConfig, scale: Callable[[float, int, bool], float]) -> BoundAdapter:
        bound = ops.bind_adapter(adapter, config, scale)
        return replace(bound, lora={module: prescaled(one, dtype, order) for module, one in bound.lora.items()})

    return replace(ops, bind_adapter=bind_adapter)


def prescaled(lora: LoraWeights, dtype: str, order: str) -> LoraWeights:
    """The same correction with its scale in B. A bias of lora_B and DoRA's magnitude take part; TensorRT-LLM itself
    refuses the one, and ignores the other in its PyTorch backend."""
    bias = None if lora.bias is None else prescale(lora.bias, lora.scale, dtype, order)
    return replace(lora, B=prescale(lora.B, lora.scale, dtype, order), scale=1.0, bias=bias)
