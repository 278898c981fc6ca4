"""The LoRA product alone, in a recording of TensorRT-LLM: beside a bound that is computed from its numbers."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from ...arrays import DTYPES, Array
from ..vectors.bounds import exact, product
from .tensorrt_llm_recording import Recording, read_arrays, read_json


@dataclass(frozen=True)
class KernelResult:
    """One vector of the LoRA product."""

    part: str
    name: str
    error: str
    may_fail: bool
    worst: float  # the largest error over its bound; must be <= 1


def kernel_results(recording: Recording) -> list[KernelResult]:
    """Return a result for every vector, in every part that recorded it."""
    arrays = read_arrays(recording.folder / "kernel.npz")
    results = []
    for part in recording.plan["parts"]:
        if part["kind"] != "kernel":
            continue
        for vector in recording.plan["kernel"]:
            file = recording.folder / part["name"] / f"{vector['name']}.json"
            if file.is_file():
                error, outputs = read_json(file)["error"], read_arrays(file.with_suffix(".npz"))
                worst = float("nan") if error else max(_ratios(vector, arrays, outputs), default=float("inf"))
                results.append(KernelResult(part["name"], vector["name"], error, vector["may_fail"], worst))
    return results


def _ratios(vector: Mapping[str, Any], arrays: Mapping[str, Array], outputs: Mapping[str, Array]) -> list[float]:
    """For each module and request, the largest |y - exact| / bound. A row without an adapter is exactly 0."""
    name, dtype, ratios = vector["name"], vector["dtype"], []

    def in_float64(key: str) -> Array:
        return arrays[f"{name}.{key}"].view(DTYPES[dtype]).astype(np.float64)

    x = in_float64("x")
    for module, d_out in enumerate(vector["d_outs"]):
        y = outputs.get(f"out_{module}", np.zeros(0, np.uint16)).view(DTYPES[dtype]).astype(np.float64)
        if y.shape != (len(x), d_out):
            return [float("inf")]
        for adapter, rows in _segments(vector["requests"]):
            if adapter < 0:
                ratios.append(0.0 if not y[rows].any() else float("inf"))
                continue
            shrunk = product(exact(x[rows]), exact(in_float64(f"A.{module}.{adapter}"))).rounded(dtype)
            near = product(shrunk, exact(in_float64(f"B.{module}.{adapter}"))).rounded(dtype)
            ratio = np.abs(y[rows] - near.value) / near.off
            ratios.append(float("inf") if np.isnan(ratio).any() else float(ratio.max()))
    return ratios


def _segments(requests: Sequence[Mapping[str, Any]]) -> list[tuple[int, slice]]:
    """The adapter and the rows of each request."""
    segments, start = [], 0
    for request in requests:
        n = request["length"] if request["type"] == 0 else 1
        segments.append((int(request["adapter"]), slice(start, start + n)))
        start += n
    return segments
