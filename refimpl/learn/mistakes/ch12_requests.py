"""Requests that leave many bugs in the dark, the darkest first."""

from collections.abc import Callable

from ...adapter import Adapter
from ...request import Request
from ..exercise import Mistake

Maker = Callable[..., Adapter]
Batches = list[list[Request]]


def base_only(adapter: Maker) -> Batches:
    return [[Request([1, 2, 3]), Request([4, 5])]]


def one_request(adapter: Maker) -> Batches:
    return [[Request([1, 2, 3], adapter("first", r=4, lora_alpha=8, use_rslora=True), max_new_tokens=2)]]


def no_base_row(adapter: Maker) -> Batches:
    first, second = adapter("first", r=4, lora_alpha=8), adapter("second", r=6, lora_alpha=9, use_rslora=True)
    return [[Request([1, 2, 3], first), Request([4, 5], second)]]


def one_token_each(adapter: Maker) -> Batches:
    first, second = adapter("first", r=4, lora_alpha=8), adapter("second", r=6, lora_alpha=9, use_rslora=True)
    return [[Request([1], first), Request([7]), Request([4], second)]]


def alpha_equals_r(adapter: Maker) -> Batches:
    return [[Request([1, 2, 3], adapter("first")), Request([7]), Request([4, 5], adapter("second"))]]


def no_rslora(adapter: Maker) -> Batches:
    first, second = adapter("first", r=4, lora_alpha=8), adapter("second", r=6, lora_alpha=9)
    return [[Request([1, 2, 3], first), Request([7]), Request([4, 5], second)]]


def one_batch(adapter: Maker) -> Batches:
    first, second = adapter("first", r=4, lora_alpha=8), adapter("second", r=6, lora_alpha=9, use_rslora=True)
    third = adapter("third", r=3, lora_alpha=2, target_modules=("q_proj", "lm_head"))
    return [[Request([1, 2, 3], first), Request([7, 8]), Request([4, 5], second), Request([6, 6, 6], third)]]


def always_at_weight_one(adapter: Maker) -> Batches:
    first, second = adapter("first", r=4, lora_alpha=8), adapter("second", r=6, lora_alpha=9, use_rslora=True)
    third, again = adapter("third", r=3, lora_alpha=2), adapter("first", r=4, lora_alpha=3)
    return [
        [Request([1, 2, 3], first), Request([7]), Request([4, 5], second), Request([6], third)],
        [Request([1, 2], again)],
    ]


MISTAKES = (
    Mistake(
        "base_only",
        "no request has an adapter, and all of these bugs are about adapters.",
        base_only,
    ),
    Mistake(
        "one_request",
        "where there is nobody else in the batch, nobody can get somebody else's adapter.",
        one_request,
        ("https://github.com/vllm-project/vllm/pull/21068", "https://github.com/sgl-project/sglang/pull/11579"),
    ),
    Mistake(
        "no_base_row",
        "everybody has an adapter: what the engine makes of a request without one is not seen.",
        no_base_row,
        ("https://github.com/NVIDIA/TensorRT-LLM/issues/2096", "https://github.com/vllm-project/vllm/issues/49063"),
    ),
    Mistake(
        "one_token_each",
        "where every prompt is one token, one row for each request is one row for each token.",
        one_token_each,
        ("https://github.com/predibase/lorax/pull/570", "https://github.com/vllm-project/vllm-metal/pull/351"),
    ),
    Mistake(
        "alpha_equals_r",
        "alpha / r is 1 for everybody: an engine that forgets the scale, or turns it upside down, is right.",
        alpha_equals_r,
        ("https://github.com/hao-ai-lab/FastVideo/pull/870", "https://github.com/NVIDIA/TensorRT-LLM/issues/2022"),
    ),
    Mistake(
        "no_rslora",
        "an adapter can ask for another formula of its scale, and none of these does.",
        no_rslora,
        ("https://github.com/vllm-project/vllm/issues/10798", "https://github.com/sgl-project/sglang/issues/40835"),
    ),
    Mistake(
        "one_batch",
        "nothing is ever loaded into a slot that somebody else had before: bugs of memory need a story.",
        one_batch,
        (
            "https://github.com/NVIDIA/TensorRT-LLM/pull/5616",
            "https://github.com/a710128/nanovllm-voxcpm/pull/66",
            "https://github.com/vllm-project/vllm-metal/pull/641",
        ),
    ),
    Mistake(
        "always_at_weight_one",
        "a request may take half of an adapter, and a sum of two: none of these does.",
        always_at_weight_one,
        ("https://github.com/huggingface/diffusers/pull/5417",),
    ),
)
