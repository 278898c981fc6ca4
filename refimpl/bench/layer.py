"""How many launches one transformer layer costs: for a handful of tokens that, and not the bytes, is the time."""

import time
from collections import Counter
from typing import Any

import numpy as np

from ..adapter_slots import LoraWeights
from ..arrays import device_namespace
from ..backends import BACKENDS
from ..cuda import launch, runner
from ..plans import LoraMapping
from .decode import Shape, decoding, model_of

# (layers that share an input, and so a launch; their d_in; their d_outs) of Llama-8B
GROUPS = (
    ("q k v", "hidden_size", ("q_proj", "k_proj", "v_proj")),
    ("o", "hidden_size", ("o_proj",)),
    ("gate up", "hidden_size", ("gate_proj", "up_proj")),
    ("down", "intermediate_size", ("down_proj",)),
)


def launches_per_layer() -> dict[str, int]:
    """Kernel -> its launches in one layer of a decode step: what a model of two layers has more than one of one."""
    counts, device = [], "cuda" if runner.device() == "gpu" else "cpu"
    for layers in (1, 2):
        model = model_of(Shape(hidden=64, heads=2, kv_heads=1, layers=layers, vocab=128), "float32", device)
        with launch.recorded() as noted:
            decoding(model, adapters=2, rank=4, context=8, ops=BACKENDS["cuda"]).batched()
        counts.append(Counter(name for name, _ in noted))
    return dict(counts[1] - counts[0])


def layer_report(rank: int = 16, tokens: int = 8, repeats: int = 25) -> dict[str, Any]:
    """LoRA of all seven modules of one layer, module by module and with those that share an input in one launch."""
    on_gpu = runner.device() == "gpu"
    shape = Shape.llama_8b() if on_gpu else Shape(hidden=128, heads=4, kv_heads=2)
    config = shape.config()
    xp: Any = device_namespace("cuda" if on_gpu else "cpu")
    rng = np.random.default_rng(0)
    mapping = LoraMapping.of(np.arange(tokens, dtype=np.int32)[:, None], np.ones((tokens, 1)), xp)
    apart: list[Any] = []
    together: list[Any] = []
    for _, _, modules in GROUPS:
        d_outs = [config.shape(module)[0] for module in modules]
        d_in = config.shape(modules[0])[1]
        adapters = [
            {
                slot: LoraWeights(numbers(rng, xp, rank, d_in), numbers(rng, xp, d_out, rank), 0.5)
                for slot in range(tokens)
            }
            for d_out in d_outs
        ]
        x = launch.stored(numbers(rng, xp, tokens, d_in), "float16")
        with launch.recorded() as noted:
            for one, d_out in zip(adapters, d_outs, strict=True):
                y = launch.stored(numbers(rng, xp, tokens, d_out), "float16")
                launch.lora_delta(y, x, launch.pack([one], [d_out], "float16", xp=xp), mapping, round_rank=True)
        apart += [again for _, again in noted]
        with launch.recorded() as noted:
            y = launch.stored(numbers(rng, xp, tokens, sum(d_outs)), "float16")
            launch.lora_delta(y, x, launch.pack(adapters, d_outs, "float16", xp=xp), mapping, round_rank=True)
        together += [again for _, again in noted]
    report: dict[str, Any] = {
        "rank": rank,
        "tokens": tokens,
        "launches_module_by_module": len(apart),
        "launches_by_shared_input": len(together),
        "launches_of_cuda_ops": launches_per_layer(),
    }
    if on_gpu:
        report |= {
            "seconds_module_by_module": times(apart, repeats),
            "seconds_by_shared_input": times(together, repeats),
        }
    return report


def times(launches: list[Any], repeats: int) -> dict[str, float]:
    """All of them: as a graph, and one call after another from Python."""
    from .gpu import Stopwatch, wait

    watch = Stopwatch(repeats)
    graph = watch.time(watch.captured(launches), 1).median
    calls = []
    for _ in range(repeats):
        wait()
        begun = time.perf_counter()
        for again in launches:
            again()
        wait()
        calls.append(time.perf_counter() - begun)
    return {"graph": graph, "calls": float(np.median(calls))}


def numbers(rng: np.random.Generator, xp: Any, *shape: int) -> Any:
    """Signed and small."""
    return xp.asarray(rng.standard_normal(shape, dtype=np.float32) / np.float32(16))
