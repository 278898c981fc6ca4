"""A. Scale: the right product, times the wrong number."""

from ...ops import Ops
from .mutant import Family
from .steps import but

scale = Family("A")


@scale.bug(
    "alpha / r, although the adapter says rsLoRA: alpha / sqrt(r)",
    "https://github.com/NVIDIA/TensorRT-LLM/issues/1668",
    "https://github.com/vllm-project/vllm/issues/10798",
    "https://github.com/sgl-project/sglang/issues/40835",
    "https://github.com/predibase/lorax/issues/700",
    needs="rslora",
)
def rslora_ignored() -> Ops:
    return but(adapter_scale=lambda alpha, r, use_rslora: alpha / r)
