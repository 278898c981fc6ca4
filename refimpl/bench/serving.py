"""`loracle bench serving`: many adapters in one batch, against one adapter after another, on the same weights.

One request an adapter. A server that cannot mix adapters runs a step for each; one that can runs a single step. Both
are whole decode steps of `forward`, the host's part included, from the ids to logits on the host. On a GPU the same
steps are also replayed as CUDA graphs (graph.py): with the host, a step costs about the same for one request or for
many, so that the ratio says more of Python than of kernels.
"""

import math
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any

import numpy as np

from ..arrays import Precision
from ..backends import BACKENDS
from ..cuda import runner
from ..ops import Ops
from .decode import Decoding, Shape, decoding_with, model_of, random_slots, with_half_products
from .machine import about
from .verify import WrongResult

ADAPTERS = (1, 2, 4, 8, 16, 32, 64)
TOLERANCE = {"float32": 1e-4, "float16": 2e-2}  # of the largest logit: two orders of adding up, layer after layer
Result = dict[str, Any]


def plan(ops: str, quick: bool) -> tuple[Shape, str, str, Sequence[int], int]:
    """(shape, dtype, device, numbers of adapters, context) that this machine can do in reasonable time."""
    on_gpu = ops == "cuda" and runner.device() == "gpu"
    if on_gpu:
        return Shape.llama_8b(2 if quick else 4), "float16", "cuda", ADAPTERS, 256
    if ops == "cuda":  # thread by thread
        return (
            Shape(hidden=64, heads=2, kv_heads=1, layers=1),
            "float32",
            "cpu",
            (1, 2, 4) if quick else ADAPTERS[:4],
            16,
        )
    if quick:
        return Shape(hidden=256, heads=4, kv_heads=1, layers=2), "float32", "cpu", (1, 4, 8), 32
    return Shape(hidden=1024, heads=8, kv_heads=2, layers=4), "float32", "cpu", ADAPTERS, 128


def bench(
    ops_name: str, quick: bool = False, repeats: int = 7, rank: int = 16, seconds: float = math.inf
) -> Iterator[Result]:
    """The report, complete after each number of adapters. No further one is begun after so many seconds."""
    shape, dtype, device, counts, context = plan(ops_name, quick)
    ops: Ops = BACKENDS[ops_name]
    if device == "cuda":
        ops = with_half_products(ops)
    begun = time.monotonic()
    report: Result = {
        "benchmark": "serving",
        "machine": about(),
        "ops": ops_name,
        "device": device,
        "dtype": dtype,
        "model": vars(shape) | {"intermediate": shape.config().intermediate_size},
        "rank": rank,
        "context": context,
        "points": [],
        "left_out": [],
    }
    model = model_of(shape, dtype, device)
    slots = random_slots(model, max(counts), rank, Precision(ops.precision, dtype))
    for count in counts:
        if time.monotonic() - begun > seconds:
            report["left_out"].append({"adapters": count, "why": f"{seconds:g} seconds were over"})
            continue
        steps = decoding_with(model, slots, count, context, ops)
        row = {"adapters": count, **verified(steps, dtype), **measured(steps, count, repeats)}
        if device == "cuda":
            row |= on_the_device(steps, repeats)
        report["points"].append(row)
        yield report
    yield report


def verified(steps: Decoding, dtype: str) -> Result:
    """A request must get the same logits alone and in a batch, and adapters must make a difference."""
    together, alone = steps.batched(), steps.one_after_another()
    largest = float(np.abs(alone).max())
    off = float(np.abs(together - alone).max()) / largest
    if not off <= TOLERANCE[dtype]:
        raise WrongResult(f"{len(alone)} adapters: a request's logits change by {off:.3g} in a batch: nothing is timed")
    changed = np.abs(together - steps.without_adapters()).max(axis=1).min() / largest
    if not changed > TOLERANCE[dtype]:
        raise WrongResult(f"{len(alone)} adapters: one of them changes nothing: nothing is timed")
    return {"largest_difference": off}


def measured(steps: Decoding, count: int, repeats: int) -> Result:
    """Medians of pairs taken in turn, because a shared machine drifts."""
    pairs = [(seconds_of(steps.batched), seconds_of(steps.one_after_another)) for _ in range(repeats)]
    together, alone = (statistics.median(times) for times in zip(*pairs, strict=True))
    return {
        "batched_seconds": together,
        "one_after_another_seconds": alone,
        "batched_tokens_per_second": count / together,
        "one_after_another_tokens_per_second": count / alone,
        "ratio": statistics.median(alone / together for together, alone in pairs),
    }


def on_the_device(steps: Decoding, repeats: int) -> Result:
    """The same steps as CUDA graphs, without the host."""
    from .gpu import Stopwatch
    from .graph import device_seconds

    alone = [partial(steps.step, batch) for batch in steps.each]
    return device_seconds(Stopwatch(repeats), partial(steps.step, steps.everyone), alone)


def seconds_of(function: Callable[[], Any]) -> float:
    """Wall time of one call; its result is on the host, so the device is done, too."""
    start = time.perf_counter()
    function()
    return time.perf_counter() - start
