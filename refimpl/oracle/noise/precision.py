"""Which type does the engine compute in, and does it keep to it everywhere?

A lower precision than was declared is not a bug in LoRA, but it must be named, and the noise be measured anew. The base
rows say so: they have the engine's rounding and no adapter. Variants of the reference that round one thing more are
directions like any mutant's: what is left of the error when one of them is taken out?
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from ...arrays import Array, Precision
from ...model import logits
from ..cases import case as cases
from ..cases.testbed import Testbed
from ..diagnosis.projection import Sample
from .ensemble import Member, ensemble
from .verdict import Thresholds

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
NARROWER = {"float32": ("float16", "bfloat16"), "float16": ("bfloat16",), "bfloat16": ()}


@dataclass(frozen=True)
class PrecisionFinding:
    """The engine rounds something to less than was declared."""

    what: str  # "KV cache in float16"
    points: tuple[str, ...]
    dtype: str
    left: float  # of the error, as a share of it, when this is taken out

    def apply(self, p: Precision) -> Precision:
        """The same precision with these points narrower."""
        return replace(p, **dict.fromkeys(self.points, self.dtype))


def too_noisy(known: Thresholds) -> bool:
    """Are the engine's base rows further off than those of the noisiest honest run, by more than chance?"""
    return bool(known.base > known.highest + 2 * known.spread)


def lower_precision(samples: Sequence[Sample], testbed: Testbed) -> PrecisionFinding | None:
    """The narrowing that explains the base rows best; None if none takes away half of their error."""
    rows = [(e, raw) for s in samples for e, raw in zip(s.counted, s.raws, strict=True) if raw and e.adapter is None]
    if not rows:
        return None
    requests = [cases.request(e, testbed) for e, _ in rows]
    energy = sum(float(np.sum((raw.error / raw.unit[:, None]) ** 2)) for _, raw in rows)
    best: PrecisionFinding | None = None
    for preset in ("model", "transformers"):
        for dtype in NARROWER.get(testbed.dtype, ()):
            for what, points in POINTS.items():
                p = replace(Precision(preset, testbed.dtype), **dict.fromkeys(points, dtype))
                runs = logits(testbed.model, requests, precision=p)
                left = sum(_left(raw, run) for (_, raw), run in zip(rows, runs, strict=True))
                found = PrecisionFinding(f"{what} in {dtype}", points, dtype, float(np.sqrt(left / energy)))
                if best is None or found.left < best.left:
                    best = found
    return best if best is not None and best.left < 0.5 else None


def _left(raw: object, run: Array) -> float:
    own = raw.view.of(run[raw.rows].astype(np.float64)) - raw.exact  # type: ignore[attr-defined]
    return float(np.sum(((raw.error - own) / raw.unit[:, None]) ** 2))  # type: ignore[attr-defined]


def narrowed(members: Sequence[Member], finding: PrecisionFinding) -> tuple[Member, ...]:
    """The honest ways to compute, with what was found."""
    return tuple(replace(m, precision=finding.apply(m.precision)) for m in members)


def infer(samples: Sequence[tuple[cases.Case, Sequence[cases.Exchange]]], testbed: Testbed) -> str:
    """The type whose honest runs are as far from the truth as the engine is: of its base rows, or of all."""
    from .measure import measure
    from .verdict import limits

    levels = {}
    for dtype in TYPES:
        there = testbed.in_dtype(dtype)
        measured = [m for case, exchanges in samples for m in measure(case, exchanges, there, ensemble(dtype))[0]]
        known = limits(measured)
        rows = [m for m in measured if not m.problem and m.ratio.size]
        level = known.base if np.isfinite(known.base) else _middle([m.ratio for m in rows])
        levels[dtype] = abs(level)
    return min(levels, key=lambda d: levels[d] if np.isfinite(levels[d]) else np.inf)


def _middle(ratios: Sequence[Array]) -> float:
    return float(np.median(np.log(np.maximum(np.concatenate(ratios), 1e-12)))) if ratios else float("nan")
