"""The bugs that vectors are made against, by class (A to I) and with the reports of real ones."""

from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Bug:
    """One way in which engines were wrong. No links: made up."""

    family: str  # the class letter
    what: str
    links: tuple[str, ...] = ()


def _github(*issues: str) -> tuple[str, ...]:
    return tuple(f"https://github.com/{issue}" for issue in issues)


BUGS = {
    "scale": Bug(
        "A",
        "alpha in place of alpha / r, or the scale left out: unseen where alpha equals r",
        _github("Blaizzy/mlx-vlm/issues/845", "rasbt/LLMs-from-scratch/issues/821", "hao-ai-lab/FastVideo/pull/870"),
    ),
    "rslora": Bug(
        "A",
        "alpha / r, although the adapter says alpha / sqrt(r)",
        _github("NVIDIA/TensorRT-LLM/issues/1668", "vllm-project/vllm/issues/10798", "sgl-project/sglang/issues/40835"),
    ),
    "patterns": Bug("A", "rank_pattern or alpha_pattern dropped", _github("vllm-project/vllm-omni/pull/6565")),
    "bias_scale": Bug("A", "the bias of lora_B not scaled", _github("huggingface/peft/issues/2486")),
    "weights": Bug("A", "the weights of summed adapters lost", _github("huggingface/diffusers/pull/5417")),
    "identity": Bug(
        "B",
        "a token gets another request's adapter",
        _github("predibase/lorax/pull/570", "vllm-project/vllm/pull/21068", "Avarok-Cybersecurity/atlas/issues/1133"),
    ),
    "none": Bug(
        "B",
        "a row without adapter is not left alone",
        _github("NVIDIA/TensorRT-LLM/issues/2096", "vllm-project/vllm/pull/32005", "vllm-project/vllm/issues/49063"),
    ),
    "last_slot": Bug("B", "the last slot is never used, in the engine or in its tests"),
    "range": Bug("B", "an id that names no adapter is served", _github("huggingface/peft/pull/2090")),
    "stale": Bug(
        "C",
        "old weights after a name or a slot is used again",
        _github(
            "sgl-project/sglang/issues/8263", "a710128/nanovllm-voxcpm/pull/66", "vllm-project/vllm-metal/pull/351"
        ),
    ),
    "evict": Bug("C", "a request without its weights after an eviction", _github("NVIDIA/TensorRT-LLM/issues/1552")),
    "prefix": Bug(
        "D",
        "keys and values of a prefix shared across adapters",
        _github("vllm-project/vllm/issues/3264", "vllm-project/vllm/issues/30931", "xLLM-AI/xllm/pull/2047"),
    ),
    "prefix_depth": Bug(
        "D",
        "a block is found although what stood before it was another text",
        _github("inference-sim/inference-sim/issues/196"),
    ),
    "layout": Bug(
        "E",
        "rank or widths taken from elsewhere than the tensors; square layers hide it",
        _github("predibase/lorax/pull/324", "Lightning-AI/litgpt/issues/891", "huggingface/peft/issues/3531"),
    ),
    "not_applied": Bug(
        "F",
        "an adapter, or a part of it, silently left out",
        _github(
            "vllm-project/vllm/issues/34186",
            "huggingface/text-generation-inference/issues/2441",
            "unslothai/unsloth/pull/9331",
        ),
    ),
    "rank": Bug(
        "G",
        "wrong for some ranks",
        _github("predibase/lorax/pull/70", "sgl-project/sgl-kernel-npu/pull/790", "punica-ai/punica/issues/57"),
    ),
    "length": Bug("G", "the end of a long sum left out, or a count of tokens", _github("vllm-project/vllm/pull/7585")),
    "poison": Bug(
        "G",
        "0 times NaN: memory that nobody wrote takes part",
        _github("openvinotoolkit/openvino/pull/37377", "vllm-project/vllm/pull/29316"),
    ),
    "slots": Bug(
        "H",
        "keys and values at another place than where they are read",
        _github("vllm-project/vllm/pull/42420", "tanishqkumar/ssd/issues/23", "mudler/vllm.cpp/pull/2672"),
    ),
    "window": Bug("H", "the edge of the sliding window", _github("huggingface/transformers/issues/37574")),
    "positions": Bug(
        "H",
        "positions that start anew",
        _github("Blaizzy/mlx-vlm/issues/1983", "Wenyueh/MinivLLM/pull/98", "vllm-project/vllm-metal/pull/144"),
    ),
    "heads": Bug("H", "query heads with another head's keys"),
    "overflow": Bug("H", "softmax without its largest score taken off", _github("openvinotoolkit/openvino/pull/34809")),
}


def described(key: str) -> dict[str, Any]:
    """As it stands in a manifest."""
    bug = BUGS[key]
    return {"bug": key, "class": bug.family, "what": bug.what, "links": list(bug.links)}
