"""A result as JSON: what `loracle check --json` prints, and what the report is drawn from."""

import math
from typing import Any

import numpy as np

from .campaign import Played, Result
from .case_json import to_json
from .diagnose import Finding


def summary(result: Result, engine: str, repro: str = "") -> dict[str, Any]:
    """The keys are documented in docs/check.md."""
    verdicts = [p.verdict for p in result.played]
    ratios = [j.ratio for p in result.played for j in p.judged]
    place = result.first_divergence
    return {
        "verdict": result.verdict,
        "engine": engine,
        "cases": len(verdicts),
        "passed": verdicts.count("pass"),
        "failed": verdicts.count("fail"),
        "undecided": verdicts.count("undecided"),
        "worst_noise_ratio": _number(max(ratios, default=0.0)),
        "precision": result.dtype,
        "diagnosis": [_finding(f) for f in result.diagnosis],
        "symptoms": [{"what": s.what, "count": s.count, "of": s.of} for s in result.symptoms],
        "first_divergence": None
        if place is None
        else {"layer": place.layer, "module": place.module, "noise_ratio": _number(place.ratio), "by": place.how},
        "findings": result.findings,
        "power": result.power,
        "repro": repro,
        "environment": result.versions,
        "noise": {
            "level": _number(math.exp(result.known.level)),
            "spread": _number(result.known.spread),
            "fails_from": _number(result.known.ratio),
            "base_level": _number(math.exp(result.known.base)),
            "unit": _unit(result),
        },
        "smallest_failure": None if result.smallest is None else to_json(result.smallest),
        "batches": [_played(p) for p in result.played],
        "seconds": {name: round(s, 3) for name, s in result.seconds.items()},
    }


def _finding(f: Finding) -> dict[str, Any]:
    return {
        "name": f.name,
        "class": f.family,
        "coefficient": _number(f.seen.coefficient),
        "sigma": _number(f.seen.sigma),
        "residual": _number(f.residual),
        "explains": f.explains,
        "only": f.only,
        "also": list(f.also),
        "separated_by": f.separated_by,
        "what": f.what,
        "links": list(f.links),
        "evidence": f.evidence,
    }


def _played(p: Played) -> dict[str, Any]:
    return {
        "name": p.case.name,
        "verdict": p.verdict,
        "requests": [
            {
                "adapter": m.adapter,
                "verdict": j.verdict,
                "noise_ratio": _number(j.ratio),
                "why": j.why,
                "first": m.first,
                "ratios": [_number(r) for r in m.ratio],
            }
            for m, j in zip(p.measured, p.judged, strict=True)
        ],
    }


def _unit(result: Result) -> float | None:
    """The middle of all noise units, in what the engine shows."""
    units = [m.unit for p in result.played for m in p.measured if m.unit.size]
    return _number(float(np.median(np.concatenate(units)))) if units else None


def _number(x: float) -> float | None:
    """JSON has no infinity and no NaN: null is what has no size."""
    return float(f"{x:.6g}") if math.isfinite(x) else None
