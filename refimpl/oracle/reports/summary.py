"""A result as JSON: what `loracle check --json` prints, and what the report is drawn from."""

import math
import platform
from typing import Any

import numpy as np

from ... import __version__
from ...arrays import Array
from ..cases.case_json import to_json
from ..diagnosis.diagnose import Finding
from ..diagnosis.localise import Location
from ..diagnosis.projection import limit
from .pictures import Picture
from .result import PlayedCase, Result


def summary(result: Result, engine: str, repro: str = "") -> dict[str, Any]:
    """The keys are documented in docs/check.md."""
    verdicts = [p.verdict for p in result.played]
    ratios = [math.inf if math.isnan(j.ratio) else j.ratio for one in result.played for j in one.verdicts]
    place = result.explanation.first_divergence
    return {
        "verdict": result.verdict,
        "engine": engine,
        "cases": len(verdicts),
        "passed": verdicts.count("pass"),
        "failed": verdicts.count("fail"),
        "undecided": verdicts.count("undecided"),
        "worst_noise_ratio": _number(max(ratios, default=0.0)),
        "precision": result.dtype,
        "diagnosis": [_finding(f) for f in result.explanation.findings],
        "symptoms": [{"what": s.what, "count": s.count, "of": s.of} for s in result.explanation.symptoms],
        "first_divergence": None if place is None else _place(place),
        "places": [_place(p) for p in result.explanation.locations],
        "findings": result.diagnostics,
        "power": result.power,
        "seen_from": _seen_from(result),
        "repro": repro,
        "environment": _environment() | result.versions,
        "noise": {
            "level": _number(math.exp(result.thresholds.level)),
            "spread": _number(result.thresholds.spread),
            "fails_from": _number(result.thresholds.ratio),
            "base_level": _number(math.exp(result.thresholds.base)),
            "unit": _unit(result),
            "ceiling": _number(result.ceiling),
        },
        "smallest_failure": None if result.explanation.smallest is None else to_json(result.explanation.smallest),
        "picture": None if result.explanation.picture is None else _picture(result.explanation.picture),
        "batches": [_played(p) for p in result.played],
        "seconds": {name: round(s, 3) for name, s in result.seconds.items()},
    }


def _finding(f: Finding) -> dict[str, Any]:
    return {
        "name": f.name,
        "class": f.family,
        "coefficient": _number(f.projection.coefficient),
        "sigma": _number(f.projection.sigma),
        "residual": _number(f.residual),
        "explains": f.explains,
        "only": f.only,
        "also": list(f.also),
        "separated_by": f.separated_by,
        "what": f.what,
        "links": list(f.links),
        "evidence": f.evidence,
    }


def _place(p: Location) -> dict[str, Any]:
    return {"layer": p.layer, "module": p.module, "noise_ratio": _number(p.ratio), "by": p.how}


def _seen_from(result: Result) -> dict[str, float]:
    """Of each mutant that the cases exercise: which share of it would have been enough to be seen below the noise."""
    needed = limit(sum(x.projection.strength > 0 for x in result.candidates))
    shares = {x.mutant.name: needed * x.projection.sigma for x in result.candidates}
    return {name: float(f"{share:.3g}") for name, share in shares.items() if math.isfinite(share)}


def _picture(p: Picture) -> dict[str, Any]:
    """Numbers to three places: they are drawn."""
    close = p.close_up
    return {
        "case": p.case,
        "mutant": p.mutant,
        "lines": [
            {
                "run": line.run,
                "index": line.index,
                "adapter": line.adapter,
                "first": line.first,
                "prompt": line.prompt,
                "engine": _drawn(line.engine),
                "mutant": None if line.bug is None else _drawn(line.bug),
                "left": None if line.left is None else _drawn(line.left),
            }
            for line in p.lines
        ],
        "close_up": None
        if close is None
        else {
            "line": close.line,
            "places": close.places,
            "tokens": close.tokens,
            "engine": [_drawn(row) for row in close.engine],
            "mutant": None if close.bug is None else [_drawn(row) for row in close.bug],
            "left": None if close.left is None else [_drawn(row) for row in close.left],
        },
    }


def _drawn(xs: Array) -> list[float | None]:
    return [float(f"{x:.3g}") if math.isfinite(x) else None for x in xs]


def _played(p: PlayedCase) -> dict[str, Any]:
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
            for m, j in p.requests
        ],
    }


def _environment() -> dict[str, str]:
    """Of this side."""
    ours = {"loracle": __version__, "python": platform.python_version(), "numpy": np.__version__}
    return ours | {"machine": f"{platform.system()} {platform.machine()}"}


def _unit(result: Result) -> float | None:
    """The middle of all noise units, in what the engine shows."""
    units = [m.unit for one in result.played for m in one.ratios if m.unit.size]
    return _number(float(np.median(np.concatenate(units)))) if units else None


def _number(x: float) -> float | None:
    """JSON has no infinity and no NaN: null is what has no size."""
    return float(f"{x:.6g}") if math.isfinite(x) else None
