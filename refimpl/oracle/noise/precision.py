"""Which type does the engine compute in, and does it keep to it everywhere?

A lower precision than was declared is not a bug in LoRA, but it must be named, and the noise be measured anew. The base
rows say so: they have the engine's rounding and no adapter. Variants of the reference that round one thing more are
directions like any mutant's: what is left of the error when one of them is taken out?
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import ml_dtypes
import numpy as np

from ...arrays import Array, Precision
from ...model import logits
from ...ops import NUMPY
from ...request import Request
from ..cases import case as cases
from ..cases.testbed import Testbed
from .ensemble import Member, ensemble
from .measure import Errors, Sample, measure
from .verdict import Thresholds, learn_thresholds

TYPES = ("float32", "bfloat16", "float16")  # what `auto` chooses from

# What engines are known to keep in a narrower type, by the name that it gets in a finding.
POINTS = {
    "KV cache": ("kv",),
    "attention": ("rope", "kv", "scores", "probabilities", "attention"),
    "attention probabilities": ("probabilities",),
    "cos and sin tables": ("rope_table",),
    "linear layers": ("linear",),
    "residual stream": ("residual",),
    "logits": ("logits",),
    "activations of the MLP": ("activation",),
    "everything": (
        "embedding",
        "norm",
        "linear",
        "rope",
        "kv",
        "probabilities",
        "attention",
        "activation",
        "residual",
        "logits",
    ),
}
EXACT = 10.0  # times more exact than its type allows; an engine that rounds fewer intermediates is up to 2 times
FLOAT8 = ("float8_e4m3fn", "float8_e5m2")  # ml_dtypes' names
NARROWER = {"float32": ("float16", "bfloat16"), "float16": ("bfloat16",), "bfloat16": ()}


@dataclass(frozen=True)
class PrecisionFinding:
    """The engine rounds something to less than was declared."""

    what: str  # "KV cache in float16"
    points: tuple[str, ...]
    dtype: str
    unexplained: float  # of the error, as a share of it, when this is taken out

    def apply(self, p: Precision) -> Precision:
        """The same precision with these points narrower."""
        return replace(p, **dict.fromkeys(self.points, self.dtype))


def too_noisy(thresholds: Thresholds) -> bool:
    """Are the engine's base rows further off than those of the noisiest honest run, by more than chance?"""
    return bool(thresholds.base > thresholds.highest + 2 * thresholds.spread)


def more_exact(thresholds: Thresholds, dtype: str) -> list[str]:
    """Return one line where the engine's base rows are so exact that it must compute in a wider type; else none."""
    times = float(np.exp(thresholds.level - thresholds.base))
    if dtype == "float32" or not times > EXACT:
        return []
    return [
        f"precision: base rows are {times:.3g} x as exact as {dtype} is: the engine computes in a wider type, and what "
        f"is wrong by less than the noise of {dtype} was not seen; ask --precision float32"
    ]


def lower_precision(samples: Sequence[Sample], testbed: Testbed) -> PrecisionFinding | None:
    """The narrowing that explains the base rows best; None if none takes away half of their error."""
    requests, raws = _base_rows(samples, testbed)
    if not raws:
        return None
    energy = _energy(raws)
    best: PrecisionFinding | None = None
    for preset in ("model", "transformers"):
        for dtype in NARROWER.get(testbed.dtype, ()):
            for what, points in POINTS.items():
                p = replace(Precision(preset, testbed.dtype), **dict.fromkeys(points, dtype))
                runs = logits(testbed.model, requests, precision=p)
                unexplained = sum(_unexplained(raw, run) for raw, run in zip(raws, runs, strict=True))
                finding = PrecisionFinding(f"{what} in {dtype}", points, dtype, float(np.sqrt(unexplained / energy)))
                if best is None or finding.unexplained < best.unexplained:
                    best = finding
    return best if best is not None and best.unexplained < 0.5 else None


def rounded_weights(samples: Sequence[Sample], testbed: Testbed) -> str:
    """The type to which the base's weights are rounded, as if they had been loaded in it and widened; "" if none
    takes away all but a tenth of the error of the base rows."""
    requests, raws = _base_rows(samples, testbed)
    for dtype in NARROWER.get(testbed.dtype, ()) if raws else ():
        if _explains(raws, logits(testbed.in_dtype(dtype).exact, requests)):
            return dtype
    return ""


def float8_cache(samples: Sequence[Sample], testbed: Testbed) -> str:
    """The float8 type to which keys and values are rounded when they are written, without a scale (vLLM's
    kv_cache_dtype, csrc/quantization/fp8); "" if none takes away all but a tenth of the error of the base rows."""
    requests, raws = _base_rows(samples, testbed)
    for dtype in FLOAT8 if raws else ():
        if _explains(raws, logits(testbed.exact, requests, replace(NUMPY, write_kv=partial(_write_float8, dtype)))):
            return dtype
    return ""


def _write_float8(dtype: str, k_cache: Array, v_cache: Array, k: Array, v: Array, *where: Any) -> None:
    narrow_k, narrow_v = (x.astype(getattr(ml_dtypes, dtype)).astype(x.dtype) for x in (k, v))
    NUMPY.write_kv(k_cache, v_cache, narrow_k, narrow_v, *where)


def _explains(raws: Sequence[Errors], runs: Sequence[Array]) -> bool:
    """Do these runs take away all but a tenth of the error of the base rows?"""
    unexplained = sum(_unexplained(raw, run) for raw, run in zip(raws, runs, strict=True))
    return bool(np.sqrt(unexplained / _energy(raws)) < 0.1)


def _base_rows(samples: Sequence[Sample], testbed: Testbed) -> tuple[list[Request], list[Errors]]:
    """Return the requests without an adapter, and their errors."""
    rows = [
        (cases.teacher_forced(exchange, testbed.adapters), raw)
        for sample in samples
        for exchange, raw in zip(sample.counted, sample.raws, strict=True)
        if raw and exchange.adapter is None
    ]
    return [request for request, _ in rows], [raw for _, raw in rows]


def _energy(raws: Sequence[Errors]) -> float:
    return sum(float(np.sum((raw.error / raw.unit[:, None]) ** 2)) for raw in raws)


def _unexplained(raw: Errors, run: Array) -> float:
    alone = raw.view.of(run[raw.rows].astype(np.float64)) - raw.exact
    return float(np.sum(((raw.error - alone) / raw.unit[:, None]) ** 2))


def narrowed(members: Sequence[Member], finding: PrecisionFinding) -> tuple[Member, ...]:
    """The honest ways to compute, with what was found."""
    return tuple(replace(member, precision=finding.apply(member.precision)) for member in members)


def infer(samples: Sequence[tuple[cases.Case, Sequence[cases.Exchange]]], testbed: Testbed) -> str:
    """The type whose honest runs are as far from the truth as the engine is: of its base rows, or of all."""
    levels = {}
    for dtype in TYPES:
        present = testbed.in_dtype(dtype)
        measured = [
            ratios for case, exchanges in samples for ratios in measure(case, exchanges, present, ensemble(dtype))[0]
        ]
        thresholds = learn_thresholds(measured)
        rows = [ratios for ratios in measured if not ratios.problem and ratios.ratio.size]
        level = thresholds.base if np.isfinite(thresholds.base) else _middle([ratios.ratio for ratios in rows])
        levels[dtype] = abs(level)
    return min(levels, key=lambda dtype: levels[dtype] if np.isfinite(levels[dtype]) else np.inf)


def _middle(ratios: Sequence[Array]) -> float:
    return float(np.median(np.log(np.maximum(np.concatenate(ratios), 1e-12)))) if ratios else float("nan")
